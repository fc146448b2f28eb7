"""``get_slice``: every way of indexing that torch has (contract 5 C)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from oracle import (
    OURS,
    STOCK,
    Entry,
    agree,
    bits,
    header_of,
    outcome,
    same_tensor,
    write_raw,
)
from process import memory_kib

if TYPE_CHECKING:
    from pathlib import Path

BACKENDS = ["mmap", "pread"]
MIB = 1 << 20

INDEXES: dict[str, object] = {
    "ellipsis": ...,
    "everything": slice(None),
    "integer": 2,
    "negative": -1,
    "numpy integer": np.int64(1),
    "first rows": slice(0, 2),
    "last rows": slice(-2, None),
    "stepped": slice(None, None, 2),
    "stepped within": slice(1, 6, 3),
    "no rows": slice(3, 3),
    "crossed": slice(4, 1),
    "rows out of range": slice(4, 100),
    "far out of range": slice(100, 200),
    "empty tuple": (),
    "two integers": (1, 2),
    "three integers": (1, 2, 3),
    "columns": (slice(None), slice(1, 3)),
    "rows and columns": (slice(1, 5), slice(0, 2), slice(1, 2)),
    "integer and slice": (3, slice(0, 1)),
    "ellipsis first": (..., 0),
    "ellipsis last": (1, ...),
    "ellipsis between": (1, ..., slice(0, 2)),
    "two ellipses": (..., 0, ...),
    "stepped columns": (slice(None), slice(None, None, 2)),
    "none": None,
    "none between": (slice(None), None, 1),
    "true": True,
    "false": False,
    "list": [0, 2, 1],
    "empty list": [],
    "lists": ([0, 1], [2, 2]),
    "list of columns": (slice(None), [2, 0]),
    "tensor": torch.tensor([5, 0, 5]),
    "row mask": torch.tensor([True, False, True, False, True, False]),
    "numpy array": np.array([1, 3]),
    "0-d tensor": torch.tensor(1),
    "range": range(2),
}

REFUSED: dict[str, object] = {
    "past the end": 6,
    "before the start": -7,
    "too many": (0, 0, 0, 0),
    "backwards": slice(None, None, -1),
    "step zero": slice(None, None, 0),
    "float": 1.0,
    "name": "a",
    "column past the end": (0, 9),
    "short mask": torch.tensor([True]),
}


@pytest.fixture
def cube(tmp_path: Path) -> Path:
    """A tensor of three dimensions, and one of none."""
    entries = {
        "x": Entry("F32", [6, 3, 4]),
        "scalar": Entry("I32", []),
        "empty": Entry("F32", [3, 0, 2]),
    }
    return write_raw(tmp_path / "cube.safetensors", entries)


@pytest.mark.parametrize("name", INDEXES)
def test_index(cube: Path, name: str) -> None:
    index = INDEXES[name]
    gave = agree(lambda api: api.safe_open(cube, "pt").get_slice("x")[index])
    assert gave.error is None


@pytest.mark.parametrize("name", REFUSED)
def test_refused_index(cube: Path, name: str) -> None:
    index = REFUSED[name]
    gave = agree(lambda api: api.safe_open(cube, "pt").get_slice("x")[index])
    assert gave.error is not None


@pytest.mark.parametrize("name", INDEXES)
def test_pread_gives_what_torch_gives(cube: Path, name: str) -> None:
    """Declared: stock's pread backend knows only integers, slices and the ellipsis."""
    index = INDEXES[name]
    expected = STOCK.load_file(cube)["x"][index]
    ours = OURS.safe_open(cube, "pt", backend="pread").get_slice("x")[index]
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape
    assert bits(ours) == bits(expected)


@pytest.mark.parametrize("name", [name for name in INDEXES if name not in {"true", "false"}])
def test_pread_is_never_worse_than_stock(cube: Path, name: str) -> None:
    index = INDEXES[name]
    stock = outcome(
        lambda: STOCK.safe_open(cube, "pt", backend="pread").get_slice("x")[index],
    )
    ours = OURS.safe_open(cube, "pt", backend="pread").get_slice("x")[index]
    if isinstance(stock.value, torch.Tensor):
        assert stock.value.shape == ours.shape
        assert bits(stock.value) == bits(ours)


@pytest.mark.parametrize("name", REFUSED)
def test_pread_refuses_too(cube: Path, name: str) -> None:
    index = REFUSED[name]
    handle = OURS.safe_open(cube, "pt", backend="pread")
    assert outcome(lambda: handle.get_slice("x")[index]).error is not None
    assert handle.get_slice("x")[0].shape == (3, 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [..., (), (...,)])
def test_scalar(cube: Path, backend: str, index: object) -> None:
    gave = agree(lambda api: api.safe_open(cube, "pt", backend=backend).get_slice("scalar")[index])
    assert gave.error is None


