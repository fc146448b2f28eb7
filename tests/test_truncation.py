"""A good file cut anywhere, or with any byte of its header changed, never gives other bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from bad_files import entry, file, table
from oracle import OURS, STOCK
from test_bad_files import WAYS, Verdict, faults, judge

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HEADER = table(
    __metadata__='{"format":"pt"}',
    weight=entry('"F32"', "[2,3]", 0, 24),
    bias=entry('"BF16"', "[3]", 24, 30),
    mask=entry('"BOOL"', "[5]", 30, 35),
    none=entry('"F64"', "[0,2]", 35, 35),
    step=entry('"I64"', "[]", 35, 43),
)
GOOD = file(HEADER, bytes((7 * index + 1) % 251 for index in range(43)))
HEADER_END = len(GOOD) - 43


def disagreements(path: Path, data: bytes, way: str) -> list[str]:
    """Says in what our verdict on these bytes is not stock's; a duplicate name may be refused."""
    path.write_bytes(data)
    ours, stock = judge(OURS, way, path, data), judge(STOCK, way, path, data)
    refused_as_duplicate = ours.outcome == "reject" and "duplicate" in ours.message
    return [] if refused_as_duplicate else faults(ours, stock)


def changed_headers() -> Iterator[tuple[str, bytes]]:
    """Gives the file with each byte of length and header changed to three others.

    They are a neighbour, one that is not ASCII, and a quote (or for a quote a brace).
    """
    for index, byte in enumerate(GOOD[:HEADER_END]):
        for other in (byte ^ 1, byte ^ 0x80, ord("}") if byte == ord('"') else ord('"')):
            yield f"byte {index} to {other}", GOOD[:index] + bytes([other]) + GOOD[index + 1 :]


def judged_good(path: Path, way: str) -> Verdict:
    path.write_bytes(GOOD)
    return judge(OURS, way, path, GOOD)


@pytest.mark.parametrize("way", WAYS)
def test_the_whole_file_is_accepted(way: str, tmp_path: Path) -> None:
    verdict = judged_good(tmp_path / "good.safetensors", way)
    assert verdict.outcome == "accept"
    assert verdict.tensors.keys() == {"weight", "bias", "mask", "none", "step"}


@pytest.mark.parametrize("way", WAYS)
def test_a_cut_anywhere_is_an_error_or_the_same_tensors(way: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    whole = judged_good(path, way)
    for size in range(len(GOOD)):
        found = disagreements(path, GOOD[:size], way)
        assert found == [], f"cut at {size}"
        verdict = judge(OURS, way, path, GOOD[:size])
        assert verdict.outcome == "reject" or verdict.tensors == whole.tensors, f"cut at {size}"


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_header_gets_stocks_verdict(way: str, tmp_path: Path) -> None:
    path = tmp_path / "changed.safetensors"
    wrong = {what: disagreements(path, data, way) for what, data in changed_headers()}
    assert {what: found for what, found in wrong.items() if found} == {}
