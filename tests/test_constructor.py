"""What ``safe_open(...)`` accepts and how it refuses (contract 5 A)."""

from __future__ import annotations

import json
import os
import pathlib
import struct
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
import safetensors_streaming
import torch
from oracle import OURS, STOCK, Api, Entry, agree, bits, outcome, write_header, write_raw

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BACKENDS = ["mmap", "pread"]


def tensors(handle: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    return {name: handle.get_tensor(name) for name in handle.offset_keys()}


@pytest.mark.parametrize(
    "arguments",
    [
        lambda path: ((path, "pt"), {}),
        lambda path: ((str(path), "pt"), {}),
        lambda path: ((pathlib.PurePosixPath(path), "pt"), {}),
        lambda path: ((), {"filename": path, "framework": "pt"}),
        lambda path: ((path,), {"framework": "torch", "device": "cpu"}),
        lambda path: ((path, "pytorch", "cpu"), {}),
        lambda path: ((path, "pt", None), {}),
        lambda path: ((path, "pt"), {"device": "cpu", "backend": "mmap"}),
        lambda path: ((path, "pt"), {"backend": "pread"}),
        lambda path: ((path, "pt", "cpu"), {"backend": "pread"}),
    ],
)
def test_accepted_arguments(sample: Path, arguments: Callable[[Path], Any]) -> None:
    positional, keyword = arguments(sample)
    gave = agree(lambda api: tensors(api.safe_open(*positional, **keyword)))
    assert gave.error is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda api, path: api.safe_open(path), "framework"),
        (lambda api, _: api.safe_open(framework="pt"), "filename"),
        (lambda api, path: api.safe_open(path, "pt", "cpu", "mmap"), "positional"),
        (lambda api, path: api.safe_open(path, "pt", strict=True), "strict"),
        (lambda api, path: api.safe_open(path, None), "framework"),
        (lambda api, path: api.safe_open(path, "pt", backend=None), "backend"),
        (lambda api, path: api.safe_open(os.fsencode(path), "pt"), "bytes"),
        (lambda api, _: api.safe_open(3, "pt"), "int"),
    ],
)
def test_wrong_arguments_are_type_errors(
    sample: Path, call: Callable[[Api, Path], object], said: str
) -> None:
    for api in (STOCK, OURS):
        gave = outcome(lambda api=api: call(api, sample))
        assert gave.error is TypeError
        assert said in gave.words


@pytest.mark.parametrize("framework", ["PT", "Torch", "", "onnx", "pt "])
def test_unknown_framework(sample: Path, framework: str) -> None:
    assert agree(lambda api: api.safe_open(sample, framework)).error is not None


@pytest.mark.parametrize(
    "device",
    ["meta", "disk", "CUDA", "CPU", "gpu", "", "cpu:0", -1, 1.0, "cuda:x", "cuda:0:1", "cuda:-1"],
)
def test_unknown_device(sample: Path, device: object) -> None:
    assert agree(lambda api: api.safe_open(sample, "pt", device)).error is not None


@pytest.mark.parametrize("backend", ["x", "", "MMAP", "io_uring"])
def test_unknown_backend(sample: Path, backend: str) -> None:
    gave = agree(lambda api: api.safe_open(sample, "pt", backend=backend))
    assert gave.error is safetensors.SafetensorError


@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, 1, True, "mps", "xpu:0"])
def test_open_for_another_device_reads_the_header_only(sample: Path, device: object) -> None:
    agree(lambda api: api.safe_open(sample, "pt", device).keys())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", 0, 1])
def test_a_missing_gpu_is_told_at_get_tensor(sample: Path, device: object) -> None:
    gave = agree(lambda api: api.safe_open(sample, "pt", device).get_tensor("a"))
    assert gave.error is not None


