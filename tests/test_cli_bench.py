"""The command that times both packages: what it tells, what it refuses, who may fail."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from commands import BAD, REFUSED, USAGE, run, told
from gpu import NEEDS_GPU
from oracle import STOCK, bits, by_stock, shards, write_checkpoint, write_raw, write_sparse
from process import in_terminal
from safetensors_streaming import SafetensorError, load_checkpoint
from safetensors_streaming._comparison import Agreement, Loads, Ratio, Row, ratio_of
from safetensors_streaming._patch import CHILDREN_VARIABLE
from safetensors_streaming._sample import CacheError, Job, measure, mincore_pages, set_cache
from safetensors_streaming._statistics import CONFIDENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUIET, NOISY = 0.01, 0.3

#: In place of stock's; the file has a tensor "a" of 7 numbers.
DIFFERS = """
from safetensors_streaming import load_file as ours
def load_file(path, device):
    tensors = ours(path, device)
    tensors["a"] = -tensors["a"]
    return tensors
"""
REFUSES = """
def load_file(path, device):
    raise RuntimeError(f"no kernel for {device}\\nsee the manual")
"""
CRASHES = """
import os
def load_file(path, device):
    os.abort()
"""
HANGS = """
import threading
def load_file(path, device):
    threading.Event().wait()
"""


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has children find a package `safetensors` with such a `load_file` before the real one."""

    def plant(torch_module: str) -> None:
        package = tmp_path / "planted/safetensors"
        package.mkdir(parents=True)
        module = "class SafetensorError(Exception): ...\nsafe_open = None\n"
        (package / "__init__.py").write_text(module)
        (package / "torch.py").write_text(torch_module)
        known = os.environ.get("PYTHONPATH")
        path = os.pathsep.join(filter(None, [str(package.parent), known]))
        monkeypatch.setenv("PYTHONPATH", path)

    return plant


@pytest.fixture
def evictable(checkpoint: Path) -> list[str]:
    """The files of a checkpoint where files can be taken out of the page cache."""
    paths = [str(file) for file in shards(checkpoint)]
    try:
        set_cache(paths, cold=True)
    except CacheError:
        pytest.skip("this file system keeps its files in memory")
    return paths


def row_of(ours: Sequence[float], stock: Sequence[float], cores: Sequence[float]) -> Row:
    """Loads without failure; others were busy during those of stock."""
    quiet = [QUIET] * len(ours)
    return Row(Loads(list(ours), quiet), Loads(list(stock), list(cores)))


def test_both_load_all_files_cold_and_warm(evictable: list[str], checkpoint: Path) -> None:
    index = checkpoint / "model.safetensors.index.json"
    facts = told("bench", index, "--blocks", 1)
    assert facts["files"] == evictable
    assert facts["bytes"] == sum(file.stat().st_size for file in shards(checkpoint))
    assert facts["device"] == "cpu"
    assert list(facts["loads"]) == ["cold", "warm"]
    for row in facts["loads"].values():
        assert row["left_out"] is None
        for loads in (row["ours"], row["stock"]):
            (seconds,) = loads["seconds"]
            assert (loads["median_seconds"], loads["failed"]) == (seconds, None)
            assert loads["bytes_per_second"] == facts["bytes"] / seconds
        assert f"{len(by_stock(checkpoint))} tensors" in row["explained"]
        if row["noisy_blocks"]:
            assert row["ratio"] is None
        else:
            ratio = row["ours"]["seconds"][0] / row["stock"]["seconds"][0]
            assert row["ratio"] == {"median": ratio, "low": None, "high": None, "confidence": None}


def test_a_terminal_sees_how_far_it_is_and_then_the_table(checkpoint: Path) -> None:
    pattern = str(checkpoint / "model-0000[12]*.safetensors")
    text = in_terminal(40, "bench", pattern, "--blocks", "1")
    lines = re.split(r"[\r\n]+", text)
    assert [line for line in lines if len(line) > 40] == []
    assert any(re.match(r"loads: +\d+%\|.*\| [123]/4", line) for line in lines)
    shown = "".join(text.split())
    for words in ("in2files", "ratiooftimes", "GB/s"):
        assert words in shown


