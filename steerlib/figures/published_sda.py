"""SDA's published table, model by model, and what its abstract makes of it."""

import pandas as pd

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
