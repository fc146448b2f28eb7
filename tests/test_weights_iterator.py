"""The weights that the adapters of vLLM and SGLang hand to these engines."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, ClassVar

import pytest
import simulator
import torch
from gpu import NEEDS_GPU, NEEDS_SIMULATOR
from oracle import STOCK, UNKNOWN_DTYPES, Entry, bits, evict, same, shards, write_raw
from process import busy, descriptors, eventually
from safetensors_streaming import last_report, release
from safetensors_streaming.adapters import _weights
from safetensors_streaming.adapters._weights import weights

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

MIB = 1 << 20
Pairs = list[tuple[str, torch.Tensor]]
on_gpu = pytest.mark.parametrize(
    "gpu", [None, pytest.param(0, marks=NEEDS_GPU)], ids=["cpu", "gpu"]
)


def none(_: str) -> bool:
    return False


def every(
    files: Sequence[Path], gpu: int | None = None, skip: Callable[[str], bool] = none
) -> Pairs:
    return list(weights(map(str, files), gpu, skip, shared=False))


def by_stock(files: Sequence[Path]) -> Pairs:
    """As vLLM's own iterator opens and yields them."""
    pairs = []
    for file in files:
        with STOCK.safe_open(file, framework="pt") as opened:
            pairs += [(name, opened.get_tensor(name)) for name in opened.keys()]  # noqa: SIM118
    return pairs


def to_cpu(pairs: Pairs) -> Pairs:
    return [(name, tensor.cpu()) for name, tensor in pairs]


def in_order(pairs: Pairs) -> Pairs:
    return sorted(pairs, key=lambda pair: pair[0])


def test_the_cpu_gets_what_stock_yields_in_its_order(checkpoint: Path) -> None:
    files = shards(checkpoint)
    assert same(every(files), by_stock(files))


@on_gpu
def test_what_is_skipped_is_not_read(tmp_path: Path, gpu: int | None) -> None:
    """What is of a type that torch does not have could not even be made."""
    entries = {
        "a": Entry("F32", [MIB]),
        "expert": Entry(UNKNOWN_DTYPES[0], [4 * MIB]),
        "z": Entry("BF16", [3, 5]),
    }
    path = write_raw(tmp_path / "experts.safetensors", entries)
    evict(path)
    pairs = every([path], gpu, lambda name: name == "expert")
    assert {name for name, _ in pairs} == {"a", "z"}
    if gpu is not None:
        assert last_report().bytes == sum(tensor.nbytes for _, tensor in pairs)


@on_gpu
def test_a_name_in_two_files_is_yielded_twice_in_their_order(
    tmp_path: Path, gpu: int | None
) -> None:
    names = {"one": ["a", "b"], "two": ["c"], "three": ["b", "d"], "four": ["a"]}
    files = [
        write_raw(
            tmp_path / f"{file}.safetensors",
            {name: Entry("U8", [4], file.encode()[:3] + b".") for name in inside},
        )
        for file, inside in names.items()
    ]
    pairs = to_cpu(every(files, gpu))
    assert same(in_order(pairs), in_order(by_stock(files)))
    assert same(dict(sorted(dict(pairs).items())), dict(sorted(dict(by_stock(files)).items())))


@on_gpu
def test_no_file_is_no_tensor(gpu: int | None) -> None:
    assert every([], gpu) == []


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """What the driver has given is given back, and torch never knew of it."""
    torch.cuda.empty_cache()
    release()
    before = simulator.statistics()
    torch.cuda.reset_peak_memory_stats()
    allocated = torch.cuda.memory_allocated()
    reserved = torch.cuda.memory_reserved()
    yield
    assert torch.cuda.max_memory_allocated() == allocated
    assert torch.cuda.memory_reserved() == reserved
    gc.collect()
    assert eventually(lambda: not busy())
    after = simulator.statistics()
    assert after["devices"][0]["live_allocations"] == before["devices"][0]["live_allocations"]


