"""``load_file``, ``load`` and ``load_model`` (contract 5 E)."""

from __future__ import annotations

import inspect
import os
import pathlib
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import safetensors_streaming
import safetensors_streaming.torch
import torch
from oracle import OURS, STOCK, Api, Entry, agree, outcome, same, write_header, write_raw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BACKENDS = ["mmap", "pread"]


@pytest.mark.parametrize(
    "call",
    [
        lambda api, path: api.load_file(path),
        lambda api, path: api.load_file(str(path)),
        lambda api, path: api.load_file(pathlib.PurePosixPath(path)),
        lambda api, path: api.load_file(filename=path),
        lambda api, path: api.load_file(path, "cpu"),
        lambda api, path: api.load_file(path, device="cpu", backend="mmap"),
        lambda api, path: api.load_file(path, backend="pread"),
        lambda api, path: api.load_file(path, None),
        lambda api, path: sorted(api.load(path.read_bytes()).items()),  # stock's order: by chance
        lambda api, path: sorted(api.load(data=path.read_bytes()).items()),
    ],
)
def test_accepted_calls(sample: Path, call: Callable[[Api, Path], object]) -> None:
    assert agree(lambda api: call(api, sample)).error is None


@pytest.mark.parametrize(
    "call",
    [
        lambda api, path: api.load_file(f"{path}.missing"),
        lambda api, path: api.load_file(path, backend="x"),
        lambda api, path: api.load_file(path, "meta"),
        lambda api, path: api.load_file(path, device=-1),
        lambda api, path: api.load_file(path, device="cuda:x"),
        lambda api, _: api.load(b""),
        lambda api, _: api.load(b"1234567"),
        lambda api, path: api.load(path.read_bytes()[:-1]),
        lambda api, path: api.load(path.read_bytes() + b"x"),
        lambda api, path: api.load(path.read_bytes()[:20]),
    ],
)
def test_refused_calls(sample: Path, call: Callable[[Api, Path], object]) -> None:
    assert agree(lambda api: call(api, sample)).error is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda api, _: api.load_file(),
        lambda api, path: api.load_file(path, "cpu", "mmap"),
        lambda api, path: api.load_file(path, framework="pt"),
        lambda api, path: api.load_file(os.fsencode(path)),
        lambda api, path: api.load(path),
        lambda api, path: api.load(bytearray(path.read_bytes())),
        lambda api, path: api.load(memoryview(path.read_bytes())),
        lambda api, _: api.load(None),
        lambda api, _: api.load(),
        lambda api, path: api.load_model(path),
    ],
)
def test_wrong_calls_are_type_errors(sample: Path, call: Callable[[Api, Path], object]) -> None:
    for api in (STOCK, OURS):
        assert outcome(lambda api=api: call(api, sample)).error is TypeError


@pytest.mark.parametrize("name", ["load_file", "load", "load_model"])
def test_parameters_are_stocks(name: str) -> None:
    stock, ours = (inspect.signature(getattr(api, name)).parameters for api in (STOCK, OURS))
    assert list(ours)[: len(stock)] == list(stock)
    assert all(ours[more].kind is inspect.Parameter.KEYWORD_ONLY for more in ours.keys() - stock)
    for parameter, known in stock.items():
        assert ours[parameter].kind is known.kind
        assert ours[parameter].default == known.default


@pytest.mark.parametrize("backend", BACKENDS)
def test_dict_is_in_file_order(sample: Path, backend: str) -> None:
    loaded = OURS.load_file(sample, backend=backend)
    assert type(loaded) is dict
    assert list(loaded) == ["z.weight", "empty", "b", "scalar", "a"]


def test_bytes_are_copied(sample: Path) -> None:
    data = sample.read_bytes()
    loaded = OURS.load(data)
    for tensor in loaded.values():
        tensor.fill_(0)
    assert data == sample.read_bytes()
    assert (loaded["z.weight"] == 0).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", 0, "cuda:1"])
def test_a_missing_gpu_is_told_as_stock_tells_it(sample: Path, device: object) -> None:
    assert agree(lambda api: api.load_file(sample, device=device)).error is not None


def test_torch_device_is_accepted(sample: Path) -> None:
    """Declared: stock takes the name of a device only."""
    cpu = torch.device("cpu")
    assert outcome(lambda: STOCK.load_file(sample, device=cpu)).error is not None
    assert same(OURS.load_file(sample, device=cpu), STOCK.load_file(sample))


def test_folders_and_special_files(tmp_path: Path) -> None:
    """Declared: the true reason, and no waiting at a FIFO."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        OURS.load_file(tmp_path)
    for path in (fifo, "/dev/null"):
        with pytest.raises(OSError, match=str(path)):
            OURS.load_file(path)


def test_duplicate_names_in_bytes(tmp_path: Path) -> None:
    fields = '"dtype":"U8","shape":[1],"data_offsets":[0,1]'
    text = f'{{"a":{{{fields}}},"a":{{{fields}}}}}'.encode()
    data = write_header(tmp_path / "twice.safetensors", text, b"x").read_bytes()
    with pytest.raises(safetensors.SafetensorError, match=r"^Error while deserializing: .*`a`"):
        OURS.load(data)


def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"weights-\xff.safetensors")
    write_raw(path, {"a": Entry("F32", [3])})
    """Declared: stock refuses them."""
    assert outcome(lambda: STOCK.load_file(path)).error is safetensors.SafetensorError
    assert list(OURS.load_file(path)) == ["a"]


def test_mirror_of_safetensors_torch() -> None:
    names = ["load_file", "load", "load_model", "save", "save_file", "save_model", "safe_open"]
    for name in names:
        mirrored = getattr(safetensors_streaming.torch, name)
        assert mirrored is getattr(safetensors_streaming, name)
    for name in ("save", "save_file", "save_model"):
        assert getattr(safetensors_streaming, name) is getattr(safetensors.torch, name)


class Tied(torch.nn.Module):
    """Two layers that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "tied.safetensors"
    safetensors.torch.save_model(Tied(), path)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("strict", [True, False])
def test_load_model(tied: Path, *, strict: bool, backend: str) -> None:
    def load(api: Api) -> object:
        torch.manual_seed(1)
        model = Tied()
        answer = api.load_model(model, tied, strict, "cpu", backend=backend)
        assert model.second.weight is model.first.weight
        return (set(answer[0]), list(answer[1]), dict(model.state_dict()))

    gave = agree(load)
    assert gave.error is None


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    "model",
    [
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)),
        lambda: torch.nn.ModuleDict({"first": torch.nn.Linear(4, 4)}),
        lambda: torch.nn.ModuleDict(
            {"first": torch.nn.Linear(4, 4), "third": torch.nn.Linear(1, 1)}
        ),
        lambda: torch.nn.ModuleDict({"first": torch.nn.Linear(5, 4)}),
    ],
)
def test_load_model_that_does_not_fit(
    tied: Path, model: Callable[[], torch.nn.Module], *, strict: bool
) -> None:
    def load(api: Api) -> object:
        missing, unexpected = api.load_model(model(), tied, strict=strict)
        return (sorted(missing), sorted(unexpected))

    gave = agree(load)
    assert gave.error is RuntimeError or not strict


def test_load_model_names_its_file_as_load_file_does(tmp_path: Path) -> None:
    gave = agree(lambda api: api.load_model(Tied(), tmp_path / "missing.safetensors"))
    assert gave.error is FileNotFoundError
