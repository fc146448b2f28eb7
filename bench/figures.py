"""The pictures of the page, as SVG that takes its colours and letters from the page."""

from __future__ import annotations

import io
import re
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from bench.statistics import noisy
from bench.wording import GB, time_and_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from bench.records import Record, Recorded

#: Colours that stand for those of the page's style sheet, which has others in the dark.
COLORS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "card": "#0d0d0d",
    "ours": "#040404",
    "other": "#050505",
    "ceiling": "#060606",
    "read": "#070707",
    "allocate": "#080808",
    "place": "#090909",
    "deliver": "#0a0a0a",
    "copy": "#0b0b0b",
    "kernels": "#0c0c0c",
}
STYLE: Any = {
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "bench",  # the same figure has the same text
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.size": 10.5,
    "axes.edgecolor": COLORS["line"],
    "axes.labelcolor": COLORS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "text.color": COLORS["ink"],
    "xtick.color": COLORS["muted"],
    "ytick.color": COLORS["ink"],
    "grid.color": COLORS["line"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}
WIDTH_INCH = 5.0  # 360 points: a point is about a pixel of a narrow screen
MARGIN_INCH = 0.12
LOG_SPAN = 20
TICKS_MAX = 12
BOX_SAMPLES_MIN = 5  # quartiles of fewer say less than the dots
NAME_LETTERS_MAX, LANE_LETTERS_MAX = 40, 16
LINE_STYLES = {"disk": ":", "link": "--", "memory": "-."}


class _Sheet(NamedTuple):
    """A figure with one pair of axes, its places given in inches."""

    figure: Figure
    axes: Axes


def _sheet(height: float, above: float, below: float, left: float = MARGIN_INCH) -> _Sheet:
    """Makes axes ``height`` inches high, with room around them."""
    whole = height + above + below
    figure = Figure((WIDTH_INCH, whole))
    width = WIDTH_INCH - left - MARGIN_INCH
    place = (left / WIDTH_INCH, below / whole, width / WIDTH_INCH, height / whole)
    axes = figure.add_axes(place)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    return _Sheet(figure, axes)


def _svg(figure: Figure) -> str:
    """Draws a figure as an element of a page; whoever puts it there says what it shows."""
    file = io.StringIO()
    with warnings.catch_warnings():  # the letters are drawn by the page's font, not by this one
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(_METADATA))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*">', "<g>", text)  # several figures stand in one page
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font-family: [^;\"]*; ", "", text)
    for name, color in COLORS.items():
        text = text.replace(color, f"var(--{name})")
    return text


_METADATA = ("Creator", "Date", "Format", "Type")


def _short(name: str, letters: int = NAME_LETTERS_MAX) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _scale(axes: Axes, values: Sequence[float], what: str) -> None:
    """Lets the axis begin at nothing, or be logarithmic where the values are far apart."""
    low, high = min(values), max(values)
    if low > 0 and high > LOG_SPAN * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=TICKS_MAX))
        axes.xaxis.set_minor_formatter(NullFormatter())
        what += ", logarithmic"
    else:
        axes.set_xlim(0, high * 1.06)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel(what)


def times(recorded: Recorded) -> str:
    """The time of each loader of a row: every sample, quartiles and median, and the ceilings."""
    loaders = [recorded.row["definition"]["ours"], *recorded.others]
    loaders = [name for name in loaders if name in recorded.samples]
    ceilings = {
        name: recorded.row["file_bytes"] / rate * 1e3 for name, rate in recorded.ceilings.items()
    }
    with mpl.rc_context(STYLE):
        sheet = _sheet(0.6 * len(loaders), above=0.1 + 0.18 * len(ceilings), below=0.6)
        axes = sheet.axes
        values = list(ceilings.values())
        for line, name in enumerate(loaders):
            values += _loader(axes, -line, name, recorded)
        axes.set_ylim(0.7 - len(loaders), 0.6)
        axes.set_yticks([])
        _scale(axes, values, "milliseconds")
        for line, (name, value) in enumerate(ceilings.items()):
            axes.axvline(value, color=COLORS["ceiling"], linestyle=LINE_STYLES.get(name, "--"))
            rate = recorded.ceilings[name] / GB
            _above(axes, value, line, f"ceiling: {name} {rate:.2f} GB/s")
        return _svg(sheet.figure)


def _above(axes: Axes, value: float, line: int, text: str) -> None:
    """Writes above the axes, on the side of a place where there is more room."""
    right = axes.transAxes.inverted().transform(axes.transData.transform((value, 0)))[0] < 0.5  # noqa: PLR2004
    axes.annotate(
        text,
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(3 if right else -3, 2 + 12.5 * line),
        textcoords="offset points",
        ha="left" if right else "right",
        color=COLORS["ceiling"],
    )


def _label(axes: Axes, height: float, text: str) -> None:
    """Writes at the left end of a line, over what runs through."""
    behind = {"facecolor": COLORS["card"], "edgecolor": "none", "alpha": 0.9, "pad": 0.5}
    axes.annotate(text, (0, height), xycoords=("axes fraction", "data"), bbox=behind)


