"""What is said in more than one place is the same everywhere."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import activation

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines(path: str) -> set[str]:
    return {line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith("#")}


def test_one_version() -> None:
    control = re.search(r"^default_version = '(.*)'$", (ROOT / "activation.control").read_text(), re.MULTILINE)
    meta = json.loads((ROOT / "META.json").read_text())
    provided = meta["provides"]["activation"]
    assert control is not None
    assert {control[1], meta["version"], provided["version"]} == {activation.__version__}
    assert provided["file"] == f"extension/activation--{activation.__version__}.sql"


def test_pins_agree() -> None:
    assert set(PROJECT["dependencies"]) <= lines("python/constraints.txt")
    assert lines("examples/fastapi_app/requirements.txt") <= set(PROJECT["optional-dependencies"]["demo"])


def test_every_part_is_built() -> None:
    parts = re.search(r"^PARTS = (.*)$", (ROOT / "Makefile").read_text().replace("\\\n", ""), re.MULTILINE)
    assert parts is not None
    assert parts[1].split() == sorted(path.stem for path in (ROOT / "sql").glob("*.sql"))
