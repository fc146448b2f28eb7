"""Patches safetensors before upstream's own test modules import it: ``-p upstream_plugin``.

Says at the end how many calls were served here, and fails a run in which none was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import safetensors_streaming

if TYPE_CHECKING:
    import pytest


def pytest_configure() -> None:
    safetensors_streaming.patch()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not safetensors_streaming.status().served:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    status = safetensors_streaming.status()
    served = ", ".join(f"{name} {count}" for name, count in sorted(status.served.items()))
    handed_on = sum(status.delegated.values())
    terminalreporter.write_line(f"served here: {served or 'NOTHING'}; upstream: {handed_on}")
