"""The report of a run: one file that opens anywhere, offline, on a phone or on paper."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import HTML
from jinja2 import Environment, PackageLoader, StrictUndefined

from steerlib.tables import atomic_path, read_manifest


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
