"""``python -m bench.readme RESULT.json``: the table of a result file, for README.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def cell(loader: dict[str, Any]) -> str:
    """The median time of a loader, and its rate where every byte was read."""
    time = f"{loader['median'] * 1e3:,.1f} ms"
    rate = loader["gb_per_second"]
    return f"{time} ({rate:.2f} GB/s)" if rate else time


def line(result: dict[str, Any]) -> str:
    """One row of the table."""
    row, ratio = result["row"], result["ratio"]
    reference = ratio["reference"]
    interval = f"{ratio['median']:.3f} [{ratio['low']:.3f}..{ratio['high']:.3f}]"
    cells = (
        row["says"],
        cell(result["loaders"][row["ours"]]),
        f"{reference}: {cell(result['loaders'][reference])}",
        interval,
    )
    return f"| {' | '.join(cells)} |"


def table(document: dict[str, Any]) -> str:
    """The rows of a result file as Markdown, with the machine that they come from."""
    facts = document["environment"]
    memory = facts["memory_bytes"] / 2**30
    rates = document["ceilings_bytes_per_second"].items()
    ceilings = ", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in rates)
    machine = f"{facts['cores']} cores ({facts['cpu']}), {memory:.0f} GiB, Linux {facts['kernel']}"
    return "\n".join(
        [
            f"{machine}, {facts['file_system'][2]}; ceilings in the same run: {ceilings}.",
            "",
            "| what | ours | against | ratio of times, 95 % interval |",
            "| --- | --- | --- | --- |",
            *[line(result) for result in document["rows"] if result["ratio"]],
        ]
    )


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