def _loader(axes: Axes, line: int, name: str, recorded: Recorded) -> list[float]:
    """Draws one loader's line; gives its samples in milliseconds."""
    figures, taken = recorded.row["loaders"][name], recorded.samples[name]
    color = COLORS["ours" if name == recorded.row["definition"]["ours"] else "other"]
    _label(axes, line + 0.26, f"{_short(name)}: {time_and_rate(figures)}")
    low, median, high = (
        figures[name] * 1e3 for name in ("lower_quartile", "median", "upper_quartile")
    )
    if len(taken) >= BOX_SAMPLES_MIN:
        axes.barh(line, high - low, 0.26, low, color=color, alpha=0.35)
    axes.plot([median, median], [line - 0.19, line + 0.19], color=color, linewidth=2.2)
    seconds = [sample["seconds"] * 1e3 for sample in taken]
    faces = ["none" if noisy(sample) else color for sample in taken]
    axes.scatter(seconds, [line] * len(seconds), 13, facecolors=faces, edgecolors=color, zorder=3)
    return seconds


def rates(rows: Sequence[Recorded]) -> str | None:
    """The rate that each row's loaders reach, beside its ceilings; None where no row has both."""
    rows = [recorded for recorded in rows if recorded.ceilings and _rates(recorded)]
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        sheet = _sheet(0.46 * len(rows), above=0.1, below=1.25)
        axes = sheet.axes
        every: list[float] = []
        for line, recorded in enumerate(rows):
            _label(axes, 0.16 - line, _short(recorded.row["name"]))
            every += _row_of_rates(axes, -line, recorded)
        axes.set_ylim(0.6 - len(rows), 0.6)
        axes.set_yticks([])
        _scale(axes, every, "GB/s")
        handles, labels = axes.get_legend_handles_labels()
        known = dict(zip(labels, handles, strict=True))
        below = (0.0, 0.0, 1.0, 0.0)
        sheet.figure.legend(
            known.values(), known.keys(), loc="lower left", ncols=2, bbox_to_anchor=below
        )
        return _svg(sheet.figure)


def _rates(recorded: Recorded) -> dict[str, float]:
    loaders = recorded.row["loaders"].items()
    return {name: one["gb_per_second"] for name, one in loaders if one["gb_per_second"]}


def _row_of_rates(axes: Axes, line: int, recorded: Recorded) -> list[float]:
    """Draws one row; gives all its rates."""
    reached = _rates(recorded)
    ours = recorded.row["definition"]["ours"]
    for name, rate in recorded.ceilings.items():
        axes.plot(
            [rate / GB] * 2,
            [line - 0.22, line + 0.14],
            color=COLORS["ceiling"],
            linestyle=LINE_STYLES.get(name, "-"),
            linewidth=2,
            label=f"ceiling: {name}",
        )
    weights = recorded.row["weights"]
    dots = (
        ("other loaders", [rate for name, rate in reached.items() if name != ours]),
        ("ours", [reached[ours]] if ours in reached else []),
        ("ours, the weights alone", [weights["gb_per_second"]] if weights else []),
    )
    for label, rates in dots:
        if rates:
            color = COLORS["other" if label == "other loaders" else "ours"]
            marker = ">" if "weights" in label else "o"
            spots = [line - 0.04] * len(rates)
            axes.scatter(rates, spots, 26, color=color, marker=marker, label=label, zorder=3)
    shown = [rate for _, rates in dots for rate in rates]
    return [*(rate / GB for rate in recorded.ceilings.values()), *shown]


def time_line(events: Sequence[Record]) -> str:
    """What a load did when, from its trace: a line for each lane, a bar for each span.

    Raises:
        ValueError: If the trace has no spans.
    """
    names = {e["tid"]: str(e["args"]["name"]) for e in events if e.get("name") == "thread_name"}
    spans = [event for event in events if event.get("ph") == "X"]
    lanes = sorted({span["tid"] for span in spans})
    if not lanes:
        raise ValueError("the trace has no spans")
    with mpl.rc_context(STYLE):
        sheet = _sheet(0.22 * len(lanes), above=0.1, below=0.95, left=1.2)
        axes = sheet.axes
        for what in sorted({str(span["name"]) for span in spans}):
            _spans(axes, what, [span for span in spans if span["name"] == what], lanes)
        texts = [
            _short(names.get(lane, str(lane)).split(": ")[0], LANE_LETTERS_MAX) for lane in lanes
        ]
        axes.set_yticks(range(0, -len(lanes), -1), texts)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(0.6 - len(lanes), 0.6)
        axes.set_xlim(0, max(span["ts"] + span["dur"] for span in spans) / 1e3)
        axes.set_xlabel("milliseconds since the load began")
        sheet.figure.legend(loc="lower left", ncols=4, bbox_to_anchor=(0.0, 0.0, 1.0, 0.0))
        return _svg(sheet.figure)


def _spans(axes: Axes, what: str, spans: Sequence[Any], lanes: Sequence[Any]) -> None:
    """Draws the spans of one name."""
    color = COLORS.get(what, COLORS["muted"])
    for number, lane in enumerate(lanes):
        bars = [(span["ts"] / 1e3, span["dur"] / 1e3) for span in spans if span["tid"] == lane]
        if bars:
            axes.broken_barh(bars, (-number - 0.36, 0.72), facecolors=color, label=f"_{what}")
    axes.barh(0, 0, color=color, label=what)
