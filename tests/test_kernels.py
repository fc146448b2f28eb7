"""The CUDA kernels, compiled by g++: every alignment, every special value, nothing else touched."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Bytes: TypeAlias = NDArray[np.uint8]
Range: TypeAlias = tuple[int, int, int]

KERNELS = Path(__file__).resolve().parent.parent / "kernels"
GRID = (3, 2, 1)
BLOCK = (5, 1, 1)  # no power of two: no share of a thread begins where a vector does
ALIGNMENTS = range(18)
TOUCH = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
RUN = ctypes.CFUNCTYPE(
    None, ctypes.POINTER(ctypes.c_uint32), ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p)
)
READ, WRITE = 0, 1
PROT_NONE = 0
F32_TO_BF16, F32_TO_F16, F16_TO_BF16, BF16_TO_F16 = range(4)


class SimKernel(ctypes.Structure):
    """As in kernels/simulated.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("nargs", ctypes.c_size_t),
        ("sizes", ctypes.POINTER(ctypes.c_size_t)),
        ("run", RUN),
    )


class Kernels:
    """The kernels of one shared object."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.simcuda_kernels.restype = ctypes.POINTER(SimKernel)
        count = ctypes.c_size_t()
        table = self.library.simcuda_kernels(ctypes.byref(count))
        self.known = {kernel.name.decode(): kernel for kernel in table[: count.value]}

    def sizes(self, name: str) -> list[int]:
        return self.known[name].sizes[: self.known[name].nargs]

    def launch(self, name: str, *arguments: ctypes.c_uint64 | ctypes.c_uint32) -> None:
        assert [ctypes.sizeof(argument) for argument in arguments] == self.sizes(name)
        dimensions = (ctypes.c_uint32 * 6)(*GRID, *BLOCK)
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        self.known[name].run(dimensions, 0, pointers)

    def pieces(self, name: str, table: NDArray[np.uint64]) -> None:
        """Runs a kernel that takes a table of pieces."""
        assert table.dtype == np.uint64
        assert table.flags.c_contiguous
        self.launch(name, ctypes.c_uint64(table.ctypes.data), ctypes.c_uint32(len(table)))

    def checksum(self, address: int, size: int, before: int = 0) -> int:
        total = ctypes.c_uint64(before)
        where = ctypes.c_uint64(ctypes.addressof(total))
        self.launch("checksum", ctypes.c_uint64(address), ctypes.c_uint64(size), where)
        return total.value

    def touched(self, action: Callable[[], object]) -> list[Range]:
        """The ranges that the kernels announce during an action."""
        ranges: list[Range] = []
        callback = TOUCH(lambda address, size, write: ranges.append((address, size, write)))
        variable = ctypes.c_void_p.in_dll(self.library, "simcuda_touch")
        assert variable.value is None
        variable.value = ctypes.cast(callback, ctypes.c_void_p).value
        try:
            action()
        finally:
            variable.value = None
        return ranges


@pytest.fixture(scope="session", params=["one thread", "every thread"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """As the simulator runs them, and with every thread of a grid."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    target = tmp_path_factory.mktemp("kernels") / "kernels.so"
    options = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    every = ["-DSIMULATED_EVERY_THREAD"] if request.param == "every thread" else []
    subprocess.run(  # noqa: S603
        [compiler, *options, *every, "-I", KERNELS, "-o", target, KERNELS / "simulated.cpp"],
        check=True,
    )
    return Kernels(target)


def random_bytes(size: int, seed: int) -> Bytes:
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def aligned(size: int) -> Bytes:
    """Zeroed memory at a multiple of 64."""
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]


