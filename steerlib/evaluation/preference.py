"""Pairwise preference accuracy: of how many held-out pairs does a model see which answer the person preferred?

A margin says by how much a model rates the preferred answer above the other; above 0 it agrees with the person.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from steerlib.evaluation.intervals import Interval, cluster_interval
from steerlib.evaluation.metrics import length
from steerlib.tables import ATTRIBUTE_COLUMNS

Floats = NDArray[np.float64]
COMPARED = ["model", "comparator", "value", "low", "high", "ties", "n", "n_clusters", "how"]


class Ppa(NamedTuple):
    """Pairwise preference accuracy in [0, 1] with its interval by user, and the share of ties within it."""

    value: float
    low: float
    high: float
    ties: float
    n: int
    n_clusters: int
    how: str


def ppa_coordinates(margins: ArrayLike, users: ArrayLike, *, tie: float = 0.0) -> Ppa:
    """Pairwise preference accuracy of utilities that are linear in coordinates of the answers.

        PPA = mean_k ( 1[m_k > tie] + 1/2 1[|m_k| <= tie] ),    m_k = utility_u(y+_k) - utility_u(y-_k)

    Whoever does not tell the answers apart has 0.5. The coordinates may be activations in a basis or the six toxicity
    scores, see `safety_margins`; they are fitted on other conversations than these pairs.

    Args:
        margins: m_k, one a held-out pair, `(n,)`.
        users: whose pair each is, `(n,)`.
        tie: margins of this size or less are ties, 0 or more, in the unit of the margins.

    Raises:
        ValueError: no pairs, other numbers of margins and users, a margin that is not finite, or a negative tie.

    Source: PPA of the CAA-on-PRISM study, which does not say how it treats ties; 96.6 % of its choices tie on toxicity.
    """
    hits = _hits(margins, tie)
    return _ppa(cluster_interval(hits, users), hits)


def ppa_likelihood(
    log_preferred: ArrayLike,
    log_dispreferred: ArrayLike,
    users: ArrayLike,
    *,
    n_preferred: ArrayLike | None = None,
    n_dispreferred: ArrayLike | None = None,
    tie: float = 0.0,
) -> Ppa:
    """Pairwise preference accuracy of a language model: does it find the preferred answer more likely?

        m_k = log p(y+_k | x_k) - log p(y-_k | x_k)              summed, or each over its number of tokens

    Summed, a longer answer is nearly always the less likely one, so the accuracy is mostly one of length; over the
    number of tokens much less so. Look at both, and at `length_margins`.

    Args:
        log_preferred, log_dispreferred: log-likelihood of both sides in nats, `(n,)`, see `likelihood_margins`.
        users: whose pair each is, `(n,)`.
        n_preferred, n_dispreferred: tokens of both sides, `(n,)`; both given, likelihoods are taken a token.
        tie: see `ppa_coordinates`.

    Raises:
        ValueError: as `ppa_coordinates`; one side's number of tokens alone, or one that is not above 0.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (log_preferred, log_dispreferred)]
    if (n_preferred is None) != (n_dispreferred is None):
        raise ValueError("give the number of tokens of both sides or of none")
    if n_preferred is not None and n_dispreferred is not None:
        tokens = [np.asarray(n, dtype=np.float64) for n in (n_preferred, n_dispreferred)]
        if not all((n > 0).all() for n in tokens):
            raise ValueError("every answer must have a token: one has 0")
        sides = [side / n for side, n in zip(sides, tokens, strict=True)]
    return ppa_coordinates(sides[0] - sides[1], users, tie=tie)


