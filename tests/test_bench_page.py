from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from test_bench_report import RUN, result, written

from bench import records
from bench.report import lines

if TYPE_CHECKING:
    from pathlib import Path

    from bench.records import Record

page = pytest.importorskip("bench.html", reason="matplotlib is not installed").page
HOSTILE = """<script>alert(1)</script>"'&amp;$x_1$ $$body \u0007\U0001f600\u2028|"""
TRACE = {
    "traceEvents": [
        {"name": "thread_name", "ph": "M", "tid": 3, "args": {"name": "slot 0"}},
        {"name": "read", "ph": "X", "tid": 3, "ts": 0.0, "dur": 1500.0, "args": {}},
        {"name": "place", "ph": "X", "tid": 3, "ts": 1500.0, "dur": 500.0, "args": {}},
    ]
}


class Elements(HTMLParser):
    """What a page has: its elements, their attributes and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_page(tmp_path: Path) -> str:
    """A page of names that would be elements, entities, formulas or line ends."""
    path = tmp_path / f"{HOSTILE.replace('/', '')}.jsonl"
    environment: Record = dict(RUN["environment"]) | {"cpu": HOSTILE}  # type: ignore[call-overload]
    with records.opened(path, resume=False) as file:
        records.append(file, [RUN | {"command": HOSTILE, "environment": environment}])
        for record in lines(result(HOSTILE, HOSTILE)):
            text = json.dumps(record).replace('"stock"', json.dumps(HOSTILE))
            records.append(file, [json.loads(text)])
    events = json.dumps(TRACE).replace('"slot 0"', json.dumps(HOSTILE))
    trace = tmp_path / "trace.json"
    trace.write_text(events.replace('"place"', json.dumps(HOSTILE)), encoding="utf-8")
    return page([path], trace)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    elements = Elements(hostile_page(tmp_path))
    assert "script" not in elements.tags
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert elements.text.count(HOSTILE) > 5
    assert elements.tags.count("svg") == 3


def test_a_page_asks_for_nothing(tmp_path: Path) -> None:
    elements = Elements(page([written(tmp_path / "a.jsonl", result())]))
    known = {"html", "head", "meta", "link", "title", "style", "body", "svg", "text", "path", "use"}
    assert known <= set(elements.tags)
    assert not {"script", "img", "iframe", "object", "embed", "image"} & set(elements.tags)
    references = [
        value for name, value in elements.attributes if name in {"href", "src", "xlink:href"}
    ]
    assert all(value == "data:," or (value or "").startswith("#") for value in references)


def test_a_page_has_every_loader_sample_and_ceiling(tmp_path: Path) -> None:
    text = page([written(tmp_path / "a.jsonl", result(), result("noisy", foreign=0.5))])
    elements = Elements(text)
    assert "ours: 1,030.0 ms (3.88 GB/s)" in elements.text
    assert "ceiling: disk 5.00 GB/s" in elements.text
    assert "noisy: too noisy; without absent" in elements.text
    dots = [value for name, value in elements.attributes if name == "xlink:href"]
    assert len(dots) >= 2 * 2 * 7


@pytest.mark.parametrize("content", ["{}", "[]", "1", '{"traceEvents": []}', "{"])
def test_what_is_no_trace_is_refused(content: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    trace.write_text(content)
    with pytest.raises(ValueError, match=r"trace|Expecting"):
        page([written(tmp_path / "a.jsonl", result())], trace)
