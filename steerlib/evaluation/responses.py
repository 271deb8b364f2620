"""An arm's alpha path on a few prompts, the same arm at single alphas, and whether the two say the same.

Does a measure rise with alpha? Slope, rank trend and steps, prompt by prompt, clustered.

Whether it is sampling that spoils steered text: the same arms greedily and sampled, on the same prompts.

Whether a dose-response has two peaks: tested over all peaks and dips at once, not read off the points.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import permutation_test, spearmanr

from steerlib.decoding import Contexts, Sampling, alpha_path, decode, make_arms
from steerlib.decoding.requests import sampling_of
from steerlib.evaluation.intervals import Interval, cluster_interval, group_rows, max_t_band
from steerlib.models import FrozenModel

Floats = NDArray[np.float64]


class Trend(NamedTuple):
    """How a measure goes with alpha.

    Attributes:
        slope: mean of the prompts' least-squares slopes, a unit of alpha.
        kendall: mean of the prompts' Kendall tau-a with alpha, in [-1, 1].
        p_value: two-sided sign-flip test of kendall = 0.
        spearman: of the arm means with alpha; a number without an interval.
    """

    slope: Interval
    kendall: Interval
    p_value: float
    spearman: float


def dose_responses(values: pd.DataFrame, arms: pd.DataFrame, column: str) -> dict[str, pd.DataFrame]:
    """Responses by steering vector: a row a prompt, a column an alpha, the base being alpha 0 of every vector.

    Args:
        values: arm_id, prompt_id and the column, one row an arm and prompt (see `per_prompt`).
        arms: the arms table with one base arm; arms without a vector other than the base are left out.
        column: the measure.

    Returns:
        By the vector's family, `(prompts, alphas)` by rising alpha; prompts in one order.

    Raises:
        ValueError: there is not exactly one base arm, or a prompt lacks an arm.
    """
    base = arms.loc[arms["control"] == "base", "arm_id"]
    if len(base) != 1:
        raise ValueError(f"need exactly one base arm, not {len(base)}")
    wide = values.pivot(index="prompt_id", columns="arm_id", values=column)
    found = {}
    for (family, whose), rows in arms[arms["family"] != ""].groupby(["family", "vector_user"], sort=False):
        named = {base.iloc[0]: 0.0} | dict(zip(rows["arm_id"], rows["alpha"], strict=True))
        responses = wide[list(named)].rename(columns=named).sort_index(axis=1).astype(float)
        if responses.isna().any(axis=None):
            prompt = responses.index[responses.isna().any(axis=1)][0]
            raise ValueError(f"prompt {prompt!r} lacks an answer of vector {family!r}")
        found[f"{family}, shuffled" if whose == "shuffled" else str(family)] = responses
    return found


def response_slopes(responses: pd.DataFrame) -> pd.Series:
    """Least-squares slope of each prompt's responses on alpha.

        b_i = sum_a (a - mean a) y_ia / sum_a (a - mean a)^2

    Args:
        responses: `(prompts, alphas)`, alphas as column labels.

    Returns:
        One slope a prompt, in units of the response a unit of alpha.

    Raises:
        ValueError: fewer than 2 alphas, or a value that is not finite.
    """
    alphas, y = _checked(responses)
    centred = alphas - alphas.mean()
    return pd.Series(y @ centred / np.square(centred).sum(), index=responses.index, name="slope")


def kendall_scores(responses: pd.DataFrame) -> pd.Series:
    """Kendall's tau-a of each prompt's responses with alpha: pairs of alphas that rise less those that fall.

        tau_i = sum_{a < b} sign(y_ib - y_ia) / (m (m - 1) / 2)

    Ties count 0, so that a prompt whose answer never changes says nothing.

    Args:
        responses: `(prompts, alphas)`, alphas as column labels in any order.

    Returns:
        One score a prompt, in [-1, 1].

    Raises:
        ValueError: as `response_slopes`.

    Source: Kendall, Biometrika 1938.
    """
    alphas, y = _checked(responses)
    y = y[:, np.argsort(alphas)]
    low, high = np.triu_indices(y.shape[1], k=1)
    return pd.Series(np.sign(y[:, high] - y[:, low]).mean(axis=1), index=responses.index, name="kendall")


def sign_flip_test(
    values: ArrayLike, clusters: ArrayLike | None = None, *, n_resamples: int = 9_999, seed: int = 0
) -> float:
    """Two-sided p value of a mean of 0: the signs of whole clusters are flipped at random.

    Args:
        values: `(n,)`, under the null hypothesis as likely to be x as -x.
        clusters: cluster of each value; None for independent values.
        n_resamples: flips drawn; all of them where there are no more.
        seed: of the draw.

    Returns:
        In (0, 1]; 1 where all values are 0.
    """
    grouped, _ = group_rows(values, clusters)
    drawn = permutation_test(
        (grouped.sums[:, 0],),
        lambda sums, axis: sums.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=n_resamples,
        rng=np.random.default_rng(seed),
    )
    return float(drawn.pvalue)


def trend(
    responses: pd.DataFrame, clusters: ArrayLike | None = None, *, level: float = 0.95, seed: int = 0
) -> Trend:
    """Slope and rank trend of a measure over alpha, tested prompt by prompt.

    Page's test does not serve here: it takes the responses of a prompt for exchangeable under the null hypothesis,
    but arms share their noise, so that neighbouring alphas often give one and the same answer. Flipping signs needs
    less: that reversing the order of alphas would be as likely.

    Args:
        responses: `(prompts, alphas)`, alphas as column labels.
        clusters: cluster of each prompt (user or document); None for independent prompts.
        level: confidence of both cluster-t intervals.
        seed: of the sign flips.

    Raises:
        ValueError: as `response_slopes` and `cluster_interval`.
    """
    slopes, scores = response_slopes(responses), kendall_scores(responses)
    means = responses.mean()
    monotone = float(spearmanr(responses.columns, means).statistic) if means.nunique() > 1 else 0.0
    return Trend(
        cluster_interval(slopes, clusters, level=level),
        cluster_interval(scores, clusters, level=level),
        sign_flip_test(scores, clusters, seed=seed),
        monotone,
    )


def response_band(
    responses: pd.DataFrame, clusters: ArrayLike | None = None, *, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Mean response at each alpha with a simultaneous band over all alphas (max-T).

    Args:
        responses: `(prompts, alphas)`.
        clusters, level, seed: see `max_t_band`.

    Returns:
        alpha, value, low, high, n, n_clusters.
    """
    return _band({alpha: responses[alpha] for alpha in sorted(responses.columns)}, clusters, level, seed)


