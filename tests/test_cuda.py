"""Tensors on a GPU, against stock's on the CPU: on a real one, or on the simulated driver.

Nothing here needs a kernel of torch's: the simulated driver has none. Tensors are compared on the
CPU.
"""

from __future__ import annotations

import copy
import io
import itertools
import types
from typing import TYPE_CHECKING

import pytest
import safetensors
import safetensors.torch
import safetensors_streaming
import torch
from gpu import ALLOCATORS, NEEDS_GPU, SIMULATED, check
from oracle import (
    DTYPES,
    STOCK,
    TORCH_TYPES,
    Entry,
    bits,
    by_stock,
    evict,
    write_raw,
    write_sparse,
)
from process import busy, eventually, run_python
from safetensors_streaming import (
    cuda,
    load_checkpoint,
    load_file,
    release,
    safe_open,
    stream,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = NEEDS_GPU
MIB = 1 << 20


@pytest.fixture
def every_type(tmp_path: Path) -> Path:
    """Every type, at odd offsets, with empty tensors and scalars between."""
    entries = {f"{name}.{size}": Entry(name, [size, 2]) for name in DTYPES for size in (1, 3, 700)}
    entries |= {f"{name}.none": Entry(name, [0, 4]) for name in DTYPES}
    entries |= {f"{name}.one": Entry(name, []) for name in DTYPES if name != "F4"}
    return write_raw(tmp_path / "types.safetensors", entries, {"format": "pt"}, misalign=3)


# What is loaded.


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("warm", [True, False])
def test_every_type(every_type: Path, allocator: str, *, warm: bool) -> None:
    if not warm:
        evict(every_type)
    check(load_file(every_type, "cuda", allocator=allocator), STOCK.load_file(every_type))


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("cache", ["auto", "keep", "bypass"])
def test_more_than_the_ring(large: Path, allocator: str, cache: str) -> None:
    evict(large)
    loaded = load_checkpoint(large, "cuda", cache=cache, allocator=allocator)
    check(loaded, STOCK.load_file(large))


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_shards(checkpoint: Path, allocator: str) -> None:
    check(load_checkpoint(checkpoint, "cuda", allocator=allocator), by_stock(checkpoint))


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("misalign", [0, 1, 61])
def test_every_offset(tmp_path: Path, allocator: str, misalign: int) -> None:
    """Pieces that a kernel places, pieces with a copy of their own, and both in one chunk."""
    sizes = [1, 65_536, 65_537, 3, 0, 70_000, 7, 5, 11, 4095]
    sizes += [9 * MIB + 5, 2, 4096, 2 * MIB, 1, 1, 0]
    entries = {f"t{i:02}": Entry("U8", [size]) for i, size in enumerate(sizes)}
    path = write_raw(tmp_path / "sizes.safetensors", entries, misalign=misalign)
    check(load_file(path, "cuda", allocator=allocator), STOCK.load_file(path))


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_thousands_of_tiny_tensors(tmp_path: Path, allocator: str) -> None:
    """More of them in one chunk than its table of pieces holds."""
    entries = {f"t{i:05}": Entry("U8", [1 + i % 5]) for i in range(12_000)}
    path = write_raw(tmp_path / "tiny.safetensors", entries)
    loaded, expected = load_file(path, "cuda", allocator=allocator), STOCK.load_file(path)
    assert list(loaded) == list(expected)
    for name in itertools.islice(expected, 0, None, 97):
        assert bits(loaded[name]) == bits(expected[name])


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, torch.device("cuda", 0)])
def test_names_of_the_device(sample: Path, device: object) -> None:
    expected = STOCK.load_file(sample)
    check(load_file(sample, device), expected)
    check(load_checkpoint(sample, device), expected)
    check(dict(sorted(stream(sample, device))), dict(sorted(expected.items())))
    with safe_open(sample, "pt", device) as handle:
        check(handle.get_tensors(), expected)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_stream(large: Path, allocator: str) -> None:
    taken = dict(stream(large, "cuda", allocator=allocator))
    check(dict(sorted(taken.items())), STOCK.load_file(large))


def test_a_stream_closed_early(large: Path) -> None:
    flow = stream(large, "cuda")
    name, tensor = next(flow)
    flow.close()
    assert eventually(lambda: not busy())
    assert bits(tensor) == bits(STOCK.load_file(large)[name])


def test_a_stream_that_the_collector_finds_in_its_own_thread(tmp_path: Path) -> None:
    """The thread asks torch for memory, and so may be the one in which garbage is collected."""
    path = write_sparse(tmp_path / "large.safetensors", 16, 8 * MIB)
    script = """
        import gc, sys, threading
        import torch
        from process import busy, eventually
        from safetensors_streaming import stream

        empty, told, collected = torch.empty, [], []
        left = threading.Event()
        sys.unraisablehook = told.append

        def collecting(*sizes, **how):
            if left.wait(0.05):  # time for the first tensor to arrive, and to be taken
                collected.append(threading.current_thread().name)
                gc.collect()
            return empty(*sizes, **how)

        torch.empty = collecting
        gc.disable()
        tensors = stream(sys.argv[1], "cuda")
        next(tensors)
        cycle = [tensors]
        cycle.append(cycle)
        del tensors, cycle
        left.set()
        assert eventually(lambda: not busy())
        assert collected
        assert threading.current_thread().name not in collected
        assert told == [], told
    """
    run_python(script, path)


