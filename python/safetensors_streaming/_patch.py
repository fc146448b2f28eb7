"""Make every library in the process use this package, and undo it exactly.

Upstream's names are replaced where they live, and every module that already captured one of them
is found by identity over `sys.modules`, so no list of libraries has to be kept.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from os import PathLike
from threading import RLock
from types import ModuleType
from typing import Any

import safetensors
from safetensors_streaming_children import AfterImport

from safetensors_streaming import _load, _open, _upstream
from safetensors_streaming._default import default, device_for
from safetensors_streaming.adapters import ADAPTERS, Adapter, Replacement

#: Set by `patch(children=True)`; the `.pth` file of the wheel reads them in child processes.
CHILDREN_VARIABLE = "SAFETENSORS_STREAMING_PATCH"
DEVICE_VARIABLE = "SAFETENSORS_STREAMING_DEVICE"

_TORCH_MODULE = "safetensors.torch"


class safe_open(_open.safe_open):  # noqa: N801 - upstream's name
    """What upstream's `safe_open` becomes: told from ours by identity and by its default device."""

    __slots__ = ()

    def __new__(  # noqa: PYI034 - or what upstream makes
        cls,
        filename: str | PathLike[str],
        framework: str,
        *device: object,
        **keywords: Any,  # noqa: ANN401 - as safe_open
    ) -> "safe_open":
        """Open the file on the device that the call or `patch` names."""
        if not device and "device" not in keywords and framework in _upstream.TORCH_NAMES:
            keywords["device"] = device_for(sys._getframe(1))  # noqa: SLF001 - no other way
        if _patch.pending:
            _patch.settle()
        opened: Any = super().__new__(cls, filename, framework, *device, **keywords)
        return opened  # type: ignore[no-any-return]


