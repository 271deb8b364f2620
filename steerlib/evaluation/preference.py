"""Pairwise preference accuracy (PPA): in how many held-out pairs does a model rate the preferred answer higher?

A margin says by how much a model rates the preferred answer above the other; above 0 it agrees with the person. It
comes from coordinates of the answers, from their likelihood (`likelihood_margins`), or from the baselines below.
"""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerlib.evaluation.intervals import Interval, cluster_interval, share_interval
from steerlib.evaluation.metrics import length
from steerlib.tables import ATTRIBUTE_COLUMNS

Floats = NDArray[np.float64]
COLUMNS = ["model", "comparator", "value", "low", "high", "ties", "n", "n_clusters", "how"]


def compare_preferences(preference: pd.DataFrame, *, reference: str, tie: float = 0.0) -> pd.DataFrame:
    """Pairwise preference accuracy of every model on the same held-out pairs, and its difference from one of them.

        PPA = mean_k ( 1[m_k > tie] + 1/2 1[|m_k| <= tie] ),    m_k = utility_u(y+_k) - utility_u(y-_k)

    A model that does not tell answers apart has 0.5. Models are fitted on other conversations than these pairs.

    Args:
        preference: the preference table: model, pair_id, user_id, margin.
        reference: the model that the others are compared with, for instance the population's.
        tie: margins of this size or less are ties, in the unit of the margins.

    Returns:
        By model, a row with comparator "" (accuracy in [0, 1]) and, but for the reference, one with comparator
        `reference` (accuracy minus the reference's): value, low, high (clustered by user), ties (share of pairs), n,
        n_clusters, how. In the order of the table.

    Raises:
        ValueError: no such reference, models of different pairs, a margin that is not finite, or a negative tie.

    Source: PPA of the CAA-on-PRISM study, which does not say how it treats ties; 96.6 % of its choices tie on toxicity.
    """
    if not 0 <= tie < np.inf:
        raise ValueError(f"tie must be 0 or more and finite, not {tie}")
    bad = preference[~np.isfinite(preference["margin"])]
    if len(bad):
        raise ValueError(
            f"model {bad['model'].iloc[0]!r}, pair {bad['pair_id'].iloc[0]}: the margin is not finite"
        )
    models = {str(name): rows.set_index("pair_id") for name, rows in preference.groupby("model", sort=False)}
    if reference not in models:
        raise ValueError(f"no margins of model {reference!r}; there are {', '.join(models)}")
    users = models[reference]["user_id"]
    base = _hits(models[reference]["margin"], tie)
    rows = []
    for name, own in models.items():
        if set(own.index) != set(users.index) or own.index.has_duplicates:
            raise ValueError(
                f"model {name!r} has {len(own)} pairs, {reference!r} {len(users)}: not the same ones"
            )
        hits = _hits(own.loc[users.index, "margin"], tie)
        found: dict[str, Interval] = {"": share_interval(hits, users)}
        if name != reference:
            found[reference] = cluster_interval(hits - base, users, within=(-1, 1))
        rows += [[name, other, *one[:3], (hits == 0.5).mean(), *one[3:]] for other, one in found.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


def _hits(margins: pd.Series, tie: float) -> Floats:
    """1 for a pair that is ordered as the person does, 1/2 for a tie, 0 otherwise; `(n,)`."""
    m = margins.to_numpy(np.float64)
    return np.where(np.abs(m) <= tie, 0.5, (m > 0).astype(np.float64))


def safety_margins(
    sensitivities: pd.DataFrame, users: ArrayLike, preferred: pd.DataFrame, dispreferred: pd.DataFrame
) -> Floats:
    """Margins by safety alone: the user prefers what has less of the toxicity that they are sensitive to.

        m_k = -s_u . (P(y+_k) - P(y-_k))

    Args:
        sensitivities: s_u, (users, six), fitted on other conversations, see `steerlib.profiles.sensitivities`.
        users: whose pair each is, `(n,)`.
        preferred, dispreferred: six toxicity scores of both sides, `(n, 6)`, row for row.

    Raises:
        ValueError: a user without sensitivities, or other numbers of rows.

    Source: "safety coordinates alone" of the CAA-on-PRISM study; that they are the toxicity scores is inferred from
    its share of ties.
    """
    six, asked = list(ATTRIBUTE_COLUMNS), pd.Index(np.asarray(users))
    unknown = asked.difference(sensitivities.index)
    if len(unknown):
        raise ValueError(f"{len(unknown)} users have no sensitivities, the first is {unknown[0]!r}")
    if not len(asked) == len(preferred) == len(dispreferred):
        raise ValueError(
            f"{len(asked)} users, {len(preferred)} preferred, {len(dispreferred)} dispreferred answers"
        )
    change = preferred[six].to_numpy(np.float64) - dispreferred[six].to_numpy(np.float64)
    return -(sensitivities.loc[asked, six].to_numpy(np.float64) * change).sum(axis=1)


def length_margins(pairs: pd.DataFrame, train: pd.DataFrame) -> Floats:
    """Margins by length alone: whichever of longer and shorter was preferred more often in the training pairs.

    Args:
        pairs: preferred, dispreferred; the held-out pairs.
        train: the same columns, pairs of other conversations.

    Returns:
        Words of the preferred minus words of the other answer, its sign turned where the shorter is preferred; `(n,)`.

    Raises:
        ValueError: no training pairs.
    """
    if train.empty:
        raise ValueError(
            "no training pairs: whether people prefer longer answers must not be read off held-out ones"
        )
    learnt, asked = (
        np.subtract(
            *(np.asarray(length(rows[side].tolist()), float) for side in ("preferred", "dispreferred"))
        )
        for rows in (train, pairs)
    )
    return asked if np.sign(learnt).sum() >= 0 else -asked