def test_a_stream_that_nobody_took_anything_from(large: Path) -> None:
    """Its thread wants the interpreter while the one that drops it has it."""
    for _ in range(5):
        flow = stream(large, "cuda")
        del flow
    assert eventually(lambda: not busy())


@pytest.mark.skipif(not SIMULATED, reason="needs a small GPU; ci/sim makes one")
def test_a_stream_longer_than_the_gpu(tmp_path: Path) -> None:
    """Tensors that are dropped as they come need no room for all of them."""
    script = """
        import sys, torch
        from safetensors_streaming import load_file, stream
        for allocator in ("torch", "driver"):
            total = sum(t.nbytes for _, t in stream(sys.argv[1], "cuda", allocator=allocator))
            assert total == 24 << 26, total
            try:
                load_file(sys.argv[1], "cuda", allocator=allocator)
            except torch.OutOfMemoryError as error:
                assert "1610612736" in str(error), error
            else:
                sys.exit("there was no room, and yet it was loaded")
    """
    path = write_sparse(tmp_path / "long.safetensors", 24, 1 << 26)
    run_python(script, path, env={"SIMCUDA_MEM": str(1 << 30), "SIMCUDA_POISON": "0"})


def test_an_open_stream_at_the_end(large: Path) -> None:
    run_python(
        """
        import sys
        from safetensors_streaming import stream
        flow = stream(sys.argv[1], "cuda")
        next(flow)
        """,
        large,
    )


def test_patched(every_type: Path) -> None:
    expected = STOCK.load_file(every_type)
    with safetensors_streaming.patched():
        before = safetensors_streaming.status().served.get("load_file", 0)
        check(safetensors.torch.load_file(every_type, device="cuda"), expected)
        assert safetensors_streaming.status().served["load_file"] == before + 1


def test_the_device_of_calls_that_name_none(every_type: Path) -> None:
    """A direct call gets the device of patch(), a library's own call the CPU, as it expects."""
    expected = STOCK.load_file(every_type)
    library = types.ModuleType("transformers.made_up")
    source = "import safetensors\ndef load(path): return safetensors.torch.load_file(path)"
    exec(source, vars(library))  # noqa: S102 - a module of that name
    with safetensors_streaming.patched(device="cuda"):
        assert safetensors_streaming.status().device == "cuda:0"
        check(safetensors.torch.load_file(every_type), expected)
        with safetensors.safe_open(every_type, "pt") as handle:
            check(handle.get_tensors(), expected)
        assert safetensors.torch.load_file(every_type, "cpu")["F32.3"].device.type == "cpu"
        assert library.load(every_type)["F32.3"].device.type == "cpu"
        with safetensors.safe_open(every_type, "np") as handle:
            assert handle.get_tensor("F32.3").shape == (3, 2)
    assert safetensors_streaming.status().device == "cpu"


# The handle.


def test_tensors_in_any_order_and_again(every_type: Path) -> None:
    expected = STOCK.load_file(every_type)
    with safe_open(every_type, "pt", device="cuda") as handle:
        names = sorted(expected, key=lambda name: hash(name) % 997)
        for name in [*names, *names[:5]]:
            check({name: handle.get_tensor(name)}, {name: expected[name]})
        with pytest.raises(safetensors.SafetensorError, match="does not contain tensor nobody"):
            handle.get_tensor("nobody")
        check({names[0]: handle.get_tensor(names[0])}, {names[0]: expected[names[0]]})


# What a tensor is.


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_each_has_a_storage_of_its_own(every_type: Path, allocator: str) -> None:
    loaded = load_file(every_type, "cuda", allocator=allocator)
    for name, tensor in loaded.items():
        assert tensor.storage_offset() == 0
        assert tensor.untyped_storage().nbytes() == tensor.nbytes, name
        assert tensor.data_ptr() % 512 == 0, name
        assert tensor.is_contiguous()
        assert tensor.is_leaf
        assert not tensor.requires_grad
        assert not tensor.is_inference()
    starts = [tensor.data_ptr() for tensor in loaded.values() if tensor.nbytes]
    assert len(starts) == len(set(starts))


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_saving_one_saves_only_it(tmp_path: Path, allocator: str) -> None:
    entries = {"small": Entry("U8", [1000]), "other": Entry("U8", [3 * MIB])}
    path = write_raw(tmp_path / "two.safetensors", entries)
    loaded = load_file(path, "cuda", allocator=allocator)
    target = io.BytesIO()
    torch.save(loaded["small"], target)
    assert target.tell() < 4096
    twin = copy.deepcopy(loaded["small"])
    assert bits(twin) == bits(loaded["small"])
    again = tmp_path / "again.safetensors"
    safetensors.torch.save_file(loaded, again)
    assert bits(STOCK.load_file(again)["other"]) == bits(STOCK.load_file(path)["other"])


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_survivor_keeps_its_bytes(large: Path, allocator: str) -> None:
    expected = STOCK.load_file(large)
    loaded = load_file(large, "cuda", allocator=allocator)
    survivor = loaded.pop("t11")
    loaded.clear()
    others = load_file(large, "cuda", allocator=allocator)
    assert bits(survivor) == bits(expected["t11"])
    assert bits(others["t12"]) == bits(expected["t12"])


