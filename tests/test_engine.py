"""Loads through the engine: ``backend="pread"``, ``load_checkpoint``, ``stream`` and their end."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import safetensors_streaming
import torch
from oracle import DTYPES, STOCK, Entry, bits, header_of, same, write_raw, write_sparse
from process import eventually, memory_kib, run_python, start_python, threads
from safetensors.torch import save_file
from safetensors_streaming import last_report, load_checkpoint, load_file, release, stream

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
BACKENDS = ["mmap", "pread"]
CACHES = ["auto", "keep", "bypass"]
SLOW_TENSORS, SLOW_BYTES = 8, 64 * MIB  # takes longer than the time between two progress calls
WITHOUT_IO_URING = Path(__file__).resolve().parent.parent / "ci" / "without_io_uring"


def evict(path: Path) -> None:
    """Takes a file out of the page cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder of three shards of every type, with their index."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    weight_map = {}
    for shard in range(3):
        file = f"model-0000{shard + 1}-of-00003.safetensors"
        entries = {f"s{shard}.{name}": Entry(name, [5 + shard, 2]) for name in reversed(DTYPES)}
        write_raw(folder / file, entries, {"format": "pt"}, misalign=shard * 3)
        weight_map.update(dict.fromkeys(entries, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def by_stock(folder: Path) -> dict[str, torch.Tensor]:
    merged: dict[str, torch.Tensor] = {}
    for file in shards(folder):
        merged.update(STOCK.load_file(file))
    return merged


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """Half a GiB of zeros."""
    return write_sparse(tmp_path / "slow.safetensors", SLOW_TENSORS, SLOW_BYTES)


# What is loaded.


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("warm", [True, False])
def test_every_byte_is_stocks(large: Path, *, warm: bool, cache: str) -> None:
    if not warm:
        evict(large)
    loaded = load_checkpoint(large, backend="pread", cache=cache)
    assert same(loaded, STOCK.load_file(large))


@pytest.mark.parametrize("misalign", [0, 1, 8, 61])
@pytest.mark.parametrize("cache", CACHES)
def test_tensors_at_every_offset(tmp_path: Path, cache: str, misalign: int) -> None:
    """Small, large, empty, and over the ends of reads and pages."""
    sizes = [0, 1, 4095, 4096, 4097, 3, 0, 2 * MIB - 1, 2 * MIB + 1, 17 * MIB + 5, 7, 0]
    entries = {f"t{i}": Entry("U8", [size]) for i, size in enumerate(sizes)}
    path = write_raw(tmp_path / "sizes.safetensors", entries, misalign=misalign)
    evict(path)
    loaded = load_checkpoint(path, backend="pread", cache=cache)
    expected = STOCK.load_file(path)
    assert {name: bits(tensor) for name, tensor in loaded.items()} == {
        name: bits(tensor) for name, tensor in expected.items()
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "place",
    [
        lambda folder: folder,
        lambda folder: str(folder) + "/",
        lambda folder: folder / "model.safetensors.index.json",
        lambda folder: str(folder / "model-*-of-00003.safetensors"),
        shards,
        lambda folder: [str(file) for file in shards(folder)],
        lambda folder: tuple(shards(folder)),
    ],
)
def test_places(checkpoint: Path, place: Callable[[Path], Any], backend: str) -> None:
    assert same(load_checkpoint(place(checkpoint), backend=backend), by_stock(checkpoint))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_file(checkpoint: Path, backend: str) -> None:
    file = shards(checkpoint)[1]
    assert same(load_checkpoint(file, backend=backend), STOCK.load_file(file))


def test_a_folder_without_index(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors.index.json").unlink()
    (checkpoint / "notes.txt").write_text("not a shard")
    assert same(load_checkpoint(checkpoint), by_stock(checkpoint))


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "model[1].safetensors", {"a": Entry("U8", [3])})
    assert list(load_checkpoint(path)) == ["a"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_filter(checkpoint: Path, backend: str) -> None:
    expected = {name: part for name, part in by_stock(checkpoint).items() if "F16" in name}
    asked: list[str] = []

    def wanted(name: str) -> int:
        asked.append(name)
        return "F16" in name

    assert same(load_checkpoint(checkpoint, filter=wanted, backend=backend), expected)
    assert sorted(asked) == sorted(by_stock(checkpoint))
    assert load_checkpoint(checkpoint, filter=lambda _: False, backend=backend) == {}


def test_filtered_tensors_are_not_read(slow: Path) -> None:
    before = memory_kib("RssAnon")
    kept = load_checkpoint(slow, filter=lambda name: name == "t0003", backend="pread")
    assert [tensor.nbytes for tensor in kept.values()] == [SLOW_BYTES]
    report = last_report()
    assert report is not None
    assert report.bytes == SLOW_BYTES
    assert memory_kib("RssAnon") - before < 3 * SLOW_BYTES // 1024


# What is refused, before any weight is read.


@pytest.mark.parametrize("load", [load_checkpoint, lambda path: list(stream(path))])
def test_missing_shard_is_named(checkpoint: Path, load: Callable[[Path], object]) -> None:
    gone = shards(checkpoint)[1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(gone.name)):
        load(checkpoint)


@pytest.mark.parametrize("load", [load_checkpoint, lambda path: list(stream(path))])
def test_index_and_headers_disagree(checkpoint: Path, load: Callable[[Path], object]) -> None:
    index = checkpoint / "model.safetensors.index.json"
    known = json.loads(index.read_text())
    extra = {**known["weight_map"], "ghost.weight": shards(checkpoint)[0].name}
    index.write_text(json.dumps({**known, "weight_map": extra}))
    with pytest.raises(safetensors.SafetensorError, match=r"ghost\.weight"):
        load(checkpoint)
    fewer = {name: file for name, file in known["weight_map"].items() if name != "s1.F64"}
    index.write_text(json.dumps({**known, "weight_map": fewer}))
    with pytest.raises(safetensors.SafetensorError, match=r"s1\.F64"):
        load(checkpoint)
    moved = {**known["weight_map"], "s1.F64": shards(checkpoint)[2].name}
    index.write_text(json.dumps({**known, "weight_map": moved}))
    with pytest.raises(safetensors.SafetensorError, match=r"s1\.F64"):
        load(checkpoint)


def test_a_name_in_two_shards(checkpoint: Path, tmp_path: Path) -> None:
    twin = write_raw(tmp_path / "twin.safetensors", {"s0.F64": Entry("F64", [2])})
    with pytest.raises(safetensors.SafetensorError, match=r"s0\.F64"):
        load_checkpoint([shards(checkpoint)[0], twin])


def test_a_broken_shard_is_named(checkpoint: Path) -> None:
    broken = shards(checkpoint)[2]
    os.truncate(broken, broken.stat().st_size - 1)
    for backend in BACKENDS:
        with pytest.raises(safetensors.SafetensorError, match=re.escape(broken.name)):
            load_checkpoint(checkpoint, backend=backend)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": 3}'])
def test_a_broken_index_is_named(checkpoint: Path, text: str) -> None:
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(safetensors.SafetensorError, match=re.escape(index.name)):
        load_checkpoint(checkpoint)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "no.safetensors", str(tmp_path / "no-*.safetensors")):
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
            load_checkpoint(place)
        with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
            list(stream(place))


@pytest.mark.parametrize(
    "keywords", [{"backend": "x"}, {"device": "tpu"}, {"backend": "pread", "cache": "x"}]
)
def test_unknown_arguments(sample: Path, keywords: dict[str, str]) -> None:
    with pytest.raises((ValueError, safetensors.SafetensorError)):
        load_checkpoint(sample, **keywords)
    with pytest.raises((ValueError, safetensors.SafetensorError)):
        list(stream(sample, **keywords))


# Progress, and code of the caller's that raises.


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress(slow: Path, backend: str) -> None:
    told: list[tuple[int, int]] = []
    load_checkpoint(slow, backend=backend, progress=lambda *numbers: told.append(numbers))
    total = SLOW_TENSORS * SLOW_BYTES
    assert {of for _, of in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (total, total)
    assert len(told) > 1 or backend == "mmap"


def test_progress_bar(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_checkpoint(sample, backend="pread", progress=True)
    assert "100%" in capsys.readouterr().err
    load_checkpoint(sample, backend="pread", progress=False)
    assert capsys.readouterr().err == ""


class MineError(Exception):
    """Raised by the caller's own code."""


def raise_mine(*_: object) -> bool:
    raise MineError


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("callback", ["progress", "filter"])
def test_what_a_callback_raises_comes_out(slow: Path, callback: str, backend: str) -> None:
    keywords: dict[str, Any] = {callback: raise_mine}
    with pytest.raises(MineError):
        load_checkpoint(slow, backend=backend, **keywords)
    assert eventually(lambda: not busy())
    assert len(load_checkpoint(slow, backend=backend)) == SLOW_TENSORS


def test_what_a_streams_filter_raises_comes_out(sample: Path) -> None:
    with pytest.raises(MineError):
        list(stream(sample, filter=raise_mine))
    assert len(list(stream(sample))) == 5


def busy() -> list[str]:
    """Threads of loads; those that read ahead of a mapping are none."""
    return [name for name in threads() if not name.startswith("sst-ahead")]


# Streams.


@pytest.mark.parametrize("cache", CACHES)
def test_stream_yields_every_tensor_once(checkpoint: Path, cache: str) -> None:
    for file in shards(checkpoint):
        evict(file)
    pairs = list(stream(checkpoint, cache=cache))
    assert len({name for name, _ in pairs}) == len(pairs)
    expected = by_stock(checkpoint)
    assert same(dict(sorted(pairs)), dict(sorted(expected.items())))


def test_stream_of_mapped_tensors(checkpoint: Path) -> None:
    assert same(dict(stream(checkpoint, backend="mmap")), by_stock(checkpoint))


def test_stream_with_filter(checkpoint: Path) -> None:
    names = {name for name, _ in stream(checkpoint, filter=lambda name: name.startswith("s1."))}
    assert names == set(STOCK.load_file(shards(checkpoint)[1]))


def test_closing_a_stream_ends_its_threads(slow: Path) -> None:
    flow = stream(slow)
    name, tensor = next(flow)
    assert tensor.nbytes == SLOW_BYTES
    assert threads() != []
    flow.close()
    assert eventually(lambda: not busy())
    with pytest.raises(StopIteration):
        next(flow)
    assert name
    assert not tensor.any()


def test_dropping_a_stream_ends_its_threads(slow: Path) -> None:
    for taken in (0, 1):
        flow = stream(slow)
        for _ in range(taken):
            next(flow)
        del flow
        gc.collect()
        assert eventually(lambda: not busy())
        assert str(slow) not in [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]


def test_a_closed_stream_frees_what_was_read(slow: Path) -> None:
    release()
    before = memory_kib("RssAnon")
    flow = stream(slow)
    next(flow)
    flow.close()
    release()
    assert eventually(lambda: memory_kib("RssAnon") - before < 32 * 1024)


def test_a_stream_reads_a_bounded_way_ahead(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "long.safetensors", 64, 16 * MIB)
    before = memory_kib("RssAnon")
    flow = stream(path)
    next(flow)
    most = 0
    for _ in flow:
        most = max(most, memory_kib("RssAnon") - before)
    assert most < 640 * 1024


def test_two_streams_in_turn(large: Path, checkpoint: Path) -> None:
    pairs = itertools.zip_longest(stream(large), stream(checkpoint))
    one, other = zip(*pairs, strict=True)
    first = dict(pair for pair in one if pair is not None)
    second = dict(pair for pair in other if pair is not None)
    assert same(dict(sorted(first.items())), dict(sorted(STOCK.load_file(large).items())))
    assert same(dict(sorted(second.items())), dict(sorted(by_stock(checkpoint).items())))


def test_a_load_beside_an_open_stream(large: Path, slow: Path) -> None:
    flow = stream(slow)
    next(flow)
    assert same(load_file(large, backend="pread"), STOCK.load_file(large))
    assert len(list(flow)) == SLOW_TENSORS - 1


# What it reports, and gives back.


@pytest.mark.parametrize("backend", BACKENDS)
def test_report(checkpoint: Path, backend: str) -> None:
    load_checkpoint(checkpoint, backend=backend)
    report = last_report()
    assert isinstance(report, safetensors_streaming.Report)
    facts = report.to_dict()
    assert json.loads(report.to_json()) == facts
    assert {name: getattr(report, name) for name in facts} == facts
    assert facts["files"] == 3
    assert facts["tensors"] == 3 * len(DTYPES)
    assert facts["bytes"] == sum(tensor.nbytes for tensor in by_stock(checkpoint).values())
    assert set(facts["seconds"]) == {"open", "plan", "load", "total"}
    assert 0 < facts["seconds"]["total"] < 60
    assert all(0 <= part <= facts["seconds"]["total"] for part in facts["seconds"].values())
    assert 0 <= facts["cached_fraction"] <= 1
    known = {"mmap"} if backend == "mmap" else {"io_uring", "pread", "pread-direct"}
    assert set(facts["reader"].split("+")) <= known
    assert facts["reason"]
    if backend == "pread":
        assert facts["threads"] > 0
        assert 0 < facts["ring_bytes_peak"] <= 256 * MIB


def test_no_report_before_the_first_load() -> None:
    run_python(
        """
        import safetensors_streaming
        assert safetensors_streaming.last_report() is None
        """
    )


def test_a_warm_file_is_read_from_the_cache(large: Path) -> None:
    large.read_bytes()
    load_checkpoint(large, backend="pread", cache="bypass")
    report = last_report()
    assert report is not None
    assert report.cached_fraction > 0.9
    assert report.reader == "pread"


def test_release_gives_the_slots_back(large: Path) -> None:
    load_file(large, backend="pread")
    held = memory_kib("RssAnon")
    release()
    assert eventually(lambda: held - memory_kib("RssAnon") > 8 * 1024)
    assert same(load_file(large, backend="pread"), STOCK.load_file(large))


def test_read_through_reads_every_byte(checkpoint: Path) -> None:
    paths = [str(file) for file in shards(checkpoint)]
    report = safetensors_streaming._native.read_through(paths)  # noqa: SLF001
    weights = sum(tensor.nbytes for tensor in by_stock(checkpoint).values())
    assert weights <= report.bytes <= sum(file.stat().st_size for file in shards(checkpoint))


def test_small_reads_are_answered_when_they_are_done(sample: Path) -> None:
    """A lost wake-up would make each of them wait for the next look at signals (50 ms)."""
    handle = safetensors_streaming.safe_open(sample, "pt", backend="pread")
    handle.get_tensor("b")
    took = []
    for _ in range(41):
        began = time.perf_counter()
        handle.get_tensor("b")
        took.append(time.perf_counter() - began)
    assert sorted(took)[20] < 0.02


# A file that changes under a load.


def truncate(path: Path) -> None:
    os.truncate(path, 4096)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def replace(path: Path) -> None:
    other = write_raw(path.with_suffix(".new"), {"t0000": Entry("U8", [9])})
    other.rename(path)


def rewrite(path: Path) -> None:
    """Other bytes, as a writer in place would leave them, in the last tensor."""
    with path.open("r+b") as file:
        file.seek(-SLOW_BYTES, os.SEEK_END)
        for _ in range(SLOW_BYTES // MIB):
            file.write(b"\xff" * MIB)


CHANGES = [truncate, shorten, replace, rewrite, Path.unlink]


def check_outcome(path: Path, load: Callable[[], dict[str, torch.Tensor]]) -> bool:
    """Everything and right, or an error that says where; True where it was right."""
    try:
        loaded = load()
    except OSError as error:
        said = str(error)
        assert str(path) in said
        assert re.search(r"wanted \d+ bytes at offset \d+.* got \d+", said), said
        return False
    assert len(loaded) == SLOW_TENSORS
    assert all(tensor.nbytes == SLOW_BYTES for tensor in loaded.values())
    assert not any(tensor.any() for tensor in loaded.values())
    return True


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("cache", ["keep", "bypass"])
def test_changed_under_a_load(slow: Path, cache: str, change: Callable[[Path], None]) -> None:
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(total - done)
        if len(told) == 1:
            change(slow)

    right = check_outcome(
        slow, lambda: load_checkpoint(slow, backend="pread", cache=cache, progress=progress)
    )
    assert told[0] > 0, "the load was over before it could be disturbed"
    assert right == (change in {replace, Path.unlink})
    assert eventually(lambda: not busy())


@pytest.mark.parametrize("change", CHANGES)
def test_changed_between_items_of_a_stream(slow: Path, change: Callable[[Path], None]) -> None:
    def load() -> dict[str, torch.Tensor]:
        flow = stream(slow)
        taken = [next(flow)]
        change(slow)
        taken.extend(flow)
        return dict(taken)

    right = check_outcome(slow, load)
    assert right or change not in {replace, Path.unlink}
    assert right is False or change is not truncate
    assert eventually(lambda: not busy())


def test_changed_between_open_and_read(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "one.safetensors", {"a": Entry("U8", [MIB])})
    handle = safetensors_streaming.safe_open(path, "pt", backend="pread")
    os.truncate(path, MIB // 2)
    with pytest.raises(OSError, match=r"wanted \d+ bytes at offset \d+.* got \d+") as caught:
        handle.get_tensor("a")
    assert str(path) in str(caught.value)
    assert "`a`" in str(caught.value)


# Signals, forks, threads, the end of the process.

INTERRUPTED = """
    import sys
    from safetensors_streaming import load_checkpoint, load_file, stream

    def told(*_):
        print("ready", flush=True)

    while True:
        {call}
"""


@pytest.mark.parametrize(
    "call",
    [
        'load_checkpoint(sys.argv[1], backend="pread", progress=told)',
        'told(), load_file(sys.argv[1], backend="pread")',
        "told(), [None for _ in stream(sys.argv[1])]",
    ],
)
def test_interrupted(slow: Path, call: str) -> None:
    child = start_python(INTERRUPTED.replace("{call}", call), slow)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = child.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert child.returncode == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_interrupted_and_loaded_again(slow: Path) -> None:
    run_python(
        """
        import os, signal, sys
        from safetensors_streaming import load_checkpoint

        def interrupt(done, total):
            if done < total:
                os.kill(os.getpid(), signal.SIGINT)

        try:
            load_checkpoint(sys.argv[1], backend="pread", progress=interrupt)
        except KeyboardInterrupt:
            loaded = load_checkpoint(sys.argv[1], backend="pread")
            assert len(loaded) == 8 and not any(tensor.any() for tensor in loaded.values())
        else:
            sys.exit("the load went on")
        """,
        slow,
    )


def test_forked_after_a_load(large: Path) -> None:
    run_python(
        """
        import os, sys
        from oracle import bits
        from safetensors_streaming import load_file, stream

        def content(tensors):
            return {name: bits(tensor) for name, tensor in tensors.items()}

        path = sys.argv[1]
        expected = content(load_file(path, backend="pread"))
        flow = stream(path)  # the ring is in use when the process forks
        first = next(flow)
        for _ in range(3):
            child = os.fork()
            if child == 0:
                right = content(load_file(path, backend="pread")) == expected
                right &= content(load_file(path)) == expected
                right &= content(dict(stream(path))) == expected
                os._exit(0 if right else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert content(dict([first, *flow])) == expected
        assert content(load_file(path, backend="pread")) == expected
        """,
        large,
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_loads_in_eight_threads(large: Path, backend: str) -> None:
    expected = STOCK.load_file(large)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(2):
            loads = [pool.submit(load_file, large, backend=backend) for _ in range(8)]
            assert all(same(load.result(), expected) for load in loads)


def test_other_threads_run_during_a_load(slow: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(load_file, slow, backend="pread")
        steps = 0
        while not load.done():
            steps += 1
    assert steps > 1000
    assert len(load.result()) == SLOW_TENSORS


AHEAD = """
    import sys
    from process import eventually, threads
    from safetensors_streaming import load_file

    tensors = load_file(sys.argv[1])
    assert eventually(lambda: "sst-ahead" in threads(), 2), "no read-ahead"
    if sys.argv[2] == "drop":
        del tensors
        assert eventually(lambda: threads() == []), threads()
    print("loaded", flush=True)
"""


@pytest.mark.parametrize("then", ["drop", "exit"])
def test_reading_ahead_delays_nothing(tmp_path: Path, then: str) -> None:
    """256 GiB that nobody could read in the time that is allowed here."""
    path = write_sparse(tmp_path / "huge.safetensors", 4, 64 << 30)
    header = len(header_of({}))
    assert path.stat().st_size > header + (256 << 30)
    child = start_python(AHEAD, path, then)
    output, errors = child.communicate(timeout=60)
    if "no read-ahead" in errors and cachestat_is_missing():
        pytest.skip("no read-ahead: this kernel has no cachestat (Linux 6.5)")
    assert (child.returncode, output) == (0, "loaded\n"), errors


def cachestat_is_missing() -> bool:
    release_numbers = re.findall(r"\d+", os.uname().release)[:2]
    return [int(number) for number in release_numbers] < [6, 5]


def test_import_and_patch_start_nothing() -> None:
    run_python(
        """
        import sys
        from pathlib import Path
        import safetensors.torch, torch
        from process import descriptors, threads

        def facts():
            maps = Path("/proc/self/maps").read_text()
            cuda = sorted({line.split("/")[-1] for line in maps.splitlines() if "cuda" in line})
            return len(list(Path("/proc/self/task").iterdir())), sorted(descriptors()), cuda

        before = facts()
        import safetensors_streaming
        import safetensors_streaming.torch
        safetensors_streaming.patch()
        after = facts()
        assert [*map(len, after[1:])] == [*map(len, before[1:])], (before, after)
        assert after[0] == before[0] and threads() == []
        assert after[2] == before[2]
        assert not torch.cuda.is_initialized()
        safetensors_streaming.unpatch()
        """
    )


def test_loads_are_silent_and_start_no_cuda(sample: Path) -> None:
    output = run_python(
        """
        import sys, torch
        from process import eventually, threads
        from safetensors_streaming import load_checkpoint, load_file

        load_file(sys.argv[1])
        load_checkpoint(sys.argv[1], backend="pread")
        assert not torch.cuda.is_initialized()
        assert eventually(lambda: threads() == []), threads()
        """,
        sample,
    )
    assert output == ""


# Where io_uring is not to be had.

READ_AND_COMPARE = """
    import json, sys
    from oracle import STOCK, same
    from safetensors_streaming import last_report, load_checkpoint

    loaded = load_checkpoint(sys.argv[1], backend="pread", cache="bypass")
    print(json.dumps(last_report().to_dict()))
    assert same(loaded, STOCK.load_file(sys.argv[1]))
"""


@pytest.mark.skipif(
    os.uname().machine not in {"x86_64", "aarch64"}, reason="ci/without_io_uring knows two machines"
)
@pytest.mark.parametrize("refusal", ["EPERM", "ENOSYS"])
def test_without_io_uring(large: Path, refusal: str) -> None:
    evict(large)
    output = run_python(READ_AND_COMPARE, large, wrapper=[str(WITHOUT_IO_URING), refusal])
    facts = json.loads(output)
    assert "io_uring" not in facts["reader"].split("+")
    assert "io_uring" in facts["reason"]


def test_pread_by_choice(large: Path) -> None:
    evict(large)
    output = run_python(READ_AND_COMPARE, large, env={"SAFETENSORS_STREAMING_READER": "pread"})
    facts = json.loads(output)
    assert "io_uring" not in facts["reader"].split("+")
    assert "asked for" in facts["reason"]


def test_a_file_that_stock_wrote_a_moment_ago(tmp_path: Path) -> None:
    """Its pages are dirty in the cache; a direct read must see them all the same."""
    for turn in range(5):
        tensors = {"a": torch.full((3 * MIB + turn,), float(turn))}
        save_file(tensors, tmp_path / "fresh.safetensors")
        for cache in CACHES:
            loaded = load_checkpoint(tmp_path / "fresh.safetensors", backend="pread", cache=cache)
            assert same(loaded, tensors)
