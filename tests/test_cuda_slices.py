"""``get_slice`` on a GPU: what an index needs is read, and the rest is torch's to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from gpu import NEEDS_GPU
from oracle import STOCK, Entry, bits, write_raw
from safetensors.torch import save_file
from safetensors_streaming import safe_open

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = NEEDS_GPU


def test_slices_read_their_rows(large: Path) -> None:
    with safe_open(large, "pt", device="cuda") as handle:
        part = handle.get_slice("t07")
        rows = part[1000:3000]
        assert rows.device == torch.device("cuda", 0)
        assert bits(rows) == bits(STOCK.load_file(large)["t07"][1000:3000])
        assert rows.untyped_storage().nbytes() == 8000
        assert bits(part[5]) == bits(STOCK.load_file(large)["t07"][5])
    whole = part[...]
    assert bits(whole) == bits(STOCK.load_file(large)["t07"])


PARTS = {
    "columns": (slice(None), slice(5, 9)),
    "columns of rows": (slice(2, 9), slice(0, 30)),
    "columns of a row": (7, slice(3, None)),
    "columns deeper down": (slice(2, 9), slice(None), slice(2, 5)),
    "no columns": (slice(None), slice(4, 4)),
}
MORE = {
    "every second column": (slice(None), slice(1, None, 2)),
    "a column": (slice(None), 3),
    "twice": (slice(None), slice(1, 9), slice(2, 5)),
    "from behind": (slice(None), slice(-4, -1)),
    "with a new dimension": (slice(3, 9), None, slice(2, 4)),
    "with the rest": (slice(3, 9), Ellipsis, slice(2, 4)),
}


@pytest.mark.parametrize("index", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_slices_read_their_columns(tmp_path: Path, index: object, dtype: torch.dtype) -> None:
    """Small rows, which ride together, and large ones."""
    path = tmp_path / "table.safetensors"
    small = torch.arange(12 * 40 * 7).reshape(12, 40, 7).to(dtype)
    save_file({"first": torch.zeros(3), "small": small, "large": large_rows(dtype)}, path)
    expected = STOCK.load_file(path)
    with safe_open(path, "pt", device="cuda") as handle:
        for name in ("small", "large"):
            part, known = handle.get_slice(name)[index], expected[name][index]
            assert (part.shape, part.dtype) == (known.shape, known.dtype)
            assert part.is_contiguous()
            assert bits(part) == bits(known)
            assert part.untyped_storage().nbytes() == known.nbytes


def large_rows(dtype: torch.dtype) -> torch.Tensor:
    """Of which no two columns are alike; a few of them are more than a kernel places."""
    columns = torch.arange(12 * 40).reshape(12, 40, 1) + torch.arange(20_000)
    return columns.to(dtype)


@pytest.mark.parametrize("index", MORE.values(), ids=MORE)
def test_slices_as_torch_slices(tmp_path: Path, index: object) -> None:
    path = tmp_path / "cube.safetensors"
    save_file({"cube": torch.arange(20 * 30 * 10).reshape(20, 30, 10)}, path)
    known = STOCK.load_file(path)["cube"][index]
    with safe_open(path, "pt", device="cuda") as handle:
        part = handle.get_slice("cube")[index]
        assert (part.shape, part.device.type) == (known.shape, "cuda")
        assert torch.equal(part.cpu(), known)
        assert part.is_contiguous()
        assert part.untyped_storage().nbytes() == known.nbytes


FOUR_BITS = [slice(None), slice(1, 3), 1, (slice(1, 3), slice(None)), (1, slice(None)), Ellipsis]


@pytest.mark.parametrize("index", FOUR_BITS, ids=str)
@pytest.mark.parametrize("shape", [[8], [4, 8], [2, 3, 4]], ids=str)
def test_slices_of_four_bits(tmp_path: Path, shape: list[int], index: object) -> None:
    if isinstance(index, tuple) and len(shape) == 1:
        index = index[:1]
    path = write_raw(tmp_path / "four.safetensors", {"a": Entry("F4", shape)})
    with safe_open(path, "pt") as handle:
        known = handle.get_slice("a")[index]
    with safe_open(path, "pt", device="cuda") as handle:
        part = handle.get_slice("a")[index]
    assert (part.shape, part.dtype) == (known.shape, known.dtype)
    assert bits(part) == bits(known)


def test_shapes_that_are_too_large_to_multiply(tmp_path: Path) -> None:
    shape = [0, 3_000_000_000, 3_000_000_000]
    path = write_raw(tmp_path / "empty.safetensors", {"a": Entry("F32", shape)})
    with safe_open(path, "pt", device="cuda") as handle:
        assert handle.get_slice("a")[0:0].shape == tuple(shape)
