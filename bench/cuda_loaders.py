"""Loaders to a GPU, ours and the field's; each lies in a folder of its own (``ci/peers``)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from torch import Tensor

DEVICE = "cuda:0"


class Cuda:
    """A loader whose constructor makes the CUDA context, so that no timer sees it."""

    def __init__(self) -> None:
        """Imports torch and has it use the GPU."""
        self.torch = import_module("torch")
        self.torch.empty(1, device=DEVICE)
        self.kept: list[object] = []

    def done(self) -> None:
        """Waits until the GPU is idle: a load that is still on its way is no load."""
        self.torch.cuda.synchronize()

    def _loop(
        self, safe_open: Callable[..., AbstractContextManager[Any]], paths: Sequence[Path]
    ) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for path in paths:
            with safe_open(path, "pt", device=DEVICE) as handle:
                tensors |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - no dict
        self.done()
        return tensors


class StockCuda(Cuda):
    """``safetensors.torch.load_file``."""

    def __init__(self) -> None:
        """Imports the package."""
        super().__init__()
        self._load_file = import_module("safetensors.torch").load_file
        self._safe_open = import_module("safetensors").safe_open

    def loop_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Asks for one tensor after the other, by name."""
        return self._loop(self._safe_open, paths)

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads the files one after the other."""
        tensors: dict[str, Tensor] = {}
        for path in paths:
            tensors |= self._load_file(path, device=DEVICE)
        self.done()
        return tensors


class OursCuda(Cuda):
    """This project's package, in torch's memory."""

    allocator = "torch"

    def __init__(self) -> None:
        """Imports the package."""
        super().__init__()
        package = import_module("safetensors_streaming")
        self._load, self._safe_open = package.load_checkpoint, package.safe_open

    def loop_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Asks for one tensor after the other, by name."""
        return self._loop(self._safe_open, paths)

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads all files by one plan."""
        tensors: dict[str, Tensor] = self._load(list(paths), DEVICE, allocator=self.allocator)
        self.done()
        return tensors


class OursDriver(OursCuda):
    """This project's package, in memory of the driver's."""

    allocator = "driver"


class Prefetch(Cuda):
    """``safe_open(...).prefetch`` of safetensors 0.9."""

    def __init__(self) -> None:
        """Imports the package, which must be that version."""
        super().__init__()
        safetensors = import_module("safetensors")
        if not safetensors.__version__.startswith("0.9"):
            raise RuntimeError(f"this is safetensors {safetensors.__version__}, not 0.9")
        self._safe_open = safetensors.safe_open

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Starts all files, then takes every tensor once."""
        loaders = [self._safe_open(path, "pt").prefetch(device=DEVICE, threads=8) for path in paths]
        tensors = {name: tensor for loader in loaders for name, tensor in loader}
        self.done()
        return tensors


class FastSafetensors(Cuda):
    """fastsafetensors' loader of whole files, without GPUDirect Storage."""

    def __init__(self) -> None:
        """Imports the package."""
        super().__init__()
        self._loader = import_module("fastsafetensors").SafeTensorsFileLoader

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads all files; what backs the tensors is kept, as its users must."""
        self.kept.clear()
        loader = self._loader(None, DEVICE, nogds=True)
        loader.add_filenames({0: [str(path) for path in paths]})
        buffer = loader.copy_files_to_device()
        tensors = {name: buffer.get_tensor(name) for name in loader.get_keys()}
        self.kept += [loader, buffer]
        self.done()
        return tensors


class InstantTensor(Cuda):
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


class RunAi(Cuda):
    """Run:ai's model streamer, each tensor moved by its own code."""

    def __init__(self) -> None:
        """Imports the package."""
        super().__init__()
        self._streamer = import_module("runai_model_streamer").SafetensorsStreamer

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Streams all files; what it yields is copied, because it lends its buffer."""
        with self._streamer() as streamer:
            streamer.stream_files([str(path) for path in paths], device=DEVICE)
            tensors = {name: tensor.clone() for name, tensor in streamer.get_tensors()}
        self.done()
        return tensors


class Link(Cuda):
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
