"""The time line of a load, as tests look at it."""

from __future__ import annotations

import itertools
from typing import Any


def spans_of(events: list[Any], names: set[str]) -> dict[int, list[tuple[float, float]]]:
    """The spans of those names by lane, in order, in microseconds."""
    lanes: dict[int, list[tuple[float, float]]] = {}
    for event in events:
        if event["name"] in names:
            lanes.setdefault(event["tid"], []).append((event["ts"], event["ts"] + event["dur"]))
    return {lane: sorted(spans) for lane, spans in lanes.items()}


def one_after_the_other(spans: list[tuple[float, float]]) -> bool:
    """Whether none begins before the one before has ended; a microsecond is for what is rounded."""
    return all(one[1] <= other[0] + 1 for one, other in itertools.pairwise(spans))