def scattered(kernels: Kernels, cases: list[Range], room: int) -> None:
    """Scatters cases of (source alignment, target alignment, bytes), `room` bytes each."""
    source, target = aligned(room * len(cases)), aligned(room * len(cases))
    source[:] = random_bytes(source.size, 1)
    target[:] = random_bytes(target.size, 2)
    expected = target.copy()
    table = np.zeros((len(cases), 3), np.uint64)
    for index, (source_shift, target_shift, size) in enumerate(cases):
        start = index * room
        from_, to = start + source_shift, start + target_shift
        table[index] = (target.ctypes.data + to, source.ctypes.data + from_, size)
        expected[to : to + size] = source[from_ : from_ + size]
    kernels.pieces("scatter", table)
    assert np.array_equal(target, expected)


def test_arguments(kernels: Kernels) -> None:
    assert {name: kernels.sizes(name) for name in kernels.known} == {
        "cast": [8, 4],
        "checksum": [8, 8, 8],
        "scatter": [8, 4],
    }


def test_scatter_of_small_pieces(kernels: Kernels) -> None:
    shifts = [(source, target) for source in ALIGNMENTS for target in ALIGNMENTS]
    scattered(kernels, [(*shift, size) for shift in shifts for size in range(71)], 96)


def test_scatter_of_larger_pieces(kernels: Kernels) -> None:
    shifts = [(source, target) for source in ALIGNMENTS for target in ALIGNMENTS]
    scattered(
        kernels, [(*shift, 10_000 + index % 33) for index, shift in enumerate(shifts)], 10_240
    )


def test_nothing_to_do(kernels: Kernels) -> None:
    nothing = np.zeros((0, 3), np.uint64)
    empty = np.zeros((2, 3), np.uint64)
    assert kernels.touched(partial(kernels.pieces, "scatter", nothing)) == []
    assert kernels.touched(partial(kernels.pieces, "cast", nothing)) == []
    table = (empty.ctypes.data, empty.nbytes, READ)
    assert kernels.touched(partial(kernels.pieces, "scatter", empty)) == [table]


