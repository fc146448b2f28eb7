"""Libraries that place tensors on GPUs: the same weights in the same places, by their own plan."""

from __future__ import annotations

import json
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import placed_cases
import pytest
import torch
from gpu import NEEDS_GPU, SIMULATED
from process import TESTS, run_script

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = ["accelerate", "transformers"]
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = [
    *NEEDS_GPU,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(600),
]
#: Two GPUs; torch's own kernels, which the simulator does not have, do nothing.
SIMULATION = {"SIMCUDA_DEVICES": "2", "SIMCUDART_SKIP_KERNELS": "1"}
MERGING = "transformers experts"
CASES = [case for case in placed_cases.CASES if not (SIMULATED and case == MERGING)]
ON_ONE_GPU = [case for case in CASES if "two" not in case and "current" not in case]
ON_ONE_GPU = [case for case in ON_ONE_GPU if "part" not in case]
RUNNABLE = CASES if SIMULATED or torch.cuda.device_count() > 1 else ON_ONE_GPU
PLANNED = [case for case in RUNNABLE if "without" not in case and "float32" not in case]
Results = dict[str, Any]


def run(*arguments: object) -> Results:
    output = run_script(TESTS / "placed_cases.py", *arguments, env=SIMULATION)
    results: Results = json.loads(output.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed")
    run("save", folder)
    return folder


@pytest.fixture(scope="module")
def stock(folder: Path) -> Results:
    return run("load", folder, "stock", *RUNNABLE)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Results:
    return run("load", folder, "ours", *RUNNABLE)


@pytest.mark.parametrize("case", RUNNABLE)
def test_the_weights_and_their_places_are_the_same(
    case: str, stock: Results, ours: Results
) -> None:
    assert ours[case]["digest"] == stock[case]["digest"]
    assert ours[case]["places"] == stock[case]["places"]


@pytest.mark.parametrize("case", PLANNED)
def test_the_plan_was_read(case: str, ours: Results) -> None:
    assert "cuda:0" in ours[case]["places"].values() or "current" in case
    before = [other for other in PLANNED if PLANNED.index(other) < PLANNED.index(case)]
    assert ours[case]["planned"] > max((ours[other]["planned"] for other in before), default=0)


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver counts")
@pytest.mark.parametrize("case", PLANNED)
def test_costs(case: str, stock: Results, ours: Results) -> None:
    """Nothing is copied from pageable memory but what the library computes, nor is more used."""
    on_gpus = sum("cuda" in place for place in ours[case]["places"].values())
    theirs, own = stock[case]["driver"], ours[case]["driver"]
    assert theirs["pageable"]["copies"] >= on_gpus - 2
    assert own["pageable"]["copies"] <= theirs["pageable"]["copies"] - on_gpus + 2
    assert own["violations"]["count"] == 0
    for peak, their_peak in zip(ours[case]["peaks"], stock[case]["peaks"], strict=True):
        assert peak <= their_peak


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver counts")
def test_no_map_touches_no_gpu(folder: Path) -> None:
    alone = run("load", folder, "ours", "transformers without a device")
    counted = alone["transformers without a device"]
    assert counted["driver"]["calls_total"] == 0
    assert counted["planned"] == 0
