"""What tests on a GPU share: who can run them, and how tensors there are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import simulator
import torch
from oracle import bits

if TYPE_CHECKING:
    from collections.abc import Mapping

ALLOCATORS = ["torch", "driver"]
SIMULATED = simulator.DRIVER is not None

NEEDS_GPU = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="no CUDA device; ci/sim runs these without one"
    ),
]
NEEDS_SIMULATOR = [
    pytest.mark.cuda,
    pytest.mark.skipif(not SIMULATED, reason="not run by ci/sim: no simulated CUDA driver"),
]


def check(loaded: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """The same names, types, shapes and bits; on the GPU, each in memory of its own."""
    filled = [name for name, known in expected.items() if known.nbytes]  # stock sorts no others
    assert [name for name in loaded if loaded[name].nbytes] == filled
    assert loaded.keys() == expected.keys()
    for name, known in expected.items():
        tensor = loaded[name]
        assert (tensor.dtype, tensor.shape) == (known.dtype, known.shape), name
        assert tensor.device == torch.device("cuda", 0)
        assert bits(tensor) == bits(known), name
