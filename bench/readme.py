"""``python -m bench.readme RESULT.json``: the table of a result file, for README.md.

Without a file it leaves with 1 if a table in README.md is not the one of its file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def cell(loader: dict[str, Any]) -> str:
    """The median time of a loader, and its rate where every byte was read."""
    time = f"{loader['median'] * 1e3:,.1f} ms"
    rate = loader["gb_per_second"]
    return f"{time} ({rate:.2f} GB/s)" if rate else time


def weights_cells(weights: dict[str, Any] | None) -> tuple[str, str]:
    """What the weights took of a library's call, and what the rest took."""
    if weights is None:
        return "-", "-"
    told = f"{weights['seconds'] * 1e3:,.1f} ms ({weights['gb_per_second']:.2f} GB/s"
    if weights["share"]:
        told += f", {weights['share']:.0%} of the ceiling"
    return f"{told})", f"{weights['rest_seconds'] * 1e3:,.1f} ms"


def line(result: dict[str, Any], *, apart: bool) -> str:
    """One row of the table; ``apart`` puts a library's weights beside the rest."""
    row, ratio = result["row"], result["ratio"]
    reference, weights = ratio["reference"], result.get("weights")
    interval = f"{ratio['median']:.3f} [{ratio['low']:.3f}..{ratio['high']:.3f}]"
    cells = (
        row["says"],
        cell(result["loaders"][row["ours"]]),
        *(weights_cells(weights) if apart else ()),
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
    apart = any(result.get("weights") for result in document["rows"])
    headings = ["what", "ours", *(["of it weights", "of it the library"] if apart else [])]
    headings += ["against", "ratio of times, 95 % interval"]
    return "\n".join(
        [
            f"{machine}, {facts['file_system'][2]}; ceilings in the same run: {ceilings}.",
            "",
            f"| {' | '.join(headings)} |",
            f"| {' | '.join('---' for _ in headings)} |",
            *[line(result, apart=apart) for result in document["rows"] if result["ratio"]],
        ]
    )


def main() -> None:
    """Prints the table of a file, or compares all tables with README.md."""
    if sys.argv[1:]:
        print(table(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
        return
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for file in sorted((ROOT / "bench" / "results").glob("*.json")):
        if table(json.loads(file.read_text(encoding="utf-8"))) not in text:
            raise SystemExit(f"README.md has not the table of {file.name}: python -m bench.readme")


if __name__ == "__main__":
    main()
