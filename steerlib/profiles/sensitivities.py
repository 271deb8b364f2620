"""How strongly each user dislikes each of the six toxicity categories, and how sure that is.

U users, n rated responses of a user, c one of six categories.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steerlib.profiles.sources import DEMO, read_rows
from steerlib.tables import ATTRIBUTE_COLUMNS, check_table

SIX = list(ATTRIBUTE_COLUMNS)
ESTIMATORS = ("paper", "exposure_adjusted")


def sensitivities(ratings: pd.DataFrame, estimator: str = "paper") -> pd.DataFrame:
    """Dislike-weighted mean toxicity of the responses a user rated.

        d_i = 1 - r_i / 100,    s_{u,c} = sum_i d_i P_c(i) / sum_i d_i          ("paper")
        a_{u,c} = s_{u,c} - (1/n) sum_i P_c(i)                                  ("exposure_adjusted")

    `(U, 6)`, users in the order of their ids, independent of the order of the rows. A user whose ratings are all 100
    has sum d_i = 0 and gets the plain mean of P_c, the limit of equal dislikes; the adjusted estimate is then 0. A
    ValueError says that the estimator is none of `ESTIMATORS`.

    Source: STEER-Away, user profiles. Its s averages what the user happened to be shown; the adjustment is ours.
    """
    # Sums depend on the order of their terms, so the rows are sorted first.
    rows = ratings.sort_values(["user_id", "rating", *SIX], kind="stable")
    values = rows[["rating", *SIX]].to_numpy(dtype=np.float64)
    codes, users = pd.factorize(rows["user_id"])
    found = estimate(codes, 1.0 - values[:, 0] / 100.0, values[:, 1:], estimator)
    return pd.DataFrame(found, index=pd.Index(users, name="user_id"), columns=pd.Index(SIX))


def estimate(codes: NDArray, dislike: NDArray, toxicity: NDArray, estimator: str) -> NDArray:
    """`sensitivities` on arrays, `(U, 6)`: of N responses the user's code, 0..U-1, dislike d, and toxicity `(N, 6)`."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator {estimator!r} is not one of {', '.join(ESTIMATORS)}")
    n, total = np.bincount(codes), np.bincount(codes, dislike)
    equal = 1.0 / n[codes]
    weight = np.where(total[codes] == 0, equal, dislike / np.where(total == 0, 1.0, total)[codes])

    def by_user(values: NDArray) -> NDArray:
        return np.stack([np.bincount(codes, column) for column in values.T], axis=1)

    paper = by_user(weight[:, None] * toxicity)
    return paper if estimator == "paper" else paper - by_user(toxicity) / n[:, None]


def percentiles(s: pd.DataFrame) -> pd.DataFrame:
    """Where each user stands among all users, per category: midrank p = (average rank - 1/2) / U, in (0, 1).

    Users with equal sensitivities s `(U, 6)`, to 12 decimals, get equal percentiles: the rest is rounding of sums.
    """
    return (s.round(12).rank(method="average") - 0.5) / len(s)


def primary_category(p: pd.DataFrame, s: pd.DataFrame) -> pd.Series:
    """Each user's primary category c*(u), the one with the highest percentile p; s are the sensitivities, `(U, 6)` too.

    The paper does not say what a tie means, and ties are common: somebody ranks first in two categories. Here
    the category in which the user lies more standard deviations above the mean of all users wins; where that
    ties too, the first in the order of the six.

    Source: STEER-Away, user profiles.
    """
    spread = s.std(ddof=0)
    standard = (s - s.mean()) / spread.where(spread > 0, 1.0)
    best = p.eq(p.max(axis=1), axis=0)
    return standard.round(12).where(best, -np.inf).idxmax(axis=1).rename("category")


def profiles_table(s: pd.DataFrame, *, estimator: str) -> pd.DataFrame:
    """Sensitivities `(U, 6)` of an estimator as the tidy table `profiles`, 6 U rows; one primary category a user."""
    p = percentiles(s)
    user, attribute = np.repeat(s.index.to_numpy(), len(SIX)), np.tile(SIX, len(s))
    table = pd.DataFrame({"user_id": user, "attribute": attribute, "estimator": estimator})
    table["sensitivity"] = s[SIX].to_numpy().ravel()
    table["percentile"] = p[SIX].to_numpy().ravel()
    table["primary"] = attribute == primary_category(p, s).reindex(user).to_numpy()
    return check_table("profiles", table)


