"""SDA's published table, model by model, and what its abstract makes of it.

What the three studies published, number by number, with what a reader must know before comparing.

Tables of the CAA-on-PRISM study as published: its sweep over alpha and its selectivity by category of prompt.
"""

import pandas as pd

COLUMNS = ["system", "setting", "metric", "value", "unit", "caveat", "source"]

STEER = "STEER-Away (Trache, TU Delft), poster"
CAA = "CAA on PRISM (Diaconescu, TU Delft), poster"
SDA = "SDA (Xia and Deng, AAAI-26, arXiv 2511.16324)"

RANGE = "mean of four seeds, range 2.11 to 22.97: a t interval over the seeds includes 0 whatever the four values were"
ONE_SEED = "one seed, no interval, best of the sweep on the prompts it is reported on"
TWO_BASES = "implied bases differ (2.72 here, 3.23 for Anti-Expert): compare within a run only"
NO_MMLU_INTERVAL = (
    "1,000 one-shot questions over six contexts, no interval; about 2.8 points either way by sampling alone"
)
NO_N = "number of pairs not given, no interval"
REFINED = "mean over models of rows with gibberish base answers left out; over all rows "
JUDGE = "net win margin by GPT-4.1, which also scored the answers to be aligned; no interval, no prompt-only column"

_STEER_AWAY = [
    ("Expert-Anti-Expert, alpha 2.2", "reduction of toxicity distance", 12.65, "%", RANGE),
    ("Anti-Expert, alpha 2.2", "reduction of toxicity distance", 23.37, "%", ONE_SEED),
    ("base", "MMLU accuracy", 70.60, "%", NO_MMLU_INTERVAL),
    ("Expert-Anti-Expert, alpha 2.2", "MMLU accuracy", 70.22, "%", NO_MMLU_INTERVAL),
    ("Anti-Expert, alpha 2.2", "MMLU accuracy", 68.48, "%", NO_MMLU_INTERVAL),
    ("Expert-Anti-Expert, start of the sweep", "perplexity", 2.72, "", TWO_BASES),
    ("Expert-Anti-Expert, end of the sweep", "perplexity", 2.96, "", TWO_BASES),
    ("base, Anti-Expert run", "perplexity", 3.23, "", TWO_BASES),
    ("Anti-Expert, largest", "perplexity", 3.32, "", TWO_BASES),
]
_CAA_REST = [
    ("personalised", "PPA", 59.9, "%", NO_N),
    ("population", "PPA", 54.3, "%", NO_N),
    (
        "safety coordinates only",
        "PPA",
        48.3,
        "%",
        NO_N + '; 96.6 % of choices tie on toxicity, 1.4 % differ "significantly", by no test that is named',
    ),
    ("choices", "ties on toxicity", 96.6, "%", NO_N + "; what counts as a tie is not said"),
    ("base", "MMLU accuracy", 66.8, "%", "zero-shot, no interval"),
    ("steered", "MMLU accuracy", 67.4, "%", "zero-shot, no interval; alpha not given"),
]
_SDA = [
    ("Helpful, vs base, eight models", 64.4, REFINED + "61.2; " + JUDGE),
    ("Honest, vs base, eight models", 30.0, REFINED + "28.4; " + JUDGE),
    (
        "Harmless, vs base, eight models",
        11.5,
        "mean over all rows; refined rows 10.6: the headline mixes the two; " + JUDGE,
    ),
    ("Helpful, steering only vs base, Llama-2-7B-Chat", 57.9, JUDGE),
    ("Harmless, steering only vs base, Llama-2-7B-Chat", 5.3, JUDGE),
    ("Honest, steering only vs base, Llama-2-7B-Chat", 25.9, JUDGE),
    ("Helpful, SDA vs steering only, Llama-2-7B-Chat", 17.9, JUDGE),
    (
        "Harmless, SDA vs steering only, Llama-2-7B-Chat",
        -2.1,
        "the temperature rule lowers harmlessness; " + JUDGE,
    ),
    ("Honest, SDA vs steering only, Llama-2-7B-Chat", 5.7, JUDGE),
]


def published() -> pd.DataFrame:
    """The published numbers of the three studies.

    Returns:
        One row a number: system, setting, metric, value, unit, caveat, source. Percentages of the CAA table are
        reductions of the mean absolute error recomputed from its two columns, against the base on the same GPU.
    """
    rows = [("STEER-Away", *row, STEER) for row in _STEER_AWAY]
    rows += [("CAA on PRISM", *row, CAA) for row in caa_rows()]
    rows += [("CAA on PRISM", *row, CAA) for row in _CAA_REST]
    rows += [("SDA", setting, "net win margin", value, "%", caveat, SDA) for setting, value, caveat in _SDA]
    return pd.DataFrame(rows, columns=COLUMNS)


