"""What the alpha explorer shows, as data for `view.js`, and the pages that work without a kernel.

Text of a model or a person is data here: the view makes text nodes of it, and JSON within a page has no `<`.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from IPython.display import HTML

from steerlib.explorer.questions import Answers
from steerlib.explorer.session import Explorer
from steerlib.figures.style import label
from steerlib.rules import RULES
from steerlib.tables import atomic_path
from steerlib.toxicity import ATTRIBUTES

VIEW = Path(__file__).with_name("view.js").read_text("utf-8")
CALL = "page(document.getElementById('alpha-explorer'), "
SLOT = ("<!-- explorer -->", "<!-- /explorer -->")


def page_data(
    answers: Answers,
    explorer: Explorer,
    *,
    accepted: str = "",
    chosen: tuple[float, float, float] | None = None,
    start: float = 0.0,
) -> dict:
    """All that the view shows of some answers of `Explorer.stages`, ready for JSON.

    `accepted` is the person's accepted answer, whose scores are a third mark, empty for none; `chosen` the alpha chosen
    on dev and the operating range, see `run_ranges`; `start` the alpha at which a saved page opens.
    """
    question = answers.question
    rule, (alpha_max, step) = RULES[question.method], explorer.reach(question)
    marked, *ends = chosen or (math.nan, math.nan, math.nan)
    name = f"{rule.label} {question.vector}".strip() if question.key.vector else rule.label
    scored = explorer.scorer([accepted]).iloc[0] if accepted else None
    base, *steered = _rows(answers)
    return {
        "prompt": question.prompt,
        "label": name + (f" ({question.vector_alpha:g})" if question.vector_alpha else ""),
        "category": question.category,
        "score_name": f"{label(question.category)} score",
        "attributes": [(key, label(key)) for key in ATTRIBUTES],
        "symbol": rule.symbol,
        "exact": answers.exact,
        "alpha_min": 0.0,
        "alpha_max": alpha_max,
        "step": step,
        "start": start,
        "accepted": None if scored is None else [_plain(scored[key]) for key in ATTRIBUTES],
        "chosen": _plain(marked),
        "range": None if any(map(math.isnan, ends)) else ends,
        "base": base,
        "steered": steered,
    }


def _plain(value: float) -> float | None:
    """A number as JSON has it, rounded; None where it is not finite."""
    return round(float(value), 5) if math.isfinite(value) else None


def _rows(answers: Answers) -> list[dict]:
    base, rows = answers.base["text"], []
    for i, row in enumerate(answers.table.to_dict("records")):
        tokens = answers.tokens[i] if answers.tokens else []
        changed = changed_words(base, row["text"]) if i else [False] * len(base)
        numbers = {"low": "alpha_low", "high": "alpha_high", "score": answers.question.category}
        numbers |= {"nll": "nll_per_token", "ratio": "perplexity_ratio", "kl": "kl_per_token"}
        rows.append(
            {name: _plain(row[column]) for name, column in numbers.items()}
            | {
                **{name: bool(row[name]) for name in ("stopped", "complete", "collapsed")},
                "n_tokens": row["n_tokens"],
                "colour": RULES[row["method"]].colour,
                "scores": [_plain(row[key]) for key in ATTRIBUTES],
                "pieces": _pieces(row["text"], changed, tokens),
                "branches": [name for name, _ in tokens[0]["tops"]] if tokens else [],
                "tokens": [_short_token(token) for token in tokens],
            }
        )
    return rows


def _short_token(token: Mapping) -> list:
    """Text, probability under the base and steered, and each branch's words and probabilities; all in per mille."""
    mille = [round(1000 * token[name], 1) if name in token else None for name in ("base", "steered")]
    tops = [[part for word, p in best for part in (word, round(1000 * p))] for _, best in token["tops"]]
    return [token["text"], *mille, tops]


def changed_words(base: str, text: str) -> list[bool]:
    """Which characters of a text belong to words that the base's text does not have at this place."""
    ours, theirs = (re.findall(r"\s+|\S+", one) for one in (text, base))
    changed: list[bool] = []
    for kind, _, _, start, stop in SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        for word in ours[start:stop]:
            changed += [kind != "equal" and not word.isspace()] * len(word)
    return changed


