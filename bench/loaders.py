"""The loaders under comparison, by name. One whose package is missing is skipped by that name."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench import cuda_loaders, handles, peers, remote_loaders
from bench.consumers import CONSUMERS, Patched
from bench.network import S3_BASE
from bench.null_loaders import Reading, Slowed
from bench.null_reader import NullDigest, NullReader, NullSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bench.consumers import Consumer


class Stock:
    """The safetensors package; its constructor imports, so that no timer sees an import."""

    package = "safetensors"

    def __init__(self, backend: str = "mmap") -> None:
        """Imports torch and the package; ``backend`` is how it shall load."""
        self._backend = backend
        self._safe_open = import_module(self.package).safe_open
        self._load_file = import_module(f"{self.package}.torch").load_file

    @staticmethod
    def consumer(name: str, device: str, paths: Sequence[Path]) -> Consumer | Patched:
        """Makes a library that loads these files by this loader."""
        return CONSUMERS[name](device, paths)

    def names(self, paths: Sequence[Path]) -> list[str]:
        """Opens the files and lists their tensors."""
        found: list[str] = []
        for path in paths:
            with self._safe_open(path, framework="pt") as file:
                found += file.keys()
        return found

    def load(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Loads the files one after the other."""
        tensors: dict[str, Tensor] = {}
        for path in paths:
            tensors |= self._load_file(path, backend=self._backend)
        return tensors

    def one(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Opens a file for one of its tensors."""
        return handles.one(self._safe_open, paths)

    def slices(self, paths: Sequence[Path]) -> dict[str, Tensor]:
        """Asks for half of each tensor."""
        return handles.halves(self._safe_open, paths)


class ReleaseCandidate(Stock):
    """safetensors 0.9, which prefetches to a GPU alone: on the CPU there is its ``load_file``."""

    def __init__(self) -> None:
        """Imports the package, which must be that version."""
        cuda_loaders.release_candidate()
        super().__init__()


class Ours(Stock):
    """This project's package."""

    package = "safetensors_streaming"

    @staticmethod
    def consumer(name: str, device: str, paths: Sequence[Path]) -> Patched:
        """Makes a library that loads these files by this loader, put in place by ``patch()``."""
        return Patched(partial(CONSUMERS[name], device, paths))

    def engine(self, paths: Sequence[Path]) -> int:
        """Reads every byte through the engine's ring, past the page cache."""
        native = import_module("safetensors_streaming._native")
        total: int = native.read_through([str(path) for path in paths], cache="bypass").bytes
        return total

    def digest(self, paths: Sequence[Path]) -> int:
        """Digests every byte, as `safetensors-streaming verify` does."""
        native = import_module("safetensors_streaming._native")
        digests = native.digest_checkpoint([str(path) for path in paths])
        return sum(Path(path).stat().st_size for path, _ in digests)


class Loader(NamedTuple):
    """How to make a loader, and what it cannot do without.

    Attributes:
        package: What it imports.
        make: Makes it.
        folder: Where that package lies; without one it is installed beside the others.
        suffix: Of the files in a format of its own, which its ``convert`` makes.
    """

    package: str
    make: Callable[[], object]
    folder: str | None = None
    suffix: str | None = None


def _peer(package: str, make: type[peers.Peer], name: str) -> dict[str, Loader]:
    """A peer's loaders, to the GPU and to the CPU."""
    return {
        name: Loader(package, make, name, make.suffix),
        f"{name}-cpu": Loader(package, partial(make, "cpu"), name, make.suffix),
    }


LOADERS = {
    "stock": Loader("safetensors", Stock),
    "stock-read": Loader("safetensors", Reading),
    "stock-again": Loader("safetensors", Reading),
    "stock-slowed": Loader("safetensors", Slowed),
    "stock-pread": Loader("safetensors", partial(Stock, "pread")),
    "stock-0.9": Loader("safetensors", ReleaseCandidate, "safetensors-0.9"),
    "ours": Loader("safetensors_streaming", Ours),
    "ours-pread": Loader("safetensors_streaming", partial(Ours, "pread")),
    "null-1": Loader("numpy", partial(NullReader, 1)),
    "null-2": Loader("numpy", partial(NullReader, 2)),
    "null-4": Loader("numpy", partial(NullReader, 4)),
    "null-8": Loader("numpy", partial(NullReader, 8)),
    "null-source": Loader("numpy", partial(NullSource, 4)),
    "sha256": Loader("hashlib", NullDigest),
    "link": Loader("torch", cuda_loaders.Link),
    "stock-cuda": Loader("safetensors", cuda_loaders.StockCuda),
    "ours-cuda": Loader("safetensors_streaming", cuda_loaders.OursCuda),
    "ours-driver": Loader("safetensors_streaming", cuda_loaders.OursDriver),
    "ours-told": Loader("safetensors_streaming", cuda_loaders.OursTold),
    "prefetch": Loader("safetensors", cuda_loaders.Prefetch, "safetensors-0.9"),
    "instanttensor": Loader("instanttensor", cuda_loaders.InstantTensor, "instanttensor"),
    "instanttensor-buffered": Loader(
        "instanttensor", cuda_loaders.InstantTensorBuffered, "instanttensor"
    ),
    "ours-remote": Loader("safetensors_streaming", remote_loaders.OursRemote),
    "ours-remote-s3": Loader(
        "safetensors_streaming",
        partial(remote_loaders.OursRemote, cuda_loaders.DEVICE, base=S3_BASE),
    ),
    "ours-remote-cuda": Loader(
        "safetensors_streaming", partial(remote_loaders.OursRemote, cuda_loaders.DEVICE)
    ),
    "ours-remote-dropped": Loader("safetensors_streaming", remote_loaders.OursRemoteDropped),
    "curl": Loader("subprocess", remote_loaders.Curl),
    "one-connection": Loader("safetensors", remote_loaders.OneConnection),
    "download": Loader("safetensors", remote_loaders.Download),
    **{
        f"{name}-cuda": Loader("safetensors", partial(make, cuda_loaders.DEVICE))
        for name, make in (
            ("one-connection", remote_loaders.OneConnection),
            ("download", remote_loaders.Download),
        )
    },
    "clock": Loader("time", remote_loaders.Clock),
    "runai-s3": Loader(
        "runai_model_streamer_s3", partial(remote_loaders.RunAiS3, cuda_loaders.DEVICE), "runai"
    ),
    **_peer("fastsafetensors", peers.FastSafetensors, "fastsafetensors"),
    **_peer("runai_model_streamer", peers.RunAi, "runai"),
    **_peer("flashpack", peers.FlashPack, "flashpack"),
    **_peer("tensorizer", peers.Tensorizer, "tensorizer"),
}

#: Where ci/peers puts them.
PEERS = Path(__file__).resolve().parent.parent / ".cache" / "peers"


def missing(name: str) -> bool:
    """Tells whether the package of a loader is not installed."""
    loader = LOADERS[name]
    if loader.folder is not None:
        return not (PEERS / loader.folder / loader.package).is_dir()
    return find_spec(loader.package) is None
