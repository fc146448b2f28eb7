"""Small tensors on a GPU, which torch makes for us without the interpreter, against those that its
users make."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
import safetensors
import torch
from gpu import NEEDS_GPU, check
from oracle import DTYPES, OURS, STOCK, TORCH_TYPES, Api, Entry, bits, write_raw, write_sparse
from process import run_python, start_python
from safetensors_streaming import load_file, stream
from torch.utils._python_dispatch import TorchDispatchMode

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
    names = ["dtype", "shape", "device", "layout", "is_leaf", "requires_grad", "grad_fn", "grad"]
    calls = ["stride", "storage_offset", "is_inference", "is_pinned", "is_shared"]
    asked = {name: getattr(tensor, name) for name in names}
    asked |= {name: getattr(tensor, name)() for name in calls}
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


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_torch_without_these_functions(every_shape: Path, how: str) -> None:
    """As torch before 2.4 is, and as another may be."""
    source = """
        import sys, torch
        from gpu import check
        from oracle import STOCK
        from safetensors_streaming import load_file, stream

        if sys.argv[2] == "gone":
            del torch._C._aoti
        else:
            torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs = lambda handles: 1 / 0
        path, made, empty = sys.argv[1], [], torch.empty
        torch.empty = lambda *size, **how: made.append(size) or empty(*size, **how)
        check(load_file(path, "cuda"), STOCK.load_file(path))
        check(dict(sorted(stream(path, "cuda"))), dict(sorted(STOCK.load_file(path).items())))
        assert torch.cuda.memory_allocated() == 0
        assert len(made) >= 2 * len(STOCK.load_file(path))
        print("loaded")
    """
    assert run_python(source, every_shape, how) == "loaded\n"


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
        devices = torch.cuda.memory._snapshot()["device_traces"]
        print(sum(event["action"] == "alloc" for events in devices for event in events))
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


@pytest.mark.parametrize("settings", ["max_split_size_mb:32", "expandable_segments:True"])
def test_nothing_is_reserved_twice_where_torch_keeps_large_blocks_whole(
    tmp_path: Path, settings: str
) -> None:
    path = write_sparse(tmp_path / "large.safetensors", 14, 12 << 20)
    source = """
        import sys, torch
        from safetensors_streaming import load_file

        loaded = load_file(sys.argv[1], "cuda")
        print(torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the older one, and its successor
    unused = int(run_python(source, path, env=dict.fromkeys(names, settings)))
    assert unused <= 2 * 14 << 20  # torch rounds each up to 2 MiB


def test_who_keeps_one_tensor_keeps_no_more_than_a_part_of_the_load(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "large.safetensors", 24, 20 << 20)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for kept in (0, 11, 23):
        loaded = list(load_file(path, "cuda").values())
        assert torch.cuda.memory_reserved() - before == 24 * 20 << 20
        loaded = [loaded[kept]]
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() - before <= 128 << 20
        del loaded
        torch.cuda.empty_cache()


def test_what_torch_has_idle_is_used(tmp_path: Path) -> None:
    """At most a block more than by stock is reserved, and nothing goes back to the driver."""
    one = write_sparse(tmp_path / "one.safetensors", 24, 20 << 20)
    other = write_sparse(tmp_path / "other.safetensors", 10, 45 << 20)

    def by_turns(api: Api) -> tuple[int, int]:
        """The bytes that torch has reserved in the end, and how often it gave some back."""
        torch.cuda.empty_cache()
        before = torch.cuda.memory_stats()
        STOCK.load_file(one, "cuda")
        for path in (one, other, one, other, one):
            api.load_file(path, "cuda")
        after = torch.cuda.memory_stats()
        names = ("reserved_bytes.all.current", "segment.all.freed")
        reserved, freed = (after[name] - before[name] for name in names)
        return reserved, freed

    by_stock = by_turns(STOCK)
    reserved, freed = by_turns(OURS)
    assert freed == by_stock[1] == 0
    assert reserved <= by_stock[0] + (128 << 20)  # one block


class Raising(TorchDispatchMode):
    """Refuses all that torch is asked for."""

    def __torch_dispatch__(self, *_asked: object, **_how: object) -> None:
        raise ValueError("not now")


def test_what_a_mode_of_torchs_raises(many: Path) -> None:
    with pytest.raises(ValueError, match="not now"), Raising():
        load_file(many, "cuda")
    check(load_file(many, "cuda"), STOCK.load_file(many))


def test_no_room_for_small_tensors(many: Path) -> None:
    """An error of torch's own, nothing left, and torch's words about it not more than once."""
    source = """
        import sys, torch
        from safetensors_streaming import load_file

        size = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((3 << 20) / size)
        try:
            load_file(sys.argv[1], "cuda")
        except torch.OutOfMemoryError:
            print(torch.cuda.memory_allocated())
    """
    with start_python(source, many) as child:
        told, log = child.communicate()
    assert (told, child.returncode) == ("0\n", 0), log
    assert log.count("aoti_torch: ") <= 1
