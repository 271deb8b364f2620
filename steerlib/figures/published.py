"""What the three studies published, each number with what a reader must know before comparing, and ours beside it.

The numbers are the CSV files in `published/`. Reductions of the CAA study are recomputed from its columns of errors,
against the base on the same GPU. SDA's abstract mixes means over all rows and over refined rows, each time the larger.
"""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from steerlib.figures import style
from steerlib.figures.responses import clipped
from steerlib.rules import RULES

FOLDER = Path(__file__).with_name("published")
STUDIES = {"STEER-Away": "steer_away", "CAA on PRISM": "caa_prism", "SDA": "sda"}


def published() -> pd.DataFrame:
    """One row a published number: system, setting, alpha, metric, value, low, high, unit, caveat, source."""
    tables = {name: pd.read_csv(FOLDER / f"{stem}.csv") for name, stem in STUDIES.items()}
    rows = pd.concat(tables, names=["system"]).reset_index("system").reset_index(drop=True)
    return rows.fillna({"unit": "", "caveat": ""})


def published_margins() -> pd.DataFrame:
    """SDA's table 1, net win margins in per cent: comparison, rows (full or refined), model, set, dimension, value."""
    return pd.read_csv(FOLDER / "sda_margins.csv")


def plot_published(points: pd.DataFrame) -> Figure:
    """Reduction of the toxicity distance against alpha, as published (above) and of this run (below), on one scale.

    Left the logit rules, right the steering vectors, whose alphas depend on how long the vectors are. `points` are of
    the metric `reduction_percent` against the base; controls are left out.
    """
    theirs = published().query("metric == 'reduction of toxicity distance'")
    caa = theirs["system"] == "CAA on PRISM"  # settings are "alpha 7.5, A100", else "Anti-Expert, alpha 2.2"
    parts = theirs["setting"].str.split(", ")
    theirs["name"] = parts.str[1].where(caa, parts.str[0])
    methods = {rule.label: name for name, rule in RULES.items()}
    theirs["method"] = theirs["name"].map(methods).fillna("caa")
    ours = clipped(points)
    ours = ours[(ours["control"] == "") & ours["method"].map(lambda name: RULES[name].has_alpha)]
    ours = ours.assign(name=[style.arm_name(row) for _, row in ours.iterrows()])
    logits = ours["method"].map(lambda name: RULES[name].acts_on) == "logits"
    panels = {"STEER-Away, Llama-3.1-8B": theirs[~caa], "CAA on PRISM, Llama-3.1-8B": theirs[caa]}
    panels |= {"this run: logit rules": ours[logits], "this run: steering vectors": ours[~logits]}
    fig, axes = style.new_figure(2, 2, height=5.6, sharey=True)
    lowest = min(-20.0, ours["low"].min() if len(ours) else 0.0)
    axes[0, 0].set_ylim(max(-100.0, lowest), 102)
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=True):
        axis.axhline(0, color=style.GREY, **style.LEVEL)
        labels = [(0.0, style.label("base"), style.GREY)]
        for (method, name), own in rows.sort_values("alpha").groupby(["method", "name"], sort=False):
            style.draw_curve(axis, own, RULES[method].colour, control=False)
            labels.append((own["value"].iloc[-1], name, RULES[method].colour))
        axis.set(title=title, xlabel="alpha", xlim=(0, None))
        style.direct_labels(axis, labels)
    unit = "reduction of toxicity distance (%)\n95 % interval; published: range of four seeds"
    fig.supylabel(unit, fontsize=9)
    best = theirs.loc[theirs.groupby("system")["value"].idxmax()]
    told = "; ".join(f"{row['system']} {row['value']:g} % ({row['setting']})" for _, row in best.iterrows())
    return style.say(
        fig,
        "What was published, and this run, test prompts",
        f"Largest published reductions: {told}, each the best of a sweep on the prompts it is reported on. Model, "
        "prompts and scorer of this run are others: read side by side, not as equals.",
    )
