"""GPUs that cannot be had, break, or are busy with a capture: each is told clearly, and none hurts.

Every case has a process of its own, since the driver's state does not come back. A process that
was refused loads to the CPU as if nothing had been.
"""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import simulator
from gpu import ALLOCATORS, NEEDS_SIMULATOR
from oracle import Entry, outcome, write_raw
from process import run_python
from refusal import DRIVER_WAYS, TORCH_WAYS
from safetensors_streaming import load_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

pytestmark = NEEDS_SIMULATOR
MIB = 1 << 20


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 MiB in more slots than one, with a small and an empty tensor; sorted as in the file."""
    entries = {f"t{i}": Entry("U8", [5 * MIB]) for i in range(8)}
    entries |= {"u small": Entry("F32", [7, 3]), "v empty": Entry("F16", [0, 2])}
    return write_raw(tmp_path_factory.mktemp("refused") / "a.safetensors", entries, misalign=3)


# No GPU to be had.


def without_the_simulator() -> dict[str, str]:
    """An environment in which no libcuda is found; a machine with a GPU would find its own."""
    return {"LD_LIBRARY_PATH": "", "LD_PRELOAD": ""}


def with_an_older_driver(folder: Path) -> dict[str, str]:
    """The simulated driver without memory in the order of streams, which CUDA 11.2 brought."""
    name = b"\0cuMemAllocAsync\0"
    beds = [Path(part) for part in os.environ["LD_LIBRARY_PATH"].split(os.pathsep) if part]
    known = next(bed / "libcuda.so.1" for bed in beds if (bed / "libcuda.so.1").exists())
    driver = known.read_bytes()
    assert name in driver
    for library in ("libcuda.so", "libcuda.so.1"):
        (folder / library).write_bytes(driver.replace(name, name[:-2] + b"?\0"))
    return {"LD_LIBRARY_PATH": f"{folder}{os.pathsep}{os.environ['LD_LIBRARY_PATH']}"}


#: What is wrong, and the number of the GPU that is asked for.
STATES = {
    "no driver": 0,
    "a stub for a driver": 0,
    "too old a driver": 0,
    "no devices": 0,
    "a GPU beyond the last": 7,
    "a GPU beyond any": 99,
}


def environment(state: str, folder: Path) -> Mapping[str, str]:
    """The environment that brings it about."""
    if state == "no driver":
        return without_the_simulator()
    if state == "too old a driver":
        return with_an_older_driver(folder)
    settings = {"a stub for a driver": "SIMCUDA_STUB=1", "no devices": "SIMCUDA_DEVICES=0"}
    return dict([settings[state].split("=")]) if state in settings else {}


Told = dict[str, tuple[list[str], str]]


@pytest.fixture(scope="module")
def told_in(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Told]:
    """What every way to load answers in a state: the exception's classes, and its words."""

    @functools.cache
    def tell(state: str) -> Told:
        script = "import sys, refusal; refusal.tell(sys.argv[1], int(sys.argv[2]))"
        env = environment(state, tmp_path_factory.mktemp("driver"))
        told: Told = json.loads(run_python(script, path, STATES[state], env=env).splitlines()[-1])
        return told

    return tell


CAUSES = {
    "no driver": "no NVIDIA driver was found",
    "a stub for a driver": "CUDA driver is a stub library",
    "too old a driver": "the NVIDIA driver is too old: it has no cuMemAllocAsync",
    "no devices": "no CUDA-capable device is detected",
    "a GPU beyond the last": "invalid device ordinal",
    "a GPU beyond any": "invalid device ordinal",
}


@pytest.mark.parametrize("state", STATES)
def test_what_is_wrong_is_told(told_in: Callable[[str], Told], state: str) -> None:
    for way in DRIVER_WAYS:
        classes, words = told_in(state)[way]
        assert "RuntimeError" in classes, way
        assert words.startswith(f"cuda:{STATES[state]}: "), way
        assert CAUSES[state] in words, way


@pytest.mark.parametrize("state", ["no driver", "a stub for a driver", "no devices"])
def test_torch_tells_of_itself_what_it_tells_stock(
    told_in: Callable[[str], Told], state: str
) -> None:
    for way in TORCH_WAYS:
        assert told_in(state)[way] == told_in(state)["stock"], way
        assert "RuntimeError" in told_in(state)[way][0]


@pytest.mark.parametrize("state", ["too old a driver", *list(STATES)[-2:]])
def test_with_a_working_torch_the_same_is_wrong(told_in: Callable[[str], Told], state: str) -> None:
    for way in TORCH_WAYS:
        classes, words = told_in(state)[way]
        assert "RuntimeError" in classes, way
        assert str(STATES[state]) in words, way