def test_scalar_has_no_dimension_to_slice(cube: Path) -> None:
    gave = agree(lambda api: api.safe_open(cube, "pt").get_slice("scalar")[:])
    assert gave.error is IndexError


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [..., 0, slice(1, 2), (slice(None), slice(0, 0))])
def test_empty(cube: Path, backend: str, index: object) -> None:
    """Declared: stock's pread backend slices no empty tensor."""
    expected = STOCK.safe_open(cube, "pt").get_slice("empty")[index]
    ours = OURS.safe_open(cube, "pt", backend=backend).get_slice("empty")[index]
    assert ours.dtype == expected.dtype
    assert ours.shape == expected.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_shape_and_dtype(cube: Path, backend: str) -> None:
    for name in ("x", "scalar", "empty"):
        agree(lambda api, name=name: api.safe_open(cube, "pt").get_slice(name).get_shape())
        agree(lambda api, name=name: api.safe_open(cube, "pt").get_slice(name).get_dtype())
    handle = OURS.safe_open(cube, "pt", backend=backend)
    assert handle.get_slice("x").get_shape() == [6, 3, 4]
    assert handle.get_slice("scalar").get_dtype() == "I32"


@pytest.mark.parametrize("backend", BACKENDS)
def test_outlives_the_handle(cube: Path, backend: str) -> None:
    expected = STOCK.load_file(cube)["x"]
    with OURS.safe_open(cube, "pt", backend=backend) as handle:
        lazy = handle.get_slice("x")
    del handle
    assert lazy.get_shape() == [6, 3, 4]
    assert bits(lazy[1:3]) == bits(expected[1:3])
    assert bits(lazy[...]) == bits(expected)


def test_views_of_one_storage_as_in_stock(cube: Path) -> None:
    """With mmap a slice is a view: it costs nothing, and what is written is seen by all."""
    handle = OURS.safe_open(cube, "pt")
    whole, part = handle.get_tensor("x"), handle.get_slice("x")[2:4, 1]
    part.fill_(7.0)
    assert (whole[2:4, 1] == 7.0).all()
    assert (handle.get_slice("x")[2, 1] == 7.0).all()
    assert not (STOCK.load_file(cube)["x"][2:4, 1] == 7.0).any()
    agree(lambda api: api.safe_open(cube, "pt").get_slice("x")[::2].untyped_storage().nbytes())
    agree(lambda api: api.safe_open(cube, "pt").get_slice("x")[:, 1:3].is_contiguous())


def test_a_pread_slice_reads_its_rows_only(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "tall.safetensors", {"x": Entry("U8", [64, MIB])})
    lazy = OURS.safe_open(path, "pt", backend="pread").get_slice("x")
    before = memory_kib("RssAnon")
    row = lazy[5:6]
    assert row.untyped_storage().nbytes() <= MIB
    assert memory_kib("RssAnon") - before < 48 * 1024
    assert bits(row) == bits(STOCK.safe_open(path, "pt").get_slice("x")[5:6])


def test_columns_of_rows_without_number_are_refused(tmp_path: Path) -> None:
    rows, row_bytes = (16 << 20) + 1, 128 << 10
    header = header_of({"x": ("U8", [rows, row_bytes], rows * row_bytes)})
    path = tmp_path / "sparse.safetensors"
    path.write_bytes(header)
    os.truncate(path, len(header) + rows * row_bytes)
    lazy = OURS.safe_open(path, "pt", backend="pread").get_slice("x")
    with pytest.raises(OSError, match=f"{rows} stretches apart from each other") as caught:
        lazy[:, :4096]
    assert str(path) in str(caught.value)
    assert not lazy[-1:, :4096].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_f4_slices_are_of_bytes(tmp_path: Path, backend: str) -> None:
    """Declared: stock cannot slice F4. Its get_shape() counts elements, torch's tensor pairs."""
    path = write_raw(tmp_path / "f4.safetensors", {"x": Entry("F4", [4, 8])})
    whole = STOCK.load_file(path)["x"]
    assert outcome(lambda: STOCK.safe_open(path, "pt").get_slice("x")[...]).error is not None
    agree(lambda api: api.safe_open(path, "pt").get_slice("x").get_shape())
    lazy = OURS.safe_open(path, "pt", backend=backend).get_slice("x")
    assert lazy.get_shape() == [4, 8]
    assert lazy.get_dtype() == "F4"
    assert same_tensor(lazy[...], whole)
    assert bits(lazy[1:3].view(torch.uint8)) == bits(whole.view(torch.uint8)[1:3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_slices_are_real_under_a_meta_context(cube: Path, backend: str) -> None:
    """Declared: stock's slices follow the context and lose their content."""
    expected = bits(STOCK.load_file(cube)["x"][1:2])
    with torch.device("meta"):
        assert STOCK.safe_open(cube, "pt").get_slice("x")[...].is_meta
        part = OURS.safe_open(cube, "pt", backend=backend).get_slice("x")[1:2]
        everything = OURS.safe_open(cube, "pt", backend=backend).get_slice("x")[...]
    assert not part.is_meta
    assert not everything.is_meta
    assert bits(part) == expected
