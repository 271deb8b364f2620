"""The parameters of a run: what each notebook takes, what a params file gives, and whether they fit.

Everything is checked before the first notebook starts. A misspelt key would otherwise run for hours with the
default in its place, and `1e-4`, which YAML reads as text, would fail deep inside a cell.
"""

import ast
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml


class BadInput(ValueError):
    """A mistake in what the user gave; its message is one line and needs no traceback."""


@dataclass(frozen=True)
class Parameter:
    """One line of a `parameters` cell, `name: annotation = default`."""

    name: str
    annotation: str
    default: Any

    def takes(self, value: object) -> bool:
        """Whether the value is of the annotated type; a whole number serves as a float, True is no number."""
        return _fits(value, ast.parse(self.annotation, mode="eval").body)


TYPES = {"str": str, "bool": bool, "int": int, "float": (int, float), "list": list, "dict": dict}


def _fits(value: object, annotation: ast.expr) -> bool:
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Name(id=name) if name in TYPES:
            return isinstance(value, TYPES[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_fits(entry, item) for entry in value)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, item])):
            return isinstance(value, dict) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    raise BadInput(f"a parameter cannot be annotated {ast.unparse(annotation)!r}")


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """Parameters a notebook takes, by name, read from its cell tagged `parameters` without running it.

    Raises:
        BadInput: not exactly one such cell, or a line of it that is not `name: type = literal`.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise BadInput(f"{notebook.name} has {len(tagged)} cells tagged 'parameters', not 1")
    lines = ast.parse("".join(tagged[0]["source"])).body
    parameters = [_parameter(line, notebook.name) for line in lines]
    return {parameter.name: parameter for parameter in parameters}


def _parameter(line: ast.stmt, notebook: str) -> Parameter:
    match line:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            try:
                parameter = Parameter(name, ast.unparse(annotation), ast.literal_eval(value))
            except ValueError:
                raise BadInput(f"{notebook}: the default of {name!r} is not a literal") from None
            if not parameter.takes(parameter.default):
                raise BadInput(
                    f"{notebook}: {name} is {parameter.annotation}, its default {ast.unparse(value)}"
                )
            return parameter
    raise BadInput(f"{notebook}: {ast.unparse(line)!r} in the parameters cell is not `name: type = literal`")


class _UniqueKeys(yaml.SafeLoader):
    """YAML as usual, but a key given twice is refused: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_params(path: Path) -> dict[str, Any]:
    """Keys and values of a flat params file; an empty file is a run with all defaults.

    Raises:
        BadInput: the file is absent, not YAML, not a mapping, or gives a key twice.
    """
    if not path.is_file():
        raise BadInput(f"params file {path} does not exist")
    try:
        params = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as failure:
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(failure).split())}") from None
    if params is None:
        return {}
    if not isinstance(params, dict) or not all(isinstance(key, str) for key in params):
        raise BadInput(f"{path} must hold lines `key: value` with keys that are words, not {params!r}")
    return params


def check_params(params: Mapping[str, Any], notebooks: Mapping[str, Mapping[str, Parameter]]) -> None:
    """Refuse what no notebook takes, what has the wrong type, and what looks like a secret.

    Args:
        params: keys and values as given.
        notebooks: parameters of each notebook, by notebook.

    Raises:
        BadInput: naming every offending key, what was expected and what was given.
    """
    secrets = [name for name, value in params.items() if _is_secret(name, value)]
    if secrets:
        raise BadInput(
            f"{', '.join(secrets)}: params end up in executed notebooks, so a secret must not be among them;"
            " put it in the environment (HF_TOKEN for the hub)"
        )
    problems = [problem for name in params for problem in _problems(name, params[name], notebooks)]
    if problems:
        raise BadInput("; ".join(dict.fromkeys(problems)))


def _is_secret(name: str, value: object) -> bool:
    words = re.split(r"[^a-z]+", name.lower())
    if words[-1] in {"token", "key", "apikey"} or {"secret", "password", "passwd"} & set(words):
        return True
    return isinstance(value, str) and re.match(r"(hf_|sk-)\w{16,}", value) is not None


def _problems(name: str, value: object, notebooks: Mapping[str, Mapping[str, Parameter]]) -> list[str]:
    takers = [parameters[name] for parameters in notebooks.values() if name in parameters]
    if not takers:
        known = sorted({known for parameters in notebooks.values() for known in parameters})
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"the notebooks take {', '.join(known) or 'none'}"
        return [f"unknown parameter {name!r}; {hint}"]
    if not _is_finite(value):
        return [f"{name} must be finite, not {value!r}"]
    return [_mismatch(taker, value) for taker in takers if not taker.takes(value)]


def _is_finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _mismatch(parameter: Parameter, value: object) -> str:
    message = (
        f"{parameter.name} must be {parameter.annotation}, as in {parameter.default!r},"
        f" not {value!r} ({type(value).__name__})"
    )
    if re.search(r"'[-+]?\d+e[-+]?\d+'", repr(value)):
        message += ": YAML reads 1e-4 as text, write 1.0e-4"
    return message