@pytest.mark.parametrize(
    ("state", "advice"),
    {
        "no driver": "install|nvidia-smi|--gpus",
        "a stub for a driver": "take its folder off LD_LIBRARY_PATH",
        "too old a driver": "update|upgrade|install|CUDA 11.2",
        "no devices": "CUDA_VISIBLE_DEVICES|nvidia-smi|--gpus",
        "a GPU beyond the last": "has 1 CUDA device",
        "a GPU beyond any": "has 1 CUDA device",
    }.items(),
)
def test_what_to_do_is_told(told_in: Callable[[str], Told], state: str, advice: str) -> None:
    for way in DRIVER_WAYS:
        assert re.search(advice, told_in(state)[way][1]), told_in(state)[way][1]


# A GPU that breaks.

BREAKS = """
    import sys, simulator, torch
    from oracle import outcome
    from refusal import held, is_fit_for_the_cpu, nothing_but, refused, ways
    path, way, symbol, call, code = sys.argv[1], sys.argv[2], sys.argv[3], *map(int, sys.argv[4:6])
    ways(path)[way]()  # its memory is pinned and torch has some in its cache
    assert torch.cuda.memory_allocated() == 0
    simulator.fail(symbol, call, code, sticky=True)
    if sys.argv[6] == "before":
        try:
            torch.zeros(9).cuda()
        except RuntimeError as error:
            assert "CUDA error" in str(error), error
        else:
            sys.exit("the user's own work did not fail")
    refused(way, outcome(ways(path)[way]))
    left = held()
    for other, load in ways(path).items():
        refused(other, outcome(load))
    nothing_but(left)  # what the first could not give back, and nothing more
    assert torch.cuda.memory_allocated() == 0
    is_fit_for_the_cpu(path)
"""
WAYS_OF_EACH_KIND = ["load_file", "stream", "torch load_file", "torch stream"]


@pytest.mark.parametrize("way", ["load_file", "torch load_file"])
def test_broken_by_somebody_before(path: Path, way: str) -> None:
    run_python(BREAKS, path, way, "cuMemcpyHtoDAsync_v2", 1, 700, "before")


@pytest.mark.parametrize("way", WAYS_OF_EACH_KIND)
def test_broken_by_somebody_meanwhile(path: Path, way: str) -> None:
    """Found where the load waits for its copies."""
    run_python(BREAKS, path, way, "cuEventSynchronize", 2, 700, "meanwhile")


@pytest.mark.parametrize("way", WAYS_OF_EACH_KIND)
@pytest.mark.parametrize("copy", [1, 4])
def test_lost_in_the_middle(path: Path, way: str, copy: int) -> None:
    run_python(BREAKS, path, way, "cuMemcpyHtoDAsync_v2", copy, 999, "meanwhile")


@pytest.mark.parametrize(
    "code", [214, 220, 700, 702, 710, 714, 715, 716, 717, 718, 719, 999], ids=str
)
def test_after_a_crash_a_new_process_is_advised(path: Path, code: int) -> None:
    simulator.fail("cuMemcpyHtoDAsync_v2", 1, code, sticky=True)
    told = outcome(lambda: load_file(path, "cuda", allocator="driver"))
    assert told.error is RuntimeError
    assert f"({code})" in told.words
    assert "this process can no longer use the GPU" in told.words
    assert "start a new one" in told.words


# A GPU that is busy with a capture.

CAPTURED = """
    import sys, torch
    from gpu import check
    from oracle import STOCK, outcome
    from refusal import capture, held, is_fit_for_the_cpu, nothing_but, refused, ways
    path, mode, names = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(",")
    expected = STOCK.load_file(path)
    torch.cuda.Stream()  # with the first one torch makes many
    for name in names:
        ways(path)[name]()
        before = held()
        with capture(mode) as goes_on:
            told = outcome(ways(path)[name])
            assert goes_on(), f"{name} spoiled the capture: {told.words or 'loaded'}"
        if told.error is not None or name.startswith("torch"):
            refused(name, told)
            assert "a CUDA graph is being captured: load before or after" in told.words, told
        elif name != "arrays":
            check(dict(sorted(told.value.items())), expected)
        del told
        nothing_but(before)
        check(ways(path)["torch load_file"](), expected)
        is_fit_for_the_cpu(path)
"""
MODES = {"global": 0, "of a thread": 1, "relaxed": 2}


