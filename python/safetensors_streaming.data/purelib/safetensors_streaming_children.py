"""Patches child processes of `patch(children=True)`: after `safetensors` was imported, not before."""

import sys
from importlib.abc import MetaPathFinder


class _Watch(MetaPathFinder):
    """Sees `safetensors` being imported, and imports and patches it on the way."""

    def find_spec(self, fullname, path, target=None):
        """Import `safetensors` as usual, patch it, and let the import system find it imported."""
        if fullname != "safetensors":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _PatchingLoader(spec.loader)
        return spec


class _PatchingLoader:
    """Loads as the real loader does, then patches."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        from safetensors_streaming import patch

        patch()


def install():
    """Begin to watch; costs nothing until `safetensors` is imported."""
    sys.meta_path.insert(0, _Watch())
