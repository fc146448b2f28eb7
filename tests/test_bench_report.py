from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors_streaming._statistics import median_interval

from bench import __main__ as benchmark
from bench import models, null, readme, records, scoreboard
from bench.cases import Row, Target
from bench.report import Result, evaluate, lines
from bench.statistics import paired_ratios

if TYPE_CHECKING:
    from bench.records import Samples

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
RUN = {
    "kind": "run",
    "schema": 3,
    "date": "2026-01-01T00:00:00+00:00",
    "command": "python -m bench cpu",
    "environment": {
        "kernel": "6.1",
        "cpu": "a processor",
        "cores": 2,
        "memory_bytes": 8 << 30,
        "file_system": ["/dev/a", "/", "ext4", "rw"],
        "governor": None,
        "gpu": None,
        "packages": {"torch": "2.11.0", "peft": None},
    },
    "ceilings_bytes_per_second": {"disk": 5e9, "link": 4e9},
}


def result(name: str = "cold", says: str = "a load", foreign: float = 0.0) -> Result:
    """A row of seven blocks in which ours takes half of the time, from a disk of 5 GB/s."""
    target = Target(1.0, "before stock")
    row = Row(name, says, "load", others=("stock", "absent"), ceilings=("disk",), target=target)
    samples: Samples = {
        loader: [
            {"seconds": seconds + block / 100, "foreign_cores": foreign, "processes": [{}]}
            for block in range(7)
        ]
        for loader, seconds in (("ours", 1.0), ("stock", 2.0))
    }
    return evaluate(row, samples, 4_000_000_000, {"disk": 5e9})


def against_bounds(**seconds: float) -> Result:
    """A row whose others bound it, by the seconds that each loader takes."""
    target = Target(1.25, "80 % of the slower one")
    others = ("null-2", "sha256")
    row = Row("verify", "a digest", "digest", others=others, bounds=True, target=target)
    sample = {"foreign_cores": 0.0, "processes": [{}]}
    samples: Samples = {
        name.replace("_", "-"): [{"seconds": taken, **sample}] * 7
        for name, taken in seconds.items()
    }
    return evaluate(row, samples, 4_000_000_000, {})


def test_the_slowest_of_bounds_is_the_reference_and_none_may_be_missing() -> None:
    one = against_bounds(ours=2.0, null_2=1.8, sha256=1.0)
    assert one.ratio is not None
    assert (one.ratio.reference, one.reached, one.impossible) == ("null-2", True, [])
    assert against_bounds(ours=2.0, sha256=1.0).ratio is None
    faster = against_bounds(ours=1.5, null_2=1.8, sha256=1.0)
    assert (faster.reached, faster.impossible) == (False, ["ours"])


def written(path: Path, *results: Result, resume: bool = False) -> Path:
    with records.opened(path, resume=resume) as file:
        records.append(file, [RUN])
        for one in results:
            records.append(file, lines(one))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    one = result()
    (recorded,) = records.read(written(tmp_path / "a.jsonl", one)).rows
    assert recorded.samples == one.samples
    assert recorded.row["definition"]["says"] == "a load"
    assert recorded.row["ratio"]["high"] == one.ratio.high if one.ratio else False
    assert recorded.row["reached"] is True
    assert recorded.ceilings == {"disk": 5e9}
    assert (recorded.others, recorded.blocks) == (["stock"], 7)


