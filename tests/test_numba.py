"""Arrays without torch, taken over by Numba: not our reader of `__cuda_array_interface__`.

Numba finds the driver by its name, so that under ci/sim it is the simulated one.
"""

from __future__ import annotations

import gc
import importlib
from typing import TYPE_CHECKING

import pytest
import simulator
from gpu import NEEDS_GPU, SIMULATED
from oracle import DTYPES, STOCK, Entry, bits, write_raw
from process import run_python
from safetensors_streaming import cuda

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

pytestmark = NEEDS_GPU

#: Those that the protocol has a name for; the others are told as unsigned integers of their width.
NUMPY_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "uint16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "BOOL": "bool",
    "C64": "complex64",
}
ROWS = [0, 1, 3, 70_000]


@pytest.fixture
def numba_cuda() -> ModuleType:
    """Numba's module; ci/sim has it, a machine with a GPU may not."""
    if SIMULATED:
        return importlib.import_module("numba.cuda")
    return pytest.importorskip("numba.cuda")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Every type in several sizes, none at all and scalars among them, at odd offsets."""
    entries = {f"{name}.{rows}": Entry(name, [rows, 2]) for name in DTYPES for rows in ROWS}
    entries |= {f"{name}.one": Entry(name, []) for name in DTYPES if name != "F4"}
    return write_raw(tmp_path / "types.safetensors", entries, misalign=5)


def test_every_type_is_taken_over(path: Path, numba_cuda: ModuleType) -> None:
    arrays, expected = cuda.load_file(path), STOCK.load_file(path)
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        taken = numba_cuda.as_cuda_array(array)
        host = taken.copy_to_host()
        assert host.dtype == NUMPY_NAMES.get(name.split(".")[0], "uint8"), name
        assert host.shape == tuple(expected[name].shape), name
        assert host.tobytes() == bits(expected[name]), name
        if host.nbytes:
            address = array.__cuda_array_interface__["data"][0]
            assert taken.__cuda_array_interface__["data"][0] == address, name


def test_what_was_taken_over_outlives_the_original(path: Path, numba_cuda: ModuleType) -> None:
    expected = STOCK.load_file(path)
    taken = {
        name: numba_cuda.as_cuda_array(array)
        for name, array in cuda.load_file(path).items()
        if name.endswith((".3", ".0", ".one"))
    }
    gc.collect()
    others = cuda.load_file(path)  # where memory was freed, it is theirs now
    for name, array in taken.items():
        assert array.copy_to_host().tobytes() == bits(expected[name]), name
    assert len(others) == len(expected)


@pytest.mark.skipif(not SIMULATED, reason="needs the simulated driver's counters")
def test_memory_goes_with_the_last_that_has_it(path: Path, numba_cuda: ModuleType) -> None:
    cuda.load_file(path)
    before = simulator.statistics()["devices"][0]["live_bytes"]
    arrays = cuda.load_file(path)
    taken = numba_cuda.as_cuda_array(arrays["F32.70000"])
    arrays.clear()
    gc.collect()
    assert simulator.statistics()["devices"][0]["live_bytes"] > before
    del taken
    gc.collect()
    assert simulator.statistics()["devices"][0]["live_bytes"] == before


@pytest.mark.usefixtures("numba_cuda")
def test_without_torch(path: Path) -> None:
    """Numba and NumPy alone: stock's reader for NumPy is the measure, of types that it knows."""
    script = """
        import sys
        from safetensors import safe_open
        from safetensors_streaming import cuda
        from numba import cuda as numba_cuda
        arrays = cuda.load_file(sys.argv[1])
        with safe_open(sys.argv[1], "np") as stock:
            for name in sys.argv[2:]:
                host = numba_cuda.as_cuda_array(arrays[name]).copy_to_host()
                known = stock.get_tensor(name)
                assert (host.dtype, host.shape) == (known.dtype, known.shape), name
                assert host.tobytes() == known.tobytes(), name
        assert "torch" not in sys.modules
    """
    names = [f"{name}.{rows}" for name in NUMPY_NAMES if name != "BF16" for rows in ROWS]
    run_python(script, path, *names)
