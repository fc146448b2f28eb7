"""The GPU-less test bed itself: torch and stock safetensors work on it, and it counts right.

Run by ``ci/sim .venv/bin/python -m pytest tests/test_simulator.py``.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import simulator
import torch
from gpu import NEEDS_SIMULATOR
from oracle import write_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


pytestmark = NEEDS_SIMULATOR


def sample(count: int = MIB) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count))


def test_the_device_is_there() -> None:
    assert torch.cuda.is_available()
    assert torch.cuda.device_count() == 1
    assert torch.cuda.get_device_name(0) == "Simulated CUDA device"
    assert torch.cuda.get_device_capability(0) == (9, 0)
    properties = torch.cuda.get_device_properties(0)
    assert properties.total_memory == torch.cuda.mem_get_info()[1]
    assert properties.multi_processor_count == 8
    assert not torch.cuda.is_current_stream_capturing()


def test_the_allocator_works() -> None:
    torch.cuda.empty_cache()
    before = simulator.statistics()["devices"][0]["live_bytes"]
    tensor = torch.empty(8 * MIB, dtype=torch.uint8, device="cuda")
    assert simulator.statistics()["devices"][0]["live_bytes"] == before + 20 * MIB  # torch's unit
    assert bool((tensor.cpu() == 0xCB).all()), "fresh memory is poison"
    del tensor
    torch.cuda.empty_cache()
    assert simulator.statistics()["devices"][0]["live_bytes"] == before


def test_copies_are_counted() -> None:
    source = sample(1024)
    tensor = source.cuda()
    assert torch.equal(tensor.cpu(), source)
    counted = simulator.statistics()
    assert counted["h2d"] == {"copies": 1, "bytes": 4096}
    assert counted["d2h"] == {"copies": 1, "bytes": 4096}
    assert counted["pageable"] == {"copies": 2, "bytes": 8192}


def test_pinned_copies_on_a_side_stream() -> None:
    source = sample().pin_memory()
    simulator.reset()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensor = source.to("cuda", non_blocking=True)
    torch.cuda.current_stream().wait_stream(stream)
    tensor.record_stream(torch.cuda.current_stream())
    back = torch.empty_like(source).pin_memory()
    back.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    event.synchronize()
    assert torch.equal(back, source)
    assert simulator.statistics()["h2d"] == {"copies": 1, "bytes": 4 * MIB}


def test_a_missing_join_is_caught() -> None:
    tensor = torch.empty(MIB, device="cuda")
    source, back = sample().pin_memory(), torch.empty(MIB).pin_memory()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        tensor.copy_(source, non_blocking=True)
    back.copy_(tensor, non_blocking=True)
    violations = simulator.statistics()["violations"]
    assert violations["count"] == 1
    assert "not ordered after a write" in violations["texts"][0]
    torch.cuda.synchronize()
    simulator.reset()


class Exported:
    """Memory that is handed over by ``__cuda_array_interface__``."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.__cuda_array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "typestr": "<f4",
            "strides": None,
            "version": 3,
            "stream": None,
        }


def test_memory_is_handed_over() -> None:
    tensor = sample().cuda()
    taken = torch.as_tensor(Exported(tensor), device="cuda")
    assert taken.data_ptr() == tensor.data_ptr()
    assert torch.equal(taken.cpu(), tensor.cpu())
    again = torch.from_dlpack(tensor)
    assert again.data_ptr() == tensor.data_ptr()
    assert again.device == tensor.device


def test_stock_loads_the_same_on_the_device(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint")
    files = sorted(folder.glob("*.safetensors"))
    assert files
    for path in files:
        on_host = safetensors.torch.load_file(path)
        on_device = safetensors.torch.load_file(path, device="cuda")
        assert on_device.keys() == on_host.keys()
        for name, tensor in on_device.items():
            assert tensor.device.type == "cuda"
            assert tensor.dtype == on_host[name].dtype
            there, here = tensor.cpu().contiguous(), on_host[name].contiguous()
            assert there.shape == here.shape
            assert there.flatten().view(torch.uint8).equal(here.flatten().view(torch.uint8))


def test_planned_faults_strike() -> None:
    torch.cuda.empty_cache()
    simulator.fail("cuMemAlloc_v2", 1, 2)
    simulator.fail("cuMemAlloc_v2", 2, 2)  # torch frees its cache and tries again
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")
    torch.empty(64 * MIB, dtype=torch.uint8, device="cuda")


def test_kernels_are_refused() -> None:
    with pytest.raises(RuntimeError, match="not supported"):
        torch.empty(8, device="cuda").fill_(1)


PROGRAM = """
import torch
segments = [torch.empty(n << 20, dtype=torch.uint8, device="cuda") for n in (3, 30, 50)]
for number, segment in enumerate(segments):
    segment.copy_(torch.full((segment.numel(),), number, dtype=torch.uint8))
assert all(bool((s.cpu() == number).all()) for number, s in enumerate(segments))
del segment
segments.clear()
torch.cuda.empty_cache()
print(torch.cuda.mem_get_info()[1] - torch.cuda.mem_get_info()[0])
"""


def test_expandable_segments(tmp_path: Path) -> None:
    path = tmp_path / "statistics.json"
    settings = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "SIMCUDA_STATS": str(path)}
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", PROGRAM],
        env=os.environ | settings,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "0\n"
    counted = json.loads(path.read_text())
    assert counted["violations"]["count"] == 0
    assert counted["calls"]["cuMemMap"] > 0


SYMBOLS = """
import ctypes
driver = ctypes.CDLL("libcuda.so.1")
def find(name, version):
    function, status = ctypes.c_void_p(), ctypes.c_int()
    places = ctypes.byref(function), ctypes.byref(status)
    code = driver.cuGetProcAddress_v2(name, places[0], version, ctypes.c_uint64(0), places[1])
    return code, bool(function), status.value
assert find(b"cuMemAlloc", 13000) == (0, True, 0)
assert find(b"cuStreamCreate", 13000) == (500, False, 1)
assert find(b"cuNothing", 13000) == (500, False, 1)
"""


def test_entry_points_can_be_hidden() -> None:
    subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", SYMBOLS],
        env=os.environ | {"SIMCUDA_HIDE": "cuStreamCreate"},
        check=True,
    )


class Memory(ctypes.Structure):
    """``nvmlMemory_v2_t``."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def test_nvml_knows_the_same_device() -> None:
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    device, value, memory = ctypes.c_void_p(), ctypes.c_uint(), Memory()
    assert nvml.nvmlInit_v2() == 0
    assert nvml.nvmlDeviceGetCount_v2(ctypes.byref(value)) == 0
    assert value.value == 1
    handle = nvml.nvmlDeviceGetHandleByPciBusId_v2
    assert handle(b"00000000:01:00.0", ctypes.byref(device)) == 0
    assert handle(b"00000000:02:00.0", ctypes.byref(device)) == 6
    assert nvml.nvmlDeviceGetMemoryInfo_v2(device, ctypes.byref(memory)) == 0
    assert (memory.free, memory.total) == torch.cuda.mem_get_info()
    for query in ("CurrPcieLinkGeneration", "CurrPcieLinkWidth", "NumaNodeId"):
        assert getattr(nvml, f"nvmlDeviceGet{query}")(device, ctypes.byref(value)) == 0
    assert nvml.nvmlShutdown() == 0
