"""Tensor-parallel loads by transformers: each rank gets stock's tensors, and reads its part."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from gpu import NEEDS_SIMULATOR
from process import TESTS, run_script

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="no transformers")
RANKS = 2
SIMULATION = {"SIMCUDA_DEVICES": str(RANKS), "SIMCUDART_SKIP_KERNELS": "1"}
SCRIPT = TESTS / "parallel_cases.py"
Told = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    run_script(SCRIPT, folder, "save")
    return folder


def load(folder: Path, way: str) -> list[Told]:
    """What each of the ranks tells; they find each other by a port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def rank(number: int) -> Told:
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
        settings = {name: str(value) for name, value in names.items()}
        env = SIMULATION | settings | {"MASTER_ADDR": "127.0.0.1"}
        told: Told = json.loads(run_script(SCRIPT, folder, way, env=env).splitlines()[-1])
        return told

    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(rank, range(RANKS)))


def check_same(stock: list[Told], ours: list[Told]) -> None:
    for theirs, own in zip(stock, ours, strict=True):
        assert own["digest"] == theirs["digest"]
        assert own["places"] == theirs["places"]
    assert ours[0]["digest"] != ours[1]["digest"]


def test_on_the_host(folder: Path) -> None:
    ours = load(folder, "ours")
    check_same(load(folder, "stock"), ours)
    assert all(told["served"]["safe_open"] for told in ours)


@NEEDS_SIMULATOR[0]
@NEEDS_SIMULATOR[1]
def test_each_rank_reads_its_share(folder: Path) -> None:
    ours = load(folder, "ours")
    check_same(load(folder, "stock"), ours)
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    for number, told in enumerate(ours):
        report = told["report"]
        print(f"rank {number} of a checkpoint of {total} bytes: {json.dumps(report)}")  # noqa: T201
        assert told["served"]["transformers plan"] == 1
        assert sum("dim=0" in place for place in told["places"].values()) > 8  # column-wise
        assert sum("dim=1" in place for place in told["places"].values()) == 4  # row-wise
        assert report["bytes"] < 0.51 * total
        assert report["read_bytes"] < 0.51 * total