def split_half_agreement(
    ratings: pd.DataFrame, estimator: str = "paper", *, n_splits: int = 50, seed: int = 0
) -> pd.DataFrame:
    """How often two random halves of a user's conversations give the same primary category c*(u).

    A profile is fitted on each half with the percentiles of that half's users; the mean of `n_splits` halvings is
    reported. A half has half the ratings, so that this is a lower bound for the whole profile.

        chance = sum_c q_A(c) q_B(c),   q: shares of users whose c* is c in a half, as if halves were independent

    Returns:
        One row: estimator, users, left_out (users with one conversation), splits, agreement, low, high (95 %, t
        over users of their mean agreement over splits), chance, rank_correlation (Spearman's of the sensitivities
        over users between halves, mean of the six categories). A ValueError for fewer than two users to halve.
    """
    from scipy.stats import t

    talks = ratings[["user_id", "conversation_id"]].drop_duplicates()
    talks = talks.sort_values(["user_id", "conversation_id"])
    several = talks.groupby("user_id")["conversation_id"].transform("size") > 1
    left_out = talks.loc[~several, "user_id"].nunique()
    talks = talks[several].reset_index(drop=True)
    n = talks["user_id"].nunique()
    if n < 2:
        raise ValueError(f"{n} users have two conversations or more; two such users are needed")
    rng = np.random.default_rng(seed)
    same, chances, correlations = [], [], []
    for _ in range(n_splits):
        halves = [sensitivities(half, estimator) for half in _halves(ratings, talks, rng)]
        one, other = (primary_category(percentiles(s), s) for s in halves)
        same.append(one.eq(other))
        shares = [primary.value_counts(normalize=True) for primary in (one, other)]
        chances.append(shares[0].mul(shares[1], fill_value=0.0).sum())
        ranks = [s.round(12).rank() for s in halves]
        differ = (ranks[0].std() > 0) & (ranks[1].std() > 0)  # categories in which users differ at all
        correlations.append(ranks[0].loc[:, differ].corrwith(ranks[1].loc[:, differ]).mean())
    agreement = pd.concat(same, axis=1).mean(axis=1)
    value, half = agreement.mean(), agreement.sem() * t.ppf(0.975, n - 1)
    row = {"estimator": estimator, "users": n, "left_out": left_out, "splits": n_splits, "agreement": value}
    row |= {"low": max(value - half, 0.0), "high": min(value + half, 1.0), "chance": np.mean(chances)}
    return pd.DataFrame([row | {"rank_correlation": np.mean(correlations)}])


def _halves(ratings: pd.DataFrame, talks: pd.DataFrame, rng: np.random.Generator) -> list[pd.DataFrame]:
    """Each user's conversations in a random order, every second one to the same half."""
    place = talks.assign(place=rng.random(len(talks))).groupby("user_id")["place"].rank().astype(int)
    codes = pd.factorize(talks["user_id"])[0]
    first = rng.integers(2, size=codes.max() + 1)[codes]  # which half gets the odd conversation
    half = talks.assign(half=(place + first) % 2).set_index(["user_id", "conversation_id"])["half"]
    own = half.reindex(pd.MultiIndex.from_frame(ratings[["user_id", "conversation_id"]])).to_numpy()
    return [ratings[own == number] for number in (0, 1)]


def planted_recovery(ratings: pd.DataFrame) -> pd.DataFrame:
    """Share of the demo's users whose planted category each estimator finds; chance is 1/6.

    One row an estimator: users, share, and the exact 95 % binomial interval low, high.
    """
    from scipy.stats import binomtest

    planted = read_rows(DEMO / "survey.jsonl").set_index("user_id")["planted_category"]
    rows = []
    for estimator in ESTIMATORS:
        s = sensitivities(ratings, estimator)
        found = primary_category(percentiles(s), s)
        hits = int((planted.reindex(found.index) == found).sum())
        interval = binomtest(hits, len(found)).proportion_ci(0.95)
        rows.append([estimator, len(found), hits / len(found), interval.low, interval.high])
    columns = pd.Index(["estimator", "users", "share", "low", "high"])
    return pd.DataFrame(rows, columns=columns).set_index("estimator").round(2)
