"""One load of a large file, and the memory that its process needed beside the result."""

from __future__ import annotations

import hashlib
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors_streaming
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

# Helpers of the tests.
process, oracle = import_module("process"), import_module("oracle")
simulator = import_module("simulator")

READ_BYTES = 8 << 20


def _loaded(path: str) -> int:
    """`load_file` into memory of the tensors."""
    tensors = safetensors_streaming.load_file(path, backend="pread")
    return sum(tensor.nbytes for tensor in tensors.values())


def _collected(path: str) -> int:
    """`stream`, everything kept."""
    return sum(tensor.nbytes for tensor in dict(safetensors_streaming.stream(path)).values())


def _passed(path: str) -> int:
    """`stream`, each tensor dropped when it was digested, which is slower than reading."""
    most = 0
    for _name, tensor in safetensors_streaming.stream(path):
        hashlib.sha256(tensor.numpy().data)
        most = max(most, tensor.nbytes)
        del tensor  # before the next one is made
    return most


def _on_gpu(path: str) -> int:
    """`load_file` onto the simulated GPU, whose memory is the host's."""
    tensors = safetensors_streaming.load_file(path, device="cuda")
    torch.cuda.synchronize()
    del tensors
    peak: int = simulator.statistics()["devices"][0]["peak_bytes"]
    return peak


#: By name: whether the page cache holds the file, and the load, which gives the result's bytes.
CASES: dict[str, tuple[bool, Callable[[str], int]]] = {
    "load_file, cold": (False, _loaded),
    "load_file, warm": (True, _loaded),
    "stream, kept, cold": (False, _collected),
    "stream, kept, warm": (True, _collected),
    "stream, dropped, cold": (False, _passed),
    "stream, dropped, warm": (True, _passed),
    "load_file, cold, cuda": (False, _on_gpu),
}


#: Those that keep no tensor.
DROPPED = [name for name, (_, load) in CASES.items() if load is _passed]


def _prepare(path: Path, *, warm: bool) -> None:
    """Puts a file into the page cache, or takes it out."""
    oracle.evict(path)
    if warm:
        with path.open("rb", buffering=0) as file:
            while file.read(READ_BYTES):
                pass


def measured(case: str, path: str) -> dict[str, int]:
    """Runs a case; bytes of memory at the peak beside what was there before and the result."""
    warm, load = CASES[case]
    _prepare(Path(path), warm=warm)
    if case.endswith("cuda"):
        torch.cuda.init()  # type: ignore[no-untyped-call]
        simulator.reset()
    before = process.memory_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    result = load(path)
    peak = process.memory_kib("VmHWM")
    report = safetensors_streaming.last_report()
    slots = report.ring_bytes_peak if report is not None else 0
    return {"bytes": (peak - before) * 1024 - result, "slots": slots}
