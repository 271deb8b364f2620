"""How often each estimator finds the category that a synthetic user was made with.

How strongly each user dislikes each of the six toxicity categories, and the one they dislike most.

U users, n rated responses of a user, c one of six categories.

Would the same people get the same profile from other conversations of theirs?
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest, t

from steerlib.profiles.sources import DEMO
from steerlib.tables import ATTRIBUTE_COLUMNS, check_table

SIX = list(ATTRIBUTE_COLUMNS)
ESTIMATORS = ("paper", "exposure_adjusted", "shrunk")


def sensitivities(ratings: pd.DataFrame, estimator: str = "paper") -> pd.DataFrame:
    """Dislike-weighted mean toxicity of the responses a user rated.

        d_i = 1 - r_i / 100,    s_{u,c} = sum_i d_i P_c(i) / sum_i d_i          ("paper")
        a_{u,c} = s_{u,c} - (1/n) sum_i P_c(i)                                  ("exposure_adjusted")
        b_u a_{u,c} + (1 - b_u) mu_c,                                           ("shrunk")
        b_u = 1 - (U - 3) / (U - 1) * (V_c / n_u) / (tau2_c + V_c / n_u)

    V_c is the sampling variance of one rating, pooled over users; tau2_c the variance left between users
    (moments, never below 0); mu_c the precision-weighted mean. The factor (U - 3) / (U - 1), 0 below four users,
    keeps b_u above 0, so that users keep their order where tau2_c is 0. A user whose ratings are all 100 has
    sum d_i = 0 and gets the plain mean of P_c, the limit of equal dislikes; the adjusted estimate is then 0.

    Args:
        ratings: user_id, rating (1..100) and the six attributes in [0, 1]; a row a rated response.
        estimator: "paper", "exposure_adjusted" or "shrunk".

    Returns:
        (U, 6), users in the order of their ids. Independent of the order of the rows.

    Raises:
        ValueError: unknown estimator, no rows, or a value that is missing.

    Source: STEER-Away, user profiles (paper). Its s averages what the user happened to be shown; the two others
    are ours, the shrinkage factor after Morris, JASA 1983.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    users, codes, dislike, toxicity = _arrays(ratings)
    return _frame(estimate(codes, dislike, toxicity, estimator), users)


def estimate(codes: NDArray, dislike: NDArray, toxicity: NDArray, estimator: str) -> NDArray:
    """`sensitivities` on arrays, one row a rated response.

    Args:
        codes: (N,) each row's user, 0..U-1, every user at least once.
        dislike: (N,) d in [0, 1].
        toxicity: (N, 6) P in [0, 1].
        estimator: one of `ESTIMATORS`.

    Returns:
        (U, 6).
    """
    n = np.bincount(codes)
    weight = _weights(codes, dislike, len(n))
    paper = _sums(codes, weight[:, None] * toxicity, len(n))
    if estimator == "paper":
        return paper
    mean = _sums(codes, toxicity, len(n)) / n[:, None]
    adjusted = paper - mean
    if estimator == "exposure_adjusted":
        return adjusted
    # Linearised: e_i is what rating i adds to the estimate's error.
    error = weight[:, None] * (toxicity - paper[codes]) - (toxicity - mean[codes]) / n[codes, None]
    squares = _sums(codes, error**2, len(n)) * (n**2)[:, None]
    pooled = squares.sum(axis=0) / max(int((n - 1).sum()), 1)
    return _shrink(adjusted, pooled[None, :] / n[:, None])


def percentiles(s: pd.DataFrame) -> pd.DataFrame:
    """Where each user stands among all users, per category: midrank p = (average rank - 1/2) / U, in (0, 1).

    Users with equal sensitivities, to 12 decimals, get equal percentiles: the rest is rounding of sums.

    Args:
        s: (U, 6) sensitivities.

    Returns:
        (U, 6), same index and columns.
    """
    return (s.round(12).rank(method="average") - 0.5) / len(s)


def primary_category(p: pd.DataFrame, s: pd.DataFrame | None = None) -> pd.Series:
    """Each user's primary category c*(u), the one with the highest percentile.

    The paper does not say what a tie means, and ties are common: somebody ranks first in two categories. Here
    the category in which the user lies more standard deviations above the mean of all users wins; where that
    ties too, or `s` is not given, the first in the order of the six.

    Args:
        p: (U, 6) percentiles.
        s: (U, 6) the sensitivities they came from; settles ties.

    Returns:
        (U,) category names, named "category".

    Source: STEER-Away, user profiles.
    """
    best = p.eq(p.max(axis=1), axis=0)
    if s is None:
        return best.idxmax(axis=1).rename("category")
    spread = s.std(ddof=0)
    standard = (s - s.mean()) / spread.where(spread > 0, 1.0)
    return standard.round(12).where(best, -np.inf).idxmax(axis=1).rename("category")


