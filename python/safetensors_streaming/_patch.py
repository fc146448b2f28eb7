"""Make every library in the process use this package, and undo it exactly.

Upstream's names are replaced where they live, and every module that already captured one of them
is found by identity over `sys.modules`, so no list of libraries has to be kept.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import RLock
from types import ModuleType
from typing import Any

import safetensors
from safetensors_streaming_children import AfterImport

from safetensors_streaming import _load, _open, _upstream

#: Set by `patch(children=True)`; the `.pth` file of the wheel reads it in child processes.
CHILDREN_VARIABLE = "SAFETENSORS_STREAMING_PATCH"

_TORCH_MODULE = "safetensors.torch"


class safe_open(_open.safe_open):  # noqa: N801 - upstream's name
    """What upstream's `safe_open` becomes: told from ours by identity, the same in all else."""

    __slots__ = ()


@wraps(_load.load_file)
def _load_file(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as load_file
    return _load.load_file(*args, **keywords)


@wraps(_load.load)
def _load_bytes(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as load
    return _load.load(*args, **keywords)


#: What replaces upstream's functions of `safetensors.torch`; its `load_model` calls `load_file`.
_TORCH_FUNCTIONS: dict[str, Callable[..., Any]] = {"load_file": _load_file, "load": _load_bytes}


@dataclass(frozen=True)
class Status:
    """What is patched, and what became of the calls.

    Attributes:
        patched: Whether `patch()` is in force.
        modules: The names, as "module.attribute", that now lead here.
        served: Calls that were served here, by entry point.
        delegated: Calls that upstream served, by reason.
    """

    patched: bool
    modules: list[str]
    served: dict[str, int]
    delegated: dict[str, int]

    def __str__(self) -> str:
        """Four lines for people."""

        def counts(calls: dict[str, int]) -> str:
            return ", ".join(f"{name} {count}" for name, count in calls.items()) or "none"

        return (
            f"patched: {'yes' if self.patched else 'no'}\n"
            f"names that lead here: {', '.join(self.modules) or 'none'}\n"
            f"calls served: {counts(self.served)}\n"
            f"calls delegated to safetensors: {counts(self.delegated)}"
        )


class _Patch:
    """The patch of this process: what was replaced by what."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.replaced: list[tuple[object, object]] = []
        self.hook: AfterImport | None = None

    def apply(self) -> None:
        """Replace everywhere; names that come later are found by the modules' own imports."""
        with self.lock:
            if self.replaced:
                return
            self._replace(safetensors.safe_open, safe_open)
            if _TORCH_MODULE in sys.modules:
                self._replace_torch()
            else:
                self.hook = AfterImport(_TORCH_MODULE, self._replace_torch_late)
                self.hook.install()

    def undo(self) -> None:
        """Put upstream's names back, also into modules that captured ours since."""
        with self.lock:
            self._remove_hook()
            while self.replaced:
                original, replacement = self.replaced.pop()
                _swap(replacement, original)

    def modules(self) -> list[str]:
        """The names that lead here now."""
        with self.lock:
            ours = {id(replacement) for _, replacement in self.replaced}
        return sorted(f"{module.__name__}.{name}" for module, name in _attributes(ours))

    def _replace(self, original: object, replacement: object) -> None:
        self.replaced.append((original, replacement))
        _swap(original, replacement)

    def _replace_torch(self) -> None:
        module = sys.modules[_TORCH_MODULE]
        for name, replacement in _TORCH_FUNCTIONS.items():
            self._replace(getattr(module, name), replacement)

    def _replace_torch_late(self) -> None:
        with self.lock:
            if self.hook is not None:
                self._remove_hook()
                self._replace_torch()

    def _remove_hook(self) -> None:
        if self.hook is not None:
            self.hook.remove()
        self.hook = None

    def renew_lock(self) -> None:
        """Make the lock anew in a forked child, where nobody may be left to release it."""
        self.lock = RLock()


def _attributes(wanted: set[int]) -> Iterator[tuple[ModuleType, str]]:
    """Every attribute of a module that is one of the wanted objects, our own modules aside."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".", maxsplit=1)[0] == "safetensors_streaming":
            continue
        attributes = getattr(module, "__dict__", None)
        if not isinstance(module, ModuleType) or not isinstance(attributes, dict):
            continue
        for name, value in list(attributes.items()):
            if id(value) in wanted:
                yield module, name


def _swap(old: object, new: object) -> None:
    for module, name in _attributes({id(old)}):
        setattr(module, name, new)


_patch = _Patch()


def _after_fork_in_child() -> None:
    _patch.renew_lock()
    _upstream.calls.renew_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def patch(*, children: bool = False) -> None:
    """Make every user of `safetensors` in this process use this package. Idempotent.

    Starts no thread, opens no file, touches no GPU and changes no placement of tensors.

    Args:
        children: Also patch child processes, however they are started, by an environment variable
            that the installed `.pth` file reads.
    """
    if children:
        os.environ[CHILDREN_VARIABLE] = "1"
    _patch.apply()


def unpatch() -> None:
    """Put upstream's names back exactly, and stop patching child processes. Idempotent."""
    os.environ.pop(CHILDREN_VARIABLE, None)
    _patch.undo()


@contextmanager
def patched() -> Iterator[None]:
    """`patch()` for the length of a with block; a patch that was in force before stays."""
    was_patched = status().patched
    patch()
    try:
        yield
    finally:
        if not was_patched:
            unpatch()


def status() -> Status:
    """What is patched, and how many calls were served or delegated, and why."""
    served, delegated = _upstream.calls.snapshot()
    return Status(bool(_patch.replaced), _patch.modules(), served, delegated)