def beside_published(ours: pd.DataFrame) -> pd.DataFrame:
    """The published numbers of the systems and metrics that we have, and ours below each.

    They stand beside each other, they do not measure the same thing: model, prompts and scorer differ.

    Args:
        ours: system, setting, metric, value, unit, and low, high, caveat, source where there are any.

    Returns:
        `whose` ("published" or "ours"), the columns of `published`, low and high (NaN where none was given).

    Raises:
        KeyError: a column is missing.
        ValueError: a system or metric of ours was never published; those that were are named.
    """
    for column in ("system", "setting", "metric", "value", "unit"):
        if column not in ours:
            raise KeyError(f"our numbers have no column {column!r}; they have {', '.join(map(str, ours))}")
    theirs = published()
    for column in ("system", "metric"):
        unknown = sorted(set(ours[column]) - set(theirs[column]))
        if unknown:
            known = ", ".join(theirs[column].unique())
            raise ValueError(f"{column} {unknown[0]!r} is not among the published: {known}")
    wanted = theirs.merge(ours[["system", "metric"]].drop_duplicates(), on=["system", "metric"])
    both = pd.concat([wanted.assign(whose="published"), ours.assign(whose="ours")], ignore_index=True)
    both["_order"] = both["whose"] == "ours"
    both = both.sort_values(["system", "metric", "_order"], kind="stable", ignore_index=True)
    return both.reindex(columns=["whose", *COLUMNS[:4], "low", "high", *COLUMNS[4:]])


HARDWARE = "alpha and GPU type vary together; no interval; best of the sweep on the prompts it is reported on"
SELF = (
    "perplexity under the model that wrote the text: shorter, more generic or repetitive answers score lower"
)
BY_CATEGORY = (
    "number of prompts and rule of labelling not given; no interval; three of the six alphas that are named"
)

_SWEEP = [
    ("A100", None, 0.01877, None, 4.38),
    ("A10g", None, 0.01848, None, 4.47),
    ("A100", 7.5, 0.01609, 14.28, 4.27),
    ("A10g", 12.5, 0.01660, 10.17, 4.11),
    ("A10g", 17.5, 0.01601, 13.37, 4.11),
    ("A10g", 20.0, 0.01696, 8.23, 3.92),
    ("A10g", 25.0, 0.01853, -0.27, 3.98),
]
_SELECTIVITY = [
    ("benign_control", 0.00499, 0.00470, -7.5, 4.2, 5.4),
    ("context_dependent", 0.01553, 0.01384, 0.6, -13.8, -3.8),
    ("harmful_borderline", 0.03172, 0.03224, -10.6, -16.3, -15.7),
    ("safe_sensitive", 0.02281, 0.02313, -0.4, -15.8, -19.6),
]


def published_caa_sweep() -> pd.DataFrame:
    """The sweep over alpha of the personalised basis, greedy, N = 200.

    Each GPU has a base of its own, and no alpha was run on both: what differs between 7.5 and the others may be the
    GPU. On the A10g alone the four errors have one minimum, at 17.5, so "two peaks" rests on the one point of the
    A100. There are no values of single prompts, so `steerlib.evaluation.two_peaks` cannot be asked.

    Returns:
        gpu, alpha (missing for the base), mae, reduction_percent (against the base on the same GPU), perplexity.
    """
    return pd.DataFrame(_SWEEP, columns=["gpu", "alpha", "mae", "reduction_percent", "perplexity"])


def published_caa_selectivity() -> pd.DataFrame:
    """Change of the toxicity MAE by category of prompt; below 0 is nearer to the accepted answers.

    Changes at 17.5 are against the A10g; at 5.0, an alpha of no other table, the GPU is not given.

    Returns:
        prompt_category, alpha, base_a100, base_a10g, change_percent.
    """
    columns = ["prompt_category", "base_a100", "base_a10g", 5.0, 7.5, 17.5]
    wide = pd.DataFrame(_SELECTIVITY, columns=columns)
    long = wide.melt(columns[:3], var_name="alpha", value_name="change_percent")
    return long[["prompt_category", "alpha", "base_a100", "base_a10g", "change_percent"]]


def caa_rows() -> list[tuple[str, str, float, str, str]]:
    """Both tables as setting, metric, value, unit, caveat."""
    rows = []
    for gpu, alpha, mae, reduction, perplexity in _SWEEP:
        setting = f"base, {gpu}" if alpha is None else f"alpha {alpha:g}, {gpu}"
        rows.append((setting, "toxicity MAE", mae, "probability", HARDWARE))
        if reduction is not None:
            rows.append((setting, "reduction of toxicity distance", reduction, "%", HARDWARE))
        rows.append((setting, "perplexity", perplexity, "", SELF))
    for category, alpha, *_, change in published_caa_selectivity().to_numpy(dtype=object):
        setting = f"{category}, alpha {alpha:g}"
        rows.append((setting, "change of toxicity MAE by category", change, "%", BY_CATEGORY))
    return rows