def population_category(s: pd.DataFrame) -> str:
    """The average person's category: the highest mean sensitivity over users, the first of the six in a tie.

    Percentiles cannot answer this, since their mean is 1/2 in every category.
    """
    return str(s.mean().idxmax())


def profiles_table(s: pd.DataFrame, *, estimator: str = "paper") -> pd.DataFrame:
    """Sensitivities as the tidy table `profiles`.

    Args:
        s: (U, 6) what `sensitivities` returned.
        estimator: the one that made `s`.

    Returns:
        (6 U rows) user_id, attribute, estimator, sensitivity, percentile, primary; one primary a user.

    Raises:
        ValueError: unknown estimator.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    p = percentiles(s)
    primary = primary_category(p, s)
    user = np.repeat(s.index.to_numpy(), len(SIX))
    attribute = np.tile(SIX, len(s))
    table = pd.DataFrame({"user_id": user, "attribute": attribute, "estimator": estimator})
    table["sensitivity"] = s[SIX].to_numpy().ravel()
    table["percentile"] = p[SIX].to_numpy().ravel()
    table["primary"] = attribute == primary.reindex(user).to_numpy()
    return check_table("profiles", table)


def _arrays(ratings: pd.DataFrame) -> tuple[pd.Index, NDArray, NDArray, NDArray]:
    """Users, each row's user, dislike and six scores, in an order that the rows' order cannot change."""
    missing = [column for column in ("user_id", "rating", *SIX) if column not in ratings]
    if missing:
        raise ValueError(f"ratings lack the columns {missing}; with_toxicity adds the six attributes")
    if ratings.empty:
        raise ValueError("ratings have no rows")
    rows = ratings.sort_values(["user_id", "rating", *SIX], kind="stable")
    values = rows[["rating", *SIX]].to_numpy(dtype=np.float64)
    if np.isnan(values).any():
        row, column = np.argwhere(np.isnan(values))[0]
        user = rows["user_id"].iloc[row]
        raise ValueError(f"ratings: {('rating', *SIX)[column]} is missing in a row of user {user!r}")
    codes, users = pd.factorize(rows["user_id"])
    return pd.Index(users, name="user_id"), codes, 1.0 - values[:, 0] / 100.0, values[:, 1:]


def _weights(codes: NDArray, dislike: NDArray, users: int) -> NDArray:
    """d_i over the sum of d of its user; equal weights where that sum is 0."""
    total = np.bincount(codes, dislike, minlength=users)
    n = np.bincount(codes, minlength=users)
    none = total == 0
    return np.where(none[codes], 1.0 / n[codes], dislike / np.where(none, 1.0, total)[codes])


def _sums(codes: NDArray, values: NDArray, users: int) -> NDArray:
    return np.stack([np.bincount(codes, column, minlength=users) for column in values.T], axis=1)


def _shrink(estimate: NDArray, variance: NDArray) -> NDArray:
    """Empirical Bayes, per column: towards the precision-weighted mean, by each row's share of noise."""
    between = estimate.var(axis=0, ddof=1) if len(estimate) > 1 else np.zeros(estimate.shape[1])
    tau2 = np.maximum(between - variance.mean(axis=0), 0.0)
    total = tau2 + variance
    precision = 1.0 / np.where(total > 0, total, 1.0)
    centre = (precision * estimate).sum(axis=0) / precision.sum(axis=0)
    noise = np.divide(variance, total, out=np.zeros_like(variance), where=total > 0)
    keep = 1.0 - max(len(estimate) - 3, 0) / max(len(estimate) - 1, 1) * noise
    return keep * estimate + (1.0 - keep) * centre


def _frame(values: NDArray, users: pd.Index) -> pd.DataFrame:
    return pd.DataFrame(values, index=users, columns=pd.Index(SIX))