def _pieces(text: str, changed: Sequence[bool], tokens: Sequence[Mapping]) -> list[tuple[str, bool, int]]:
    """The text in pieces that are changed or not and within one token: text, whether changed, token (-1: unknown)."""
    owner = [place for place, token in enumerate(tokens) for _ in token["text"]]
    owner += [-1] * (len(text) - len(owner))
    cuts = [i for i in range(len(text)) if not i or (changed[i], owner[i]) != (changed[i - 1], owner[i - 1])]
    ends = [*cuts[1:], len(text)]
    return [(text[i:end], changed[i], owner[i]) for i, end in zip(cuts, ends, strict=False)]


def summary(answers: Answers, seconds: float) -> str:
    """What was found over alpha, in a line."""
    steered, found = answers.steered, f"{answers.distinct} different answers"
    if not answers.exact:
        return f"{len(steered)} alphas in {seconds:.1f} s, {found}; between them the nearest is shown"
    end, parted = f"{steered['alpha_high'].iloc[-1]:g}", int((~steered["complete"].astype(bool)).sum())
    line = f"{found}, {len(steered) - 1} breakpoints between alpha 0 and {end}, in {seconds:.1f} s"
    return line + (f"; {parted} stretches are not complete, the row budget ended them" if parted else "")


def _parts(pages: Sequence[Mapping]) -> tuple[str, str]:
    """Body of a page, and its script's hash: the data stand in the script, where no `<` can end it."""
    data = json.dumps(list(pages), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    script = f"(() => {{\n{VIEW}\n{CALL}{data});\n}})();"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    place = '<div id="alpha-explorer">This page needs its own script to move the slider.</div>'
    return f"{place}\n<script>{script}</script>", f"sha256-{digest}"


def saved_page(pages: Sequence[Mapping]) -> str:
    """One HTML page of some `page_data` with a working slider: one inline script, named by its hash, no request."""
    body, digest = _parts(pages)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src '{digest}'"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Alpha explorer</title></head>'
        '<body style="margin:1rem;font-family:system-ui,sans-serif"><h1 style="font-size:1.3rem">Alpha explorer</h1>'
        "<p>Answers of one frozen language model, steered and not. The unsteered ones may be offensive.</p>"
        f"{body}</body></html>\n"
    )


def embedded_page(pages: Sequence[Mapping]) -> HTML:
    """The saved page within a frame, for a notebook's output; where frames are cut out, nothing is shown."""
    words = saved_page(pages).replace("&", "&amp;").replace("'", "&#39;")  # JSON is full of the other quotes
    look = 'style="width:100%;height:760px;border:0"'
    frame = f"<iframe title='Alpha explorer' {look} sandbox='allow-scripts' srcdoc='{words}'></iframe>"
    return HTML(f"<div>{frame}</div>")


def read_pages(folder: Path) -> list[dict]:
    """The `page_data` that `publish` wrote of a run; a FileNotFoundError where notebook 06 has not run."""
    text = (folder / "figures" / "alpha_explorer.html").read_text("utf-8")
    return json.JSONDecoder().raw_decode(text, text.index(CALL) + len(CALL))[0]


def publish(folder: Path, pages: Sequence[Mapping]) -> None:
    """Write `figures/alpha_explorer.html` of a run, and put the explorer into its `report.html` where there is one.

    The report's own rules allow no script but this one, which they name by its hash.
    """
    alone, path = folder / "figures" / "alpha_explorer.html", folder / "report.html"
    alone.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(alone) as partial:
        partial.write_text(saved_page(pages), encoding="utf-8")
    if not path.exists():
        return
    body, digest = _parts(pages)
    text = re.sub(r"; script-src '[^']*'", "", path.read_text("utf-8"))
    text = text.replace("default-src 'none'", f"default-src 'none'; script-src '{digest}'", 1)
    before, rest = text.split(SLOT[0])
    with atomic_path(path) as partial:
        partial.write_text(f"{before}{SLOT[0]}{body}{SLOT[1]}{rest.split(SLOT[1])[1]}", "utf-8")