SETS = [
    ("empathetic", "empathy"),
    ("dialogsum", "reasoning"),
    ("beavertails", "helpfulness"),
    ("beavertails", "harmlessness"),
    ("harmfulqa", "helpfulness"),
    ("harmfulqa", "harmlessness"),
    ("truthfulqa", "honesty"),
]
"""Columns of the table, in its order."""

_FULL = {
    "Llama-2-7B-Chat": (92.2, 23.4, 44.7, 13.0, 53.9, 5.8, 27.6),
    "Llama-2-13B-Chat": (87.1, 41.1, 45.6, 6.3, 54.8, 8.1, 52.7),
    "Llama-2-70B-Chat": (97.5, 11.1, 36.0, 8.1, 56.7, -1.0, 40.6),
    "Vicuna-7B-v1.5": (73.1, 30.4, 28.7, 8.1, 24.5, -8.6, 32.4),
    "Vicuna-13B-v1.5": (64.5, 48.9, 7.8, 22.6, 14.4, 25.0, 22.2),
    "DeepSeek-R1-Distill-Qwen-7B": (60.9, 47.0, 29.3, 14.3, 46.1, 20.9, 9.8),
    "DeepSeek-R1-Distill-Qwen-14B": (83.0, 60.6, 48.0, 25.4, 56.7, 21.1, 21.7),
    "DeepSeek-R1-Distill-Qwen-32B": (95.1, 63.3, 61.6, 7.2, 67.5, 7.0, 19.9),
}
_REFINED = {
    "Llama-2-7B-Chat": (92.2, 23.4, 46.4, 13.2, 55.8, 5.7, 27.5),
    "Llama-2-13B-Chat": (87.1, 41.1, 52.4, 6.3, 62.7, 8.1, 52.1),
    "Llama-2-70B-Chat": (97.5, 11.1, 38.9, 8.1, 59.0, -0.8, 40.0),
    "Vicuna-7B-v1.5": (92.1, 30.4, 57.7, 9.8, 58.4, -1.9, 34.9),
    "Vicuna-13B-v1.5": (91.6, 48.8, 60.1, 24.0, 60.3, 34.9, 41.0),
    "DeepSeek-R1-Distill-Qwen-7B": (66.2, 44.8, 39.0, 13.6, 49.8, 21.1, 9.5),
    "DeepSeek-R1-Distill-Qwen-14B": (84.1, 60.6, 48.1, 14.4, 43.6, -0.7, 15.9),
    "DeepSeek-R1-Distill-Qwen-32B": (95.8, 63.3, 70.5, 7.0, 70.9, 6.4, 19.3),
}
_ALIGNER = {  # means over the eight models only
    "full": (83.0, 56.5, 38.1, -0.5, 50.7, -1.6, 28.7),
    "refined": (89.7, 53.8, 54.6, 0.6, 68.3, 0.1, 30.9),
}
_HEADLINE = {"helpfulness": 64.4, "harmlessness": 11.5, "honesty": 30.0}
_BLOCKS = {
    "helpfulness": [SETS[0], SETS[1]],
    "harmlessness": [SETS[3], SETS[5]],
    "honesty": [SETS[6]],
}
"""Columns that each headline averages: "helpfulness" is of EmpatheticDialogues and DialogSum."""


def published_sda() -> pd.DataFrame:
    """Net win margins of SDA's main table, in per cent.

    Returns:
        comparison ("SDA vs base" by model; "SDA vs Aligner-7B" of model "mean of eight"), rows ("full" or "refined"),
        model, set, dimension, value.

    Source: SDA, table 1.
    """
    tables = {("SDA vs base", "full"): _FULL, ("SDA vs base", "refined"): _REFINED}
    tables |= {("SDA vs Aligner-7B", kind): {"mean of eight": row} for kind, row in _ALIGNER.items()}
    rows = [
        (comparison, kind, model, *column, value)
        for (comparison, kind), table in tables.items()
        for model, values in table.items()
        for column, value in zip(SETS, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=["comparison", "rows", "model", "set", "dimension", "value"])


def sda_headlines() -> pd.DataFrame:
    """The abstract's three numbers beside the means over the full rows and over the refined rows, in per cent.

    Two of the three are means of refined rows and one is of full rows, each time the larger.

    Returns:
        headline, stated, full, refined, taken_from.
    """
    means = _means()
    rows = []
    for name, stated in _HEADLINE.items():
        full, refined = (float(means.loc[_BLOCKS[name], kind].mean()) for kind in ("full", "refined"))
        taken = "full" if abs(stated - full) < abs(stated - refined) else "refined"
        rows.append((name, stated, round(full, 1), round(refined, 1), taken))
    return pd.DataFrame(rows, columns=["headline", "stated", "full", "refined", "taken_from"])


def _means() -> pd.DataFrame:
    table = published_sda()
    own = table[table["comparison"] == "SDA vs base"]
    return own.groupby(["set", "dimension", "rows"])["value"].mean().unstack()