def compare_preferences(
    preference: pd.DataFrame,
    *,
    reference: str,
    tie: float | Mapping[str, float] = 0.0,
) -> pd.DataFrame:
    """Accuracy of every model on the same held-out pairs, and its paired difference from one of them.

    Args:
        preference: the preference table: model, pair_id, user_id, margin.
        reference: the model that the others are compared with, for instance the population's.
        tie: size of a tie, one for all or by model; a model that is not named has 0.

    Returns:
        By model, a row with comparator "" (accuracy) and, but for the reference, one with comparator `reference`
        (accuracy less the reference's on the same pairs): value, low, high (clustered by user), ties, n, n_clusters,
        how. In the order of the table.

    Raises:
        ValueError: no such reference, models of different pairs, or as `ppa_coordinates`.
    """
    models = {str(name): rows.set_index("pair_id") for name, rows in preference.groupby("model", sort=False)}
    if reference not in models:
        raise ValueError(f"no margins of model {reference!r}; there are {', '.join(models)}")
    pairs = models[reference].index
    ties = {name: tie.get(name, 0.0) if isinstance(tie, Mapping) else tie for name in models}
    rows = []
    for name, own in models.items():
        if set(own.index) != set(pairs) or own.index.has_duplicates:
            raise ValueError(
                f"model {name!r} has {len(own)} pairs, {reference!r} {len(pairs)}: not the same ones"
            )
        own, users = own.loc[pairs], models[reference]["user_id"]
        rows.append([name, "", *ppa_coordinates(own["margin"], users, tie=ties[name])])
        if name != reference:
            hits = _hits(own["margin"], ties[name])
            gain = hits - _hits(models[reference]["margin"], ties[reference])
            found = cluster_interval(gain, users)
            rows.append([name, reference, *found[:3], _share_of_ties(hits), *found[3:]])
    return pd.DataFrame(rows, columns=COMPARED)


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
    six = list(ATTRIBUTE_COLUMNS)
    asked = pd.Index(np.asarray(users))
    unknown = asked.difference(sensitivities.index)
    if len(unknown):
        raise ValueError(f"{len(unknown)} users have no sensitivities, the first is {unknown[0]!r}")
    if not len(asked) == len(preferred) == len(dispreferred):
        raise ValueError(
            f"{len(asked)} users, {len(preferred)} preferred and {len(dispreferred)} dispreferred answers: "
            "must be equally many"
        )
    further = preferred[six].to_numpy(np.float64) - dispreferred[six].to_numpy(np.float64)
    return -(sensitivities.loc[asked, six].to_numpy(np.float64) * further).sum(axis=1)


def length_margins(pairs: pd.DataFrame, train: pd.DataFrame) -> Floats:
    """Margins by length alone: whichever of longer and shorter was preferred more often in the training pairs.

    Args:
        pairs: preferred, dispreferred; the held-out pairs.
        train: the same columns, pairs of other conversations.

    Returns:
        Difference in words, preferred less dispreferred, its sign turned where the shorter is preferred; `(n,)`.

    Raises:
        ValueError: no training pairs.
    """
    if train.empty:
        raise ValueError(
            "no training pairs: whether people prefer longer answers must not be read off held-out ones"
        )
    sign = 1.0 if np.sign(_longer(train)).sum() >= 0 else -1.0
    return sign * _longer(pairs)


def _longer(pairs: pd.DataFrame) -> Floats:
    sides = (
        np.asarray(length(pairs[side].tolist()), dtype=np.float64) for side in ("preferred", "dispreferred")
    )
    first, second = sides
    return first - second


def _hits(margins: ArrayLike, tie: float) -> Floats:
    """1 for a pair that is ordered as the person does, 1/2 for a tie, 0 otherwise; `(n,)`."""
    m = np.asarray(margins, dtype=np.float64)
    if not 0 <= tie < np.inf:
        raise ValueError(f"tie must be 0 or more and finite, not {tie}")
    bad = np.flatnonzero(~np.isfinite(m))
    if len(bad):
        raise ValueError(f"margin of row {bad[0]} is {m[bad[0]]}, not a finite number")
    return np.where(np.abs(m) <= tie, 0.5, (m > 0).astype(np.float64))


def _share_of_ties(hits: Floats) -> float:
    return float((hits == 0.5).mean())


def _ppa(found: Interval, hits: Floats) -> Ppa:
    low, high = np.clip([found.low, found.high], 0.0, 1.0)  # a t interval of few users may leave [0, 1]
    ends = float(low), float(high)
    return Ppa(found.value, *ends, _share_of_ties(hits), found.n, found.n_clusters, found.how)