def test_numpy_is_upstreams(sample: Path) -> None:
    names = ["z.weight", "a", "empty", "scalar"]
    for name in names:
        stock, ours = (api.safe_open(sample, "np").get_tensor(name) for api in (STOCK, OURS))
        assert type(ours) is type(stock)
        assert ours.dtype == stock.dtype
        assert ours.shape == stock.shape
        assert ours.tobytes() == stock.tobytes()
    agree(lambda api: api.safe_open(sample, "numpy", "cuda"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["missing", "no/such/folder", ""])
def test_missing_file(tmp_path: Path, name: str, backend: str) -> None:
    path = str(tmp_path / name) if name else ""
    gave = agree(lambda api: api.safe_open(path, "pt", backend=backend))
    assert gave.error is FileNotFoundError
    assert gave.words == f"No such file or directory: {path}"


def test_error_class_is_upstreams() -> None:
    assert safetensors_streaming.SafetensorError is safetensors.SafetensorError


HEADER_WORDS = "Error while deserializing header: "


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


REFUSED: dict[str, tuple[bytes, bytes, str]] = {
    name: (json.dumps(header).encode() if isinstance(header, dict) else header, data, words)
    for name, (header, data, words) in {
        "not utf-8": (b"\xff\xfe", b"", "invalid UTF-8 in header: "),
        "not json": (b"{", b"", "invalid JSON in header: "),
        "empty header": (b"", b"", "invalid JSON in header: "),
        "an array": (b"[]", b"", "invalid JSON in header: "),
        "trailing": (b"{}x", b"", "invalid JSON in header: "),
        "metadata": ({"__metadata__": {"a": 1}}, b"", "invalid JSON in header: "),
        "dtype": ({"a": entry("E8M0", [1], 0, 1)}, b"x", "invalid JSON in header: "),
        "complex128": ({"a": entry("C128", [1], 0, 16)}, b"x" * 16, "invalid JSON in header: "),
        "negative": ({"a": entry("U8", [-1], 0, 1)}, b"x", "invalid JSON in header: "),
        "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 1]}}, b"x", "invalid JSON"),
        "size": (
            {"a": entry("F32", [2], 0, 4)},
            b"xxxx",
            "invalid shape, data type, or offset for tensor",
        ),
        "hole": ({"a": entry("F32", [1], 4, 8)}, b"x" * 8, "invalid offset for tensor `a`"),
        "overlap": (
            {"a": entry("F32", [2], 0, 8), "b": entry("F32", [1], 4, 8)},
            b"x" * 8,
            "invalid offset for tensor `b`",
        ),
        "reversed": ({"a": entry("F32", [1], 4, 0)}, b"x" * 4, "invalid offset for tensor `a`"),
        "too long": (
            {"a": entry("F32", [1], 0, 4)},
            b"x" * 5,
            "incomplete metadata, file not fully covered",
        ),
        "truncated": (
            {"a": entry("F32", [1], 0, 4)},
            b"x",
            "incomplete metadata, file not fully covered",
        ),
        "overflow": (
            {"a": entry("F32", [1 << 62], 0, 4)},
            b"xxxx",
            "overflow computing buffer size from shape and/or element type",
        ),
        "product": (
            {"a": entry("U8", [1 << 40, 1 << 40], 0, 4)},
            b"xxxx",
            "overflow computing buffer size from shape and/or element type",
        ),
        "half a byte": ({"a": entry("F4", [1], 0, 1)}, b"x", "The slice is slicing for subbytes"),
    }.items()
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fault", REFUSED)
def test_refused_headers(tmp_path: Path, fault: str, backend: str) -> None:
    text, data, words = REFUSED[fault]
    path = write_header(tmp_path / "bad.safetensors", text, data)
    expected = HEADER_WORDS + words
    leading = expected if "JSON" in words else None
    gave = agree(
        lambda api: api.safe_open(path, "pt", backend=backend),
        words=lambda stock: leading or stock,
    )
    assert gave.error is safetensors.SafetensorError
    assert gave.words.startswith(expected)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "header too small"),
        (b"1234567", "header too small"),
        (struct.pack("<Q", 100_000_001) + b"{}", "header too large"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header too large"),
        (struct.pack("<Q", 100) + b"{}", "invalid header length"),
        (struct.pack("<Q", 3) + b"{}", "invalid header length"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_refused_lengths(tmp_path: Path, content: bytes, words: str, backend: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    gave = agree(lambda api: api.safe_open(path, "pt", backend=backend))
    assert gave.error is safetensors.SafetensorError
    assert gave.words.startswith(HEADER_WORDS + words)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"   {}",
        b"{}   \n\t",
        b'{"__metadata__":null}',
        b'{"__metadata__":{}}',
        b'{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1],"more":[1,{"x":null}]}}',
        b'{"a":{"data_offsets":[0,1],"shape":[1,1],"dtype":"U8"}}',
        b'{"a":["U8",[1],[0,1]]}',
        b'{"\\u00e9\\n":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b'{"":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
    ],
)
def test_odd_but_accepted_headers(tmp_path: Path, text: bytes) -> None:
    data = b"\x01" if b"dtype" in text or b"U8" in text else b""
    path = write_header(tmp_path / "odd.safetensors", text, data)
    gave = agree(lambda api: (tensors(api.safe_open(path, "pt")), metadata(api, path)))
    assert gave.error is None


def metadata(api: Api, path: Path) -> object:
    found = api.safe_open(path, "pt").metadata()
    return found and sorted(found.items())  # stock's order is by chance


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    """Declared: stock takes the last of them, and so loses one without a word."""
    text = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    )
    path = write_header(tmp_path / "twice.safetensors", text, b"x")
    assert list(STOCK.safe_open(path, "pt").keys()) == ["a"]
    with pytest.raises(safetensors.SafetensorError, match=r"duplicate.*`a`"):
        OURS.safe_open(path, "pt")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_folder_is_called_a_folder(tmp_path: Path, backend: str) -> None:
    """Declared: stock says "No such device"."""
    assert outcome(lambda: STOCK.safe_open(tmp_path, "pt", backend=backend)).error is OSError
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        OURS.safe_open(tmp_path, "pt", backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_special_files_are_refused_at_once(tmp_path: Path, backend: str) -> None:
    """Declared: stock waits for ever at a FIFO."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, "/dev/null", "/dev/zero"):
        with pytest.raises(OSError, match=str(path)):
            OURS.safe_open(path, "pt", backend=backend)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_permission(sample: Path) -> None:
    sample.chmod(0)
    with pytest.raises(PermissionError, match=str(sample)):
        OURS.safe_open(sample, "pt")


def test_torch_device_is_accepted(sample: Path) -> None:
    """Declared: stock takes the name of a device only."""
    assert outcome(lambda: STOCK.safe_open(sample, "pt", torch.device("cpu"))).error is not None
    with OURS.safe_open(sample, "pt", torch.device("cpu")) as handle:
        ours = handle.get_tensor("a")
    assert bits(ours) == bits(STOCK.load_file(sample)["a"])


def test_errors_name_the_file_and_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "pointer.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    with pytest.raises(safetensors.SafetensorError) as caught:
        OURS.safe_open(path, "pt")
    assert str(path) in str(caught.value)
    assert "git lfs pull" in str(caught.value)


def test_headers_over_a_page(tmp_path: Path) -> None:
    entries = {f"layer.{index}.{'x' * 60}": Entry("U8", [3]) for index in range(2000)}
    path = write_raw(tmp_path / "many.safetensors", entries, {"k": "v" * 20_000})
    gave = agree(lambda api: (tensors(api.safe_open(path, "pt")), metadata(api, path)))
    assert gave.error is None


def test_opening_reads_no_data(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "one.safetensors", {"a": Entry("U8", [64])})
    handle = OURS.safe_open(path, "pt")
    assert handle.get_slice("a").get_shape() == [64]
    assert handle.keys() == ["a"]
