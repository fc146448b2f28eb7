"""``python -m bench.readme``: writes the tables of the result files into README.md.

Each stands between two comments that name its file. With ``--check`` nothing is written; it leaves
with 1 if README.md would be another.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

GB, MB = 1e9, 1e6
BLOCKS_MIN = 5
ROOT = Path(__file__).resolve().parent.parent


def size(count: int) -> str:
    """A number of bytes, to three digits."""
    return f"{count / GB:.3g} GB" if count >= GB else f"{count / MB:.3g} MB"


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


def times(ratio: dict[str, Any], blocks: int) -> str:
    """The ratio of times; of few blocks no interval can be told."""
    if blocks < BLOCKS_MIN:
        return f"{ratio['median']:.3f} ({blocks} blocks)"
    return f"{ratio['median']:.3f} [{ratio['low']:.3f}..{ratio['high']:.3f}]"


def goal(result: dict[str, Any]) -> str:
    """What the row should reach, and whether it does."""
    target = result["row"]["target"]
    if target is None:
        return "-"
    return f"{target['says']}: {'reached' if result['reached'] else '**missed**'}"


def line(result: dict[str, Any], *, apart: bool) -> str:
    """One row of the table; ``apart`` puts a library's weights beside the rest."""
    row, ratio, loaders = result["row"], result["ratio"], result["loaders"]
    others = sorted(set(loaders) - {row["ours"]}, key=lambda name: loaders[name]["median"])
    weights = result.get("weights")
    cells = (
        f"{row['says']} ({size(result['file_bytes'])})",
        cell(loaders[row["ours"]]),
        *(weights_cells(weights) if apart else ()),
        "; ".join(f"{name}: {cell(loaders[name])}" for name in others),
        times(ratio, len(result["samples"][row["ours"]])),
        goal(result),
    )
    return f"| {' | '.join(cells)} |"


def table(document: dict[str, Any]) -> str:
    """The rows of a result file as Markdown, with the machine that they come from."""
    facts = document["environment"]
    memory = facts["memory_bytes"] / 2**30
    rates = document["ceilings_bytes_per_second"].items()
    ceilings = ", ".join(f"{name} {rate / 1e9:.2f} GB/s" for name, rate in rates)
    gpu = f"{facts['gpu']}, " if facts.get("gpu") else ""
    machine = f"{gpu}{facts['cores']} cores ({facts['cpu']}), {memory:.0f} GiB"
    machine += f", Linux {facts['kernel']}, {facts['file_system'][2]}"
    apart = any(result.get("weights") for result in document["rows"])
    headings = ["what", "ours", *(["of it weights", "of it the library"] if apart else [])]
    headings += ["against", "ratio of times, 95 % interval", "goal"]
    return "\n".join(
        [
            f"{machine}; ceilings in the last of its runs: {ceilings}.",
            "",
            f"| {' | '.join(headings)} |",
            f"| {' | '.join('---' for _ in headings)} |",
            *[line(result, apart=apart) for result in document["rows"] if result["ratio"]],
        ]
    )


def filled(text: str) -> str:
    """README.md with the tables of the result files that it names.

    Raises:
        SystemExit: If a result file has no place in it.
    """
    for file in sorted((ROOT / "bench" / "results").glob("*.json")):
        begin, end = f"<!-- {file.name} -->", f"<!-- end of {file.name} -->"
        if begin not in text:
            raise SystemExit(f"README.md has no place for the table of {file.name}: {begin}")
        fresh = table(json.loads(file.read_text(encoding="utf-8")))
        place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        text, count = place.subn(lambda _, new=f"{begin}\n{fresh}\n{end}": new, text)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"README.md has not one place for the table of {file.name}: {end}")
    return text


def main() -> None:
    """Writes the tables, or compares them with what is there."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if sys.argv[1:] != ["--check"]:
        readme.write_text(filled(text), encoding="utf-8")
    elif filled(text) != text:
        raise SystemExit("README.md has other tables than bench/results: python -m bench.readme")


if __name__ == "__main__":
    main()
