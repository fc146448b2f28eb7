"""What the tensors are: types, memory, life (contract 5 D)."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import torch
from oracle import (
    DTYPES,
    OURS,
    PLAIN_DTYPES,
    STOCK,
    TORCH_TYPES,
    UNKNOWN_DTYPES,
    Entry,
    agree,
    bits,
    outcome,
    same,
    same_tensor,
    write_raw,
)
from process import descriptors, eventually, give_back_freed, mappings, memory_kib
from safetensors_streaming import release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MIB = 1 << 20
LOADS: dict[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    "load_file": OURS.load_file,
    "load_file pread": lambda path: OURS.load_file(path, backend="pread"),
    "load": lambda path: OURS.load(path.read_bytes()),
    "get_tensors": lambda path: OURS.safe_open(path, "pt").get_tensors(),
    "get_tensor pread": lambda path: one_by_one(path, "pread"),
    "get_tensor": lambda path: one_by_one(path, "mmap"),
}
MAPPED = ["load_file", "get_tensors", "get_tensor"]
OWNED = ["load_file pread", "load", "get_tensor pread"]
every_load = pytest.mark.parametrize("load", LOADS)


def one_by_one(path: Path, backend: str) -> dict[str, torch.Tensor]:
    with OURS.safe_open(path, "pt", backend=backend) as handle:
        return {name: handle.get_tensor(name) for name in handle.offset_keys()}


def tensors_of(path: Path, dtype: str, misalign: int = 0) -> Path:
    entries = {f"{dtype}.{rows}": Entry(dtype, [rows, 4]) for rows in (3, 0, 1)}
    return write_raw(path, entries, misalign=misalign)


@pytest.mark.parametrize("misalign", [0, 8, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@every_load
def test_every_dtype(tmp_path: Path, load: str, dtype: str, misalign: int) -> None:
    path = tensors_of(tmp_path / "types.safetensors", dtype, misalign)
    expected = STOCK.load_file(path)
    assert expected[f"{dtype}.3"].dtype == TORCH_TYPES[dtype]
    assert same(LOADS[load](path), expected)


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "F4"])
def test_every_dtype_as_a_slice(tmp_path: Path, dtype: str, backend: str) -> None:
    path = tensors_of(tmp_path / "types.safetensors", dtype, misalign=1)
    for index in (slice(None), slice(1, 2), ...):
        gave = agree(
            lambda api, index=index: api.safe_open(path, "pt", backend=backend).get_slice(
                f"{dtype}.3"
            )[index],
        )
        assert gave.error is None


@pytest.mark.parametrize("dtype", PLAIN_DTYPES)
def test_every_dtype_that_stock_loads_from_bytes(tmp_path: Path, dtype: str) -> None:
    data = tensors_of(tmp_path / "types.safetensors", dtype, misalign=5).read_bytes()
    gave = agree(lambda api: in_order_of_names(api.load(data)))  # stock's order is by chance
    assert gave.error is None


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4"])
def test_dtypes_that_stock_does_not_load_from_bytes(tmp_path: Path, dtype: str) -> None:
    """Declared: ours loads them."""
    path = tensors_of(tmp_path / "types.safetensors", dtype)
    data = path.read_bytes()
    assert outcome(lambda: STOCK.load(data)).error is KeyError
    assert same(OURS.load(data), STOCK.load_file(path))


@pytest.mark.parametrize("dtype", UNKNOWN_DTYPES)
@pytest.mark.parametrize("backend", ["mmap", "pread"])
def test_dtypes_that_torch_does_not_have(tmp_path: Path, dtype: str, backend: str) -> None:
    entries = {"a": Entry("U8", [4]), "x": Entry(dtype, [2, 4])}
    path = write_raw(tmp_path / "f6.safetensors", entries)
    gave = agree(lambda api: api.safe_open(path, "pt", backend=backend).get_tensor("x"))
    assert gave.words.startswith(f"Dtype not understood: {dtype}")
    assert agree(lambda api: api.load_file(path, backend=backend)).error is not None
    assert agree(lambda api: api.safe_open(path, "pt").get_slice("x").get_dtype()).value == dtype
    assert agree(lambda api: api.safe_open(path, "pt").get_slice("x").get_shape()).error is None
    assert (
        agree(lambda api: api.safe_open(path, "pt", backend=backend).get_tensor("a")).error is None
    )


@every_load
def test_ordinary_leaves(sample: Path, load: str) -> None:
    with torch.inference_mode():
        inside = LOADS[load](sample)
    for tensors in (LOADS[load](sample), inside):
        for tensor in tensors.values():
            assert type(tensor) is torch.Tensor
            assert tensor.is_leaf
            assert not tensor.requires_grad
            assert tensor.grad_fn is None
            assert tensor.device == torch.device("cpu")
            assert tensor.is_contiguous()
    for tensor in LOADS[load](sample).values():
        assert not tensor.is_inference()
    LOADS[load](sample)["a"].float().requires_grad_().sum().backward()


@every_load
def test_own_storage_of_exactly_its_bytes(sample: Path, load: str) -> None:
    tensors = LOADS[load](sample)
    for tensor in tensors.values():
        assert tensor.storage_offset() == 0
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    filled = [tensor for tensor in tensors.values() if tensor.nbytes]
    for tensor in filled:
        assert tensor.untyped_storage().data_ptr() == tensor.data_ptr()
    assert len({tensor.data_ptr() for tensor in filled}) == len(filled)


@pytest.mark.parametrize("load", OWNED)
def test_engine_memory_is_aligned(tmp_path: Path, load: str) -> None:
    """Declared: 64 bytes, whatever the file's offsets; stock's are anywhere."""
    entries = {f"t{index}": Entry("U8", [index * 7 + 1]) for index in range(40)}
    path = write_raw(tmp_path / "odd.safetensors", entries, misalign=3)
    addresses = [tensor.data_ptr() for tensor in LOADS[load](path).values()]
    assert [address % 64 for address in addresses] == [0] * len(addresses)


@every_load
def test_saved_copied_and_pickled_alone(large: Path, load: str) -> None:
    """A tensor of 4 MiB takes 4 MiB with it, not the file."""
    tensor = LOADS[load](large)["t07"]
    saved = io.BytesIO()
    torch.save(tensor, saved)
    assert saved.tell() < tensor.nbytes + 64 * 1024
    saved.seek(0)
    assert same_tensor(torch.load(saved), tensor)
    copied = copy.deepcopy(tensor)
    assert same_tensor(copied, tensor)
    assert copied.untyped_storage().nbytes() == tensor.nbytes
    assert copied.data_ptr() != tensor.data_ptr()
    pickled = pickle.dumps(tensor)
    assert len(pickled) < tensor.nbytes + 64 * 1024
    assert same_tensor(pickle.loads(pickled), tensor)  # noqa: S301


@every_load
def test_saved_again(sample: Path, tmp_path: Path, load: str) -> None:
    again = tmp_path / "again.safetensors"
    safetensors.torch.save_file(LOADS[load](sample), again)
    expected = in_order_of_names(STOCK.load_file(sample))
    assert same(in_order_of_names(STOCK.load_file(again)), expected)
    assert safetensors.torch.save(LOADS[load](sample)) == again.read_bytes()


def in_order_of_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return dict(sorted(tensors.items()))


@every_load
def test_saved_over_the_file_it_came_from(sample: Path, load: str) -> None:
    expected = {name: bits(tensor) for name, tensor in STOCK.load_file(sample).items()}
    tensors = LOADS[load](sample)
    safetensors.torch.save_file(tensors, sample)
    assert {name: bits(tensor) for name, tensor in tensors.items()} == expected
    assert {name: bits(tensor) for name, tensor in OURS.load_file(sample).items()} == expected


@every_load
def test_models_are_saved_and_loaded(tmp_path: Path, load: str) -> None:
    path, again = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    model[1].weight = model[0].weight
    safetensors.torch.save_model(model, path)
    model.load_state_dict(LOADS[load](path), strict=False, assign=True)
    model[1].weight = model[0].weight
    safetensors.torch.save_model(model, again)
    assert again.read_bytes() == path.read_bytes()


@every_load
def test_survive_close_unlink_and_rename_over(sample: Path, tmp_path: Path, load: str) -> None:
    expected = {name: bits(tensor) for name, tensor in STOCK.load_file(sample).items()}
    first = LOADS[load](sample)
    other = write_raw(tmp_path / "other.safetensors", {"new": Entry("U8", [9])})
    other.rename(sample)
    second = LOADS[load](sample)
    sample.unlink()
    gc.collect()
    assert {name: bits(tensor) for name, tensor in first.items()} == expected
    assert list(second) == ["new"]


@every_load
def test_writes_stay_here(sample: Path, load: str) -> None:
    before = sample.read_bytes()
    tensors = LOADS[load](sample)
    for tensor in tensors.values():
        tensor.fill_(1)
    assert sample.read_bytes() == before
    assert (tensors["z.weight"] == 1).all()
    assert bits(LOADS[load](sample)["b"]) == bits(STOCK.load_file(sample)["b"])


def test_writes_are_seen_by_aliases_of_the_handle(sample: Path) -> None:
    handles = [api.safe_open(sample, "pt") for api in (STOCK, OURS)]
    for handle in handles:
        handle.get_tensor("b").fill_(3)
        assert (handle.get_tensor("b") == 3).all()
        assert (handle.get_slice("b")[0] == 3).all()
        assert (handle.get_tensors()["b"] == 3).all()
    assert not (OURS.safe_open(sample, "pt").get_tensor("b") == 3).all()


@pytest.mark.parametrize("load", OWNED)
def test_owned_tensors_do_not_alias(sample: Path, load: str) -> None:
    one, other = LOADS[load](sample), LOADS[load](sample)
    one["b"].fill_(3)
    assert not (other["b"] == 3).any()


@every_load
def test_empty_and_scalar(tmp_path: Path, load: str) -> None:
    entries = {
        "none": Entry("F32", [0]),
        "scalar": Entry("F64", []),
        "rows": Entry("BF16", [0, 7]),
        "deep": Entry("I8", [2, 0, 5]),
        "byte": Entry("BOOL", []),
    }
    path = write_raw(tmp_path / "edge.safetensors", entries)
    assert same(in_order_of_names(LOADS[load](path)), in_order_of_names(STOCK.load_file(path)))
    assert LOADS[load](path)["scalar"].shape == ()


@every_load
def test_a_file_without_tensors(tmp_path: Path, load: str) -> None:
    path = write_raw(tmp_path / "none.safetensors", {}, {"format": "pt"})
    assert LOADS[load](path) == {}


def held_kib() -> int:
    """The memory of this process without the slots: how many of them a load has made is chance."""
    gc.collect()
    release()
    give_back_freed()
    return memory_kib("RssAnon")


@every_load
def test_memory_is_freed(tmp_path: Path, load: str) -> None:
    size = 64 * MIB
    path = write_raw(tmp_path / "big.safetensors", {"a": Entry("U8", [size], b"x" * size)})
    LOADS[load](path)
    before = held_kib()
    tensors = LOADS[load](path)
    tensors["a"].fill_(1)
    assert held_kib() - before > 48 * 1024
    del tensors
    assert eventually(lambda: held_kib() - before < 8 * 1024)
    assert mappings(path) == 0


@every_load
def test_one_tensor_keeps_what_it_needs(sample: Path, load: str) -> None:
    expected = bits(STOCK.load_file(sample)["b"])
    kept = LOADS[load](sample)["b"]
    gc.collect()
    assert (mappings(sample) > 0) == (load in MAPPED)
    assert bits(kept) == expected
    part = kept[1]
    del kept
    gc.collect()
    assert bits(part) == expected[len(expected) // 2 :]
    del part
    assert eventually(lambda: mappings(sample) == 0)


@every_load
def test_no_descriptor_is_kept(sample: Path, load: str) -> None:
    tensors = LOADS[load](sample)
    assert str(sample) not in descriptors()
    assert tensors


@pytest.mark.parametrize("load", MAPPED)
def test_cpu_tensors_cost_no_memory(large: Path, load: str) -> None:
    gc.collect()
    before = memory_kib("RssAnon")
    tensors = LOADS[load](large)
    total = sum(int(tensor.view(torch.uint8)[::4096].sum()) for tensor in tensors.values())
    assert total > 0
    assert memory_kib("RssAnon") - before < 8 * 1024


@every_load
def test_shared_memory(sample: Path, load: str) -> None:
    tensor = LOADS[load](sample)["b"]
    expected = bits(tensor)
    tensor.share_memory_()
    assert tensor.is_shared()
    assert bits(tensor) == expected


@every_load
def test_real_under_ambient_devices(sample: Path, load: str) -> None:
    """Declared: some of stock's ways follow the context to the meta device."""
    expected = STOCK.load_file(sample)
    with torch.device("meta"):
        assert same(LOADS[load](sample), expected)
    with meta_by_default():
        assert same(LOADS[load](sample), expected)


@contextlib.contextmanager
def meta_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.fixture
def _double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double_by_default")
@every_load
def test_default_dtype_has_no_say(sample: Path, load: str) -> None:
    assert same(LOADS[load](sample), STOCK.load_file(sample))


@every_load
def test_eight_threads(sample: Path, load: str) -> None:
    expected = STOCK.load_file(sample)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: LOADS[load](sample), range(64)))
    assert all(same(result, expected) for result in results)