class TestOnGpu:
    pytestmark: ClassVar = NEEDS_GPU

    def test_same_bits_in_any_context(self, checkpoint: Path, large: Path) -> None:
        """Engines load under a default device and type, and use what they get at once."""
        files = [*shards(checkpoint), large]
        expected = dict(by_stock(files))
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device("cuda"):
                for name, tensor in weights(map(str, files), 0, none, shared=False):
                    assert tensor.device == torch.device("cuda", 0)
                    known = expected.pop(name)
                    assert (tensor.dtype, tensor.shape) == (known.dtype, known.shape)
                    assert bits(tensor) == bits(known), name
        finally:
            torch.set_default_dtype(torch.float32)
        assert expected == {}

    def test_copies_on_the_current_stream(self, large: Path) -> None:
        """Each is copied into place without a wait, and dropped."""
        expected = dict(by_stock([large]))
        places = {name: torch.empty_like(known, device="cuda") for name, known in expected.items()}
        with torch.cuda.stream(torch.cuda.Stream()):
            for name, tensor in weights([str(large)], 0, none, shared=False):
                places[name].copy_(tensor, non_blocking=True)
                del tensor
        torch.cuda.synchronize()
        for name, place in places.items():
            assert bits(place) == bits(expected[name])

    @pytest.mark.parametrize("shared", [True, False])
    def test_the_page_cache_is_for_ranks_that_share_it(self, large: Path, *, shared: bool) -> None:
        evict(large)
        assert len(list(weights([str(large)], 0, none, shared=shared))) == 24
        assert ("cache=keep" in last_report().reason) == shared

    def test_closed_early(self, slow: Path) -> None:
        flow = weights([str(slow)], 0, none, shared=False)
        next(flow)
        flow.close()  # type: ignore[attr-defined]
        assert eventually(lambda: not busy())
        assert str(slow) not in descriptors()


class TestMemory:
    pytestmark: ClassVar = [*NEEDS_SIMULATOR, pytest.mark.usefixtures("nothing_left")]

    def test_torch_allocates_nothing(self, large: Path) -> None:
        peak = 0
        for _, tensor in weights([str(large)], 0, none, shared=False):
            assert tensor.is_cuda
            peak = max(peak, simulator.statistics()["devices"][0]["live_bytes"])
        assert peak > 0
        del tensor

    def test_no_room_on_the_gpu(self, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_weights, "_free_bytes", lambda _: _weights.SPARE_BYTES)
        assert same(every([large], 0), by_stock([large]))

    def test_a_tensor_too_large_for_the_gpu(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entries = {"large": Entry("U8", [3 * MIB]), "small": Entry("U8", [2 * MIB])}
        path = write_raw(tmp_path / "two.safetensors", entries)
        room = _weights.SPARE_BYTES + 4 * 2 * MIB
        monkeypatch.setattr(_weights, "_free_bytes", lambda _: room)
        pairs = every([path], 0)
        assert [(name, tensor.is_cuda) for name, tensor in pairs] == [
            ("small", True),
            ("large", False),
        ]
        assert same(in_order(to_cpu(pairs)), in_order(by_stock([path])))

    def test_a_caller_who_keeps_all(self, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When memory runs short, the rest comes as views of the file."""
        rooms = iter([16 * _weights.SPARE_BYTES, 16 * _weights.SPARE_BYTES, 0])
        monkeypatch.setattr(_weights, "_free_bytes", lambda _: next(rooms))
        monkeypatch.setattr(_weights, "LOOK_BYTES", 16 * MIB)
        pairs = every([large], 0)
        assert sum(tensor.is_cuda for _, tensor in pairs) == 8
        assert same(in_order(to_cpu(pairs)), in_order(by_stock([large])))

    def test_memory_that_the_driver_refuses(self, large: Path) -> None:
        simulator.fail_from("cuMemAlloc_v2", 2, 2)
        pairs = every([large], 0)
        simulator.fail("*", 0, 0)
        assert not all(tensor.is_cuda for _, tensor in pairs)
        assert same(in_order(to_cpu(pairs)), in_order(by_stock([large])))
