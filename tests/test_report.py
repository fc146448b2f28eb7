"""What a load tells of itself."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import safetensors_streaming
from oracle import DTYPES, by_stock, evict
from process import run_python
from safetensors_streaming import _native, last_report, load_checkpoint
from spans import one_after_the_other, spans_of

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
BACKENDS = ["mmap", "pread"]


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
    assert set(facts["seconds"]) == {"open", "plan", "load", "tensors", "total"}
    assert 0 < facts["seconds"]["total"] < 60
    assert all(0 <= part <= facts["seconds"]["total"] for part in facts["seconds"].values())
    assert 0 <= facts["cached_fraction"] <= 1
    known = {"mmap"} if backend == "mmap" else {"io_uring", "pread", "pread-direct"}
    assert set(facts["reader"].split("+")) <= known
    assert facts["reason"]
    if backend == "pread":
        assert facts["threads"] > 0
        assert 0 < facts["ring_bytes_peak"] <= 256 * MIB


def test_the_time_line_has_every_read_in_one_slot_at_a_time(large: Path) -> None:
    load_checkpoint(large, backend="pread")
    report = last_report()
    assert report is not None
    events = json.loads(report.trace() or "")["traceEvents"]
    reads = [event for event in events if event["name"] == "read"]
    assert sum(read["args"]["bytes"] for read in reads) == report.read_bytes
    assert {read["args"]["file"] for read in reads} == {str(large)}
    lanes = spans_of(events, {"read", "place"})
    assert 1 <= len(lanes) <= report.ring_bytes_peak // (8 * MIB)
    assert all(one_after_the_other(spans) for spans in lanes.values())
    seconds = max(end for spans in lanes.values() for _, end in spans) / 1e6
    assert seconds <= report.seconds["load"]
    assert all(0 <= busy <= report.seconds["load"] for busy in report.busy.values())


def test_what_bound_a_load(large: Path) -> None:
    load_checkpoint(large)
    mapped = last_report()
    assert mapped is not None
    assert (mapped.bound, mapped.trace()) == ("mapping", None)
    load_checkpoint(large, backend="pread")
    report = last_report()
    assert report is not None
    assert report.bound in {"disk", "page cache", "CPU copy", "Python"}
    told = report.explain({report.bound: 2 * report.bytes / report.seconds["total"]})
    assert told.startswith(report.bound)
    assert "50 % of the ceiling" in told


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_bound_a_load_of_nothing(sample: Path, backend: str) -> None:
    load_checkpoint(sample, backend=backend, filter=lambda name: name == "empty")
    report = last_report()
    assert report is not None
    assert (report.tensors, report.read_bytes, report.trace()) == (1, 0, None)
    bound, told = {"mmap": ("mapping", "mapping: "), "pread": ("nothing", "nothing to read: ")}[
        backend
    ]
    assert report.bound == bound
    assert report.explain().startswith(f"{told}1 tensors in ")


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


AS_WHO_MAY_NOT_ASK = """
import ctypes, os, sys
from safetensors_streaming import last_report, load_checkpoint
folder, name = os.path.split(sys.argv[1])
os.chdir(folder)  # the folders above it are closed to others
load_checkpoint(name, backend="pread", cache="keep")
if sys.argv[2] == "cold":
    with open(name, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
os.setuid(65534)
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: else its descriptors' names are closed to it
load_checkpoint(name, backend="pread", cache="bypass")
print(last_report().cached_fraction)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: a file that is somebody else's")
@pytest.mark.parametrize(("state", "least", "most"), [("warm", 0.9, 1), ("cold", 0, 0.5)])
def test_whom_the_kernel_does_not_tell_what_is_cached(
    large: Path, state: str, least: float, most: float
) -> None:
    evict(large)
    if _native.file_facts(str(large))[1]:
        pytest.skip("this file system keeps its files in memory")
    large.parent.chmod(0o755)
    large.chmod(0o644)
    assert least <= float(run_python(AS_WHO_MAY_NOT_ASK, large, state)) <= most
