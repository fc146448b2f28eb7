"""What the machine is said to have, against what the kernel says, and what follows from it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import simulator
from commands import BAD, REFUSED, USAGE, run, told
from gpu import NEEDS_GPU, NEEDS_SIMULATOR
from oracle import evict, shards, write_checkpoint, write_sparse
from process import in_terminal, run_python
from safetensors_streaming import cuda
from safetensors_streaming._machine import (
    Diagnosis,
    Files,
    Machine,
    advice,
    container_memory_bytes,
    container_processors,
    file_system,
)
from test_engine import WITHOUT_IO_URING

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1 << 20
MEASURED_MAX = 256 * MIB

#: Prints what the command does.
DOCTOR = """
import sys
from safetensors_streaming.cli import main
main(["doctor", *sys.argv[1:], "--json"])
"""


def told_by_child(
    *words: object, env: Mapping[str, str] | None = None, wrapper: tuple[str, ...] = ()
) -> Any:  # noqa: ANN401 - whatever the JSON is
    return json.loads(run_python(DOCTOR, *words, env=env, wrapper=wrapper))


@pytest.fixture(scope="module")
def of_large(large: Path) -> Any:  # noqa: ANN401 - whatever the JSON is
    """What is told of 96 MiB that the page cache holds."""
    large.read_bytes()
    return told("doctor", large, "--device", "cpu")


def test_the_machine_is_what_the_kernel_says(of_large: Any) -> None:  # noqa: ANN401
    machine = of_large["machine"]
    usable = len(os.sched_getaffinity(0))
    assert 1 <= machine["processors"] <= usable
    assert machine["processors"] == usable or machine["container_processors"] is not None
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    assert machine["memlock_bytes"] == (None if memlock == resource.RLIM_INFINITY else memlock)
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    assert 0 < machine["memory_available_bytes"] <= kib["MemTotal"] * 1024
    cache = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
    if cache.exists():
        one = int(cache.read_text().strip("K\n")) * 1024
        assert machine["last_level_cache_bytes"] in range(one, usable * one + 1, one)
    chosen = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if chosen.exists():
        assert f"[{machine['transparent_huge_pages']}]" in chosen.read_text()


def test_the_files_are_what_the_kernel_says(large: Path, of_large: Any) -> None:  # noqa: ANN401
    files = of_large["files"]
    assert (files["count"], files["bytes"]) == (1, large.stat().st_size)
    command = ["df", "--output=fstype", str(large)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    assert files["file_systems"] == [shown.stdout.split()[-1]]
    assert files["cached_fraction"] == 1
    alignment = files["direct_alignment_bytes"]
    if alignment is not None:
        descriptor = os.open(large, os.O_RDONLY | os.O_DIRECT)
        os.close(descriptor)
        assert alignment in {512, 1024, 2048, 4096}


def test_what_the_page_cache_has_lost_is_told(large: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(large.read_bytes())
    evict(own)
    told_cold = told("doctor", own, "--device", "cpu")
    if told_cold["files"]["direct_alignment_bytes"] is None:
        pytest.skip("this file system may keep its files in memory")
    assert told_cold["files"]["cached_fraction"] < 0.1
    assert any("the next load is a cold one" in sentence for sentence in told_cold["advice"])


def test_a_load_is_predicted_by_its_slowest_part(of_large: Any) -> None:  # noqa: ANN401
    rates, total = of_large["bytes_per_second"], of_large["files"]["bytes"]
    assert all(rate > 10 * MIB for rate in rates.values())
    known = {"cold": "disk", "warm": "page cache"}
    assert set(of_large["predictions"]) == {name for name in known if known[name] in rates}
    for name, prediction in of_large["predictions"].items():
        parts = {part: total / rates[part] for part in (known[name], "CPU copy")}
        assert prediction["bound"] == max(parts, key=lambda part: parts[part])
        assert prediction["seconds"] >= 0.999 * max(parts.values())
        assert prediction["seconds"] <= 1.001 * sum(parts.values()) + 1  # what slots take


def test_without_a_path_the_parts_that_need_one_are_left_out_by_name() -> None:
    facts = told("doctor", "--device", "cpu")
    assert set(facts["bytes_per_second"]) == {"CPU copy"}
    assert set(facts["not_measured"]) == {"disk", "page cache"}
    assert (facts["files"], facts["predictions"]) == (None, {})
    shown = run("doctor", "--device", "cpu").output
    assert "not measured: no PATH was named" in shown


def test_files_in_memory_have_no_disk() -> None:
    folder = Path("/dev/shm") / f"doctor-{os.getpid()}"  # noqa: S108 - ours alone
    if not folder.parent.is_dir():
        pytest.skip("no /dev/shm")
    try:
        facts = told("doctor", write_checkpoint(folder), "--device", "cpu")
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert facts["files"]["file_systems"] == ["tmpfs"]
    assert facts["files"]["direct_alignment_bytes"] is None
    assert "disk" in facts["not_measured"]
    assert set(facts["predictions"]) == {"warm"}
    assert not any("page cache" in sentence for sentence in facts["advice"])


def test_a_measurement_moves_no_more_than_it_may(tmp_path: Path) -> None:
    """Of 2 GiB, by what the kernel counts as read by calls."""
    path = write_sparse(tmp_path / "huge.safetensors", 8, MEASURED_MAX)
    script = """
        import sys
        from pathlib import Path
        from safetensors_streaming import _native
        def read():
            lines = Path("/proc/self/io").read_text().splitlines()
            return int(dict(line.split(": ") for line in lines)["rchar"])
        before = read()
        rates, predictions = _native.measure_ceilings([sys.argv[1]])
        print(len(rates), read() - before)
    """
    env = {"SAFETENSORS_STREAMING_READER": "pread"}
    count, moved = map(int, run_python(script, path, env=env).split())
    assert 2 <= count <= 3
    assert moved <= (count - 1) * MEASURED_MAX + MIB


@pytest.mark.skipif(
    os.uname().machine not in {"x86_64", "aarch64"}, reason="ci/without_io_uring knows two machines"
)
def test_a_refused_io_uring_is_told_and_done_without(large: Path) -> None:
    wrapper = (str(WITHOUT_IO_URING), "EPERM")
    facts = told_by_child(large, "--device", "cpu", wrapper=wrapper)
    refusal = facts["machine"]["io_uring_refusal"]
    assert "forbidden" in refusal
    assert any(refusal in sentence for sentence in facts["advice"])
    has_disk = facts["files"]["direct_alignment_bytes"] is not None
    assert ("disk" in facts["bytes_per_second"]) == has_disk


FINE = Diagnosis(
    machine=Machine(
        processors=8,
        memory_available_bytes=64 << 30,
        last_level_cache_bytes=32 * MIB,
        memlock_bytes=None,
        memlock_binds=True,
        io_uring_refusal=None,
        transparent_huge_pages="madvise",
        container_processors=None,
        container_memory_bytes=None,
        load_ring_bytes=128 * MIB,
        ring_bytes=256 * MIB,
    ),
    device="cuda:0",
    gpu=cuda.GpuFacts(5, 5, 16, 16, 0, 1 << 30, 1 << 30),
    gpu_refusal=None,
    files=Files(1, 1 << 30, ["ext4"], 512, 1.0),
    bytes_per_second={},
    pin_seconds=None,
    not_measured={},
    predictions={},
)


def test_no_advice_where_all_is_well() -> None:
    assert advice(FINE) == []
    in_memory = replace(FINE, files=Files(1, 1 << 30, ["tmpfs"], None, 1.0))
    assert advice(in_memory) == []
    privileged = replace(FINE.machine, memlock_bytes=8 * MIB, memlock_binds=False)
    assert advice(replace(FINE, machine=privileged)) == []


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("machine", {"memlock_bytes": 8 * MIB}, "ulimit -l 131072"),
        ("machine", {"io_uring_refusal": "io_uring is forbidden"}, "io_uring is forbidden"),
        ("machine", {"transparent_huge_pages": "never"}, "madvise"),
        ("machine", {"container_memory_bytes": 511 * MIB}, "512 MiB"),
        ("machine", {"processors": 1}, "one processor"),
        ("gpu", {"pcie_width": 8}, "8 of 16 lanes"),
        ("gpu", {"pcie_generation": 3}, "PCIe 3"),
        ("files", {"direct_alignment_bytes": None}, "no reads past the page cache"),
        ("files", {"cached_fraction": 0.25}, "25%"),
    ],
)
def test_advice_where_something_is_amiss(part: str, change: dict[str, Any], words: str) -> None:
    (sentence,) = advice(replace(FINE, **{part: replace(getattr(FINE, part), **change)}))
    assert words in sentence


def test_the_limits_of_control_groups(tmp_path: Path) -> None:
    """The narrowest of a process's groups and those above them, in both versions."""
    below = tmp_path / "outer/inner"
    below.mkdir(parents=True)
    groups = "0::/outer/inner\n"
    assert container_memory_bytes(tmp_path, groups) is None
    assert container_processors(tmp_path, groups) is None
    (below / "memory.max").write_text("max\n")
    (below / "cpu.max").write_text("max 100000\n")
    assert container_memory_bytes(tmp_path, groups) is None
    assert container_processors(tmp_path, groups) is None
    (below / "cpu.max").write_text("400000 100000\n")
    (tmp_path / "outer/memory.max").write_text(f"{700 * MIB}\n")
    (tmp_path / "outer/cpu.max").write_text("150000 100000\n")
    assert container_memory_bytes(tmp_path, groups) == 700 * MIB
    assert container_processors(tmp_path, groups) == 1.5
    first = "4:memory:/host/path\n3:cpu,cpuacct:/host/path\n0::/\n"
    for controller, name, text in (
        ("memory", "memory.limit_in_bytes", str((1 << 63) - 4096)),
        ("cpu", "cpu.cfs_quota_us", "-1"),
        ("cpu", "cpu.cfs_period_us", "100000"),
    ):
        (tmp_path / controller).mkdir(exist_ok=True)
        (tmp_path / controller / name).write_text(f"{text}\n")
    assert container_memory_bytes(tmp_path, first) is None
    assert container_processors(tmp_path, first) is None
    (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{MIB}\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    assert container_memory_bytes(tmp_path, first) == MIB
    assert container_processors(tmp_path, first) == 0.5


def test_the_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    (tmp_path / "with space/below").mkdir(parents=True)
    point = str(tmp_path / "with space").replace(" ", "\\040")
    mounts = (
        "1 0 8:1 / / rw,relatime - overlay overlay rw\n"
        f"2 1 8:2 / {point} rw shared:1 - ext4 /dev/a rw\n"
        f"3 2 8:3 / {point} rw - xfs /dev/b rw\n"
    )
    assert file_system(mounts, tmp_path / "with space/below/a") == "xfs"
    assert file_system(mounts, tmp_path / "with") == "overlay"
    assert file_system("", tmp_path) == "unknown"


def test_in_a_narrow_terminal_nothing_is_lost(checkpoint: Path) -> None:
    text = in_terminal(40, "doctor", str(checkpoint), "--device", "cpu")
    assert [line for line in text.splitlines() if len(line) > 40] == []
    shown = "".join(text.split())
    for words in ("limitonlocked", "CPUcopy", "firstload", "in3files"):
        assert words in shown


@pytest.mark.parametrize(
    ("words", "code"),
    [(("{bad}",), BAD), (("{own}/missing",), REFUSED), (("--device", "tpu"), USAGE)],
)
def test_exit_codes(checkpoint: Path, words: tuple[str, ...], code: int) -> None:
    bad = checkpoint.parent / "bad.safetensors"
    bad.write_bytes(b"<html>not found</html>")
    result = run("doctor", *(word.format(own=checkpoint, bad=bad) for word in words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr


@pytest.mark.skipif(simulator.DRIVER is not None, reason="the simulated driver is one")
def test_a_machine_without_a_driver(checkpoint: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    facts = told_by_child(checkpoint, env=hidden)
    assert (facts["device"], facts["gpu"]) == ("cpu", None)
    assert any(facts["gpu_refusal"] in sentence for sentence in facts["advice"])
    with pytest.raises(AssertionError, match="exit 3"):
        told_by_child("--device", "cuda", env=hidden)


class TestOnGpu:
    """The link, and who is at the other end."""

    pytestmark = NEEDS_GPU

    def test_the_first_gpu_is_looked_at_unless_another_is_named(self, checkpoint: Path) -> None:
        facts = told("doctor", checkpoint)
        assert (facts["device"], facts["gpu_refusal"]) == ("cuda:0", None)
        moving = {"memory_free": 0, "pcie_generation": 0}  # a link that idles is slow
        assert {**facts["gpu"], **moving} == {**vars(cuda.gpu_facts(0)), **moving}
        assert {"link", "page cache"} <= set(facts["bytes_per_second"])
        assert facts["pin_seconds"] >= 0
        assert "PCIe lanes" in run("doctor", shards(checkpoint)[0]).output


class TestOnSimulator:
    """Links whose rate is known."""

    pytestmark = NEEDS_SIMULATOR

    def test_the_link_has_the_rate_that_it_was_given(self, large: Path) -> None:
        env = {"SIMCUDA_H2D_GBPS": "0.5", "SIMCUDA_PIN_MS_PER_GIB": "10000"}
        facts = told_by_child(large, "--device", "cuda", env=env)
        assert 0.25e9 < facts["bytes_per_second"]["link"] < 0.55e9
        assert 0.04 < facts["pin_seconds"] < 0.4  # 8 MiB and a table: 0.08
        warm = facts["predictions"]["warm"]
        assert warm["bound"] == "link"
        assert warm["seconds"] > facts["files"]["bytes"] / facts["bytes_per_second"]["link"]

    def test_a_link_below_its_best_is_told(self) -> None:
        env = {"SIMNVML_GEN": "3", "SIMNVML_WIDTH": "8"}
        lanes, generation = told_by_child(env=env)["advice"]
        assert "8 of 16 lanes" in lanes
        assert "PCIe 3 and could as PCIe 5" in generation

    def test_nothing_stays_on_the_gpu(self) -> None:
        before = simulator.statistics()
        told("doctor", "--device", "cuda")
        after = simulator.statistics()
        for now, then in zip(after["devices"], before["devices"], strict=True):
            assert now["live_bytes"] == then["live_bytes"]
        assert after["pinned"]["live_bytes"] == before["pinned"]["live_bytes"]
