"""The tables of docs/engine.md, made from benchmarks/results: no number in them is typed."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from transformers import LlamaConfig

from benchmarks.rules import OURS
from benchmarks.setting import RESULTS, SHAPES
from steerlib.models import needs
from steerlib.tables import ROOT

DOCUMENT = ROOT / "docs" / "engine.md"
START, END = "<!-- benchmarks -->\n", "<!-- /benchmarks -->"
PEERS = {
    "(b) the same, prompts batched": "three forwards, caches, batched",
    "(e) base, generate, prompts batched": "the *base alone* by `generate`, batched",
    "(c) the same, prompts batched": "`generate(guidance_scale=1 + alpha)`, batched",
    "(d) steering-vectors": "`steering-vectors`, batched",
    "(d) repeng": "`repeng`, batched",
    "(b) three forwards, caches": "three forwards, caches, one by one",
    "(c) generate(guidance_scale=1 + alpha)": "`generate(guidance_scale=1 + alpha)`, one by one",
    "(a) three forwards, no cache (DExperts)": "three forwards, no cache (DExperts), one by one",
}
"""What each peer is called, the fair ones first: they too decode all prompts at once."""
QUESTIONS = {
    "(b) the same, questions batched": "three forwards, 8 questions batched",
    "(b) three forwards an answer": "three forwards, one by one",
}


def rewrite(folder: Path = RESULTS) -> None:
    """Put the tables of the kept results between their marks in docs/engine.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, made in {"benchmarks": tables, "gpu": gpu_table, "memory": memory_table}.items():
        start, end = START.replace("benchmarks", name), END.replace("benchmarks", name)
        before, rest = text.split(start)
        text = before + start + made(folder) + end + rest.split(end)[1]
    DOCUMENT.write_text(text, encoding="utf-8")


def gpu_table(folder: Path = RESULTS) -> str:
    """Seconds a thousand answers of what was timed on a GPU, one row a decoder: results/gpu.csv."""
    rows = pd.read_csv(folder / "gpu.csv", keep_default_na=False)
    alone = {"(e) base, generate": "the *base alone* by `generate`, one by one"}
    what, names = ["model", "setting"], PEERS | alone | {OURS: "here, the whole grid"}
    each = rows.assign(each=rows.seconds / rows.answers)
    ours = each[each.decoder == OURS].set_index(what)["each"]
    lines = [
        [
            row.model.partition(" (")[0],
            row.hardware,
            row.setting.split(", ")[1],
            names[row.decoder],
            row.answers,
            f"{row.seconds:.1f}",
            f"{1000 * row.each:.0f}",
            f"{row.each / ours[row.model, row.setting]:.1f}",
            row.same_answers,
        ]
        for row in each.itertuples()
    ]
    head = ["model", "on", "choice", "decoder", "answers", "seconds"]
    return _table([*head, "seconds per 1,000 answers", "here = 1", "same answers"], lines)


MEMORIES = (24, 80, 160, 320)
"""GB of the memory table, of one GPU or of several together."""


def memory_table(_: Path = RESULTS) -> str:
    """What models of the shapes in `SHAPES` need, by precision, and how many rows fit beside them."""
    lines = []
    for shape, settings in SHAPES.items():
        config = LlamaConfig(vocab_size=128_256, **settings)
        for dtype in (torch.bfloat16, torch.float32):
            need = needs(config, dtype)
            rows = [f"{need.rows(gb * 1e9):,}" for gb in MEMORIES]
            sizes = [f"{need.parameters / 1e9:.1f}", f"{need.weights / 1e9:.0f}", f"{need.row / 1e6:.0f}"]
            lines.append([shape, str(dtype).removeprefix("torch."), *sizes, *rows])
    head = ["model", "precision", "parameters, 10^9", "weights, GB", "a row, MB"]
    return _table([*head, *(f"rows in {gb} GB" for gb in MEMORIES)], lines)


def tables(folder: Path = RESULTS) -> str:
    """Decoding against peers, multiple choice, and the alpha path, as Markdown with where each was measured."""
    kept = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
    decoding = _beside([*kept["rules"]["rows"], *kept["vectors"]["rows"]], PEERS, "token")
    asked = [*kept["choices"]["rows"], *kept.get("choices_mmlu", {"rows": []})["rows"]]
    paths = [
        [
            r["setting"].partition(", 4 prompts")[0],
            r["answers"],
            f"{r['time, plain grid = 1']:.2f}",
            r["grid's answers in it"],
        ]
        for r in kept["path"]["rows"]
        if r["decoder"].startswith("alpha path")
    ]
    head = ["what", "here, ms", "peer", "peer, ms", "faster by", "same answers"]
    parts = [
        (("rules", "vectors"), "Decoding, ms per token", head, decoding),
        (
            ("choices", "choices_mmlu"),
            "Multiple choice, ms per answer",
            head,
            _beside(asked, QUESTIONS, "answer"),
        ),
        (("path",), "Alpha path", ["what", "answers", "time, plain grid = 1", "grid's answers in it"], paths),
    ]
    return "".join(
        f"\n**{title}** ({_measured_on([kept[part] for part in names if part in kept])})\n\n{_table(columns, rows)}"
        for names, title, columns, rows in parts
    )


def _beside(rows: Sequence[Mapping], peers: Mapping[str, str], unit: str) -> list[list[object]]:
    """A line for each peer beside the whole grid that it is a sample of, in the order of the peers."""
    ours = {row["setting"]: row for row in rows if row["decoder"] == OURS}
    named = sorted(
        (row for row in rows if row["decoder"] in peers), key=lambda r: [*peers].index(r["decoder"])
    )
    return [
        [
            re.sub(r"(, \d+ prompts)? x .*", "", row["setting"].removeprefix("multiple choice, ")),
            f"{ours[row['setting']][f'ms per {unit}']:.1f}",
            peers[row["decoder"]],
            f"{row[f'ms per {unit}']:.1f}",
            f"{row['ours is faster by']:.1f}x",
            row["same answers"],
        ]
        for row in named
    ]


def _measured_on(kept: Sequence[Mapping]) -> str:
    on = kept[0]["measured_on"]
    load = ", ".join(str(one["measured_on"]["load_at_start"]) for one in kept)
    versions = ", ".join(dict.fromkeys(one["measured_on"].get("version", "0.1.0") for one in kept))
    return (
        f"steerlib {versions}, {on['hardware']}, {on['threads']} threads, torch {on['torch']}, "
        f"load {load}, repeats {on['repeats']}"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


if __name__ == "__main__":
    rewrite()
