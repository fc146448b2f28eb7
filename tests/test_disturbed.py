"""Loads that are disturbed: changed files, signals, forks, other threads, the end."""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import safetensors_streaming
from oracle import (
    SLOW_BYTES,
    SLOW_TENSORS,
    STOCK,
    Entry,
    header_of,
    same,
    write_raw,
    write_sparse,
)
from process import busy, eventually, run_python, start_python
from safetensors_streaming import load_checkpoint, load_file, stream

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

MIB = 1 << 20
BACKENDS = ["mmap", "pread"]


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
    import signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
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

        signal.signal(signal.SIGINT, signal.default_int_handler)  # see above

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
    """Nothing makes a thread give up the interpreter; opening a file is worth a hundred steps."""
    steps, at = 0, []

    def load() -> dict[str, torch.Tensor]:
        at.append(steps)
        loaded = load_file(slow, backend="pread")
        at.append(steps)
        return loaded

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        with ThreadPoolExecutor(1) as pool:
            loading = pool.submit(load)
            while not loading.done():
                steps += 1
                select.select([], [], [], 0)  # lets others run
    finally:
        sys.setswitchinterval(interval)
    assert at[1] - at[0] > 1000
    assert len(loading.result()) == SLOW_TENSORS


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


IN_ORDER = """
    import sys
    from pathlib import Path
    from process import cached_bytes, eventually, threads
    from safetensors_streaming import load_file

    paths = [Path(name) for name in sys.argv[1:]]
    quarter = paths[0].stat().st_size // 4
    tensors = [load_file(path) for path in paths]
    assert threads().count("sst-ahead") <= 1, threads()
    assert eventually(lambda: cached_bytes(paths[-1]) > quarter), "not read ahead"
    cached = [cached_bytes(path) / quarter for path in paths[:-1]]
    assert min(cached) > 3, cached
"""


def test_files_are_read_ahead_one_after_the_other(tmp_path: Path) -> None:
    paths = [write_sparse(tmp_path / f"{number}.safetensors", 1, 64 * MIB) for number in range(6)]
    child = start_python(IN_ORDER, *paths)
    _, errors = child.communicate(timeout=60)
    if "not read ahead" in errors and cachestat_is_missing():
        pytest.skip("no read-ahead: this kernel has no cachestat (Linux 6.5)")
    assert child.returncode == 0, errors


def test_what_is_read_otherwise_is_not_read_ahead(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "huge.safetensors", 4, 64 << 30)
    script = """
        import sys
        from process import threads
        from safetensors_streaming import load_file
        from safetensors_streaming._default import read_otherwise

        read_otherwise.set(True)
        tensors = load_file(sys.argv[1])
        assert threads() == [], threads()
    """
    run_python(script, path)


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
