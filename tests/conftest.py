"""Files that many tests load."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import safetensors_streaming
import simulator
import torch
from oracle import Entry, write_checkpoint, write_raw, write_slow
from process import busy, eventually
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: How long a server may say nothing; it is read with the first remote file.
os.environ["SAFETENSORS_STREAMING_NETWORK_PATIENCE"] = "1"

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _not_patched() -> Iterator[None]:
    """No test may leave safetensors patched behind."""
    yield
    left = safetensors_streaming.status().patched
    safetensors_streaming.unpatch()
    assert not left, "the test left safetensors patched"


@pytest.fixture(autouse=True)
def _in_order_and_freed(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test on a GPU leaves memory or work; on the simulator, nothing was out of order."""
    if request.node.get_closest_marker("cuda") is None:
        yield
        return
    torch.cuda.init()
    if simulator.DRIVER is not None:
        simulator.reset()
    before = torch.cuda.memory_allocated()
    yield
    assert eventually(lambda: not busy())
    if simulator.DRIVER is not None:
        simulator.fail("*", 0, 0)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    if simulator.DRIVER is not None:
        assert simulator.statistics()["violations"] == {"count": 0, "texts": []}


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A small file whose file order is not the order of its names; with metadata."""
    entries = {
        "z.weight": Entry("F32", [6, 4]),
        "empty": Entry("F32", [0, 3]),
        "b": Entry("BF16", [2, 3, 4]),
        "scalar": Entry("I64", []),
        "a": Entry("F16", [7]),
    }
    return write_raw(tmp_path / "sample.safetensors", entries, {"format": "pt", "note": "é"})


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 MiB in 24 tensors: more than all the slots that one load borrows."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    seed = torch.Generator().manual_seed(1)
    count = MIB
    save_file({f"t{i:02}": torch.randn(count, generator=seed) for i in range(24)}, path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder of three shards of every type, with their index."""
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Half a GiB of zeros."""
    return write_slow(tmp_path / "slow.safetensors")
