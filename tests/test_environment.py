"""The set-up files agree with each other: checked as data, so that no conda is needed."""

import re
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
PINS = {
    canonicalize_name(pin.name): pin
    for pin in map(
        Requirement, re.findall(r"^[^#\n]+$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    )
}
ASKED = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
]


@pytest.mark.parametrize("asked", ASKED, ids=lambda asked: asked.name)
def test_every_dependency_is_pinned_within_the_range_that_pyproject_names(asked: Requirement) -> None:
    (exact,) = PINS[canonicalize_name(asked.name)].specifier
    assert exact.operator == "=="
    assert asked.specifier.contains(exact.version)


def test_every_pin_is_exact_and_free_of_a_local_version() -> None:
    assert [str(pin) for pin in PINS.values() if not re.fullmatch(r"[\w.-]+==[\w.]+", str(pin))] == []


def test_conda_installs_python_and_leaves_the_rest_to_pip_and_the_pins() -> None:
    python, pip, section = CONDA["dependencies"]
    assert CONDA["channels"] == ["conda-forge"]
    assert pip == "pip"
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert section["pip"] == ["-c constraints.txt", "-e .[test]"]
    assert "test" in PROJECT["optional-dependencies"]


def test_the_makefile_installs_with_the_same_pins_as_conda() -> None:
    assert "pip install -q -c constraints.txt -e '.[test]'" in (ROOT / "Makefile").read_text()


def test_ci_runs_the_tests_and_then_the_quick_run() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert re.findall(r"^make .*", script.read_text(), flags=re.MULTILINE) == ["make test", "make run"]
