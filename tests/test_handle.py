"""What an open handle does (contract 5 B)."""

from __future__ import annotations

import gc
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors
from oracle import OURS, STOCK, Api, agree, bits, same_tensor, write_header
from process import descriptors, eventually, mappings

if TYPE_CHECKING:
    from collections.abc import Callable

BACKENDS = ["mmap", "pread"]
pytestmark = pytest.mark.parametrize("backend", BACKENDS)


@pytest.mark.parametrize(
    "ask",
    [
        lambda handle: handle.keys(),
        lambda handle: handle.offset_keys(),
        lambda handle: sorted(handle.metadata().items()),  # stock's order is by chance
        lambda handle: handle.get_tensors(),
        lambda handle: handle.get_tensor("z.weight"),
        lambda handle: handle.get_tensor(name="b"),
        lambda handle: handle.get_tensor("scalar"),
        lambda handle: handle.get_tensor("empty"),
        lambda handle: handle.get_slice("a")[...],
        lambda handle: handle.get_slice(name="a")[1:3],
        lambda handle: [handle.get_tensor(name) for name in reversed(handle.keys())],
        lambda handle: [handle.get_tensor("a"), handle.get_tensor("a")],
        lambda handle: handle.get_tensor("missing"),
        lambda handle: handle.get_slice("missing"),
        lambda handle: handle.get_tensor(""),
        bool,
        lambda handle: handle.__enter__() is handle,
        lambda handle: handle.__exit__(None, None, None),
        lambda handle: len({handle, handle}),
    ],
)
def test_answers_are_stocks(sample: Path, backend: str, ask: Callable[[Any], object]) -> None:
    agree(lambda api: ask(api.safe_open(sample, "pt", backend=backend)))


def test_order_of_names(sample: Path, backend: str) -> None:
    handle = OURS.safe_open(sample, "pt", backend=backend)
    assert handle.keys() == ["a", "b", "empty", "scalar", "z.weight"]
    assert handle.offset_keys() == ["z.weight", "empty", "b", "scalar", "a"]
    assert list(handle.get_tensors()) == handle.offset_keys()
    assert handle.metadata() == {"format": "pt", "note": "é"}


def test_file_order_need_not_be_the_header_order(tmp_path: Path, backend: str) -> None:
    text = (
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},'
        b'"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}'
    )
    path = write_header(tmp_path / "turned.safetensors", text, b"\x01\x02\x03")
    agree(lambda api: api.safe_open(path, "pt", backend=backend).offset_keys())
    agree(lambda api: api.load_file(path, backend=backend))


def test_empty_ties_are_in_order_of_names(tmp_path: Path, backend: str) -> None:
    """Declared: stock's order of zero-size tensors at one offset is by chance."""
    names = ["n", "c", "x", "a", "m"]
    fields = '"dtype":"F32","shape":[0],"data_offsets":[0,0]'
    text = "{" + ",".join(f'"{name}":{{{fields}}}' for name in names) + "}"
    path = write_header(tmp_path / "ties.safetensors", text.encode())
    assert OURS.safe_open(path, "pt", backend=backend).offset_keys() == sorted(names)


def test_no_metadata_is_none(tmp_path: Path, backend: str) -> None:
    path = write_header(tmp_path / "none.safetensors", b"{}")
    gave = agree(lambda api: api.safe_open(path, "pt", backend=backend).metadata())
    assert gave.value is None


def test_metadata_is_the_callers_own_copy(sample: Path, backend: str) -> None:
    handle = OURS.safe_open(sample, "pt", backend=backend)
    handle.metadata()["note"] = "changed"
    handle.keys().clear()
    assert handle.metadata()["note"] == "é"
    assert len(handle.keys()) == 5


def test_missing_name_leaves_the_handle_alive(sample: Path, backend: str) -> None:
    handle = OURS.safe_open(sample, "pt", backend=backend)
    with pytest.raises(safetensors.SafetensorError, match=r"^File does not contain tensor nope"):
        handle.get_tensor("nope")
    assert bits(handle.get_tensor("a")) == bits(STOCK.load_file(sample)["a"])


@pytest.mark.parametrize(
    "ask",
    [
        lambda handle: handle.keys(),
        lambda handle: handle.offset_keys(),
        lambda handle: handle.metadata(),
        lambda handle: handle.get_tensor("a"),
        lambda handle: handle.get_tensors(),
        lambda handle: handle.get_slice("a"),
        lambda handle: handle.__enter__() is handle,
        lambda handle: handle.__exit__(None, None, None),
    ],
)
def test_closed(sample: Path, backend: str, ask: Callable[[Any], object]) -> None:
    def use_closed(api: Api) -> object:
        with api.safe_open(sample, "pt", backend=backend) as handle:
            handle.keys()
        return ask(handle)

    agree(use_closed)


def test_closed_is_said(sample: Path, backend: str) -> None:
    with OURS.safe_open(sample, "pt", backend=backend) as handle:
        names = handle.keys()
    with pytest.raises(safetensors.SafetensorError, match=r"^File is closed"):
        handle.get_tensor(names[0])
    assert names == ["a", "b", "empty", "scalar", "z.weight"]


