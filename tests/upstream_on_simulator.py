"""For upstream's tests on the simulated driver: ``-p upstream_on_simulator``.

That has none of torch's kernels, so torch compares on the CPU what is to be compared on the GPU.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import simulator
import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def pytest_configure() -> None:
    assert simulator.DRIVER is not None, "not run by ci/sim"
    for name in ("allclose", "equal"):
        setattr(torch, name, on_the_cpu(getattr(torch, name)))


def on_the_cpu(compare: Callable[..., bool]) -> Callable[..., bool]:
    """The same comparison, of copies in host memory; of tensors in the same place only."""

    @functools.wraps(compare)
    def compared(one: torch.Tensor, other: torch.Tensor) -> bool:
        if one.device != other.device:
            return compare(one, other)  # refused, as ever
        return compare(one.cpu(), other.cpu())

    return compared
