"""Tensors on a GPU, against stock's on the CPU: on a real one, or on the simulated driver.

Nothing here needs a kernel of torch's: the simulated driver has none. Tensors are compared on the
CPU.
"""

from __future__ import annotations

import copy
import io
import itertools
from typing import TYPE_CHECKING, cast

import pytest
import safetensors
import safetensors.torch
import safetensors_streaming
import simulator
import torch
from oracle import (
    DTYPES,
    STOCK,
    TORCH_TYPES,
    Entry,
    bits,
    by_stock,
    evict,
    outcome,
    write_raw,
)
from process import busy, eventually
from safetensors_streaming import (
    load_checkpoint,
    load_file,
    release,
    safe_open,
    stream,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device; ci/sim runs these without one"
    ),
]

MIB = 1 << 20
ALLOCATORS = ["torch", "driver"]
SIMULATED = simulator.DRIVER is not None


@pytest.fixture(autouse=True)
def _in_order_and_freed() -> Iterator[None]:
    """No test leaves memory or work behind; on the simulator, nothing was out of order."""
    torch.cuda.init()
    if SIMULATED:
        simulator.reset()
    before = torch.cuda.memory_allocated()
    yield
    assert eventually(lambda: not busy())
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before
    if SIMULATED:
        simulator.fail("*", 0, 0)
        assert simulator.statistics()["violations"] == {"count": 0, "texts": []}


def check(loaded: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names, types, shapes and bits; on the GPU, each in memory of its own."""
    filled = [name for name, known in expected.items() if known.nbytes]  # stock sorts no others
    assert [name for name in loaded if loaded[name].nbytes] == filled
    assert loaded.keys() == expected.keys()
    for name, known in expected.items():
        tensor = loaded[name]
        assert (tensor.dtype, tensor.shape) == (known.dtype, known.shape), name
        assert tensor.device == torch.device("cuda", 0)
        assert bits(tensor) == bits(known), name


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
    sizes = [1, 65_536, 65_537, 3, 0, 70_000, 7, 9 * MIB + 5, 2, 4096, 2 * MIB, 1, 1, 0]
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


def test_patched(every_type: Path) -> None:
    expected = STOCK.load_file(every_type)
    with safetensors_streaming.patched():
        before = safetensors_streaming.status().served.get("load_file", 0)
        check(safetensors.torch.load_file(every_type, device="cuda"), expected)
        assert safetensors_streaming.status().served["load_file"] == before + 1


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
    from safetensors_streaming import cuda  # noqa: PLC0415 - only here is it wanted

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


# What it costs, by the simulated driver's counters.


simulated = pytest.mark.skipif(not SIMULATED, reason="needs the counters of the simulated driver")


@simulated
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_costs(large: Path, allocator: str) -> None:
    release()
    torch.cuda.empty_cache()
    simulator.reset()
    before = simulator.statistics()["devices"][0]["live_bytes"]
    loaded = load_file(large, "cuda", allocator=allocator)
    tensor_bytes = sum(tensor.nbytes for tensor in loaded.values())
    counted = simulator.statistics()
    assert counted["pageable"] == {"copies": 0, "bytes": 0}
    assert counted["h2d"]["bytes"] == tensor_bytes
    assert counted["pinned"]["peak_bytes"] <= 256 * MIB
    assert counted["devices"][0]["peak_bytes"] - before <= tensor_bytes + 64 * MIB
    del loaded


@simulated
def test_calls_to_the_driver(large: Path) -> None:
    """At most four a chunk and four a tensor, in memory of ours, where torch makes none."""
    load_file(large, "cuda", allocator="driver")
    simulator.reset()
    loaded = load_file(large, "cuda", allocator="driver")
    chunks = -(-large.stat().st_size // (2 * MIB)) + 1
    assert simulator.statistics()["calls_total"] <= 4 * chunks + 4 * len(loaded) + 30


@simulated
def test_small_tensors_share_a_copy_and_a_launch(tmp_path: Path) -> None:
    entries = {f"t{i:04}": Entry("F16", [32]) for i in range(3000)}
    path = write_raw(tmp_path / "small.safetensors", entries)
    simulator.reset()
    loaded = load_file(path, "cuda")
    counted = simulator.statistics()
    assert (counted["h2d"]["copies"], counted["kernels"]) == (1, {"scatter": 1})
    assert len(loaded) == 3000


@simulated
@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_nothing_of_ours_is_left(large: Path, allocator: str) -> None:
    torch.cuda.empty_cache()
    before = simulator.statistics()
    loaded = load_file(large, "cuda", allocator=allocator)
    del loaded
    torch.cuda.empty_cache()
    release()
    after = simulator.statistics()
    for kind in ("streams", "events"):
        assert after[kind] == before[kind]
    assert after["devices"][0]["live_allocations"] == before["devices"][0]["live_allocations"]
    assert after["pinned"]["live"] == 0


@simulated
@pytest.mark.parametrize("once", [True, False])
def test_the_nth_call_fails_for_every_n(tmp_path: Path, *, once: bool) -> None:
    """Each failure is a typed error and leaks nothing, and the next load works.

    A driver that fails from then on refuses to free as well; what it keeps is not ours to count.
    """
    sizes = [5, 70_000, 3, 9 * MIB, 1, 0, 66_000]
    entries = {f"t{i}": Entry("U8", [size]) for i, size in enumerate(sizes)}
    path = write_raw(tmp_path / "few.safetensors", entries)
    expected = STOCK.load_file(path)
    release()
    load_file(path, "cuda", allocator="driver")
    failed = survived = 0
    for call in itertools.count(1):
        release()
        before = simulator.statistics()["devices"][0]["live_allocations"]
        simulator.reset()
        (simulator.fail if once else simulator.fail_from)("*", call, 2 if call % 2 else 1)
        loaded: dict[str, torch.Tensor] = {}
        told = outcome(lambda: load_file(path, "cuda", allocator="driver"))
        if told.error is None:
            survived += 1
            loaded = cast("dict[str, torch.Tensor]", told.value)
            del told
        else:
            failed += 1
            assert issubclass(told.error, RuntimeError), told
            assert "cuda:0" in told.words
        calls = simulator.statistics()["calls_total"]
        simulator.fail("*", 0, 0)
        if loaded:
            check(loaded, expected)
        loaded.clear()
        assert eventually(lambda: not busy())
        left = simulator.statistics()["devices"][0]["live_allocations"] - before
        assert left <= 1 or not once  # one where freeing was the call that failed
        if calls < call:
            break
        check(load_file(path, "cuda", allocator="driver"), expected)
    print(f"{failed} calls failed with a typed error, {survived} were survived")  # noqa: T201
    assert failed > 20
