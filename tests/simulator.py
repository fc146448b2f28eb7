"""The driver of this process, where it is the simulated one of ci/sim: its counters and faults."""

from __future__ import annotations

import ctypes
import json
from typing import Any


def _simulated_driver() -> ctypes.CDLL | None:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    if not hasattr(driver, "simcuda_statistics"):
        return None
    driver.simcuda_statistics.restype = ctypes.c_size_t
    driver.simcuda_statistics.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    code = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint32]
    driver.simcuda_fail.restype = None
    driver.simcuda_fail.argtypes = [*code, ctypes.c_int]
    driver.simcuda_fail_from.restype = None
    driver.simcuda_fail_from.argtypes = code
    return driver


DRIVER = _simulated_driver()


def _driver() -> ctypes.CDLL:
    assert DRIVER is not None, "not run by ci/sim"
    return DRIVER


def statistics() -> dict[str, Any]:
    """What the driver has counted since the last reset, and what is alive."""
    size = _driver().simcuda_statistics(None, 0) + 4096
    buffer = ctypes.create_string_buffer(size)
    assert _driver().simcuda_statistics(buffer, size) <= size
    counted: dict[str, Any] = json.loads(buffer.value)
    return counted


def reset() -> None:
    """Counts from zero again; peaks begin at what is alive."""
    _driver().simcuda_reset()


def fail(symbol: str, call: int, code: int, *, sticky: bool = False) -> None:
    """Makes the n-th call from now on fail; "*" is any function, call 0 takes all faults back."""
    _driver().simcuda_fail(symbol.encode(), call, code, int(sticky))


def fail_from(symbol: str, call: int, code: int) -> None:
    """Makes the n-th call from now on fail, and all after it."""
    _driver().simcuda_fail_from(symbol.encode(), call, code)