@pytest.fixture
def island() -> Iterator[Bytes]:
    """A page between two that may not be touched."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 3 * page)
    whole = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start in (0, 2 * page):
        assert protect(whole.ctypes.data + start, page, PROT_NONE) == 0
    yield whole[page : 2 * page]
    del whole


def test_no_page_beyond_the_pieces_is_touched(kernels: Kernels, island: Bytes) -> None:
    """A failure of this one ends the process."""
    island[:] = random_bytes(island.size, 3)
    start, end = island.ctypes.data, island.ctypes.data + island.size
    target = aligned(128)
    for size in range(1, 71):
        for source in (start, end - size):
            table = np.array([(target.ctypes.data + 1, source, size)], np.uint64)
            kernels.pieces("scatter", table)
            assert np.array_equal(target[1 : 1 + size], island[source - start :][:size])
            kernels.checksum(source, size)
        for kind, width in ((F32_TO_F16, 4), (F16_TO_BF16, 2)):
            for source in (start, end - size * width):
                row = (target.ctypes.data + 2, source, min(size, 50), kind)
                kernels.pieces("cast", np.array([row], np.uint64))


def cast(
    kernels: Kernels, source: Bytes, count: int, kind: int, shift: int = 0
) -> NDArray[np.uint16]:
    """Casts the first `count` elements of `source`; `shift` moves the target, in elements."""
    room = 40
    target = aligned(2 * (count + room + shift)).view(np.uint16)
    target[:] = 0xA5A5
    place = target[shift : shift + count]
    row = (place.ctypes.data, source.ctypes.data, count, kind)
    kernels.pieces("cast", np.array([row], np.uint64))
    assert (target[:shift] == 0xA5A5).all()
    assert (target[shift + count :] == 0xA5A5).all()
    return place


def single_precision() -> NDArray[np.uint32]:
    """Bits of f32: every exponent and sign with the mantissas at which rounding turns."""
    mantissas = {0, 1, 0x7FFFFF, 0x555555, 0x2AAAAA}
    for place in range(23):
        for multiple in (1, 3, 5):
            around = multiple << place
            mantissas |= {around - 1, around, around + 1, 0x7FFFFF - around, 0x800000 - around}
    fractions = np.array(sorted(m for m in mantissas if 0 <= m <= 0x7FFFFF), np.uint32)
    tops = np.arange(512, dtype=np.uint32) << np.uint32(23)
    chosen = (tops[:, None] | fractions[None, :]).ravel()
    others = random_bytes(4 << 20, 4).view(np.uint32)
    return np.concatenate([chosen, others])


def words_of(tensor: torch.Tensor) -> NDArray[np.uint16]:
    return tensor.view(torch.int16).numpy().view(np.uint16)


def single_to_bf16(bits: NDArray[np.uint32]) -> NDArray[np.uint16]:
    return words_of(torch.from_numpy(bits.view(np.float32)).to(torch.bfloat16))


def single_to_f16(bits: NDArray[np.uint32]) -> NDArray[np.uint16]:
    return words_of(torch.from_numpy(bits.view(np.float32)).to(torch.float16))


def quiet(bits: NDArray[np.uint32], kept: int, infinity: int) -> NDArray[np.uint16]:
    """NaNs of f32 with as much of their payload as fits, quiet."""
    payload = (bits & 0x7FFFFF) >> np.uint32(23 - kept)
    sign = (bits >> np.uint32(16)) & 0x8000
    return (sign | infinity | payload | (1 << (kept - 1))).astype(np.uint16)


def test_cast_of_every_kind_of_f32(kernels: Kernels) -> None:
    bits = single_precision()
    nan = np.isnan(bits.view(np.float32))
    assert 0 < nan.sum() < len(bits)
    # torch has no rule for NaNs: what it makes of one depends on the machine.
    expected = np.where(nan, quiet(bits, 7, 0x7F80), single_to_bf16(bits))
    assert np.array_equal(cast(kernels, bits.view(np.uint8), len(bits), F32_TO_BF16), expected)
    expected = np.where(nan, quiet(bits, 10, 0x7C00), single_to_f16(bits))
    assert np.array_equal(cast(kernels, bits.view(np.uint8), len(bits), F32_TO_F16), expected)


def test_cast_of_every_f16(kernels: Kernels) -> None:
    halves = np.arange(65_536, dtype=np.uint16)
    tensor = torch.from_numpy(halves.view(np.float16))
    nan = np.isnan(halves.view(np.float16))
    wide = ((halves.astype(np.uint32) & 0x8000) << 16) | ((halves.astype(np.uint32) & 0x3FF) << 13)
    expected = np.where(nan, quiet(wide, 7, 0x7F80), words_of(tensor.to(torch.bfloat16)))
    assert np.array_equal(cast(kernels, halves.view(np.uint8), 65_536, F16_TO_BF16), expected)


def test_cast_of_every_bf16(kernels: Kernels) -> None:
    words = np.arange(65_536, dtype=np.uint16)
    wide = words.astype(np.uint32) << np.uint32(16)
    nan = np.isnan(wide.view(np.float32))
    expected = np.where(nan, quiet(wide, 10, 0x7C00), single_to_f16(wide))
    assert np.array_equal(cast(kernels, words.view(np.uint8), 65_536, BF16_TO_F16), expected)


@pytest.mark.parametrize("kind", [F32_TO_BF16, F32_TO_F16, F16_TO_BF16])
def test_cast_at_every_alignment(kernels: Kernels, kind: int) -> None:
    width = 2 if kind == F16_TO_BF16 else 4
    values = np.random.default_rng(5).standard_normal(60).astype(f"f{width}")
    data = values.view(np.uint8)
    tensor = torch.from_numpy(values)
    expected = words_of(tensor.to(torch.float16 if kind == F32_TO_F16 else torch.bfloat16))
    for source_shift in ALIGNMENTS:
        source = aligned(512)
        source[source_shift : source_shift + data.size] = data
        for target_shift in range(9):
            for count in (*range(20), 60):
                found = cast(kernels, source[source_shift:], count, kind, target_shift)
                assert np.array_equal(found, expected[:count])


def test_cast_of_many_pieces_of_all_kinds(kernels: Kernels) -> None:
    sources = random_bytes(64 * 300, 6)
    target = aligned(32 * 300)
    one_by_one = aligned(32 * 300)
    table = np.zeros((300, 4), np.uint64)
    for index in range(300):
        place, count, kind = 32 * index, index % 14, index % 4
        source = sources.ctypes.data + 64 * index + index % 8
        table[index] = (target.ctypes.data + place, source, count, kind)
        row = (one_by_one.ctypes.data + place, source, count, kind)
        kernels.pieces("cast", np.array([row], np.uint64))
    kernels.pieces("cast", table)
    assert target.any()
    assert np.array_equal(target, one_by_one)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def checksum(data: Bytes) -> int:
    """What the kernel is to compute."""
    padded = np.zeros(-(-data.size // 8) * 8, np.uint8)
    padded[: data.size] = data
    words = padded.view("<u8")
    indices = np.arange(1, len(words) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    length = mixed(np.array([data.size], np.uint64))
    return int(np.concatenate([mixed(words + indices), length]).sum(dtype=np.uint64))


def test_checksum_at_every_length_and_alignment(kernels: Kernels) -> None:
    memory = aligned(200)
    memory[:] = random_bytes(200, 7)
    for shift in ALIGNMENTS:
        for size in range(100):
            data = memory[shift : shift + size]
            assert kernels.checksum(data.ctypes.data, size) == checksum(data)


def test_checksum_of_much(kernels: Kernels) -> None:
    data = random_bytes((1 << 20) + 13, 8)
    assert kernels.checksum(data.ctypes.data, data.size) == checksum(data)
    swapped = data.copy()
    swapped[:8], swapped[8:16] = data[8:16], data[:8]
    assert checksum(swapped) != checksum(data)
    assert checksum(np.append(data, np.uint8(0))) != checksum(data)


def test_checksums_add_up(kernels: Kernels) -> None:
    data = random_bytes(1000, 9)
    before = (1 << 64) - 5
    found = kernels.checksum(data.ctypes.data, data.size, before)
    assert found == (checksum(data) + before) % (1 << 64)


def test_scatter_and_cast_announce_what_they_touch(kernels: Kernels) -> None:
    source, target = aligned(1000), aligned(1000)
    from_, to = source.ctypes.data, target.ctypes.data
    scatter = np.array([(to + 3, from_ + 5, 77), (0, 0, 0), (to + 100, from_, 1)], np.uint64)
    found = kernels.touched(partial(kernels.pieces, "scatter", scatter))
    assert found[0] == (scatter.ctypes.data, scatter.nbytes, READ)
    assert sorted(found[1:]) == sorted(
        [(from_ + 5, 77, READ), (to + 3, 77, WRITE), (from_, 1, READ), (to + 100, 1, WRITE)]
    )
    rows = [(to + 2, from_ + 1, 50, F32_TO_F16), (to + 200, from_ + 300, 9, F16_TO_BF16)]
    table = np.array(rows, np.uint64)
    found = kernels.touched(partial(kernels.pieces, "cast", table))
    assert found[0] == (table.ctypes.data, table.nbytes, READ)
    expected = {(from_ + 1, 200, READ), (to + 2, 100, WRITE)}
    expected |= {(from_ + 300, 18, READ), (to + 200, 18, WRITE)}
    assert sorted(found[1:]) == sorted(expected)


def test_checksum_announces_what_it_touches(kernels: Kernels) -> None:
    data = aligned(100)
    found = kernels.touched(lambda: kernels.checksum(data.ctypes.data + 1, 99))
    assert found[0] == (data.ctypes.data + 1, 99, READ)
    assert [touch[1:] for touch in found[1:]] == [(8, WRITE)]