def split_half_agreement(
    ratings: pd.DataFrame, estimator: str = "paper", *, n_splits: int = 50, seed: int = 0
) -> pd.DataFrame:
    """How often two random halves of a user's conversations give the same primary category c*(u).

    The conversations of each user are halved at random (the odd one falls to either half), a profile is fitted
    on each half with the percentiles of that half's users, and the two are compared. A half has half the
    ratings, so that this is a lower bound for the whole profile.

        chance = sum_c q_A(c) q_B(c),    kappa = (agreement - chance) / (1 - chance)

    with q the shares of users whose c* is c in a half: what agrees by chance if halves knew nothing of each
    other. The interval takes users as independent, which percentiles make them not quite: with 48 users of no
    preference it held chance in 0.93 of 250 sets.

    Args:
        ratings: user_id, conversation_id, rating and the six attributes; the conversations that profiles are
            fitted on.
        estimator: one of `ESTIMATORS`.
        n_splits: random halvings; their mean is reported.
        seed: of the halvings; the order of the rows does not matter.

    Returns:
        One row: estimator, users, left_out (users with one conversation), splits, agreement, low, high (95 %, t
        over users of their mean agreement over splits), chance, kappa, rank_correlation (Spearman's of the
        sensitivities over users between halves, mean of the six categories), full_length (that, stepped up to
        whole profiles: 2 r / (1 + r)).

    Raises:
        ValueError: no split asked for, or fewer than two users with two conversations.

    Source: full_length is Spearman's and Brown's formula (1910).
    """
    if n_splits < 1:
        raise ValueError(f"n_splits {n_splits} is not 1 or more")
    talks = (
        ratings[["user_id", "conversation_id"]].drop_duplicates().sort_values(["user_id", "conversation_id"])
    )
    several = talks.groupby("user_id")["conversation_id"].transform("size") > 1
    left_out = talks.loc[~several, "user_id"].nunique()
    talks = talks[several].reset_index(drop=True)
    n = talks["user_id"].nunique()
    if n < 2:
        raise ValueError(f"{n} users have two conversations or more; two such users are needed")
    rng = np.random.default_rng(seed)
    same, chances, correlations = [], [], []
    for _ in range(n_splits):
        one, other = (sensitivities(half, estimator) for half in _halves(ratings, talks, rng))
        primary = [primary_category(percentiles(s), s) for s in (one, other)]
        same.append(primary[0].eq(primary[1]))
        chances.append(agreement_by_chance(*primary))
        correlations.append(_rank_correlation(one, other))
    agreement, half = _mean_and_half(pd.concat(same, axis=1).mean(axis=1))
    chance, correlation = float(np.mean(chances)), float(np.mean(correlations))
    row = {"estimator": estimator, "users": n, "left_out": left_out, "splits": n_splits}
    row |= {"agreement": agreement, "low": max(agreement - half, 0.0), "high": min(agreement + half, 1.0)}
    row |= {"chance": chance, "kappa": (agreement - chance) / (1 - chance) if chance < 1 else np.nan}
    row |= {"rank_correlation": correlation, "full_length": 2 * correlation / (1 + correlation)}
    return pd.DataFrame([row])


def agreement_by_chance(one: pd.Series, other: pd.Series) -> float:
    """sum_c q_A(c) q_B(c): how often two categories agree that are drawn independently, each from its share."""
    shares = [found.value_counts(normalize=True) for found in (one, other)]
    return float(shares[0].mul(shares[1], fill_value=0.0).sum())


def _halves(ratings: pd.DataFrame, talks: pd.DataFrame, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Each user's conversations in a random order, every second one to the same half."""
    place = talks.assign(place=rng.random(len(talks))).groupby("user_id")["place"].rank().astype(int)
    codes = pd.factorize(talks["user_id"])[0]
    first = rng.integers(2, size=codes.max() + 1)[codes]  # which half gets the odd conversation
    half = talks.assign(half=(place + first) % 2).set_index(["user_id", "conversation_id"])["half"]
    own = half.reindex(pd.MultiIndex.from_frame(ratings[["user_id", "conversation_id"]])).to_numpy()
    return [ratings[own == number] for number in (0, 1)]


def _rank_correlation(one: pd.DataFrame, other: pd.DataFrame) -> float:
    """Spearman's rho over users, mean of the categories in which users differ at all."""
    ranks = [s.round(12).rank() for s in (one, other)]
    differ = (ranks[0].std() > 0) & (ranks[1].std() > 0)
    return float(ranks[0].loc[:, differ].corrwith(ranks[1].loc[:, differ]).mean()) if differ.any() else np.nan


def _mean_and_half(values: pd.Series) -> tuple[float, float]:
    n = len(values)
    return float(values.mean()), float(values.sem() * t.ppf(0.975, n - 1))


def planted_recovery(ratings: pd.DataFrame) -> pd.DataFrame:
    """Share of the demo's users whose planted category each estimator finds; chance is 1/6.

    Args:
        ratings: rated responses of demo users with the six attributes, those the profile is fitted on.

    Returns:
        One row an estimator: users, share, and the exact 95 % binomial interval low, high.
    """
    survey = pd.read_json(DEMO / "survey.jsonl", lines=True)
    planted = survey.set_index("user_id").planted_category
    rows = []
    for estimator in ESTIMATORS:
        s = sensitivities(ratings, estimator)
        found = primary_category(percentiles(s), s)
        hits = int((planted.reindex(found.index) == found).sum())
        interval = binomtest(hits, len(found)).proportion_ci(0.95)
        row = {"estimator": estimator, "users": len(found), "share": hits / len(found)}
        rows.append({**row, "low": interval.low, "high": interval.high})
    return pd.DataFrame(rows).set_index("estimator").round(2)
