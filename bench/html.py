"""``python -m bench.html FILE...``: result files as one page that needs nothing but itself."""

from __future__ import annotations

import argparse
import json
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from bench import figures, null, wording
from bench.records import is_result, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.records import Document, Record, Recorded

TITLE = "safetensors_streaming: benchmarks"
PAGE = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
#: The columns of a table whose text may run over several lines.
WIDE = {"what", "against", "goal"}
VERDICT_CLASSES = {True: "good", False: "bad", None: "doubt"}


def text(fact: object) -> str:
    """Anything as text of a page."""
    return escape(str(fact))


def grid(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in a box that scrolls; cells are HTML already."""
    head = "".join(f'<th scope="col">{text(heading)}</th>' for heading in headings)
    kinds = [' class="wide"' if heading in WIDE else "" for heading in headings]
    body = "\n".join(
        f"<tr>{''.join(f'<td{k}>{c}</td>' for k, c in zip(kinds, row, strict=True))}</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def verdict(row: Record) -> str:
    """A row's goal and whether it is reached, coloured."""
    told = wording.verdict(row)
    target = row["definition"]["target"]
    kind = "bad" if row["impossible"] else VERDICT_CLASSES[row["reached"]]
    goal = f"{text(target['says'])}: " if target else ""
    return f'{goal}<span class="{kind}">{text(told)}</span>' if told else goal or "-"


def results(document: Document) -> str:
    """The figures of all rows."""
    headings = ["row", "ours", "ratio of times, 95 % interval", "goal", "against", "what", "bytes"]
    headings += ["of it weights", "of it the library", "blocks", "noisy samples"]
    return grid(headings, map(cells, document.rows))


def cells(recorded: Recorded) -> list[str]:
    """One row of that table."""
    row, loaders = recorded.row, recorded.row["loaders"]
    definition = row["definition"]
    against = [f"{name}: {wording.time_and_rate(loaders[name])}" for name in recorded.others]
    noisy = {name: one["noisy_samples"] for name, one in loaders.items() if one["noisy_samples"]}
    result = [
        row["name"],
        wording.time_and_rate(loaders[definition["ours"]]),
        wording.ratio_of_times(row["ratio"], row["doubt"], recorded.blocks),
    ]
    facts = [
        "; ".join(against),
        definition["says"],
        wording.size(row["file_bytes"]),
        *wording.weights_and_rest(row["weights"]),
        recorded.blocks,
        ", ".join(f"{name} {count}" for name, count in noisy.items()) or "none",
    ]
    return [*map(text, result), verdict(row), *map(text, facts)]


def attention(document: Document) -> str:
    """What is noisy, failed or missing, as a list."""
    points = []
    for recorded in document.rows:
        row, definition = recorded.row, recorded.row["definition"]
        told = [wording.verdict(row)] if row["reached"] is False else []
        told += [row["doubt"]] if row["doubt"] else []
        left_out = [name for name in definition["others"] if name not in row["loaders"]]
        failed = row.get("failed", {})  # files of before it was kept have none
        told += [f"without {name}{', which failed' * (name in failed)}" for name in left_out]
        if told:
            points.append(f"<li>{text(row['name'])}: {text('; '.join(told))}</li>")
    if not points:
        return "<p>No row is noisy, no goal is missed, no loader was left out.</p>"
    return f"<ul>\n{chr(10).join(points)}\n</ul>"


def runs(document: Document) -> str:
    """When and on what the rows were measured."""
    environment = dict(document.runs[-1]["environment"])
    environment |= {
        "packages": ", ".join(f"{k} {v}" for k, v in environment["packages"].items() if v)
    }
    environment |= {"file_system": " ".join(environment["file_system"])}
    facts = "\n".join(
        f"<dt>{text(name)}</dt><dd>{text('unknown' if fact is None else fact)}</dd>"
        for name, fact in environment.items()
    )
    headings = ["date", "command", "machine", "ceilings"]
    table = grid(
        headings,
        (
            [
                text(run["date"] or "unknown"),
                text(run["command"] or "unknown"),
                text(wording.machine(run)),
                text(wording.ceilings(run["ceilings_bytes_per_second"]) or "none"),
            ]
            for run in document.runs
        ),
    )
    return f"{table}\n<dl>\n{facts}\n</dl>"


def figure(svg: str, title: str, says: str, *, alone: bool = False) -> str:
    """A picture with its title; what it shows is told to those who do not see it."""
    kind = ' class="alone"' if alone else ""
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{text(f"{title}: {says}")}"', 1)
    return (
        f'<figure{kind}><h3>{text(title)}</h3><p class="muted">{text(says)}</p>\n{svg}\n</figure>'
    )


def section(name: str, document: Document) -> str:
    """All that one result file has to say.

    Raises:
        ValueError: If nobody has written into it.
    """
    if not document.runs:
        raise ValueError(f"{name} holds no run")
    pictures = [
        figure(figures.times(recorded), recorded.row["name"], recorded.row["definition"]["says"])
        for recorded in document.rows
    ]
    rates = figures.rates(document.rows)
    parts = [f"<h2>{text(name)}</h2>"]
    if document.null:
        parts.append(f"<p>{text(null.sentence(document.null))}</p>")
    if rates:
        says = "the rate that each row reaches, in the median, beside its ceilings"
        parts.append(figure(rates, "Rates and ceilings", says, alone=True))
    parts += [f'<div class="figures">\n{chr(10).join(pictures)}\n</div>', results(document)]
    parts += ["<h3>Noisy, missed or left out</h3>", attention(document)]
    parts += ["<h3>Runs, and the machine of the last one</h3>", runs(document)]
    return "\n".join(parts)


def trace_section(trace: Path) -> str:
    """The time line of a load.

    Raises:
        ValueError: If the file is none.
    """
    content: Any = json.loads(trace.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "traceEvents" not in content:
        raise ValueError(f"{trace} is no trace of a load")
    says = "what each slot of the ring did, and the stream and the loop beside it"
    svg = figures.time_line(content["traceEvents"])
    return f"<h2>{text(trace.name)}</h2>\n{figure(svg, 'Time line of a load', says, alone=True)}"


def page(files: Sequence[Path], trace: Path | None = None) -> str:
    """The whole page.

    Args:
        files: Result files.
        trace: What ``safetensors-streaming load --trace`` wrote, if it shall be shown.

    Raises:
        ValueError: If a file is not what it should be.
    """
    names = [file.name for file in files]
    titles = [file.name if names.count(file.name) == 1 else str(file) for file in files]
    sections = [section(title, read(file)) for title, file in zip(titles, files, strict=True)]
    sections += [trace_section(trace)] if trace else []
    return PAGE.substitute(title=text(TITLE), body="\n".join(sections))


def main() -> None:
    """Reads the command line and writes the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.html", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a result file")
    parser.add_argument("--output", type=Path, required=True, metavar="PAGE")
    parser.add_argument("--trace", type=Path, help="written by safetensors-streaming load --trace")
    options = parser.parse_args()
    try:
        written = page([file for file in options.files if is_result(file)], options.trace)
        options.output.write_text(written, encoding="utf-8")
    except (OSError, ValueError, LookupError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
