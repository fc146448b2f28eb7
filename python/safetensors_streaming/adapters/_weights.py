"""The weights of a model for an engine that copies each into place and drops it.

For a GPU they are read in one stream, through memory of the driver's: the engine's own pools see
nothing of it, and nothing is left when the load has ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from safetensors_streaming._checkpoint import stream
from safetensors_streaming._open import safe_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from safetensors_streaming._checkpoint import CachePolicy

#: Memory of the GPU that a load leaves to others, and how often it looks whether it does.
SPARE_BYTES = 1 << 30
LOOK_BYTES = 256 << 20

Weights = dict[str, torch.Tensor]


def weights(
    files: Iterable[str], gpu: int | None, skip: Callable[[str], bool], *, shared: bool
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and tensor of all files; of a name that is in two files, both, in their order.

    What does not go to the GPU for want of memory there is yielded as a view of its file.

    Args:
        files: The safetensors files.
        gpu: The number of the GPU for which they are, None for the CPU.
        skip: Called with each name: those for which it is true are not read.
        shared: Whether other processes read the same files, so that each is best read once into
            the page cache.
    """
    if gpu is None:
        for file in files:
            mapped = dict(stream([file], filter=lambda name: not skip(name), backend="mmap"))
            for name in sorted(mapped):  # the order in which upstream names them
                yield name, mapped.pop(name)
        return
    for together in _without_repeats(files):
        rest = _views(together, skip)
        yield from _to_gpu(together, gpu, rest, "keep" if shared else "auto")
        yield from rest.items()


def _without_repeats(files: Iterable[str]) -> Iterator[list[str]]:
    """The files in groups, of which none has a name twice: each can be read as a checkpoint."""
    group: list[str] = []
    known: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as opened:
            names = opened.keys()
        if not known.isdisjoint(names):
            yield group
            group, known = [], set()
        group.append(file)
        known.update(names)
    if group:
        yield group


def _views(files: list[str], skip: Callable[[str], bool]) -> Weights:
    views = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if not skip(name)]  # noqa: SIM118
            views.update({name: opened.get_tensor(name) for name in names})
    return views


def _to_gpu(
    files: list[str], gpu: int, rest: Weights, cache: CachePolicy
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what there is room for on the GPU, and take it from the rest."""
    # One is in use, one waits, one arrives, and one may be left in the caller's hands.
    most = (_free_bytes(gpu) - SPARE_BYTES) // 4
    chosen = {name for name, view in rest.items() if view.nbytes <= most}
    if not chosen:
        return
    flow = stream(files, gpu, filter=chosen.__contains__, cache=cache, allocator="driver")
    unseen = 0
    try:
        for name, tensor in flow:
            del rest[name]
            unseen += tensor.nbytes
            yield name, tensor
            del tensor
            if unseen >= LOOK_BYTES:
                unseen = 0
                if _free_bytes(gpu) < SPARE_BYTES:
                    return
    except torch.OutOfMemoryError:  # the stream's: the caller's own come out where it asks
        return


def _free_bytes(gpu: int) -> int:
    free: int = torch.cuda.mem_get_info(gpu)[0]
    return free
