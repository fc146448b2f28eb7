"""The ways to a GPU beside `load_file`: types converted on the way, several devices, a model's own
memory, and loops over `get_tensor`."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import simulator
import torch
from gpu import ALLOCATORS, NEEDS_GPU, SIMULATED, check
from oracle import STOCK, Entry, bits, by_stock, same_tensor, write_raw, write_sparse
from process import busy, eventually, run_python
from safetensors.torch import save_file
from safetensors_streaming import (
    SafetensorError,
    last_report,
    load_checkpoint,
    load_file,
    load_into,
    safe_open,
)

pytestmark = NEEDS_GPU
MIB = 1 << 20


def numbers(count: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Numbers of every size, infinities, zeros and subnormals among them; no NaN."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randint(-30, 20, (count,), generator=generator).double().exp2()
    values = torch.randn(count, generator=generator, dtype=torch.float64) * scale
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 1e-45, 65504, 65520, 3e38])
    values[: min(count, 8)] = special[: min(count, 8)]
    return values.to(dtype)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Floating-point numbers of several types and sizes, and other types beside them."""
    sizes = {"one": 1, "few": 777, "many": 40_000, "large": 5 * MIB + 3}
    types = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    tensors = {
        f"{kind}.{name}": numbers(size, dtype, size)
        for kind, dtype in types.items()
        for name, size in sizes.items()
    }
    tensors["f32.none"] = torch.empty(0, 3)
    tensors["f32.matrix"] = numbers(12, torch.float32, 1).reshape(3, 4)
    tensors["whole"] = torch.arange(1000)
    tensors["code"] = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    path = tmp_path / "mixed.safetensors"
    save_file(tensors, path)
    return path


