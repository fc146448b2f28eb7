"""`load_into` and `dtype=` on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import safetensors_streaming
import torch
from oracle import DTYPES, PLAIN_DTYPES, STOCK, Entry, bits, by_stock, same, write_raw
from safetensors.torch import save_file
from safetensors_streaming import load_checkpoint, load_file, load_into

if TYPE_CHECKING:
    from pathlib import Path


def blank(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("misalign", [0, 3])
def test_every_type_into_existing_tensors(tmp_path: Path, misalign: int) -> None:
    entries = {f"{name}.{size}": Entry(name, [size, 2]) for name in DTYPES for size in (0, 1, 700)}
    path = write_raw(tmp_path / "types.safetensors", entries, misalign=misalign)
    expected = STOCK.load_file(path)
    target = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    addresses = {name: tensor.data_ptr() for name, tensor in target.items()}
    assert load_into(target, path) == ([], [])
    assert same(dict(sorted(target.items())), dict(sorted(expected.items())))
    assert {name: tensor.data_ptr() for name, tensor in target.items()} == addresses


def test_a_checkpoint_into_a_model(checkpoint: Path) -> None:
    expected = by_stock(checkpoint)
    target = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    load_into(target, checkpoint)
    assert all(bits(target[name]) == bits(expected[name]) for name in expected)


def test_what_cannot_be_filled_as_it_lies_is_copied(tmp_path: Path) -> None:
    values = torch.randn(6, 4)
    path = tmp_path / "few.safetensors"
    names = ["strided", "other type", "sub", "plain"]
    save_file({name: values.clone() for name in names}, path)

    class Subclass(torch.Tensor):
        pass

    target = {
        "strided": torch.zeros(4, 6).t(),
        "other type": torch.zeros(6, 4, dtype=torch.float64),
        "sub": torch.zeros(6, 4).as_subclass(Subclass),
        "plain": torch.zeros(6, 4),
    }
    load_into(target, path)
    assert torch.equal(target["strided"], values)
    assert torch.equal(target["other type"], values.double())
    assert torch.equal(target["sub"].as_subclass(torch.Tensor), values)
    assert torch.equal(target["plain"], values)


def test_autograd_sees_that_values_changed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"weight": torch.ones(3)}, path)
    weight = torch.nn.Parameter(torch.full((3,), 2.0))
    result = (weight * weight).sum()
    load_into({"weight": weight}, path)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward()
    assert weight.requires_grad
    assert weight.is_leaf


class Odd(torch.nn.Linear):
    """Has a state that is no tensor, and gives a tensor as a copy."""

    def get_extra_state(self) -> object:
        return {"anything": 1}

    def set_extra_state(self, state: object) -> None: ...

    def _save_to_state_dict(self, destination: dict[str, object], *rest: object) -> None:
        super()._save_to_state_dict(destination, *rest)  # type: ignore[arg-type]
        destination["copy"] = self.weight.clone()


def test_states_that_are_no_tensors_and_copies(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, path)
    model = Odd(3, 2)
    assert load_into(model, path, strict=False) == (["copy"], [])
    assert bool((model.weight == 1).all())
    save_file({"copy": torch.ones(2, 3)}, path)
    with pytest.raises(RuntimeError, match="copy is given by the module as a copy"):
        load_into(model, path, strict=False)


def test_tied_names(tmp_path: Path) -> None:
    """A tensor under two names is missing only if the file has none of them."""
    model = torch.nn.Linear(3, 3, bias=False)
    target = {"head": model.weight, "embedding": model.weight, "alone": torch.zeros(1)}
    path = tmp_path / "tied.safetensors"
    save_file({"embedding": torch.full((3, 3), 5.0)}, path)
    with pytest.raises(RuntimeError, match=r'Missing key.*"alone"'):
        load_into(target, path)
    assert load_into(target, path, strict=False) == (["alone"], [])
    assert bool((model.weight == 5).all())


def test_two_names_of_the_file_for_one_tensor(tmp_path: Path) -> None:
    path = tmp_path / "both.safetensors"
    save_file({"a": torch.zeros(1000), "b": torch.ones(1000)}, path)
    tensor = torch.full((1000,), 7.0)
    load_into({"a": tensor, "b": tensor}, path)
    assert bool((tensor == 1).all())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"a": torch.zeros(4)}, r"size mismatch for a: .*\[3\].*\[4\]"),
        ({"a": torch.zeros(3), "b": torch.zeros(1)}, 'Missing key.*"b"'),
        ({}, 'Unexpected key.*"a"'),
        ({"a": torch.zeros(3, device="meta")}, "a is on the meta device"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_read(
    tmp_path: Path, target: dict[str, torch.Tensor], words: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(RuntimeError, match=words):
        load_into(target, path)
    assert all(tensor.is_meta or not tensor.any() for tensor in target.values())


def test_a_size_that_does_not_fit_is_an_error_whether_strict_or_not(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2)}, path)
    with pytest.raises(RuntimeError, match="size mismatch for a"):
        load_into({"a": torch.zeros(1)}, path, strict=False)


def test_same_words_as_upstream_on_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(safetensors_streaming.SafetensorError, match="Error while deserializing"):
        load_into({}, path)


# dtype=


@pytest.mark.parametrize("backend", ["mmap", "pread"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtype_concerns_numbers_alone(tmp_path: Path, backend: str, dtype: torch.dtype) -> None:
    entries = {name: Entry(name, [40, 3]) for name in PLAIN_DTYPES}
    path = write_raw(tmp_path / "types.safetensors", entries)
    plain = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    expected = {
        name: tensor.to(dtype) if tensor.dtype in plain else tensor
        for name, tensor in STOCK.load_file(path).items()
    }
    for loaded in (
        load_file(path, backend=backend, dtype=dtype),
        load_checkpoint(path, backend=backend, dtype=dtype),
    ):
        assert same(dict(sorted(loaded.items())), dict(sorted(expected.items())))


def test_a_dtype_that_is_none(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "a.safetensors", {"a": Entry("F32", [3])})
    for wrong in (torch.int8, torch.float8_e4m3fn, "bfloat16", 3):
        with pytest.raises(ValueError, match="expected a floating-point type"):
            load_file(path, dtype=wrong)  # type: ignore[arg-type]


def test_a_device_map_of_the_cpu(checkpoint: Path) -> None:
    expected = by_stock(checkpoint)
    loaded = load_checkpoint(checkpoint, device_map={"s0": "cpu", "": "cpu"})
    assert same(dict(sorted(loaded.items())), dict(sorted(expected.items())))
