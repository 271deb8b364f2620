"""The report of a run: one file that opens anywhere, offline, on a phone or on paper.

The report of a run of the numbered notebooks, put together from its tables, figures and manifest.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML
from jinja2 import Environment, PackageLoader, StrictUndefined

from steerlib.figures.published import published
from steerlib.figures.style import headline, reduced
from steerlib.rules import acting_on
from steerlib.tables import atomic_path, read_manifest

PICTURES = {
    "Whose ratings": {
        "01_profiles_all_users": (
            "Percentile of each user in six categories, users sorted by their primary category.",
            "why people rate as they do; a sensitivity is a correlation with one scorer's idea of toxicity.",
        ),
        "01_profiles_a_few_users": ("A few users from near, raw sensitivity and percentile.", ""),
        "01_primary_categories": ("How many users have each category as their primary one.", ""),
    },
    "The steering vectors": {
        "02_vector_norms": (
            "Length of the mean-difference vector beside that of a residual, and its stability between random halves "
            "of the pairs.",
            "",
        ),
        "02_vector_cosines": ("Cosine between the vectors of two layers.", ""),
        "02_user_map": (
            "Users in the two first axes of the pair differences, placed by what they preferred.",
            "whether people differ: a few choices place a person loosely.",
        ),
        "02_held_out_projection": (
            "Held-out preferred and dispreferred answers along the vector.",
            "whether adding the vector steers; length and style differ between the sides too.",
        ),
    },
    "The sweep": {
        "03_answers_changed": ("Share of answers that differ from the base's, against alpha.", ""),
        "03_dose": (
            "KL(steered || base) a token, the dose that makes methods comparable, against alpha.",
            "",
        ),
    },
    "Dose and response": {
        "05_dose_response": (
            "Reduction of the toxicity distance, or of toxicity where prompts have no accepted answer, against alpha; "
            "solid: test users, dashed: dev users, open: controls; 95 % intervals clustered by user.",
            "that an answer is safe; both are a scorer's view.",
        ),
        "05_toxicity": ("Mean toxicity of the answers against alpha.", ""),
        "05_perplexity": (
            "Perplexity of the answers under the unsteered base.",
            "quality; generic or repetitive text has a low perplexity too.",
        ),
        "05_tradeoff": ("Reduction against perplexity on test users.", ""),
        "05_dose_and_fluency": (
            "Toxicity distance (solid) and perplexity (dashed) of the steering vectors against alpha, test users.",
            "",
        ),
        "05_accuracy": (
            "Multiple-choice questions answered right.",
            "a cost in knowledge near chance level.",
        ),
    },
    "Where steering acts": {
        "05_selectivity": (
            "Change of the toxicity distance by category of prompt; below 0 is nearer to the accepted answers.",
            "much with few prompts in a category: read the intervals.",
        ),
        "05_disagreement": (
            "Effect against how far the base is off; left as it looks, right guarded against regression to the mean.",
            "that the effect is personal; any steering towards blander text helps where the base is worst.",
        ),
    },
    "Whose preference": {
        "05_preference": (
            "Held-out pairs that a model of the person's preference puts in the person's order; diamonds: published.",
            "preference as such: the sides differ in length and style too.",
        ),
        "05_preference_likelihood": (
            "The same by likelihood: which answer the model, steered or not, finds more likely a token.",
            "",
        ),
    },
    "SDA": {
        "05_margins": (
            "Net margin of SDA's answers, by the judge of the run.",
            "independent evidence, where the judge's own scores did the steering.",
        ),
        "05_amplification": ("Amplification a = F(S) by the score of the first answer.", ""),
        "05_js_temperature": ("Temperature by the divergence of the two branches.", ""),
    },
    "Every alpha": {
        f"05_alpha_path_{method}": (
            "All answers over the whole range of the strength, with exact breakpoints; dots: decoded at single values.",
            "an effect of steering: these are a few prompts, to see what the strength does to an answer.",
        )
        for method in acting_on("logits")
    },
}
NOT_SHOWN = (
    "Effects are those on test users at the alpha chosen on dev users. An interval that contains 0 cannot tell the "
    "effect from none. A personal effect must beat the shuffled profile, a vector must beat the random one."
)


def study_report(folder: Path, *, effects: pd.DataFrame, examples: HTML) -> Path:
    """Write `report.html` of a run.

    Args:
        folder: the run's folder with its manifest and the figures of the notebooks that ran; those of a notebook
            that the run does not have are left out.
        effects: points of the chosen arms on test users, the headline table; empty where no alpha helped on dev.
        examples: answers side by side, escaped, see `examples_html`.

    Returns:
        Path of the report.
    """
    manifest = read_manifest(folder)
    settings = {key: value for record in manifest.values() for key, value in record["params"].items()}
    result: list[str | Picture | Grid | HTML] = [NOT_SHOWN]
    if effects.empty:
        result.append(
            "On dev users no rule was better than the base at any alpha: there is no effect to report."
        )
    else:
        result.append(Grid(headline(effects), f"Reduction of {reduced(effects)}, %"))
        result.append(Picture("05_effects", "The same as a picture, 95 % intervals.", "any other alpha."))
    sections = [Section("Result", result)]
    for heading, pictures in PICTURES.items():
        there = {
            name: texts for name, texts in pictures.items() if (folder / "figures" / f"{name}.png").exists()
        }
        if there:
            sections.append(Section(heading, [Picture(name, *texts) for name, texts in there.items()]))
    sections.append(
        Section("Answers side by side", ["The same prompt and the same dice, steered and not.", examples])
    )
    caption = "What the three studies published, each with its caveat."
    sections.append(Section("Published numbers", [Grid(published(), caption)]))
    facts = {"run": folder.name} | {
        name: str(settings[key]) for name, key in FACTS.items() if key in settings
    }
    return write_report(
        folder,
        title=f"Steering study: {folder.name}",
        sections=sections,
        facts=facts,
        synthetic=_synthetic(settings),
    )


FACTS = {
    "model": "model",
    "hardware": "hardware",
    "scorer": "scorer",
    "data": "source",
    "questions": "questions",
}


def _synthetic(settings: dict) -> list[str]:
    sentences = []
    if settings.get("synthetic"):
        sentences.append(
            "The ratings, users, prompts and accepted answers are the demo set, written by a script of this project. "
            "Only the model and its answers are real."
        )
    if settings.get("synthetic_questions"):
        sentences.append("The multiple-choice questions are a small set of our own; they are not MMLU.")
    return sentences


@dataclass(frozen=True)
class Picture:
    """A saved figure.

    Attributes:
        name: stem of the figure in the run's `figures/`.
        caption: what it shows.
        not_shown: what it does not show.
    """

    name: str
    caption: str
    not_shown: str = ""


@dataclass(frozen=True)
class Grid:
    """A frame as a table, all its cells escaped.

    Attributes:
        frame: columns and rows; the index is left out.
        caption: what it shows.
        not_shown: what it does not show.
    """

    frame: pd.DataFrame
    caption: str
    not_shown: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in order: a text (escaped), a `Picture`, a `Grid`, or `HTML`.

    `HTML` is put in as it is, so it may come only from `examples_html`, which escapes.
    """

    heading: str
    parts: Sequence[str | Picture | Grid | HTML]