def converted(path: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """As stock loads and torch converts it, on the CPU."""
    return {
        name: tensor.to(dtype) if tensor.dtype in (torch.float32, torch.float16, torch.bfloat16)
        else tensor
        for name, tensor in STOCK.load_file(path).items()
    }  # fmt: skip


# Types converted on the way.


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_are_converted_on_the_way(mixed: Path, dtype: torch.dtype, allocator: str) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loaded = load_file(mixed, "cuda", dtype=dtype, allocator=allocator)
    if allocator == "torch":
        kept = sum(-(-tensor.nbytes // 512) * 512 for tensor in loaded.values())
        assert torch.cuda.memory_allocated() - before == kept
    check(loaded, converted(mixed, dtype))


def test_nan_stays_nan(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    save_file({"t": torch.tensor([1.0, float("nan"), -2.0])}, path)
    for dtype in (torch.bfloat16, torch.float16):
        loaded = load_file(path, "cuda", dtype=dtype)["t"].cpu()
        assert loaded.isnan().tolist() == [False, True, False]
        assert loaded[0].item() == 1


@pytest.mark.parametrize("shards", [1, 3])
def test_types_of_a_checkpoint(tmp_path: Path, shards: int) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for shard in range(shards):
        tensors = {f"{shard}.{i}": numbers(3 * MIB + i, torch.float32, i) for i in range(4)}
        save_file(tensors, folder / f"part-{shard}.safetensors")
    loaded = load_checkpoint(str(folder / "*.safetensors"), "cuda", dtype=torch.bfloat16)
    expected = {name: tensor.bfloat16() for name, tensor in by_stock(folder).items()}
    check(dict(sorted(loaded.items())), dict(sorted(expected.items())))


# Several devices.

SEVERAL = """
    import sys, torch
    from oracle import by_stock, bits
    from pathlib import Path
    from safetensors_streaming import SafetensorError, last_report, load_checkpoint
    expected = by_stock(Path(sys.argv[1]))
    devices = {"": "cuda:1", "s1": 0, "s2.F*": "cpu", "s0.F32": torch.device("cuda", 0)}
    def device(name):
        if name.startswith("s2.F"): return "cpu"
        return "cuda:0" if name.startswith("s1.") or name == "s0.F32" else "cuda:1"
    for allocator in ("torch", "driver"):
        before = torch.cuda.current_device()
        loaded = load_checkpoint(sys.argv[1], device_map=devices, allocator=allocator)
        assert loaded.keys() == expected.keys()
        for name, tensor in loaded.items():
            assert str(tensor.device) == device(name), (name, tensor.device)
            assert bits(tensor) == bits(expected[name]), name
        assert sorted(last_report().device.split("+")) == ["cpu", "cuda:0", "cuda:1"]
        assert torch.cuda.current_device() == before
    if len(sys.argv) > 2:
        import simulator
        assert simulator.statistics()["violations"]["count"] == 0, simulator.statistics()
"""


@pytest.mark.skipif(
    not SIMULATED and torch.cuda.device_count() < 2, reason="needs two GPUs; ci/sim makes them"
)
def test_several_devices_from_one_plan(checkpoint: Path) -> None:
    """Tensors of three memories lie side by side, also within one chunk."""
    told = ["simulated"] if SIMULATED else []
    run_python(SEVERAL, checkpoint, *told, env={"SIMCUDA_DEVICES": "2"})


def test_a_gpu_and_the_host(large: Path) -> None:
    expected = STOCK.load_file(large)
    loaded = load_checkpoint(large, device_map={"": "cpu", "t*[02468]": "cuda"})
    assert loaded.keys() == expected.keys()
    for name, tensor in loaded.items():
        assert tensor.is_cuda == (int(name[1:]) % 2 == 0)
        assert bits(tensor) == bits(expected[name]), name


def test_a_device_map_that_leaves_something_out(large: Path) -> None:
    with pytest.raises(ValueError, match="no device for tensor 't00'"):
        load_checkpoint(large, device_map={"other": "cuda"})
    with pytest.raises(ValueError, match="not both"):
        load_checkpoint(large, "cuda", device_map={"": "cuda"})
    with pytest.raises(ValueError, match="device 'disk' is not supported"):
        load_checkpoint(large, device_map={"": "disk"})


# Memory that is there already.


def test_into_a_model(tmp_path: Path) -> None:
    source = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.BatchNorm1d(500))
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    path = tmp_path / "model.safetensors"
    save_file(source.state_dict(), path)
    model = torch.nn.Sequential(torch.nn.Linear(300, 500), torch.nn.BatchNorm1d(500)).to("cuda")
    parameter = model[0].weight
    address, version = parameter.data_ptr(), parameter._version  # noqa: SLF001 - no other way
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    assert load_into(model, path) == ([], [])
    assert torch.cuda.memory_allocated() == before
    assert (model[0].weight.data_ptr(), model[0].weight.requires_grad) == (address, True)
    assert parameter._version > version  # noqa: SLF001 - as above
    expected = source.state_dict()
    for name, tensor in model.state_dict().items():
        assert bits(tensor) == bits(expected[name]), name
    report = last_report()
    assert report is not None
    assert report.device == "cuda:0"


def test_into_tensors_of_another_type(mixed: Path) -> None:
    """What a kernel converts goes straight to its place."""
    file = STOCK.load_file(mixed)
    kept = {name: tensor for name, tensor in file.items() if name.startswith("f32")}
    target = {name: torch.empty_like(tensor, device="cuda", dtype=torch.bfloat16)
              for name, tensor in kept.items()}  # fmt: skip
    before = torch.cuda.memory_allocated()
    unexpected = [name for name in file if name not in kept]
    assert load_into(target, mixed, strict=False) == ([], unexpected)
    assert torch.cuda.memory_allocated() == before
    for name, tensor in target.items():
        assert same_tensor(tensor.cpu(), kept[name].to(torch.bfloat16)), name


def test_into_both_memories(large: Path) -> None:
    expected = STOCK.load_file(large)
    target = {
        name: torch.empty_like(tensor, device="cuda" if number % 2 else "cpu")
        for number, (name, tensor) in enumerate(expected.items())
    }
    load_into(target, large)
    assert all(bits(tensor) == bits(expected[name]) for name, tensor in target.items())


# Signals.


@pytest.mark.parametrize("raised", [KeyboardInterrupt, TimeoutError])
@pytest.mark.parametrize("called", ["memory_reserved", "memory_allocated"])
def test_what_a_handler_raises_while_torch_is_asked_comes_out(
    called: str, raised: type[BaseException], large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's handler runs in whatever Python code is being run, that of torch too."""
    asked = getattr(torch.cuda, called)

    def handle(*_signal: object) -> None:
        raise raised

    def interrupted(device: int) -> int:
        signal.raise_signal(signal.SIGUSR1)
        return asked(device)

    before = signal.signal(signal.SIGUSR1, handle)
    monkeypatch.setattr(torch.cuda, called, interrupted)
    try:
        with pytest.raises(raised):
            load_file(large, "cuda")
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGUSR1, before)


# Loops over get_tensor.


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Several MiB in tensors of many sizes, empty, tiny and large ones; three in reverse order."""
    sizes = [5, 70_000, 0, 3, 31, 32, 33, 34, 2 * MIB, 1, 9 * MIB + 5, 66_000]
    sizes += [40 * MIB, 11, 12, 13, 4 * MIB, 8]
    entries = {f"t{i:02}": Entry("U8", [size]) for i, size in enumerate(sizes)}
    entries |= {f"r{9 - i}": Entry("U8", [1000 + i]) for i in range(3)}
    return write_raw(tmp_path / "many.safetensors", entries, misalign=5)


def loop(path: Path, names: list[str]) -> None:
    """Asks for tensors in that order, and compares each when all are there."""
    expected = STOCK.load_file(path)
    with safe_open(path, "pt", "cuda") as handle:
        loaded = [(name, handle.get_tensor(name)) for name in names]
    assert not busy()
    for name, tensor in loaded:
        assert bits(tensor) == bits(expected[name]), name
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


def test_loops_by_name_and_as_in_the_file(many: Path) -> None:
    with safe_open(many, "pt", "cuda") as handle:
        by_name, as_in_the_file = handle.keys(), handle.offset_keys()
    loop(many, by_name)
    loop(many, as_in_the_file)
    loop(many, by_name[::-1])
    loop(many, [*by_name[:5], by_name[2], *by_name[5:], *by_name])
    loop(many, by_name[3:8] * 3)


def test_a_loop_that_reads_ahead_of_more_than_the_ring(large: Path) -> None:
    loop(large, sorted(STOCK.load_file(large)))


def test_a_loop_over_tensors_as_large_as_what_lies_ahead(tmp_path: Path) -> None:
    """No read waits for memory that nobody would make: the thread is the same to the end.

    And no memory is made ahead for a tensor larger than what may lie there.
    """
    sizes = [32 * MIB, 32 * MIB, 30 * MIB, 3 * MIB, MIB, 32 * MIB, 70 * MIB, 90 * MIB, 31 * MIB, 5]
    entries = {f"t{i}": Entry("U8", [size], bytes(size)) for i, size in enumerate(sizes)}
    path = write_raw(tmp_path / "large.safetensors", entries, misalign=9)

    def loops() -> set[str]:
        found = set()
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # it has ended
                if (task / "comm").read_text().strip() == "sst-loop":
                    found.add(task.name)
        return found

    with safe_open(path, "pt", "cuda") as handle:
        seen: set[str] = set()
        before = torch.cuda.memory_allocated()
        for name in handle.keys()[:-1]:
            tensor = handle.get_tensor(name)
            ahead = torch.cuda.memory_allocated() - before - tensor.nbytes
            assert ahead <= 48 * MIB
            found = loops()
            while len(found) > 1:  # a thread that it has just started bears its name for a moment
                found = loops()
            seen |= found
            del tensor
    assert len(seen) == 1


def test_a_loop_beside_types_that_torch_does_not_know(tmp_path: Path) -> None:
    entries = {"a": Entry("F32", [3]), "b": Entry("F32", [4]), "c": Entry("F6_E2M3", [8])}
    path = write_raw(tmp_path / "six.safetensors", entries | {"d": Entry("BF16", [5])})
    with safe_open(path, "pt", "cuda") as handle:
        for name in ("a", "b"):
            assert bits(handle.get_tensor(name)) == entries[name].content(name)
        with pytest.raises(SafetensorError, match="F6_E2M3"):
            handle.get_tensor("c")
        assert bits(handle.get_tensor("d")) == Entry("BF16", [5]).content("d")


def test_a_loop_that_is_left(large: Path) -> None:
    """What was read ahead is freed with the handle, and the thread ends."""
    before = torch.cuda.memory_allocated()
    with safe_open(large, "pt", "cuda") as handle:
        for name in handle.keys()[:4]:
            handle.get_tensor(name)
        assert torch.cuda.memory_allocated() - before <= 64 * MIB
    assert not busy()
    assert torch.cuda.memory_allocated() == before
    handle = safe_open(large, "pt", "cuda")
    for name in handle.keys()[:4]:
        handle.get_tensor(name)
    del handle
    assert not busy()


def test_a_loop_that_pauses(large: Path) -> None:
    """The thread does not wait for ever, nothing is kept, and the loop goes on without it."""
    expected = STOCK.load_file(large)
    before = torch.cuda.memory_allocated()
    with safe_open(large, "pt", "cuda") as handle:
        names = iter(handle.keys())
        for _ in range(4):
            handle.get_tensor(next(names))
        assert busy()
        assert eventually(lambda: not busy())
        assert torch.cuda.memory_allocated() == before
        for name in names:
            assert bits(handle.get_tensor(name)) == bits(expected[name])


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver counts")
def test_a_loop_that_pauses_again_and_again(tmp_path: Path) -> None:
    """A file of which all is read ahead: nothing is kept, and little is read more than once."""
    path = write_sparse(tmp_path / "few.safetensors", 7, MIB)
    before = torch.cuda.memory_allocated()
    simulator.reset()
    with safe_open(path, "pt", "cuda") as handle:
        for name in handle.keys():  # noqa: SIM118 - a handle is no dict
            handle.get_tensor(name)
            assert eventually(lambda: torch.cuda.memory_allocated() == before)
            assert eventually(lambda: not busy())
    assert simulator.statistics()["h2d"]["bytes"] <= 14 * MIB


def test_loops_of_several_threads(large: Path) -> None:
    expected = STOCK.load_file(large)
    with safe_open(large, "pt", "cuda") as handle, ThreadPoolExecutor(4) as pool:
        loaded = pool.map(lambda name: (name, handle.get_tensor(name)), sorted(expected) * 2)
        for name, tensor in loaded:
            assert bits(tensor) == bits(expected[name]), name


def test_a_loop_on_changing_streams(large: Path) -> None:
    expected = STOCK.load_file(large)
    sides = [torch.cuda.Stream(), torch.cuda.Stream()]
    with safe_open(large, "pt", "cuda") as handle:
        for number, name in enumerate(handle.keys()):
            with torch.cuda.stream(sides[number // 4 % 2]):
                assert bits(handle.get_tensor(name)) == bits(expected[name])


def test_a_file_that_is_cut_under_a_loop(many: Path) -> None:
    """What is gone is told; what was there before is right."""
    file = STOCK.load_file(many)
    expected = {name: bits(tensor) for name, tensor in file.items() if tensor.nbytes}
    del file
    loaded = {}

    def read(names: list[str]) -> None:
        for name in names:
            loaded[name] = handle.get_tensor(name)

    with safe_open(many, "pt", "cuda") as handle:
        names = list(expected)
        read(names[:2])
        os.truncate(many, many.stat().st_size - 3 * MIB)
        with pytest.raises(OSError, match=r"many\.safetensors: wanted .* got"):
            read(names[2:])
    assert len(loaded) < len(expected)
    assert all(bits(tensor) == expected[name] for name, tensor in loaded.items())