def test_a_new_run_keeps_the_rows_before_it_and_its_own_ceilings(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", result("first"))
    with records.opened(path, resume=True) as file:
        records.append(file, [RUN | {"ceilings_bytes_per_second": {"disk": 7e9}}])
        records.append(file, lines(result("second")))
    first, second = records.read(path).rows
    assert (first.row["name"], second.row["name"]) == ("first", "second")
    assert (first.ceilings, second.ceilings) == ({"disk": 5e9}, {"disk": 7e9})
    (only,) = records.read(written(path, result("third"))).rows
    assert only.row["name"] == "third"


def test_of_a_run_that_was_killed_only_whole_rows_count(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", result("first"), result("second"))
    whole = path.read_bytes()
    begin = whole.index(b'{"kind": "sample", "row": "second"')
    for end in range(begin, len(whole), 97):
        path.write_bytes(whole[:end])
        assert [row.row["name"] for row in records.read(path).rows] == ["first"]
        written(path, result("second", "measured again"), resume=True)
        first, second = records.read(path).rows
        assert first.row["name"] == "first"
        assert second.row["definition"]["says"] == "measured again"
        assert second.samples == first.samples


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"kind": "other"}',
        '{"kind": "run", "schema": 2}',
        '{"kind": "row", "name": "no samples"}',
        '{"kind": "sample", "row": "a"}',
    ],
)
def test_other_files_are_refused_by_line(line: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", result())
    count = path.read_bytes().count(b"\n")
    with path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl, line {count + 1}: "):
        records.read(path)


@pytest.mark.filterwarnings("ignore:.*will be removed:FutureWarning")  # transformers' own
def test_a_benchmark_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    words = ["bench", "null", "--size", "0.01", "--blocks", "1", "--output", str(path)]
    monkeypatch.setattr(models, "CACHE", tmp_path / "models")
    monkeypatch.setattr(sys, "argv", [*words, "--rows", "same-1"])
    benchmark.main()
    first = path.read_bytes()
    monkeypatch.setattr(sys, "argv", [*words, "--rows", "same-1", "slowed-1", "--resume"])
    benchmark.main()
    assert path.read_bytes().startswith(first)
    document = records.read(path)
    assert [row.row["name"] for row in document.rows] == ["same-1", "slowed-1"]
    assert [row.run for row in document.rows] == document.runs
    answers = {
        process["answer"]
        for row in document.rows
        for taken in row.samples.values()
        for sample in taken
        for process in sample["processes"]
    }
    assert len(answers) == 1


def committed() -> list[Path]:
    return [path for path in sorted(RESULTS.glob("*.jsonl")) if records.is_result(path)]


@pytest.mark.parametrize("path", committed(), ids=lambda path: path.stem)
def test_committed_ratios_are_those_of_their_samples(path: Path) -> None:
    document = records.read(path)
    assert document.rows
    for recorded in document.rows:
        ratio = recorded.row["ratio"]
        ours = recorded.samples[recorded.row["definition"]["ours"]]
        ratios = paired_ratios(ours, recorded.samples[ratio["reference"]])
        assert ratio["median"] == pytest.approx(np.median(ratios), rel=1e-12)
        told = (ratio["low"], ratio["high"], ratio["confidence"])
        assert told == pytest.approx(median_interval(ratios), rel=1e-12)


def test_the_null_test_came_to_what_its_runs_say() -> None:
    document = records.read(RESULTS / "null.jsonl")
    conclusion = null.conclusion(document)
    assert conclusion is not None
    assert conclusion == document.null
    assert min(*conclusion["same_held"].values(), *conclusion["found"].values()) >= 17
    assert all(0.93 <= share <= 0.97 for share in conclusion["coverage"].values())
    document.rows.pop()
    assert null.conclusion(document) is None


def test_the_readme_has_the_committed_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.filled(text) == text
    files = {file.name for file in committed()} | {scoreboard.RESULT.name}
    assert files == set(re.findall("<!-- end of (.*) -->", text))


def test_a_table_of_the_readme(tmp_path: Path) -> None:
    quiet, noisy = result("quiet"), result("noisy", foreign=0.5)
    *_, first, second = readme.table(
        records.read(written(tmp_path / "a.jsonl", quiet, noisy))
    ).splitlines()
    times = "| 1,030.0 ms (3.88 GB/s) | stock: 2,030.0 ms (1.97 GB/s) |"
    interval = f"{quiet.ratio.low:.3f}..{quiet.ratio.high:.3f}" if quiet.ratio else ""
    assert first == f"| a load (4 GB) {times} 0.507 [{interval}] | before stock: reached |"
    assert second == f"| a load (4 GB) {times} too noisy | before stock: **too noisy** |"