@pytest.mark.parametrize("mode", MODES)
def test_torch_memory_in_a_capture(path: Path, mode: str) -> None:
    """The copies would have to be part of the graph: refused, and the capture goes on."""
    run_python(CAPTURED, path, MODES[mode], ",".join(TORCH_WAYS))


@pytest.mark.parametrize("mode", MODES)
def test_memory_of_ours_in_a_capture(path: Path, mode: str) -> None:
    """Loaded beside the capture or refused, the capture goes on and nothing is left."""
    run_python(CAPTURED, path, MODES[mode], ",".join(DRIVER_WAYS))


@pytest.mark.parametrize("mode", MODES)
def test_memory_of_ours_dropped_in_a_capture(path: Path, mode: str) -> None:
    """Freeing it must not spoil the capture, and must not be forgotten."""
    script = """
        import sys, torch
        from refusal import capture, held, nothing_but
        from safetensors_streaming import load_file
        torch.cuda.Stream()
        load_file(sys.argv[1], "cuda", allocator="driver")
        before = held()
        loaded = load_file(sys.argv[1], "cuda", allocator="driver")
        assert held() != before
        with capture(int(sys.argv[2])) as goes_on:
            loaded.clear()
            assert goes_on(), "the capture is spoiled"
        load_file(sys.argv[1], "cuda", allocator="driver")
        nothing_but(before)
    """
    run_python(script, path, MODES[mode])


# A child of fork.


@pytest.mark.parametrize("parent", ["torch alone", "load_file", "arrays", "torch load_file"])
def test_in_a_child_of_fork(path: Path, parent: str) -> None:
    """CUDA does not work there, whoever had initialised it; the CPU does, and the parent too."""
    script = """
        import sys, torch
        from gpu import check
        from oracle import STOCK, outcome
        from refusal import TORCH_WAYS, held, in_a_child, is_fit_for_the_cpu, ways
        from safetensors_streaming import release
        path, parent = sys.argv[1:3]
        expected = STOCK.load_file(path)
        torch.zeros(9).cuda()
        kept = [] if parent == "torch alone" else [ways(path)[parent]()]

        def refused_there():
            for way, load in ways(path).items():
                told = outcome(load)
                assert told.error is RuntimeError, told
                assert "fork" in told.words, told
                assert "'spawn'" in told.words, told
                assert way in TORCH_WAYS or told.words.startswith("cuda:0: "), told
            kept.clear()
            is_fit_for_the_cpu(path)
            release()
            is_fit_for_the_cpu(path)

        in_a_child(refused_there)
        for loaded in kept if parent != "arrays" else []:
            check(loaded, expected)
        kept.clear()
        for way, load in ways(path).items():
            loaded = load()
            assert loaded.keys() == expected.keys()
            if way != "arrays":
                check(dict(sorted(loaded.items())), expected)
        del loaded
        held()
        is_fit_for_the_cpu(path)
    """
    run_python(script, path, parent)


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_stream_that_is_open_over_a_fork(path: Path, allocator: str) -> None:
    """The child drops it without waiting for a thread that it lacks; the parent takes the rest."""
    script = """
        import sys
        from gpu import check
        from oracle import STOCK
        from refusal import in_a_child, is_fit_for_the_cpu
        from safetensors_streaming import stream
        flow = stream(sys.argv[1], "cuda", allocator=sys.argv[2])
        taken = dict([next(flow)])

        def dropped_there():
            flow.close()
            is_fit_for_the_cpu(sys.argv[1])

        in_a_child(dropped_there)
        taken |= dict(flow)
        check(dict(sorted(taken.items())), STOCK.load_file(sys.argv[1]))
    """
    run_python(script, path, allocator)


def test_a_loop_that_is_read_ahead_over_a_fork(large: Path) -> None:
    """Children drop it; they load to the CPU, and the parent's loop goes on."""
    script = """
        import sys
        from gpu import check
        from oracle import STOCK
        from refusal import in_a_child, is_fit_for_the_cpu
        from safetensors_streaming import safe_open
        handle = safe_open(sys.argv[1], "pt", "cuda")
        expected, taken = STOCK.load_file(sys.argv[1]), {}

        def dropped_there():
            handle.__exit__(None, None, None)
            is_fit_for_the_cpu(sys.argv[1])

        for number, name in enumerate(expected):
            taken[name] = handle.get_tensor(name)
            if number % 6 == 2:
                in_a_child(dropped_there)
        check(taken, expected)
    """
    run_python(script, large)
