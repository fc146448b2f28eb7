"""What a benchmark ran on: the machine, the file system, the packages."""

from __future__ import annotations

import os
import platform
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "safetensors-streaming-gpu",
    "safetensors",
    "torch",
    "numpy",
    "transformers",
    "diffusers",
    "sentence-transformers",
    "accelerate",
    "peft",
)


def environment(folder: Path) -> dict[str, object]:
    """Describes the machine, the file system under ``folder`` and the packages."""
    device = folder.stat().st_dev
    queue = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/queue/read_ahead_kb")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "kernel": platform.release(),
        "cpu": _field(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "file_system": _mount(folder),
        "read_ahead_kb": _text(queue),
        "transparent_huge_pages": _text(Path("/sys/kernel/mm/transparent_hugepage/enabled")),
        "governor": _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "python": platform.python_version(),
        "gpu": _gpu(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _gpu() -> str | None:
    """Names the GPU as torch sees it; simulated ones say so."""
    torch = import_module("torch")
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _mount(folder: Path) -> list[str]:
    """Finds device, mount point, type and options of the file system a folder lies on."""
    mounts = [line.split()[:4] for line in (_text(Path("/proc/self/mounts")) or "").splitlines()]
    return max((m for m in mounts if folder.is_relative_to(m[1])), key=lambda m: len(m[1]))


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _field(path: Path, name: str) -> str | None:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
