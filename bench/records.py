"""The result files, JSON lines: what each holds is told in bench/README.md."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TextIO, TypedDict

from bench.environment import environment

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

SCHEMA = 3


class Sample(TypedDict):
    """One sample of one loader: its processes in order, and what the machine did meanwhile."""

    seconds: float
    foreign_cores: float
    processes: list[dict[str, float | str]]


Samples = dict[str, list[Sample]]
Record = dict[str, Any]


@dataclass(frozen=True)
class Recorded:
    """A row of a result file, its samples, and the run that took them."""

    run: Record
    row: Record
    samples: Samples

    @property
    def ceilings(self) -> dict[str, float]:
        """What bounds this row, in bytes per second by name, as its run measured it."""
        rates: dict[str, float] = self.run["ceilings_bytes_per_second"]
        return {name: rates[name] for name in self.row["definition"]["ceilings"] if name in rates}

    @property
    def others(self) -> list[str]:
        """The loaders that ours is compared with, the fastest first."""
        loaders = self.row["loaders"]
        known = set(loaders) - {self.row["definition"]["ours"]}
        return sorted(known, key=lambda name: float(loaders[name]["median"]))

    @property
    def blocks(self) -> int:
        """How many samples each loader has."""
        return len(next(iter(self.samples.values())))


@dataclass
class Document:
    """What a result file holds; ``null`` is the last conclusion of ``python -m bench null``."""

    runs: list[Record] = field(default_factory=list)
    rows: list[Recorded] = field(default_factory=list)
    null: Record | None = None


def run_record(ceilings: dict[str, float], folder: Path) -> Record:
    """Describes this run: when, by which command, on what, and what it measured as ceilings."""
    return {
        "kind": "run",
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        "environment": environment(folder),
        "ceilings_bytes_per_second": ceilings,
    }


def sample_records(row: str, samples: Samples) -> list[Record]:
    """The lines of a row's samples, loader by loader, block by block."""
    return [
        {"kind": "sample", "row": row, "loader": loader, "block": block, **sample}
        for loader, taken in samples.items()
        for block, sample in enumerate(taken, 1)
    ]


def opened(path: Path, *, resume: bool) -> TextIO:
    """Opens a result file to write lines at its end; what it had is kept if ``resume``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (resume and path.exists()):
        return path.open("w", encoding="utf-8")
    text = path.read_bytes()
    with path.open("r+b") as file:  # a run that was killed may have left half a line
        file.truncate(text.rfind(b"\n") + 1)
    return path.open("a", encoding="utf-8")


def append(file: TextIO, records: Iterable[Record]) -> None:
    """Writes lines and hands them to the system: what is written outlives this process."""
    file.writelines(json.dumps(record) + "\n" for record in records)
    file.flush()


def is_result(path: Path) -> bool:
    """Tells whether a file is one of results."""
    with path.open(encoding="utf-8") as file:
        return file.readline().startswith('{"kind": "run"')


def read(path: Path) -> Document:
    """Reads a result file.

    A row's samples stand before it: samples that no row follows are of a run that was killed, and
    so is a last line without an end. Both are left out.

    Raises:
        ValueError: If it is none, or of another schema; the text names the line.
    """
    document = Document()
    pending: dict[str, Samples] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            _take(json.loads(line), document, pending)
        except (ValueError, LookupError, TypeError) as error:  # noqa: PERF203 - files are small
            raise ValueError(f"{path}, line {number}: not of a result file: {error}") from error
    return document


def _take(record: Record, document: Document, pending: dict[str, Samples]) -> None:
    kind = record.pop("kind")
    if kind == "run":
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}, not {SCHEMA}")
        document.runs.append(record)
        pending.clear()
    elif kind == "sample":
        loaders = pending.setdefault(record.pop("row"), {})
        taken = loaders.setdefault(record.pop("loader"), [])
        if record.pop("block") != len(taken) + 1:
            raise ValueError("a block is missing before this one")
        taken.append(Sample(**record))  # type: ignore[typeddict-item]
    elif kind == "row":
        samples = pending.pop(record["name"])
        document.rows.append(Recorded(document.runs[-1], record, samples))
    elif kind == "null":
        document.null = record
    else:
        raise ValueError(f"kind {kind!r}")