def write_report(
    folder: Path,
    *,
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
    synthetic: Sequence[str] = (),
) -> Path:
    """Write `report.html` of a run: one self-contained file, whole or not at all.

    Args:
        folder: the run's folder; its figures and its manifest are read.
        title: of the page.
        sections: the body, in order.
        facts: what was run, by name: model as it really is, scorer's id, data with file name and sha256.
        synthetic: what is synthetic about the run, a sentence each; shown first and marked.

    Returns:
        Path of the report.

    Raises:
        FileNotFoundError: a figure was not saved.
        TypeError: a part of a section is none of the kinds it may be.
    """
    manifest = read_manifest(folder)
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            synthetic=synthetic,
            facts=facts,
            sections=[
                (section.heading, [_part(part, folder) for part in section.parts]) for section in sections
            ],
            stages=_stages(manifest),
            parameters=_parameters(manifest),
            versions=next(iter(manifest.values()), {}).get("versions", {}),
        )
    )
    target = folder / "report.html"
    with atomic_path(target) as partial:
        partial.write_text(page, encoding="utf-8")
    return target


def _environment() -> Environment:
    loader = PackageLoader("steerlib.figures", package_path="")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment


def _part(part: str | Picture | Grid | HTML, folder: Path) -> dict[str, object]:
    match part:
        case str():
            return {"kind": "text", "paragraphs": [text for text in part.split("\n\n") if text.strip()]}
        case Picture():
            path = folder / "figures" / f"{part.name}.png"
            if not path.exists():
                raise FileNotFoundError(f"figure {part.name!r} is not in {path.parent}: save it first")
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            return {"kind": "picture", "data": data, "caption": part.caption, "not_shown": part.not_shown}
        case Grid():
            return {"kind": "grid", **_grid(part.frame), "caption": part.caption, "not_shown": part.not_shown}
        case HTML():
            return {"kind": "html", "html": part.data}
    raise TypeError(f"a part of a section is a text, a Picture, a Grid or HTML, not {type(part).__name__}")


def _grid(frame: pd.DataFrame) -> dict[str, object]:
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in frame]
    return {
        "columns": list(zip(map(str, frame), numeric, strict=True)),
        "rows": frame.to_numpy(object).tolist(),
    }


def _stages(manifest: Mapping[str, Mapping]) -> list[tuple[str, str, str]]:
    return [
        (stage, record["machine"], f"{record['seconds']:.1f}") for stage, record in sorted(manifest.items())
    ]


def _parameters(manifest: Mapping[str, Mapping]) -> list[tuple[str, object]]:
    """Every parameter once: a key means the same in every notebook that takes it."""
    return sorted(
        {key: value for record in manifest.values() for key, value in record["params"].items()}.items()
    )


def _cell(value: object) -> str:
    """A number with four figures, a missing value as a dash, anything else as its text."""
    if isinstance(value, (float, np.floating)):
        return "\u2013" if np.isnan(value) else f"{value:.4g}"
    return "\u2013" if value is None or value is pd.NA else str(value)
