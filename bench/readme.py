"""``python -m bench.readme``: writes the tables of the result files into README.md.

Each stands between two comments that name its file. With ``--check`` nothing is written; it leaves
with 1 if README.md would be another.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from bench import null, scoreboard, wording
from bench.records import Document, Recorded, is_result, read

ROOT = Path(__file__).resolve().parent.parent


def goal(recorded: Recorded) -> str:
    """What the row should reach, and whether it does."""
    target = recorded.row["definition"]["target"]
    if target is None:
        return "-"
    verdict = wording.verdict(recorded.row)
    return f"{target['says']}: {verdict if verdict == 'reached' else f'**{verdict}**'}"


def line(recorded: Recorded, *, apart: bool) -> str:
    """One row of the table; ``apart`` puts a library's weights beside the rest."""
    row = recorded.row
    loaders, definition = row["loaders"], row["definition"]
    against = (f"{name}: {wording.time_and_rate(loaders[name])}" for name in recorded.others)
    cells = (
        f"{definition['says']} ({wording.size(row['file_bytes'])})",
        wording.time_and_rate(loaders[definition["ours"]]),
        *(wording.weights_and_rest(row["weights"]) if apart else ()),
        "; ".join(against),
        wording.ratio_of_times(row["ratio"], row["doubt"], recorded.blocks),
        goal(recorded),
    )
    return f"| {' | '.join(cells)} |"


def table(document: Document) -> str:
    """The rows of a result file as Markdown, with the machine that they come from."""
    run = document.runs[-1]
    rates = wording.ceilings(run["ceilings_bytes_per_second"])
    bounds = f"; ceilings in the last of its runs: {rates}" if rates else ""
    apart = any(recorded.row["weights"] for recorded in document.rows)
    headings = ["what", "ours", *(["of it weights", "of it the library"] if apart else [])]
    headings += ["against", "ratio of times, 95 % interval", "goal"]
    return "\n".join(
        [
            f"{wording.machine(run)}{bounds}.",
            "",
            f"| {' | '.join(headings)} |",
            f"| {' | '.join('---' for _ in headings)} |",
            *[line(recorded, apart=apart) for recorded in document.rows if recorded.row["ratio"]],
        ]
    )


def put(text: str, name: str, fresh: str) -> str:
    """A text with the table of a result file between the comments that name it.

    Raises:
        SystemExit: If it has not one place for that.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    place = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    text, count = place.subn(lambda _: f"{begin}\n{fresh}\n{end}", text)
    if count != 1:
        raise SystemExit(f"README.md has not one place for the table of {name}: {begin} ... {end}")
    return text


def filled(text: str) -> str:
    """README.md with the tables of the result files that it names."""
    for file in filter(is_result, sorted((ROOT / "bench" / "results").glob("*.jsonl"))):
        document = read(file)
        fresh = null.sentence(document.null) if document.null else table(document)
        text = put(text, file.name, fresh)
    if scoreboard.RESULT.exists():
        text = put(text, scoreboard.RESULT.name, scoreboard.table(scoreboard.known()))
    return text


def main() -> None:
    """Writes the tables, or compares them with what is there."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if not check:
        readme.write_text(filled(text), encoding="utf-8")
    elif filled(text) != text:
        raise SystemExit("README.md has other tables than bench/results: python -m bench.readme")


if __name__ == "__main__":
    main()
