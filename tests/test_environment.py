"""The set-up files agree with each other: checked as data, so that no conda is needed."""

import ast
import re
import sys
import tomllib
from itertools import chain

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from steerlib.tables import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text())
LINES = re.findall(r"^[^#\n]+$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
PINS = {canonicalize_name(pin.name): pin for pin in map(Requirement, LINES)}
ASKED = [*map(Requirement, chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))]

COMES_WITH = {
    "yaml": "pyyaml",
    "huggingface_hub": "transformers",
    "tokenizers": "transformers",
    "PIL": "matplotlib",
    "markupsafe": "jinja2",
    **dict.fromkeys(("traitlets", "IPython"), "ipykernel"),
}


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.name)
def test_every_dependency_is_pinned_within_the_range_that_pyproject_names(asked: Requirement) -> None:
    (exact,) = PINS[canonicalize_name(asked.name)].specifier
    assert asked.specifier.contains(exact.version)


def test_conda_installs_python_and_leaves_the_rest_to_pip_and_exact_pins_as_the_makefile_does() -> None:
    python, _, section = CONDA["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert section["pip"] == ["-c constraints.txt", "-e .[test,ray]"]
    assert [str(pin) for pin in PINS.values() if not re.fullmatch(r"[\w.-]+==[\w.]+", str(pin))] == []
    assert "pip install -q -c constraints.txt -e '.[test,ray]'" in (ROOT / "Makefile").read_text()


def test_the_library_asks_for_all_that_it_imports() -> None:
    nodes = [n for file in (ROOT / "steerlib").rglob("*.py") for n in ast.walk(ast.parse(file.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    imported = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"steerlib"}
    asked = {canonicalize_name(Requirement(line).name) for line in PROJECT["dependencies"]}
    assert {name for name in imported if canonicalize_name(COMES_WITH.get(name, name)) not in asked} == set()
    assert "fcntl" not in names  # Windows has none
