"""The tables of docs/engine.md, made from benchmarks/results: no number in them is typed."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.rules import OURS
from benchmarks.setting import RESULTS
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
    """Put the tables of the kept results between the marks of docs/engine.md."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    DOCUMENT.write_text(before + START + tables(folder) + END + after, encoding="utf-8")


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
    return (
        f"steerlib {on.get('version', '0.1.0')}, {on['hardware']}, {on['threads']} threads, torch {on['torch']}, "
        f"load {load}, repeats {on['repeats']}"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
