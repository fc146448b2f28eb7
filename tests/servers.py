"""Real servers on loopback; without the program of one its tests are skipped by name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from bench.servers import BUCKET, SECRET, MissingError, Nginx, Seaweed
from bench.servers import nginx as real_nginx
from bench.servers import seaweed as real_seaweed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["BUCKET", "SECRET", "Nginx", "Seaweed", "nginx", "seaweed"]


@contextmanager
def nginx(folder: Path, root: Path, **settings: Any) -> Iterator[Nginx]:  # noqa: ANN401
    """A server of the files of `root`, its own files in `folder`."""
    try:
        with real_nginx(folder, root, **settings) as running:
            yield running
    except MissingError as reason:
        pytest.skip(str(reason))


@contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """A server whose objects lie in `folder`, and a client of it."""
    try:
        with real_seaweed(folder) as running:
            yield running
    except MissingError as reason:
        pytest.skip(str(reason))
