"""Loads whose plan is known before the first tensor is taken."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import simulator
import torch
from gpu import NEEDS_GPU, SIMULATED
from oracle import STOCK, same_tensor
from process import busy, eventually, run_python
from safetensors.torch import save_file
from safetensors_streaming import SafetensorError, last_report, safe_open
from safetensors_streaming._native import PlannedLoad

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = NEEDS_GPU
MIB = 1 << 20
COUNT = 120


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Two files with tensors of many sizes."""
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for number, path in enumerate(paths):
        sizes = [(place * 37 + number) % 23 * 100_003 + 1 for place in range(COUNT // 2)]
        tensors = {
            f"{number}.{place}": torch.randint(0, 256, (size,), generator=generator).byte()
            for place, size in enumerate(sizes)
        }
        save_file(tensors, path)
    return paths


def plan_of(paths: list[Path]) -> tuple[PlannedLoad, list[str]]:
    """Everything of the files, in their order, and the names."""
    planned, names = PlannedLoad(), []
    for path in paths:
        with safe_open(path, "pt") as file:
            for name in file.offset_keys():
                assert planned.add(file.get_slice(name), 0, None) == len(names)
                names.append(name)
    return planned, names


def test_taken_in_the_order_that_was_told(files: list[Path]) -> None:
    planned, names = plan_of(files)
    expected = {name: tensor for path in files for name, tensor in STOCK.load_file(path).items()}
    order = random.Random(1).sample(range(COUNT), COUNT)  # noqa: S311 - a shuffle, reproducible
    planned.begin(order, 8 * MIB)
    before = torch.cuda.memory_allocated()
    for number in order:
        tensor = planned.take(number)
        assert tensor is not None
        assert same_tensor(tensor.cpu(), expected[names[number]])
        largest = max(part.nbytes for part in expected.values())
        # One tensor of ours, and what lies ahead: a window, or the limit and one tensor.
        assert torch.cuda.memory_allocated() - before <= 64 * MIB + 2 * largest
        del tensor
    assert planned.take(order[0]) is None
    planned.close()
    report = last_report()
    assert report is not None
    assert report.tensors == COUNT
    assert report.bytes == sum(tensor.nbytes for tensor in expected.values())


def test_taken_in_another_order_than_was_told(files: list[Path]) -> None:
    planned, names = plan_of(files)
    expected = {name: tensor for path in files for name, tensor in STOCK.load_file(path).items()}
    planned.begin(range(COUNT), MIB)
    for number in reversed(range(COUNT)):
        tensor = planned.take(number)
        assert tensor is not None
        assert same_tensor(tensor.cpu(), expected[names[number]])
    planned.close()


def test_given_up_half_way(files: list[Path]) -> None:
    planned, _ = plan_of(files)
    before = torch.cuda.memory_allocated()
    planned.begin(range(COUNT), 16 * MIB)
    assert planned.take(0) is not None
    planned.close()
    assert planned.take(1) is None
    assert eventually(lambda: not busy())
    del planned
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("order", [[], [0, 0], list(range(COUNT - 1)), [*range(COUNT), COUNT]])
def test_orders_that_are_none(files: list[Path], order: list[int]) -> None:
    planned, _ = plan_of(files)
    with pytest.raises(SafetensorError, match="an order"):
        planned.begin(order, MIB)


def test_on_another_stream_it_has_nothing(files: list[Path]) -> None:
    """Memory that torch makes there is that stream's, and what is on it must not be overwritten."""
    planned, names = plan_of(files)
    expected = {name: tensor for path in files for name, tensor in STOCK.load_file(path).items()}
    planned.begin(range(COUNT), 8 * MIB)
    for number, name in enumerate(names):
        if number % 2:
            with torch.cuda.stream(torch.cuda.Stream()):
                assert planned.take(number) is None
        tensor = planned.take(number)
        assert tensor is not None
        assert same_tensor(tensor.cpu(), expected[name])
    planned.close()


def test_what_is_not_read_here(tmp_path: Path) -> None:
    path = tmp_path / "few.safetensors"
    save_file(
        {"none": torch.empty(0, 3), "whole": torch.arange(5), "half": torch.ones(3).half()}, path
    )
    planned = PlannedLoad()
    with safe_open(path, "pt") as file:
        assert planned.add(file.get_slice("none"), 0, None) is None
        assert planned.add(file.get_slice("whole"), 0, torch.float16) is None
        assert planned.add(file.get_slice("half"), 0, torch.float32) is None
        assert planned.add(file.get_slice("half"), 0, torch.bfloat16) == 0
    planned.begin([0], MIB)
    tensor = planned.take(0)
    assert tensor is not None
    assert same_tensor(tensor.cpu(), torch.ones(3).bfloat16())
    planned.close()


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver counts")
def test_pinned_memory_and_copies(files: list[Path]) -> None:
    simulator.reset()
    kept = simulator.statistics()["pinned"]["live_bytes"]  # by others, torch's cache among them
    planned, _ = plan_of(files)
    planned.begin(range(COUNT), 8 * MIB)
    assert all(planned.take(number) is not None for number in range(COUNT))
    planned.close()
    counted = simulator.statistics()
    assert counted["pageable"]["copies"] == 0
    assert counted["pinned"]["peak_bytes"] - kept <= 256 * MIB


def test_two_at_once(files: list[Path]) -> None:
    """Two threads, each with a load of its own."""
    expected = {name: tensor for path in files for name, tensor in STOCK.load_file(path).items()}

    def load(_: int) -> bool:
        planned, names = plan_of(files)
        planned.begin(range(COUNT), 8 * MIB)
        taken = {name: planned.take(number) for number, name in enumerate(names)}
        planned.close()
        return all(same_tensor(taken[name].cpu(), tensor) for name, tensor in expected.items())

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(load, range(2))) == [True, True]


DISTURBED = """
    import os
    import signal
    import sys
    from pathlib import Path

    import torch
    from process import busy, eventually, run_python
    from test_planned import COUNT, MIB, plan_of

    def check_clean():
        assert eventually(lambda: not busy())
        torch.cuda.synchronize()
        assert torch.cuda.memory_allocated() == 0

    def interrupted(paths):
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        planned, names = plan_of(paths)
        planned.begin(range(COUNT), 8 * MIB)
        signal.setitimer(signal.ITIMER_REAL, 0.2)  # all of it takes many times as long
        try:
            for number in range(COUNT):
                planned.take(number)
        except KeyboardInterrupt:
            return
        sys.exit("not interrupted")

    def forked(paths):
        planned, names = plan_of(paths)
        planned.begin(range(COUNT), 8 * MIB)
        kept = planned.take(0)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            assert planned.take(1) is None
            planned.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert all(planned.take(number) is not None for number in range(1, 10))
        planned.close()

    paths = [Path(path) for path in sys.argv[2:]]
    globals()[sys.argv[1]](paths)
    check_clean()
    planned, names = plan_of(paths[:1])
    planned.begin(range(COUNT // 2), 8 * MIB)
    assert planned.take(0) is not None
    planned.close()
    check_clean()
"""


@pytest.mark.skipif(not SIMULATED, reason="a link that is slow enough is simulated")
@pytest.mark.parametrize("how", ["interrupted", "forked"])
def test_disturbed(files: list[Path], how: str) -> None:
    """Ctrl+C while a tensor is waited for; a child of fork while the load goes on."""
    run_python(DISTURBED, how, *files, env={"SIMCUDA_H2D_GBPS": "0.05"})
