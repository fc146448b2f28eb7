"""The loaders of ``python -m bench null``: the stock one, and the same made slower by a tenth.

They load to NumPy: a process that imports no torch is ready in a fifth of the time, and the test
needs many hundreds of them.
"""

from __future__ import annotations

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

#: What a planted slowdown adds to the time of a load, as a share of it.
SLOWDOWN = 0.1


class Reading:
    """The safetensors package, and a read of every byte."""

    def __init__(self) -> None:
        """Imports the package, so that no timer sees an import."""
        self._load_file: Any = import_module("safetensors.numpy").load_file

    def load_and_read(self, paths: Sequence[Path]) -> int:
        """Loads the files one after the other and reads every byte.

        Returns:
            The exclusive or of all 8-byte words.
        """
        folded = 0
        for path in paths:
            for array in self._load_file(path).values():
                folded ^= int(np.bitwise_xor.reduce(array.reshape(-1).view(np.uint64)))
        return folded


class Slowed(Reading):
    """The same with a slowdown planted into it."""

    def load_and_read(self, paths: Sequence[Path]) -> int:
        """Does the same, then works on for a tenth of the time that it took."""
        start = time.perf_counter()
        folded = super().load_and_read(paths)
        end = time.perf_counter()
        while time.perf_counter() < end + SLOWDOWN * (end - start):
            pass
        return folded
