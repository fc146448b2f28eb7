"""Loaders to a GPU: stock, ours, and those of the field that know no other place."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from bench import handles

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    from torch import Tensor

DEVICE = "cuda:0"


def release_candidate() -> ModuleType:
    """Imports safetensors, which must be 0.9.

    Raises:
        RuntimeError: If it is another: ``ci/peers`` has it in a folder of its own.
    """
    safetensors = import_module("safetensors")
    if not safetensors.__version__.startswith("0.9"):
        raise RuntimeError(f"this is safetensors {safetensors.__version__}, not 0.9")
    return safetensors


class Placed:
    """A loader to a device, whose constructor makes the CUDA context, so that no timer sees it."""

    def __init__(self, device: str = DEVICE) -> None:
        """Imports torch and has it use the device."""
        self.torch = import_module("torch")
        self.torch.empty(1, device=device)
        self.device = device

    def done(self) -> None:
        """Waits until the GPU is idle: a load that is still on its way is no load."""
        if self.device != "cpu":
            self.torch.cuda.synchronize()


class StockCuda(Placed):
    """``safetensors.torch.load_file``, and ``safe_open``."""

    package = "safetensors"

    def __init__(self) -> None:
        """Imports the package."""
        super().__init__()
        self._safe_open = import_module(self.package).safe_open
        self._load_file = import_module(f"{self.package}.torch").load_file

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads the files one after the other."""
        tensors: dict[str, Tensor] = {}
        for path in paths:
            tensors |= self._load_file(path, device=DEVICE)
        self.done()
        return tensors

    def loop_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Asks for one tensor after the other, by name."""
        tensors = handles.each(self._safe_open, paths, DEVICE)
        self.done()
        return tensors

    def one_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Opens a file for one of its tensors."""
        tensors = handles.one(self._safe_open, paths, DEVICE)
        self.done()
        return tensors

    def slices_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Asks for half of each tensor."""
        tensors = handles.halves(self._safe_open, paths, DEVICE)
        self.done()
        return tensors


class OursCuda(StockCuda):
    """This project's package, in torch's memory."""

    package = "safetensors_streaming"
    allocator = "torch"

    def __init__(self) -> None:
        """Imports the package."""
        super().__init__()
        self._load = import_module(self.package).load_checkpoint

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads all files by one plan."""
        tensors: dict[str, Tensor] = self._load(list(paths), DEVICE, allocator=self.allocator)
        self.done()
        return tensors


class OursDriver(OursCuda):
    """This project's package, in memory of the driver's."""

    allocator = "driver"


class OursTold(OursCuda):
    """The same, told its progress, its report read and put into words."""

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads all files by one plan."""
        told: list[tuple[int, int]] = []
        tensors: dict[str, Tensor] = self._load(
            list(paths), DEVICE, progress=lambda done, total: told.append((done, total))
        )
        self.done()
        report = import_module(self.package).last_report()
        report.explain()
        report.to_json()
        return tensors


class Prefetch(Placed):
    """``safe_open(...).prefetch`` of safetensors 0.9."""

    def __init__(self) -> None:
        """Imports the package, which must be that version."""
        super().__init__()
        self._safe_open = release_candidate().safe_open

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Starts all files, then takes every tensor once."""
        loaders = [self._safe_open(path, "pt").prefetch(device=DEVICE, threads=8) for path in paths]
        tensors = {name: tensor for loader in loaders for name, tensor in loader}
        self.done()
        return tensors


class InstantTensor(Placed):
    """InstantTensor, as it is by default: it clones, so that tensors outlive its buffer.

    It reads from the disk past the page cache, also what the cache holds.
    """

    policy: str | None = None

    def __init__(self) -> None:
        """Imports the package."""
        super().__init__()
        package = import_module("instanttensor")
        self._safe_open = package.safe_open
        policies = package.BackendPolicy
        self._how = {"backend": getattr(policies, self.policy)} if self.policy else {}

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads all files in their order."""
        files = [str(path) for path in paths]
        with self._safe_open(files, "pt", device=0, **self._how) as file:
            tensors: dict[str, Tensor] = dict(file.tensors())
        self.done()
        return tensors


class InstantTensorBuffered(InstantTensor):
    """InstantTensor reading through the page cache, as its authors advise for what is in it."""

    policy = "BUFFERED"


class Link(Placed):
    """The ceiling: copies of 8 MiB from pinned memory, as many bytes as the files have."""

    BLOCK_BYTES = 8 << 20
    BLOCKS = 8

    def __init__(self) -> None:
        """Pins a ring, which fits a processor's cache, and allocates as much on the GPU."""
        super().__init__()
        size, kind = self.BLOCK_BYTES * self.BLOCKS, self.torch.uint8
        self._source = self.torch.empty(size, dtype=kind).fill_(1).pin_memory()
        self._target = self.torch.empty(size, dtype=kind, device=DEVICE)

    def loop_cuda(self, paths: Sequence[Path]) -> None:
        """The same, for whom a loop over tensors is measured."""
        self.load_cuda(paths)

    def load_cuda(self, paths: Sequence[Path]) -> None:
        """Copies on a stream of its own; the last block may be a part."""
        left, step = sum(path.stat().st_size for path in paths), 0
        stream = self.torch.cuda.Stream()
        with self.torch.cuda.stream(stream):
            while left > 0:
                start = step % self.BLOCKS * self.BLOCK_BYTES
                piece = slice(start, start + min(left, self.BLOCK_BYTES))
                self._target[piece].copy_(self._source[piece], non_blocking=True)
                left -= self.BLOCK_BYTES
                step += 1
        stream.synchronize()
