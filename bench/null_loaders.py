"""The loaders of ``python -m bench null``: the stock one, and the same made slower by a tenth."""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

#: What a planted slowdown adds to the time of a load, as a share of it.
SLOWDOWN = 0.1


class Reading:
    """The safetensors package, and a read of every byte."""

    def __init__(self) -> None:
        """Imports what a load needs, so that no timer sees an import."""
        self._load_file: Any = import_module("safetensors.torch").load_file
        self._read: Any = import_module("bench.measure").xor

    def load_and_read(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads the files one after the other, then reads every byte."""
        tensors: dict[str, Tensor] = {}
        for path in paths:
            tensors |= self._load_file(path)
        for tensor in tensors.values():
            self._read(tensor)
        return tensors


class Slowed(Reading):
    """The same with a slowdown planted into it."""

    def load_and_read(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Does the same, then works on for a tenth of the time that it took."""
        start = time.perf_counter()
        tensors = super().load_and_read(paths)
        end = time.perf_counter()
        while time.perf_counter() < end + SLOWDOWN * (end - start):
            pass
        return tensors
