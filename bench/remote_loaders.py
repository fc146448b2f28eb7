"""Loaders of files on a server: ours, and what people do otherwise."""

from __future__ import annotations

import os
import subprocess
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from bench.cuda_loaders import Placed
from bench.network import BASE, RATE_BYTES_PER_SECOND, S3_BASE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

#: What curl asks for at once, and how much in one range.
CURL_RANGES = 8
RANGE_BYTES = 8 << 20


def addresses(paths: Sequence[Path], base: str = BASE) -> list[str]:
    """Where the server has the files."""
    return [os.environ[base] + path.name for path in paths]


class OursRemote(Placed):
    """This project's package."""

    def __init__(self, device: str = "cpu", base: str = BASE) -> None:
        """Imports it."""
        super().__init__(device)
        self._package = import_module("safetensors_streaming")
        self._base = base

    def engine(self, paths: Sequence[Path]) -> int:
        """Reads every byte through the engine's ring."""
        located = import_module("safetensors_streaming._addresses").located
        native = import_module("safetensors_streaming._native")
        files = [located(address) for address in addresses(paths, self._base)]
        total: int = native.read_through(files).bytes
        return total

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads all files by one plan."""
        tensors: dict[str, Tensor] = self._package.load_checkpoint(
            addresses(paths, self._base), self.device
        )
        self.done()
        return tensors

    load_cuda = load


class OursRemoteDropped(OursRemote):
    """The same, which drops what would go to a GPU."""

    def load_cuda(self, paths: Sequence[Path]) -> None:  # type: ignore[override]
        """Reads every byte through the engine's ring."""
        self.engine(paths)


class Curl:
    """curl, eight ranges at once, which drops what it gets."""

    def engine(self, paths: Sequence[Path]) -> int:
        """Gets every byte, range by range; gives how many curl says there were."""
        parts = []
        for path, address in zip(paths, addresses(paths), strict=True):
            size = path.stat().st_size
            parts += [
                f'url = "{address}"\nrange = "{begin}-{min(begin + RANGE_BYTES, size) - 1}"\n'
                'output = "/dev/null"\nwrite-out = "%{size_download} "\nfail\n'
                for begin in range(0, size, RANGE_BYTES)
            ]
        # Each part has options of its own: those of one operation hold for all of its addresses.
        config = "next\n".join(parts)
        command = [
            "curl",
            "--silent",
            "--parallel",
            "--parallel-max",
            str(CURL_RANGES),
            "--config",
            "-",
        ]
        done = subprocess.run(command, input=config, text=True, check=True, capture_output=True)  # noqa: S603
        return sum(map(int, done.stdout.split()))


class OneConnection(Placed):
    """One connection that gets one file after the other into memory; then stock's ``load``."""

    def __init__(self, device: str = "cpu") -> None:
        """Imports what it needs."""
        super().__init__(device)
        self._open = import_module("urllib.request").urlopen
        self._load = import_module("safetensors.torch").load

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Gets each file whole, then makes tensors of it."""
        tensors: dict[str, Tensor] = {}
        for address in addresses(paths):
            with self._open(address) as answer:
                loaded = self._load(answer.read())
            tensors |= {name: tensor.to(self.device) for name, tensor in loaded.items()}
        self.done()
        return tensors

    load_cuda = load


class Download(Placed):
    """curl, eight files at once, to the disk; then stock's ``load_file``."""

    def __init__(self, device: str = "cpu") -> None:
        """Imports stock."""
        super().__init__(device)
        self._load_file = import_module("safetensors.torch").load_file

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Gets all files, then loads them."""
        tensors: dict[str, Tensor] = {}
        with TemporaryDirectory(dir=paths[0].parent) as folder:
            words = [word for address in addresses(paths) for word in ("--remote-name", address)]
            command = ["curl", "--silent", "--show-error", "--fail", "--parallel", *words]
            subprocess.run(command, cwd=folder, check=True)  # noqa: S603
            for path in paths:
                tensors |= self._load_file(Path(folder) / path.name, device=self.device)
        self.done()
        return tensors

    load_cuda = load


class RunAiS3(Placed):
    """Run:ai's model streamer, from S3."""

    def __init__(self, device: str = "cpu") -> None:
        """Imports the package."""
        super().__init__(device)
        self._streamer = import_module("runai_model_streamer").SafetensorsStreamer

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Streams all files; what it yields is copied, because it lends its buffer."""
        with self._streamer() as streamer:
            streamer.stream_files(addresses(paths, S3_BASE), device=self.device)
            tensors = {name: tensor.clone() for name, tensor in streamer.get_tensors()}
        self.done()
        return tensors

    load_cuda = load


class Clock:
    """A loader that takes just the time that the shaped network has to take."""

    def engine(self, paths: Sequence[Path]) -> int:
        """Waits."""
        size = sum(path.stat().st_size for path in paths)
        time.sleep(size / RATE_BYTES_PER_SECOND)
        return size
