"""Small tensors on a GPU, which torch makes for us without the interpreter, against those that its
users make."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
import safetensors
import torch
from gpu import NEEDS_GPU, check
from oracle import DTYPES, STOCK, TORCH_TYPES, Entry, bits, write_raw, write_sparse
from process import run_python
from safetensors_streaming import load_file, stream

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = NEEDS_GPU
SHAPES = [[], [2], [3, 1, 4], [1, 2], [2, 0, 2], [1, 2, 3, 4, 5, 6]]


@pytest.fixture
def every_shape(tmp_path: Path) -> Path:
    names = [name for name in DTYPES if name in TORCH_TYPES and name != "F4"]
    entries = {f"{name}.{shape}": Entry(name, shape) for name in names for shape in SHAPES}
    return write_raw(tmp_path / "shapes.safetensors", entries)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    return write_raw(
        tmp_path / "many.safetensors", {f"t{i:04}": Entry("F16", [8, 8]) for i in range(5000)}
    )


def told(tensor: torch.Tensor) -> dict[str, object]:
    """What a tensor is, but for its bytes and where they lie."""
    names = ["dtype", "shape", "device", "layout", "requires_grad", "grad_fn", "grad"]
    calls = ["stride", "storage_offset", "is_leaf", "is_inference", "is_pinned", "is_shared"]
    asked = {name: getattr(tensor, name) for name in names}
    for name in calls:
        asked[name] = getattr(tensor, name)() if callable(getattr(tensor, name)) else None
    storage = tensor.untyped_storage()
    return {**asked, "bytes": storage.nbytes(), "resizable": storage.resizable()}


@pytest.mark.parametrize("inference", [False, True])
def test_as_torch_makes_them(every_shape: Path, *, inference: bool) -> None:
    with torch.inference_mode(inference):
        loaded = load_file(every_shape, "cuda")
        for name, tensor in loaded.items():
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
            assert type(tensor) is torch.Tensor
            assert told(tensor) == told(made), name


def test_torch_without_these_functions(every_shape: Path) -> None:
    """As torch before 2.4 is."""
    source = """
        import sys, torch
        from gpu import check
        from oracle import STOCK
        from safetensors_streaming import load_file, stream

        del torch._C._aoti
        path = sys.argv[1]
        check(load_file(path, "cuda"), STOCK.load_file(path))
        check(dict(sorted(stream(path, "cuda"))), dict(sorted(STOCK.load_file(path).items())))
        assert torch.cuda.memory_allocated() == 0
        print("loaded")
    """
    assert run_python(source, every_shape) == "loaded\n"


def test_pythons_collector_is_not_kept_busy(many: Path) -> None:
    """Torch's tensors are objects that it looks at; 5,000 of them would wake it seven times."""
    rounds = []

    def note(phase: str, info: dict[str, int]) -> None:
        rounds.append((phase, info["generation"]))

    load_file(many, "cuda")  # what the first load of a process imports and keeps
    gc.collect()
    gc.callbacks.append(note)
    try:
        loaded = load_file(many, "cuda")
    finally:
        gc.callbacks.remove(note)
    assert len(rounds) <= 2, rounds  # one round begins and ends: the pause is over
    check(loaded, STOCK.load_file(many))


def test_what_nobody_took_is_freed(many: Path) -> None:
    before = torch.cuda.memory_allocated()
    with pytest.raises(safetensors.SafetensorError, match="many"):
        load_file(many, "cuda", verify="0" * 64)
    assert torch.cuda.memory_allocated() == before
    arriving = stream(many, "cuda")
    name, tensor = next(arriving)
    assert bits(tensor) == bits(STOCK.load_file(many)[name])
    arriving.close()
    del tensor
    assert torch.cuda.memory_allocated() == before


def test_while_torch_records_who_allocates(many: Path) -> None:
    """Which needs the interpreter, in the middle of what is done without it."""
    source = """
        import sys, torch
        from gpu import check
        from oracle import STOCK
        from safetensors_streaming import load_file

        torch.cuda.memory._record_memory_history(stacks="all")
        check(load_file(sys.argv[1], "cuda"), STOCK.load_file(sys.argv[1]))
        (events,) = torch.cuda.memory._snapshot()["device_traces"]
        print(sum(event["action"] == "alloc" for event in events))
    """
    assert int(run_python(source, many)) >= 5000


def test_torch_reserves_all_large_tensors_at_once(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "large.safetensors", 14, 5 << 20)
    torch.cuda.empty_cache()

    def segments() -> int:
        count: int = torch.cuda.memory_stats()["segment.large_pool.allocated"]
        return count

    before = segments()
    loaded = load_file(path, "cuda")
    assert segments() - before == 1
    loaded.clear()
    loaded = load_file(path, "cuda")
    assert segments() - before == 1  # what torch has in its cache is enough
    assert len(loaded) == 14
