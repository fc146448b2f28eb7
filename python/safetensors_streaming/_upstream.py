"""Upstream as it was before any patch, and the count of calls that went to it or to us."""

import re
from collections import Counter
from importlib import import_module
from threading import Lock
from typing import Any

import safetensors

#: Upstream's class; what we do not serve ourselves is its job.
safe_open: Any = safetensors.safe_open

#: Framework names that upstream takes for torch.
TORCH_NAMES = frozenset({"pt", "torch", "pytorch"})

_CUDA = re.compile(r"cuda(?::(\d{1,4}))?", re.ASCII)
_ORDINAL_MAX = 9999

BACKENDS = frozenset({"mmap", "pread"})


class Calls:
    """Calls by entry point that we served, and by reason that upstream served."""

    def __init__(self) -> None:
        """Begin with no calls."""
        self._lock = Lock()
        self._served: Counter[str] = Counter()
        self._delegated: Counter[str] = Counter()

    def serve(self, entry: str) -> None:
        """Count a call that we serve."""
        with self._lock:
            self._served[entry] += 1

    def delegate(self, reason: str) -> None:
        """Count a call that upstream serves."""
        with self._lock:
            self._delegated[reason] += 1

    def snapshot(self) -> tuple[dict[str, int], dict[str, int]]:
        """Both counts: served by entry point, delegated by reason."""
        with self._lock:
            return dict(self._served), dict(self._delegated)

    def renew_lock(self) -> None:
        """Make the lock anew in a forked child, where nobody may be left to release it."""
        self._lock = Lock()


calls = Calls()


def plain_device(device: object) -> object:
    """A device as upstream takes it: a torch.device becomes its name, None the cpu."""
    if device is None:
        return "cpu"
    if type(device).__module__ == "torch" and type(device).__name__ == "device":
        return "cpu" if str(device).split(":", maxsplit=1)[0] == "cpu" else str(device)
    return device


def cuda_ordinal(device: object) -> int | None:
    """The number of the GPU that a device names, as upstream counts ("cuda" is 0), or None."""
    if isinstance(device, int):
        return int(device) if 0 <= device <= _ORDINAL_MAX else None
    named = _CUDA.fullmatch(device) if isinstance(device, str) else None
    return int(named[1] or 0) if named else None


def reason_to_delegate(framework: object, device: object, backend: object) -> str | None:
    """Why a call is upstream's to serve (or to refuse), or None where it is ours."""
    if not isinstance(framework, str) or framework not in TORCH_NAMES:
        return f"framework {framework}"
    if device != "cpu" and cuda_ordinal(device) is None:
        return f"device {device}"
    if device != "cpu" and import_module("torch").version.cuda is None:
        return f"device {device} of a torch without CUDA"
    if not isinstance(backend, str) or backend not in BACKENDS:
        return f"backend {backend}"
    return None


def open_upstream(filename: object, framework: object, device: object, backend: object) -> Any:  # noqa: ANN401
    """Upstream's handle; versions before 0.8 know no backend, so the default is not named."""
    if backend == "mmap":
        return safe_open(filename, framework, device=device)
    return safe_open(filename, framework, device=device, backend=backend)