@wraps(_load.load_file)
def _load_file(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as load_file
    if len(args) < 2 and "device" not in keywords:  # noqa: PLR2004 - the device is the second
        keywords["device"] = device_for(sys._getframe(1))  # noqa: SLF001 - no other way
    return _load.load_file(*args, **keywords)


@wraps(_load.load)
def _load_bytes(*args: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as load
    return _load.load(*args, **keywords)


#: What replaces upstream's functions of `safetensors.torch`; its `load_model` calls `load_file`.
_TORCH_FUNCTIONS: dict[str, Callable[..., Any]] = {"load_file": _load_file, "load": _load_bytes}

for _name, _function in _TORCH_FUNCTIONS.items():
    # Where pickle finds them, in other processes upstream's own if those are not patched.
    _function.__module__, _function.__qualname__ = _TORCH_MODULE, _name


@dataclass(frozen=True)
class Status:
    """What is patched, and what became of the calls.

    Attributes:
        patched: Whether `patch()` is in force.
        device: Where calls that name no device put their tensors.
        modules: The names, as "module.attribute", that now lead here.
        served: Calls that were served here, by entry point.
        delegated: Calls that upstream served, by reason.
        adapters: Imported modules of libraries: "yes" where they are adapted to, or why not.
    """

    patched: bool
    device: str
    modules: list[str]
    served: dict[str, int]
    delegated: dict[str, int]
    adapters: dict[str, str]

    def __str__(self) -> str:
        """Six lines for people."""

        def counts(calls: dict[str, int]) -> str:
            return ", ".join(f"{name} {count}" for name, count in calls.items()) or "none"

        adapters = ", ".join(f"{name} ({told})" for name, told in self.adapters.items())
        return (
            f"patched: {'yes' if self.patched else 'no'}\n"
            f"device of calls that name none: {self.device}\n"
            f"names that lead here: {', '.join(self.modules) or 'none'}\n"
            f"calls served: {counts(self.served)}\n"
            f"calls delegated to safetensors: {counts(self.delegated)}\n"
            f"libraries adapted to: {adapters or 'none'}"
        )


class _Patch:
    """The patch of this process: what was replaced by what."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.replaced: list[Replacement] = []
        self.hooks: dict[str, AfterImport] = {}
        self.pending: dict[str, Callable[[], None]] = {}
        self.adapters: dict[str, str] = {}

    def apply(self) -> None:
        """Replace everywhere; names that come later are found by the modules' own imports."""
        with self.lock:
            if self.replaced:
                return
            self._replace([(safetensors.safe_open, safe_open)])
        self._once_imported(_TORCH_MODULE, self._replace_torch)
        for adapter in ADAPTERS:
            self._once_imported(adapter.module, partial(self._adapt, adapter))

    def undo(self) -> None:
        """Put upstream's names back, also into modules that captured ours since."""
        with self.lock:
            default.device = default.named = "cpu"
            self.adapters = {}
            self.pending = {}
            while self.hooks:
                self.hooks.popitem()[1].remove()
            _swap([(new, old, *owner) for old, new, *owner in self.replaced])
            self.replaced = []

    def modules(self) -> list[str]:
        """The names that lead here now."""
        with self.lock:
            ours = {id(replacement[1]) for replacement in self.replaced}
        return sorted(f"{module.__name__}.{name}" for module, name, _ in _attributes(ours))

    def _replace(self, replacements: list[Replacement]) -> None:
        self.replaced += replacements
        _swap(replacements)

    def _replace_torch(self) -> None:
        module = sys.modules[_TORCH_MODULE]
        self._replace_later(
            [(getattr(module, name), new) for name, new in _TORCH_FUNCTIONS.items()]
        )

    def _adapt(self, adapter: Adapter) -> None:
        # Nothing is imported with the lock held: who imports may wait for it.
        told = "yes"
        try:
            told = adapter.obstacle() or told
            wanted = adapter.replacements() if told == "yes" else []
        except Exception as error:  # noqa: BLE001 - whatever it is, the library's import goes on
            told, wanted = f"{type(error).__name__}: {error}", []
        self._replace_later(wanted)
        with self.lock:
            if self.replaced:
                self.adapters[adapter.module] = told

    def _replace_later(self, replacements: list[Replacement]) -> None:
        with self.lock:
            if self.replaced:  # nobody has undone the patch meanwhile
                self._replace(replacements)

    def _once_imported(self, module: str, action: Callable[[], None]) -> None:
        found = sys.modules.get(module)
        if found is not None and not _is_being_imported(found):
            action()
            return

        def late() -> None:
            with self.lock:
                wanted = self.hooks.pop(module, None) is not None
            if wanted:
                action()

        with self.lock:
            if found is None:
                self.hooks[module] = AfterImport(module, late)
                self.hooks[module].install()
            else:
                self.pending[module] = action

    def settle(self) -> None:
        """Do what had to wait for imports that were under way when `patch` was called."""
        for module in list(self.pending):
            if not _is_being_imported(sys.modules.get(module)):
                with self.lock:
                    action = self.pending.pop(module, None)
                if action is not None:
                    self._once_imported(module, action)  # the import may have failed

    def renew_lock(self) -> None:
        """Make the lock anew in a forked child, where nobody may be left to release it."""
        self.lock = RLock()


def _is_being_imported(module: ModuleType | None) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def _attributes(wanted: set[int]) -> Iterator[tuple[ModuleType, str, object]]:
    """Every attribute of a module that is one of the wanted objects, our own modules aside."""
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".", maxsplit=1)[0] == "safetensors_streaming":
            continue
        attributes = getattr(module, "__dict__", None)
        if not isinstance(module, ModuleType) or not isinstance(attributes, dict):
            continue
        for name, value in list(attributes.items()):
            if id(value) in wanted:
                yield module, name, value


def _swap(replacements: Iterable[Replacement]) -> None:
    everywhere = {}
    for old, new, *owners in replacements:
        for owner in owners:
            setattr(owner, old.__name__, new)
        if not owners:
            everywhere[id(old)] = new
    for module, name, value in _attributes(set(everywhere)):
        setattr(module, name, everywhere[id(value)])


_patch = _Patch()


def _after_fork_in_child() -> None:
    _patch.renew_lock()
    _upstream.calls.renew_lock()


os.register_at_fork(after_in_child=_after_fork_in_child)


def patch(*, device: object = None, children: bool = False) -> None:
    """Make every user of `safetensors` in this process use this package. Idempotent.

    Starts no thread, opens no file and touches no GPU.

    Args:
        device: Where direct calls that name no device put their tensors, as in `load_file`: of
            `load_file` and `safe_open`, and of what transformers, diffusers and
            sentence-transformers load for you. Calls of libraries that place tensors themselves
            (accelerate, peft, ...) are not changed by it. None leaves it as it is: the CPU, as
            upstream, unless an earlier `patch` named another.
        children: Also patch child processes, however they are started, by an environment variable
            that the installed `.pth` file reads.
    """
    plain = _upstream.plain_device(device)
    ordinal = _upstream.cuda_ordinal(plain)
    if device is not None:
        default.device = str(plain) if ordinal is None else f"cuda:{ordinal}"
        default.named = plain if isinstance(plain, str) else default.device
    _patch.apply()
    if children:
        os.environ[CHILDREN_VARIABLE] = "1"
    if CHILDREN_VARIABLE in os.environ:
        os.environ[DEVICE_VARIABLE] = default.named


def unpatch() -> None:
    """Put upstream's names back exactly, and stop patching child processes. Idempotent."""
    os.environ.pop(CHILDREN_VARIABLE, None)
    os.environ.pop(DEVICE_VARIABLE, None)
    _patch.undo()


@contextmanager
def patched(*, device: object = None) -> Iterator[None]:
    """`patch()` for the length of a with block; a patch that was in force before stays."""
    before, named = status(), default.named
    patch(device=device)
    try:
        yield
    finally:
        if before.patched:
            patch(device=named)
        else:
            unpatch()


def status() -> Status:
    """What is patched, and how many calls were served or delegated, and why."""
    _patch.settle()
    served, delegated = _upstream.calls.snapshot()
    modules = _patch.modules()
    adapters = dict(_patch.adapters)
    return Status(bool(_patch.replaced), default.device, modules, served, delegated, adapters)