def test_torch_counts_its_own(tmp_path: Path) -> None:
    """Rounded as torch rounds: to 512 bytes."""
    entries = {f"t{i}": Entry("U8", [size]) for i, size in enumerate([1, 512, 513, MIB, 5 * MIB])}
    path = write_raw(tmp_path / "sizes.safetensors", entries)
    before = torch.cuda.memory_allocated()
    loaded = load_file(path, "cuda")
    rounded = sum(-(-tensor.nbytes // 512) * 512 for tensor in loaded.values())
    assert torch.cuda.memory_allocated() - before == rounded
    loaded.clear()
    other = load_file(path, "cuda", allocator="driver")
    assert torch.cuda.memory_allocated() == before
    assert len(other) == len(entries)


def test_on_a_side_stream(large: Path) -> None:
    expected = STOCK.load_file(large)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        loaded = load_file(large, "cuda")
        back = {name: tensor.cpu() for name, tensor in loaded.items()}
        loaded.clear()
        again = dict(stream(large, "cuda"))
    check(dict(sorted(again.items())), expected)
    assert all(bits(back[name]) == bits(expected[name]) for name in expected)


def test_the_current_device_stays(sample: Path) -> None:
    before = torch.cuda.current_device(), torch.cuda.current_stream()
    load_file(sample, "cuda", allocator="driver")
    load_file(sample, "cuda")
    release()
    assert (torch.cuda.current_device(), torch.cuda.current_stream()) == before


# Arrays without torch.


def test_arrays_export_both_protocols(every_type: Path) -> None:
    arrays, expected = cuda.load_file(every_type), STOCK.load_file(every_type)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        known = expected[name]
        assert (array.shape, array.nbytes, array.device) == (tuple(known.shape), known.nbytes, 0)
        assert TORCH_TYPES[array.dtype] is known.dtype
        interface = array.__cuda_array_interface__
        assert (interface["version"], interface["strides"], interface["stream"]) == (3, None, None)
        assert interface["shape"] == tuple(known.shape)
        if known.nbytes:
            viewed = torch.as_tensor(array, device="cuda")
            assert viewed.data_ptr() == interface["data"][0]
            assert bits(viewed.view(known.dtype)) == bits(known), name
        taken = torch.from_dlpack(array)
        assert (taken.dtype, taken.shape) == (known.dtype, known.shape)
        assert bits(taken) == bits(known), name
    survivor = torch.as_tensor(arrays["F32.700"], device="cuda")
    del arrays, array, viewed, taken
    assert bits(survivor) == bits(expected["F32.700"])


def test_facts_of_a_gpu() -> None:
    facts = cuda.gpu_facts(0)
    # NVML counts what the driver keeps for itself, torch does not.
    usable = torch.cuda.get_device_properties(0).total_memory
    assert facts.memory_total is not None
    assert usable <= facts.memory_total < usable * 1.1
    assert facts.memory_free is not None
    assert 0 < facts.memory_free <= facts.memory_total
    for now, most in [
        (facts.pcie_generation, facts.pcie_generation_max),
        (facts.pcie_width, facts.pcie_width_max),
    ]:
        assert (now is None) == (most is None)
        assert now is None or most is None or 0 < now <= most
    with pytest.raises(RuntimeError, match=r"cuda:9999: .*invalid device ordinal"):
        cuda.gpu_facts(9999)


@pytest.mark.skipif(not SIMULATED, reason="needs an NVML that can be told; ci/sim has one")
@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"SIMNVML_GEN": "1", "SIMNVML_WIDTH": "8", "SIMNVML_NUMA": "0"}, "1 5 8 16 0"),
        ({"SIMNVML_NUMA": "-1"}, "5 5 16 16 None"),
    ],
)
def test_facts_by_nvml(sample: Path, env: dict[str, str], told: str) -> None:
    script = """
        import sys
        from safetensors_streaming import cuda
        facts = cuda.gpu_facts()
        print(facts.pcie_generation, facts.pcie_generation_max, facts.pcie_width,
              facts.pcie_width_max, facts.numa_node)
        assert cuda.load_file(sys.argv[1])
    """
    assert run_python(script, sample, env=env).strip() == told
