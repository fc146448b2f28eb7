"""``patch``: who is led here, and how it is undone (contract 5 F)."""

from __future__ import annotations

import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import safetensors_streaming
from oracle import OURS, STOCK, bits, same
from process import run_python
from safetensors_streaming import patch, patched, status, unpatch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def served() -> int:
    return sum(status().served.values())


def names_of_upstream() -> dict[str, object]:
    """Everything that safetensors and its torch module hold, by name."""
    modules = (safetensors, safetensors.torch, safetensors.numpy)
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("__")
    }


@pytest.fixture
def consumer() -> Iterator[types.ModuleType]:
    """A module that captured upstream's functions at its import, under names of its own."""
    module = types.ModuleType("made_up_consumer")
    vars(module).update(
        safe_open=safetensors.safe_open,
        open_it=safetensors.safe_open,
        safe_load_file=safetensors.torch.load_file,
        _load_bytes=safetensors.torch.load,
        load_model=safetensors.torch.load_model,
        save_file=safetensors.torch.save_file,
        unrelated=len,
    )
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


def test_every_way_leads_here(sample: Path) -> None:
    expected = STOCK.load_file(sample)
    before = status().served
    with patched():
        assert status().patched
        assert same(safetensors.torch.load_file(sample), expected)
        assert list(safetensors.torch.load(sample.read_bytes())) == list(expected)
        with safetensors.safe_open(sample, "pt") as handle:
            assert bits(handle.get_tensor("b")) == bits(expected["b"])
        with safetensors.torch.safe_open(sample, framework="pt", device="cpu") as handle:
            assert handle.keys() == sorted(expected)
    after = status().served
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert {name: count for name, count in grown.items() if count} == {
        "safe_open": 2,
        "load_file": 1,
        "load": 1,
    }


def test_not_patched_leads_upstream(sample: Path) -> None:
    before = served()
    assert not status().patched
    safetensors.torch.load_file(sample)
    assert safetensors.safe_open(sample, "pt").keys()
    assert served() == before
    assert status().modules == []


def test_captured_names(consumer: types.ModuleType, sample: Path) -> None:
    expected = STOCK.load_file(sample)
    with patched():
        before = served()
        assert same(consumer.safe_load_file(sample), expected)
        assert list(consumer._load_bytes(sample.read_bytes())) == list(expected)  # noqa: SLF001
        assert consumer.open_it(sample, "pt").keys() == sorted(expected)
        assert consumer.open_it is consumer.safe_open
        assert served() == before + 3
        named = {name for name in status().modules if name.startswith("made_up_consumer.")}
        assert named >= {
            "made_up_consumer.safe_open",
            "made_up_consumer.open_it",
            "made_up_consumer.safe_load_file",
            "made_up_consumer._load_bytes",
        }
        assert "made_up_consumer.unrelated" not in named
        assert consumer.save_file is safetensors.torch.save_file
    assert consumer.safe_open is STOCK.safe_open
    assert consumer.open_it is STOCK.safe_open
    assert consumer.safe_load_file is STOCK.load_file
    assert consumer._load_bytes is STOCK.load  # noqa: SLF001
    assert consumer.load_model is STOCK.load_model


def test_functions_that_no_module_holds(sample: Path) -> None:
    """Upstream's own load_file, held in a closure, looks safe_open up when it is called."""
    holder = [safetensors.torch.load_file]
    expected = STOCK.load_file(sample)
    with patched():
        before = served()
        assert same(holder[0](sample), expected)
        assert served() > before


def test_load_model(tmp_path: Path) -> None:
    import torch  # noqa: PLC0415

    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_model(model, path)
    with patched():
        before = served()
        safetensors.torch.load_model(other, path)
        assert served() > before
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_modules_that_import_later(sample: Path) -> None:
    with patched():
        late = types.ModuleType("made_up_late")
        exec("from safetensors import safe_open as opener", vars(late))  # noqa: S102
        sys.modules["made_up_late"] = late
        try:
            before = served()
            assert late.opener(sample, "pt").keys()
            assert served() == before + 1
            unpatch()
            assert late.opener is STOCK.safe_open
        finally:
            del sys.modules["made_up_late"]


def test_unpatch_is_exact(consumer: types.ModuleType) -> None:
    before = {**names_of_upstream(), **vars(consumer)}
    for _ in range(3):
        patch()
        unpatch()
        after = {**names_of_upstream(), **vars(consumer)}
        assert after.keys() == before.keys()
        assert [name for name in before if after[name] is not before[name]] == []
    unpatch()
    assert safetensors.safe_open is STOCK.safe_open


def test_functions_travel_to_other_processes(sample: Path) -> None:
    run_python(
        """
        import pickle, sys
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context
        import safetensors.torch, safetensors_streaming

        safetensors_streaming.patch()
        for name in ("load_file", "load"):
            function = getattr(safetensors.torch, name)
            assert pickle.loads(pickle.dumps(function)) is function
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            [loaded] = pool.map(safetensors.torch.load_file, [sys.argv[1]])
        assert loaded
        """,
        sample,
    )


