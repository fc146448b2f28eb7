"""Models of one file each, that differ in what makes loading hard; every byte from one seed.

Each is written by the stock package.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor

TILE_BYTES = 32 << 20
FEW_TENSORS = 8
FEW_WIDTH = 4096
MOE_TENSORS = 50_000
MOE_EXPERTS = 256
MOE_MATRICES = ("gate_proj", "up_proj", "down_proj")
MIXED_LAYERS = 32
#: Of a quantised weight, what has one scale: so many rows and columns, or so many 4-bit values.
SCALE_BLOCK = 128
SCALE_GROUP = 16
MISALIGNED_TENSORS = 21  # of either type, an odd number: the file's size is odd then
LENGTH_BYTES = 8


def few(size: int) -> dict[str, Tensor]:
    """Makes 8 large matrices of bfloat16, of ``size`` bytes in all, without values."""
    rows = max(1, size // (FEW_TENSORS * FEW_WIDTH * 2))
    return {
        f"layers.{layer}.weight": torch.empty(rows, FEW_WIDTH, dtype=torch.bfloat16)
        for layer in range(FEW_TENSORS)
    }


def moe(size: int) -> dict[str, Tensor]:
    """Makes 50,000 experts' matrices of bfloat16, of ``size`` bytes in all, without values."""
    width = max(1, math.isqrt(size // (MOE_TENSORS * 4)))
    tensors = {}
    for number in range(MOE_TENSORS):
        expert, matrix = divmod(number, len(MOE_MATRICES))
        layer, expert = divmod(expert, MOE_EXPERTS)
        shape = (width, 2 * width) if matrix < 2 else (2 * width, width)  # noqa: PLR2004
        name = f"layers.{layer}.experts.{expert}.{MOE_MATRICES[matrix]}.weight"
        tensors[name] = torch.empty(shape, dtype=torch.bfloat16)
    return tensors


def mixed(size: int) -> dict[str, Tensor]:
    """Makes a quantised model of about ``size`` bytes, without values.

    A layer holds weights of 8-bit floats with the scales of their blocks, of 4-bit floats, packed
    as bytes, with the scales of their groups, of 4-bit integers packed as int32, and two scalars.
    """
    steps = max(1, round(math.sqrt(size / (2 * MIXED_LAYERS)) / SCALE_BLOCK))
    width = steps * SCALE_BLOCK
    parts = {
        "attention.weight": ((width, width), torch.float8_e4m3fn),
        "attention.weight_scale": ((steps, steps), torch.float32),
        "attention.input_scale": ((), torch.float32),
        "mlp.up.weight_packed": ((width, width // 2), torch.uint8),
        "mlp.up.weight_scale": ((width, width // SCALE_GROUP), torch.float8_e4m3fn),
        "mlp.up.weight_global_scale": ((), torch.float32),
        "mlp.down.qweight": ((width // 8, width), torch.int32),
    }
    return {
        f"layers.{layer}.{name}": torch.empty(shape, dtype=dtype)
        for layer in range(MIXED_LAYERS)
        for name, (shape, dtype) in parts.items()
    }


def misaligned(size: int) -> dict[str, Tensor]:
    """Makes bytes and bfloat16s in odd numbers, of about ``size`` bytes in all, without values."""
    columns = size // (3 * MISALIGNED_TENSORS * 3) | 1
    return {
        f"layers.{layer}.{name}": torch.empty(3, columns, dtype=dtype)
        for layer in range(MISALIGNED_TENSORS)
        for name, dtype in (("packed", torch.uint8), ("weight", torch.bfloat16))
    }


KINDS = {"few": few, "moe": moe, "mixed": mixed, "misaligned": misaligned}


def save(kind: str, size: int, file: Path) -> None:
    """Writes a file of a kind in ``KINDS``.

    The data of the misaligned one begins at an odd multiple of 8: for that its header has 8
    characters more, where it would not otherwise.

    Args:
        kind: A name in ``KINDS``.
        size: About how many bytes.
        file: Where to.
    """
    tensors = KINDS[kind](size)
    fill(tensors.values())
    metadata = {"format": "pt"}
    save_file(tensors, file, metadata)
    if kind == "misaligned" and data_begin(file) % 16 == 0:
        save_file(tensors, file, metadata | {"a": "b"})  # 8 characters more


def data_begin(file: Path) -> int:
    """Tells at which byte of a safetensors file its tensors begin."""
    with file.open("rb") as handle:
        return LENGTH_BYTES + int.from_bytes(handle.read(LENGTH_BYTES), "little")


def fill(tensors: Iterable[Tensor]) -> None:
    """Fills tensors from one seeded tile of bfloat16, each continuing where the last one ended."""
    seed = torch.Generator().manual_seed(0)
    values = torch.empty(TILE_BYTES // 2, dtype=torch.bfloat16).normal_(0, 0.02, generator=seed)
    tile, position = values.view(torch.uint8), 0
    for tensor in tensors:
        for piece in torch.split(tensor.detach().view(-1).view(torch.uint8), TILE_BYTES):
            head = min(TILE_BYTES - position, piece.numel())
            piece[:head] = tile[position : position + head]
            piece[head:] = tile[: piece.numel() - head]
            position = (position + piece.numel()) % TILE_BYTES