def response_steps(
    responses: pd.DataFrame, clusters: ArrayLike | None = None, *, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Rise of the mean from each alpha to the next, with a simultaneous band over the steps (max-T).

    A response is monotone over the range as far as no step lies wholly below 0, and each step that lies wholly above
    0 is a rise that many looks do not explain.

    Args:
        responses: `(prompts, alphas)`.
        clusters, level, seed: see `max_t_band`.

    Returns:
        from_alpha, alpha, value, low, high, n, n_clusters.
    """
    alphas = sorted(responses.columns)
    steps = {b: responses[b] - responses[a] for a, b in pairwise(alphas)}
    band = _band(steps, clusters, level, seed)
    band.insert(0, "from_alpha", alphas[:-1])
    return band


def fluent_alphas(perplexity: Mapping[float, float], *, max_ratio: float) -> list[float]:
    """The alphas of the widest range -a..a in which perplexity stays below a multiple of the base's.

    Args:
        perplexity: by alpha, with that of the base at 0.
        max_ratio: largest perplexity over that of the base.

    Returns:
        Alphas other than 0 in that range, rising; empty where the smallest is too much already.

    Raises:
        KeyError: no perplexity at alpha 0.
    """
    limit = max_ratio * perplexity[0.0]
    too_much = [abs(alpha) for alpha, value in perplexity.items() if value > limit]
    bound = min(too_much, default=np.inf)
    return sorted(alpha for alpha in perplexity if 0 < abs(alpha) < bound)


def _band(
    columns: Mapping[float, ArrayLike], clusters: ArrayLike | None, level: float, seed: int
) -> pd.DataFrame:
    nothing = np.zeros(len(np.asarray(next(iter(columns.values())))))
    return max_t_band(nothing, columns, clusters, statistic="difference", level=level, seed=seed)


def _checked(responses: pd.DataFrame) -> tuple[Floats, Floats]:
    alphas, y = responses.columns.to_numpy(dtype=np.float64), responses.to_numpy(dtype=np.float64)
    if len(set(alphas)) != len(alphas) or len(alphas) < 2:
        raise ValueError(f"a trend needs 2 different alphas or more, not {alphas.tolist()}")
    bad = np.argwhere(~np.isfinite(y))
    if len(bad):
        raise ValueError(
            f"prompt {responses.index[bad[0, 0]]!r} at alpha {alphas[bad[0, 1]]:g} is {y[tuple(bad[0])]}"
        )
    return alphas, y


COLUMNS = ["arm_id", "greedy_arm", "measure", "greedy", "sampled", "contrast", "value", "low", "high"]
COUNTS = ["n", "n_clusters", "how"]
CHOICE = ("temperature", "top_p", "min_p", "js_sigma", "min_temperature")
"""Settings in which greedy and sampled twins may differ; a repetition penalty is not one of them."""


def quality_by_sampling(
    values: pd.DataFrame,
    arms: pd.DataFrame,
    prompts: pd.DataFrame,
    *,
    split: str | None = "test",
    level: float = 0.95,
) -> pd.DataFrame:
    """Repetition and perplexity of each sampled arm and of its greedy twin, and what steering adds under each.

        repetition   difference = sampled - greedy
                     growth     = (sampled - sampled base) - (greedy - greedy base)
        perplexity   ratio      = sampled / greedy
                     growth     = (sampled / sampled base) / (greedy / greedy base)

    Sampling makes text less likely, and greedy text repeats itself, without any steering: "difference" and "ratio"
    are mostly that. The claim that steering errors add up under sampling is about "growth", above 0 (or 1) where
    steering costs more under sampling than greedily. `summarise` compares an arm with one base and cannot say it.

    Args:
        values: arm_id, prompt_id, repetition, nll_base, n_tokens, from `per_prompt`; the greedy arms and the sampled
            ones may have been run with other seeds.
        arms: the arms table. Twins differ in their sampling settings alone.
        prompts: prompt_id, user_id and, for `split`, split.
        split: prompts of this split only; None for all.
        level: confidence, clustered by user.

    Returns:
        arm_id (sampled), greedy_arm, measure ("repetition" or "perplexity"), greedy, sampled (the two values),
        contrast ("difference", "ratio" or "growth"), value, low, high, n, n_clusters, how. "growth" only where both
        bases are there, and not for the bases themselves. No perplexity where an arm wrote no token.

    Raises:
        ValueError: no sampled arm has a greedy twin, or twins were not run on the same prompts.

    Source: the CAA-on-PRISM study says that sampling spoils quality and greedy decoding does not, and shows the
    greedy half. Perplexity is that of the unsteered base, see `perplexity`.
    """
    twins = _greedy_twins(arms[arms["arm_id"].isin(values["arm_id"])])
    if not twins:
        raise ValueError("no sampled arm has a greedy twin (temperature 0, all other settings equal)")
    asked = prompts if split is None else prompts[prompts["split"] == split]
    users = asked.set_index("prompt_id")["user_id"]
    known = values[values["prompt_id"].isin(users.index)]
    frames = {str(arm): rows.set_index("prompt_id").sort_index() for arm, rows in known.groupby("arm_id")}
    rows = []
    for sampled, greedy in twins.items():
        tables = [_of(frames, arm, sampled) for arm in (sampled, greedy, *_bases(arms, twins, sampled))]
        labels = users.loc[tables[0].index]
        for measure in ("repetition", "perplexity"):
            for contrast, found, two in _contrasts(measure, tables, labels, level):
                rows.append([sampled, greedy, measure, two[1], two[0], contrast, *found])
    return pd.DataFrame(rows, columns=COLUMNS + COUNTS)


def _contrasts(
    measure: str, tables: Sequence[pd.DataFrame], users: pd.Series, level: float
) -> Iterator[tuple[str, Interval, Floats]]:
    """Contrast, its interval, and the measure of the sampled and of the greedy arm."""
    columns = ["repetition"] if measure == "repetition" else ["nll_base", "n_tokens"]
    if measure == "perplexity" and any(table["n_tokens"].sum() == 0 for table in tables):
        return
    stacked = np.hstack([table[columns].to_numpy(dtype=np.float64) for table in tables])
    of_arms, back = (_as_is, _as_is) if measure == "repetition" else (_nats_per_token, np.exp)
    two = back(of_arms(stacked.mean(axis=0)))[:2]
    weights = {"difference" if measure == "repetition" else "ratio": [1, -1, 0, 0], "growth": [1, -1, -1, 1]}
    for contrast, weight in weights.items():
        if contrast == "growth" and len(tables) < 4:
            continue
        w = np.array(weight[: len(tables)], dtype=np.float64)
        yield (
            contrast,
            cluster_interval(stacked, users, lambda m, w=w: back(of_arms(m) @ w), level=level),
            two,
        )


def _as_is(m: Floats) -> Floats:
    return m


def _nats_per_token(m: Floats) -> Floats:
    """Mean negative log-likelihood of each arm from its two columns, `(..., arms)`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return m[..., 0::2] / m[..., 1::2]


def _greedy_twins(arms: pd.DataFrame) -> dict[str, str]:
    """Greedy arm by sampled arm: all settings equal but those of the choice of tokens."""
    settings = [column for column in arms if column not in ("arm_id", "variant", *CHOICE)]
    greedy = arms["temperature"] == 0
    pairs = arms[~greedy].merge(arms[greedy], on=settings, suffixes=("", "_greedy"))
    again = pairs["arm_id"].duplicated()
    if again.any():
        raise ValueError(f"arm {pairs.loc[again, 'arm_id'].iloc[0]!r} has several greedy twins")
    return dict(zip(pairs["arm_id"], pairs["arm_id_greedy"], strict=True))


def _bases(arms: pd.DataFrame, twins: Mapping[str, str], sampled: str) -> tuple[str, ...]:
    """The base that was sampled as this arm was, and its greedy twin; nothing for a base or where there is none."""
    arm = arms[arms["arm_id"] == sampled].iloc[0]
    if arm["control"] == "base":
        return ()
    settings = [column for column in (*CHOICE, "style", "model", "max_new_tokens") if column in arms]
    like = arms[(arms["control"] == "base") & arms["arm_id"].isin(list(twins))]
    like = like[(like[settings] == arm[settings]).all(axis=1)]
    return (like["arm_id"].iloc[0], twins[like["arm_id"].iloc[0]]) if len(like) else ()


def _of(frames: Mapping[str, pd.DataFrame], arm: str, first: str) -> pd.DataFrame:
    if arm not in frames or not frames[arm].index.equals(frames[first].index):
        raise ValueError(
            f"arms {first!r} and {arm!r} were not run on the same prompts: finish the sweep first"
        )
    return frames[arm]


NOTHING = (np.nan,) * 6


class TwoPeaks(NamedTuple):
    """Verdict on a dose-response curve.

    Attributes:
        verdict: "two peaks", "two peaks are not shown", or "not testable: why".
        p: p value of the dip, over all triples at once.
        statistic: the smaller of the two t of the deepest dip, see `two_peaks`.
        peak_1, valley, peak_2: the alphas of that dip; missing where the points have none.
        dip: by how much the valley's mean is worse than the worse of the two peaks, in the unit of the values.
        n, n_clusters: prompts and users.
    """

    verdict: str
    p: float
    statistic: float
    peak_1: float
    valley: float
    peak_2: float
    dip: float
    n: int
    n_clusters: int


def two_peaks(
    values: pd.DataFrame,
    clusters: ArrayLike | None = None,
    *,
    better: str = "lower",
    level: float = 0.95,
    n_resamples: int = 5_000,
    seed: int = 0,
) -> TwoPeaks:
    """Test of one peak over alpha against two, on prompts that were answered at every alpha.

        t_ij = (m_i - m_j) / se_ij,    T = max over i < j < k of min(t_ij, t_kj)

    m_i is the mean at alpha i, signed so that larger is better; se_ij is clustered by user. Two peaks need a dip
    between them on both sides, so a triple counts with its weaker side. If the curve has one peak, at alpha p, then
    of each triple one side rises towards p and its true difference is not above 0. So T is beyond q no more often
    than some rising side's t is; that chance is taken from sign flips of whole users, at the p where it is
    largest. The test holds its level for every curve with one peak, flat and monotone ones too, and any number of
    alphas; it may claim less than it could.

    Args:
        values: `(n prompts, alphas)`, one column an alpha named by it, for instance the toxicity distance. The
            base's own value is the same at every alpha and drops out: distances and reductions give one result.
        clusters: user of each prompt, `(n,)`; None where prompts are independent.
        better: "lower" where small values are good, as of a distance; "higher" otherwise.
        level: two peaks are claimed where p < 1 - level.
        n_resamples: sign flips.
        seed: of the flips.

    Returns:
        The verdict. With fewer than three alphas, or so few users K that 2^(1 - K) > 1 - level (five at 0.95), it
        is "not testable".

    Raises:
        ValueError: `better` is neither of the two, two columns of one alpha, or a value that is missing.

    Source: max-T: Westfall and Young, Resampling-Based Multiple Testing, 1993; the smaller of two t as a test of
    both: Berger, Technometrics 1982; sign flips of clusters: Cameron, Gelbach and Miller, Review of Economics and
    Statistics 2008. Put together here; the CAA-on-PRISM study claims two peaks without a test.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f"better must be 'lower' or 'higher', not {better!r}")
    if values.columns.duplicated().any():
        raise ValueError(f"alpha {values.columns[values.columns.duplicated()][0]} has two columns")
    alphas = sorted(float(alpha) for alpha in values.columns)
    v = values[sorted(values.columns, key=float)].to_numpy(dtype=np.float64) * (
        1 if better == "higher" else -1
    )
    grouped, n = group_rows(v, clusters)
    k = len(grouped.sizes)
    if len(alphas) < 3 or 2.0 ** (1 - k) > 1 - level:
        return TwoPeaks(f"not testable: {len(alphas)} alphas, {k} users", *NOTHING, n, k)
    pairs = list(combinations(range(len(alphas)), 2))
    sums = np.stack([grouped.sums[:, i] - grouped.sums[:, j] for i, j in pairs], axis=1)
    t = dict(zip(pairs, _t(np.ones((1, k)), sums, grouped.sizes)[0], strict=True))
    triples = {(i, j, m): min(t[i, j], -t[j, m]) for i, j, m in combinations(range(len(alphas)), 3)}
    deepest = max(triples, key=lambda triple: triples[triple])
    statistic = triples[deepest]
    if statistic <= 0:
        return TwoPeaks("two peaks are not shown", 1.0, float(statistic), *NOTHING[:4], n, k)
    p = _p_value(statistic, pairs, sums, grouped.sizes, n_resamples, seed)
    means = v.mean(axis=0)
    dip = min(means[deepest[0]], means[deepest[2]]) - means[deepest[1]]
    verdict = "two peaks" if p < 1 - level else "two peaks are not shown"
    return TwoPeaks(verdict, p, float(statistic), *(alphas[i] for i in deepest), float(dip), n, k)


def _t(signs: Floats, sums: Floats, sizes: Floats) -> Floats:
    """Studentised mean of each contrast with the users' sums taken with these signs, `(flips, contrasts)`.

    se^2 = K / (K - 1) sum_g (w_g S_g - n_g m)^2 / n^2. A contrast without any spread has t = 0.
    """
    k, n = len(sizes), sizes.sum()
    mean = signs @ sums / n
    squares = (sums**2).sum(axis=0) - 2 * mean * ((signs * sizes) @ sums) + mean**2 * (sizes**2).sum()
    error = np.sqrt(k / (k - 1) * np.clip(squares, 0, None)) / n
    spread = error > 1e-9 * np.abs(sums).max(initial=0.0) / n
    return np.divide(mean, error, out=np.zeros_like(mean), where=spread)


def _p_value(
    statistic: float, pairs: list[tuple[int, int]], sums: Floats, sizes: Floats, n_resamples: int, seed: int
) -> float:
    """Share of sign flips in which a rising side is beyond the statistic, for the peak where it is largest."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (n_resamples, len(sizes)))
    t = _t(signs, sums, sizes)
    left, right = np.array(pairs).T
    shares = []
    for peak in range(right.max() + 1):
        beyond = np.column_stack([t[:, right <= peak], -t[:, left >= peak]]).max(axis=1) >= statistic
        shares.append((1 + beyond.sum()) / (1 + n_resamples))
    return float(max(shares))


def point_peaks(curve: pd.Series, *, better: str = "lower") -> list[float]:
    """Alphas at which a curve's points are better than both neighbours: what an eye sees, and no test.

    Args:
        curve: one value an alpha, named by it in the index; an end counts as a peak if it is better than its one
            neighbour.
        better: "lower" or "higher".

    Raises:
        ValueError: `better` is neither, no points, or two points at one alpha.
    """
    if better not in ("lower", "higher"):
        raise ValueError(f"better must be 'lower' or 'higher', not {better!r}")
    if curve.empty or curve.index.duplicated().any():
        raise ValueError(f"needs points at different alphas, not at {curve.index.tolist()}")
    points = curve.sort_index()
    y = np.pad(
        points.to_numpy(dtype=np.float64) * (1 if better == "higher" else -1), 1, constant_values=-np.inf
    )
    return points.index[(y[1:-1] > y[:-2]) & (y[1:-1] > y[2:])].astype(float).tolist()


def path_sampling(arm: pd.Series, *, min_p: float, max_new_tokens: int) -> Sampling:
    """The arm's own choice of tokens with a nucleus that is linear in alpha: min-p in place of top-p.

    Args:
        arm: a row of the arms table.
        min_p: see `Sampling`; greedy arms have none.
        max_new_tokens: longest answer.
    """
    own = sampling_of(arm)
    return replace(own, top_p=1.0, min_p=min_p if own.temperature else 0.0, max_new_tokens=max_new_tokens)


def arm_path(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arm: pd.Series,
    *,
    sampling: Sampling,
    contexts: Contexts,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Every answer that a logit rule gives from alpha 0 to the arm's own alpha.

    Args:
        frozen: the model.
        prompts: the prompts to be answered.
        arm: a row of the arms table, of a logit rule whose branches are contexts.
        sampling: see `path_sampling`.
        contexts: texts of the branches by category.
        seeds: of the noise.

    Returns:
        The segments table, see `alpha_path`; of SDA with a = 1 for every prompt.
    """
    return alpha_path(
        frozen,
        prompts,
        method=arm["method"],
        alpha_max=float(arm["alpha"]),
        sampling=sampling,
        profile=arm["profile"],
        category=arm["category"],
        style=arm["style"],
        seeds=seeds,
        contexts=contexts,
        base_top_p=float(arm["base_top_p"]),
    )


def arm_at(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arm: pd.Series,
    alphas: Iterable[float],
    *,
    sampling: Sampling,
    contexts: Contexts,
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """The same arm decoded at single alphas: the generations table with column alpha. Arguments as `arm_path`."""
    arms = make_arms(
        arm["method"],
        sorted({float(alpha) for alpha in alphas}),
        model=frozen.name,
        contexts=contexts,
        profile=arm["profile"],
        category=arm["category"],
        style=arm["style"],
        sampling=sampling,
        base_top_p=float(arm["base_top_p"]),
    )
    answers = decode(frozen, prompts, arms, seeds=seeds, contexts=contexts)
    return answers.merge(arms[["arm_id", "alpha"]], on="arm_id")


def path_against_grid(segments: pd.DataFrame, grid: pd.DataFrame) -> pd.DataFrame:
    """Whether the segment that holds an alpha has the answer decoded at that alpha, token for token.

    Args:
        segments: what `arm_path` returned.
        grid: what `arm_at` returned for the same prompts and seeds.

    Returns:
        prompt_id, seed, alpha, agrees, near_ties (of the answer decoded at one alpha: where it is above 0, rounding
        of another batch shape may decide) and complete (of the segment; where it is not, only the tokens that the
        segment has are compared).

    Raises:
        ValueError: an alpha of the grid lies in no segment.
    """
    rows = []
    answers = {key: part.sort_values("alpha_low") for key, part in segments.groupby(["prompt_id", "seed"])}
    for row in grid.to_dict("records"):
        part = answers.get((row["prompt_id"], row["seed"]), segments.head(0))
        inside = part[(part["alpha_low"] <= row["alpha"]) & (row["alpha"] <= part["alpha_high"])]
        if inside.empty:
            raise ValueError(f"alpha {row['alpha']:g} of prompt {row['prompt_id']!r} is in no segment")
        segment = inside.iloc[-1]  # segments are closed below
        ids, decoded = list(segment["token_ids"]), list(row["token_ids"])
        agrees = ids == (decoded if segment["complete"] else decoded[: len(ids)])
        rows.append(
            [row["prompt_id"], row["seed"], row["alpha"], agrees, row["near_ties"], segment["complete"]]
        )
    return pd.DataFrame(rows, columns=["prompt_id", "seed", "alpha", "agrees", "near_ties", "complete"])
