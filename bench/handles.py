"""What is asked of open files; ``safe_open`` may be stock's or ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.models import ONE_TENSOR

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from torch import Tensor

    SafeOpen = Callable[..., AbstractContextManager[Any]]


def each(safe_open: SafeOpen, paths: Sequence[Path], device: str = "cpu") -> dict[str, Tensor]:
    """Asks for one tensor after the other, by name."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, "pt", device=device) as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    return tensors


def one(safe_open: SafeOpen, paths: Sequence[Path], device: str = "cpu") -> dict[str, Tensor]:
    """Opens the one file of ``paths`` for one of its tensors."""
    (path,) = paths
    with safe_open(path, "pt", device=device) as file:
        return {ONE_TENSOR: file.get_tensor(ONE_TENSOR)}


def halves(safe_open: SafeOpen, paths: Sequence[Path], device: str = "cpu") -> dict[str, Tensor]:
    """Asks for the first half of the rows of each tensor, as the first of two ranks would."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with safe_open(path, "pt", device=device) as file:
            for name in file.keys():  # noqa: SIM118 - no dict
                rows = file.get_slice(name)
                tensors[name] = rows[: rows.get_shape()[0] // 2]
    return tensors