@pytest.mark.parametrize("loader", ["ours", "stock"])
def test_every_byte_is_in_the_digests(checkpoint: Path, loader: str) -> None:
    paths = [str(file) for file in shards(checkpoint)]
    sample = measure(Job(loader, "cpu", cold=False, paths=paths))
    expected = {
        name: hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode() + bits(tensor))
        for name, tensor in by_stock(checkpoint).items()
    }
    assert sample.digests == {name: digest.hexdigest() for name, digest in expected.items()}
    assert (sample.explained is None) == (loader == "stock")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"a": "1", "b": "3"}, "a load by stock differs from one by ours, first in tensor 'b'"),
        ({"a": "1"}, "first in tensor 'b'"),
        ({"a": "1", "b": "2", "c": "3"}, "first in tensor 'c'"),
    ],
)
def test_what_differs_is_named(other: dict[str, str], words: str) -> None:
    agreement = Agreement()
    agreement.check("ours", {"a": "1", "b": "2"})
    agreement.check("stock", {"b": "2", "a": "1"})
    with pytest.raises(SafetensorError, match=words):
        agreement.check("stock", other)


def test_different_bytes_are_an_error_and_no_times(
    sample: Path, plant: Callable[[str], None]
) -> None:
    plant(DIFFERS)
    result = run("bench", sample, "--blocks", 1)
    assert (result.exit_code, result.stdout) == (BAD, "")
    assert "first in tensor 'a'" in result.stderr