def test_exit_takes_three_arguments(sample: Path, backend: str) -> None:
    for api in (STOCK, OURS):
        handle = api.safe_open(sample, "pt", backend=backend)
        with pytest.raises(TypeError):
            handle.__exit__()
        handle.__exit__(ValueError, ValueError("x"), None)


def test_exceptions_leave_the_with_block(sample: Path, backend: str) -> None:
    wanted = KeyError("mine")
    with pytest.raises(KeyError) as caught, OURS.safe_open(sample, "pt", backend=backend):
        raise wanted
    assert caught.value is wanted


def test_wrong_calls_are_type_errors(sample: Path, backend: str) -> None:
    calls: list[Callable[[Any], object]] = [
        lambda handle: handle.get_tensor(),
        lambda handle: handle.get_tensor(1),
        lambda handle: handle.get_tensor("a", "b"),
        lambda handle: handle.get_slice(None),
        lambda handle: handle["a"],
        len,
        iter,
        lambda handle: "a" in handle,
    ]
    for api in (STOCK, OURS):
        handle = api.safe_open(sample, "pt", backend=backend)
        for call in calls:
            with pytest.raises(TypeError):
                call(handle)


def test_unknown_attribute(sample: Path, backend: str) -> None:
    for api in (STOCK, OURS):
        handle = api.safe_open(sample, "pt", backend=backend)
        assert not hasattr(handle, "no_such_method")
        with pytest.raises(AttributeError, match="no_such_method"):
            handle.no_such_method  # noqa: B018


def test_nothing_is_delegated_to_another_file_of_that_name(
    sample: Path, tmp_path: Path, backend: str
) -> None:
    path = Path(shutil.copy(sample, tmp_path / "first.safetensors"))
    handle = OURS.safe_open(path, "pt", backend=backend)
    Path(shutil.copy(sample, tmp_path / "second.safetensors")).replace(path)
    with pytest.raises(OSError, match="Another file has its name"):
        handle.no_such_method  # noqa: B018


def test_attributes_of_a_later_upstream_are_delegated(sample: Path, backend: str) -> None:
    stock = STOCK.safe_open(sample, "pt", backend=backend)
    ours = OURS.safe_open(sample, "pt", backend=backend)
    public = [name for name in dir(stock) if not name.startswith("_")]
    assert "get_tensors" in public
    assert [name for name in public if not hasattr(ours, name)] == []


def test_get_tensor_twice(sample: Path, backend: str) -> None:
    handle = OURS.safe_open(sample, "pt", backend=backend)
    first, second = handle.get_tensor("b"), handle.get_tensor("b")
    assert first is not second
    assert same_tensor(first, second)


def test_no_descriptor_stays_open_with_mmap(sample: Path, backend: str) -> None:
    handle = OURS.safe_open(sample, "pt", backend=backend)
    handle.get_tensor("a")
    kept = descriptors().count(str(sample))
    assert kept == 0 if backend == "mmap" else kept <= 2
    del handle
    gc.collect()
    assert str(sample) not in descriptors()


def test_dropping_the_handle_frees_it(sample: Path, backend: str) -> None:
    handle = OURS.safe_open(sample, "pt", backend=backend)
    assert mappings(sample) > 0 or backend == "pread"
    del handle
    assert eventually(lambda: mappings(sample) == 0)


def test_closing_the_handle_frees_it(sample: Path, backend: str) -> None:
    with OURS.safe_open(sample, "pt", backend=backend) as handle:
        handle.get_tensor("a")
    assert eventually(lambda: mappings(sample) == 0)
    assert str(sample) not in descriptors()
    assert handle is not None


def test_eight_threads_on_one_handle(sample: Path, backend: str) -> None:
    handle = OURS.safe_open(sample, "pt", backend=backend)
    expected = {name: bits(tensor) for name, tensor in STOCK.load_file(sample).items()}
    rounds = 200 if backend == "mmap" else 20

    def work(turn: int) -> bool:
        names = sorted(expected)
        right = True
        for step in range(rounds):
            name = names[(turn + step) % len(names)]
            right &= bits(handle.get_tensor(name)) == expected[name]
            right &= bits(handle.get_slice(name)[...]) == expected[name]
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_closing_while_others_read(sample: Path, backend: str) -> None:
    """Whoever is in the middle finishes, or is told that the file is closed; nothing else."""
    expected = bits(STOCK.load_file(sample)["b"])
    for _ in range(20):
        handle = OURS.safe_open(sample, "pt", backend=backend)

        def work(_: int, handle: Any = handle) -> str:  # noqa: ANN401
            try:
                tensors = [handle.get_tensor("b") for _ in range(20)]
            except safetensors.SafetensorError as error:
                return str(error)
            return "" if all(bits(tensor) == expected for tensor in tensors) else "wrong"

        with ThreadPoolExecutor(4) as pool:
            results = pool.map(work, range(4))
            handle.__exit__(None, None, None)
            said = set(results)
        assert all(words == "" or words.startswith("File is closed") for words in said), said
