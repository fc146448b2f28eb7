"""The import hook of `patch()`, and its use in child processes.

It stands outside the package because the `.pth` file beside it runs at the start of every Python:
nothing is imported but this until somebody imports `safetensors`.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class AfterImport(MetaPathFinder, Loader):
    """Runs an action once, after one module was imported, however it is found."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        """Remember the module's name and what to do; `install` begins to watch."""
        self.name = name
        self.action = action
        self.loader: Any = None

    def install(self) -> None:
        """Begin to watch; costs a comparison an import."""
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Stop watching; removing twice does nothing."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the finders behind this one find the module, and load it in their loader's place."""
        finders = list(sys.meta_path)
        if fullname != self.name or self not in finders:
            return None
        behind = finders[finders.index(self) + 1 :]
        specs = (finder.find_spec(fullname, path, target) for finder in behind)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the real loader does."""
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """As the real loader does, and then the action."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.remove()
        self.action()


def install() -> None:
    """In a child of `patch(children=True)`: patch as soon as `safetensors` was imported.

    Some versions of Python run the `.pth` files of a virtual environment twice.
    """
    if not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        AfterImport("safetensors", _patch).install()


def _patch() -> None:
    from safetensors_streaming import patch  # noqa: PLC0415 - not before safetensors is wanted

    patch(device=os.environ.get("SAFETENSORS_STREAMING_DEVICE"))