@pytest.mark.parametrize(
    ("module", "failed"),
    [(CRASHES, "killed by SIGABRT"), (REFUSES, "RuntimeError: no kernel for cpu")],
)
def test_where_one_fails_the_other_is_timed(
    sample: Path,
    plant: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    failed: str,
) -> None:
    plant(module)
    monkeypatch.setenv(CHILDREN_VARIABLE, "1")  # stock is stock all the same
    result = run("bench", sample, "--blocks", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    *_, warm = (line for line in result.stdout.splitlines() if line.startswith("warm"))
    assert re.match(rf"warm  [\d.,]+ ms, \d+\.\d\d GB/s  failed: {failed} +-  ", warm), warm


def test_who_hangs_is_ended(sample: Path, plant: Callable[[str], None]) -> None:
    plant(HANGS)
    result = run("bench", sample, "--timeout", 1, "--json")
    for row in json.loads(result.stdout)["loads"].values():
        assert row["left_out"] or row["stock"]["failed"] == "no end within 1 s"
        # Torch may take longer to import.
        assert row["ours"]["seconds"] or row["ours"]["failed"] == "no end within 1 s"


def test_files_in_memory_have_no_cold_row(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("/dev/shm") / f"bench-{os.getpid()}"  # noqa: S108 - ours alone
    if not folder.parent.is_dir():
        pytest.skip("no /dev/shm")
    monkeypatch.setattr("safetensors_streaming._sample.CACHE_PAUSE_SECONDS", 0)
    try:
        result = run("bench", write_checkpoint(folder), "--blocks", 1)
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    assert result.exit_code == 0, result.output
    assert re.search(r"^cold +- +- +left out: the page cache keeps", result.output, re.MULTILINE)
    assert re.search(r"^warm +[\d.]+ ms, .* GB/s +[\d.]+ ms, ", result.output, re.MULTILINE)
    assert "cold:" not in result.output


def test_the_page_cache_is_what_the_kernel_says(evictable: list[str]) -> None:
    pages = [-(-Path(path).stat().st_size // mmap.PAGESIZE) for path in evictable]
    for cold, expected in ((True, [0] * len(pages)), (False, pages), (True, [0] * len(pages))):
        set_cache(evictable, cold=cold)
        assert [mincore_pages(path) for path in evictable] == expected


def test_what_others_have_mapped_cannot_be_cold(
    evictable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safetensors_streaming._sample.CACHE_PAUSE_SECONDS", 0)
    mapped = load_checkpoint(evictable[:1])
    assert any(bits(tensor) for tensor in mapped.values())  # now its pages are here
    with pytest.raises(CacheError, match=r"the page cache keeps \d+ of \d+ pages"):
        set_cache(evictable, cold=True)


def test_the_ratio_is_that_of_blocks() -> None:
    assert ratio_of([1.0, 30.0, 2.0], [2.0, 40.0, 8.0]) == Ratio(0.5)
    assert ratio_of([1.0, 2.0], [2.0, 8.0]) == Ratio(0.375)


def test_five_blocks_give_their_range() -> None:
    ours = [2.0, 3.0, 4.0, 5.0, 6.0]
    assert ratio_of(ours, [2.0] * 5) == Ratio(2.0, 1.0, 3.0, 0.9375)
    assert ratio_of([*ours, 7.0, 8.0], [2.0] * 7).confidence == CONFIDENCE


def test_most_blocks_noisy_tell_no_ratio() -> None:
    assert row_of([1, 1, 1, 1], [2, 2, 2, 2], [NOISY, NOISY, QUIET, QUIET]).ratio == Ratio(0.5)
    noisy = row_of([1, 1, 1], [2, 2, 2], [NOISY, NOISY, QUIET])
    assert (noisy.ratio, noisy.noisy_blocks) == (None, 2)


def test_no_ratio_where_one_failed() -> None:
    assert Row(Loads([1.0], [QUIET]), Loads(failed="killed")).ratio is None
    assert Row(Loads([1.0], [QUIET], failed="killed"), Loads([1.0], [QUIET])).ratio is None


def test_what_bound_ours_is_that_of_its_median_load() -> None:
    row = Row(Loads([3.0, 1.0, 2.0], [QUIET] * 3, ["disk", "link", "page cache"]))
    assert row.explained == "page cache"
    assert asdict(Row()) == asdict(Row(Loads(), Loads()))
    assert Row().explained is None


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "vast.safetensors", 64, 16 << 30)
    result = run("bench", path)
    assert (result.exit_code, result.stdout) == (REFUSED, "")
    needed, available = re.findall(r"([\d,]{9,}) bytes[, ]+(?:and|of)", result.stderr)
    needed, available = (int(number.replace(",", "")) for number in (needed, available))
    assert needed > path.stat().st_size
    lines = Path("/proc/meminfo").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
    assert 0 < available <= kib["MemTotal"] * 1024


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("{bad}",), BAD),
        (("{folder}/missing",), REFUSED),
        (("{file}", "--device", "tpu"), USAGE),
        (("{file}", "--device", "cuda:99"), REFUSED),
        (("{file}", "--blocks", "0"), USAGE),
        (("{file}", "--timeout", "0"), USAGE),
    ],
)
def test_exit_codes(sample: Path, words: tuple[str, ...], code: int) -> None:
    bad = sample.parent / "bad.safetensors"
    bad.write_bytes(b"<html>not found</html>")
    filled = (word.format(bad=bad, folder=sample.parent, file=sample) for word in words)
    result = run("bench", *filled)
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert "Traceback" not in result.output
    assert result.stderr


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = str(write_raw(tmp_path / "m.safetensors", {}))
    sample = measure(Job("ours", "cpu", cold=False, paths=[path]))
    assert (sample.digests, STOCK.load_file(Path(path))) == ({}, {})


class TestOnGpu:
    pytestmark = NEEDS_GPU

    def test_both_load_to_the_gpu(self, large: Path) -> None:
        facts: Any = told("bench", large, "--device", "cuda", "--blocks", 1)
        assert facts["device"] == "cuda:0"
        warm = facts["loads"]["warm"]
        assert warm["ours"]["seconds"]
        assert warm["stock"]["seconds"]
        assert re.search(r"^(page cache|link|Python).* \d+ % of \d+\.\d+ s", warm["explained"])
