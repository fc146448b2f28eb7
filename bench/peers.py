"""Loaders of the field that load to a GPU or to the CPU; ``ci/peers`` installs them."""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from typing import TYPE_CHECKING

from bench import models
from bench.cuda_loaders import DEVICE, Placed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor


class Peer(Placed):
    """A loader to any device.

    Attributes:
        suffix: Of the files in a format of its own, which ``convert`` makes of others.
    """

    suffix: str | None = None

    @abstractmethod
    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads all files."""

    def load_cuda(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """The same, as the rows of a GPU call it."""
        return self.load(paths)


class FastSafetensors(Peer):
    """fastsafetensors' loader of whole files, without GPUDirect Storage."""

    def __init__(self, device: str = DEVICE) -> None:
        """Imports the package."""
        super().__init__(device)
        self._loader = import_module("fastsafetensors").SafeTensorsFileLoader
        self._kept: list[object] = []

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads all files; what backs the tensors is kept, as its users must."""
        self._kept.clear()
        loader = self._loader(None, self.device, nogds=True)
        loader.add_filenames({0: [str(path) for path in paths]})
        buffer = loader.copy_files_to_device()
        tensors = {name: buffer.get_tensor(name) for name in loader.get_keys()}
        self._kept += [loader, buffer]
        self.done()
        return tensors


class RunAi(Peer):
    """Run:ai's model streamer, each tensor moved by its own code."""

    def __init__(self, device: str = DEVICE) -> None:
        """Imports the package."""
        super().__init__(device)
        self._streamer = import_module("runai_model_streamer").SafetensorsStreamer

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Streams all files; what it yields is copied, because it lends its buffer."""
        with self._streamer() as streamer:
            streamer.stream_files([str(path) for path in paths], device=self.device)
            tensors = {name: tensor.clone() for name, tensor in streamer.get_tensors()}
        self.done()
        return tensors


class FlashPack(Peer):
    """FlashPack, from one file in its own format; on the CPU it maps that."""

    suffix: str = "flashpack"

    def __init__(self, device: str = DEVICE) -> None:
        """Imports the package."""
        super().__init__(device)
        self._writing = import_module("flashpack.serialization")
        self._reading = import_module("flashpack.deserialization")

    def convert(self, paths: Sequence[Path]) -> None:
        """Makes that file, each tensor in its type."""

        def write(tensors: dict[str, Tensor], file: Path) -> None:
            self._writing.pack_to_file(tensors, str(file), None)

        models.convert(paths, self.suffix, write)

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads that file; the tensors are views of its blocks."""
        (path,) = paths
        storage, index = self._reading.read_flashpack_file(str(path), device=self.device)
        tensors = dict(self._reading.iterate_from_flash_tensor(storage, index))
        self.done()
        return tensors


class Tensorizer(Peer):
    """tensorizer, from one file in its own format."""

    suffix: str = "tensors"

    def __init__(self, device: str = DEVICE) -> None:
        """Imports the package."""
        super().__init__(device)
        self._package = import_module("tensorizer")

    def convert(self, paths: Sequence[Path]) -> None:
        """Makes that file."""

        def write(tensors: dict[str, Tensor], file: Path) -> None:
            writer = self._package.TensorSerializer(str(file))
            writer.write_state_dict(tensors)
            writer.close()

        models.convert(paths, self.suffix, write)

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads that file."""
        (path,) = paths
        with self._package.TensorDeserializer(str(path), device=self.device) as reader:
            tensors = dict(reader)
        self.done()
        return tensors