def test_all_but_the_loaders_stays(sample: Path) -> None:
    before = names_of_upstream()
    with patched():
        changed = {name for name, value in names_of_upstream().items() if value is not before[name]}
    assert changed >= {"safetensors.safe_open", "safetensors.torch.load_file"}
    loaders = {"safe_open", "load_file", "load", "load_model"}
    assert {name.rsplit(".", maxsplit=1)[1] for name in changed} <= loaders
    for name in ("_TYPES", "_getdtype", "_to_ndarray", "_find_shared_tensors", "_view2torch"):
        assert getattr(safetensors.torch, name) is before[f"safetensors.torch.{name}"]
    assert sample.exists()


def test_idempotent(sample: Path) -> None:
    patch()
    ours = safetensors.safe_open
    patch()
    assert safetensors.safe_open is ours
    before = served()
    safetensors.torch.load_file(sample)
    assert served() == before + 1
    unpatch()
    unpatch()
    assert safetensors.safe_open is STOCK.safe_open
    assert not status().patched


def test_patched_leaves_an_outer_patch_alone() -> None:
    patch()
    with patched():
        assert status().patched
    assert status().patched
    unpatch()


def test_patched_is_undone_by_exceptions() -> None:
    with pytest.raises(KeyError), patched():
        raise KeyError
    assert not status().patched


def test_ours_stay_ours(sample: Path) -> None:
    """Our own names are no alias of the patch: they work before, during and after."""
    expected = STOCK.load_file(sample)
    for _ in range(2):
        assert same(OURS.load_file(sample), expected)
        with patched():
            assert same(OURS.load_file(sample), expected)
            assert same(safetensors_streaming.load_file(sample), expected)


def test_numpy_is_not_ours(sample: Path, tmp_path: Path) -> None:
    expected = safetensors.numpy.load_file(write_numpy(tmp_path))
    with patched():
        before, handed_on = status().served, sum(status().delegated.values())
        loaded = safetensors.numpy.load_file(write_numpy(tmp_path))
        with safetensors.safe_open(sample, "np") as handle:
            assert handle.get_tensor("a").shape == (7,)
        assert status().served == before
        assert sum(status().delegated.values()) > handed_on
    assert type(loaded["a"]) is type(expected["a"])
    assert (loaded["a"] == expected["a"]).all()


def write_numpy(folder: Path) -> Path:
    import numpy as np  # noqa: PLC0415

    path = folder / "numpy.safetensors"
    safetensors.numpy.save_file({"a": np.arange(7)}, path)
    return path


def test_errors_are_upstreams_class(tmp_path: Path) -> None:
    with patched():
        with pytest.raises(FileNotFoundError, match="No such file"):
            safetensors.torch.load_file(tmp_path / "none")
        (tmp_path / "bad").write_bytes(b"12")
        with pytest.raises(safetensors.SafetensorError, match="header too small"):
            safetensors.safe_open(tmp_path / "bad", "pt")


def test_from_many_threads(sample: Path) -> None:
    expected = STOCK.load_file(sample)
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def work(turn: int) -> None:
        start.wait()
        for step in range(20):
            try:
                (patch if (turn + step) % 2 else unpatch)()
                assert same(safetensors.torch.load_file(sample), expected)
                status()
            except BaseException as error:  # noqa: BLE001, PERF203
                failures.append(error)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    unpatch()
    assert failures == []
    assert safetensors.safe_open is STOCK.safe_open
    assert safetensors.torch.safe_open is STOCK.safe_open
    assert safetensors.torch.load_file is STOCK.load_file


def test_modules_with_hostile_attributes() -> None:
    """Lazy modules must not be made to import by the walk over sys.modules."""

    class Lazy(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            if name.startswith("__"):
                raise AttributeError(name)
            pytest.fail(f"asked for {name}")

    sys.modules["made_up_lazy"] = Lazy("made_up_lazy")
    sys.modules["made_up_none"] = None  # type: ignore[assignment]
    sys.modules["made_up_object"] = object()  # type: ignore[assignment]
    try:
        patch()
        unpatch()
    finally:
        for name in ("made_up_lazy", "made_up_none", "made_up_object"):
            del sys.modules[name]


def test_status_is_readable(sample: Path) -> None:
    with patched():
        safetensors.torch.load_file(sample)
        said = str(status())
        assert "safetensors.safe_open" in said
        assert "load_file" in said


def test_before_safetensors_torch_is_imported(sample: Path) -> None:
    run_python(
        """
        import sys
        from safetensors_streaming import patch, status, unpatch
        patch()
        assert "torch" not in sys.modules
        import safetensors.torch
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file
        load_file(sys.argv[1])
        with safe_open(sys.argv[1], "pt") as handle:
            handle.get_tensor("a")
        assert status().served == {"load_file": 1, "safe_open": 1}, status()
        unpatch()
        assert safetensors.safe_open.__module__ == "builtins"
        assert safetensors.torch.load_file.__module__ == "safetensors.torch"
        load_file = safetensors.torch.load_file
        load_file(sys.argv[1])
        assert sum(status().served.values()) == 2
        """,
        sample,
    )


def test_before_and_undone_before_torch(sample: Path) -> None:
    run_python(
        """
        import sys
        from safetensors_streaming import patch, status, unpatch
        finders = list(sys.meta_path)
        patch()
        unpatch()
        assert sys.meta_path == finders
        import safetensors.torch
        assert safetensors.safe_open.__module__ == "builtins"
        safetensors.torch.load_file(sys.argv[1])
        assert status().served == {} and not status().patched
        """,
        sample,
    )
