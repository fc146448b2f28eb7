"""Holds the first byte of every answer back: ``python -m bench.delay HOST PORT TO SECONDS``.

The kernels of many machines have no netem; this proxy stands for the way to a server far away. It
forwards what it gets as it is, and takes whatever a client sends for a request.
"""

from __future__ import annotations

import asyncio
import sys

CHUNK = 1 << 18


class Way:
    """One connection of a client, and its own to the server."""

    def __init__(self, delay: float) -> None:
        """Remembers the delay, in seconds."""
        self._delay = delay
        self._held_until = 0.0

    async def requests(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Forwards requests; each begins to hold the answer back."""
        loop = asyncio.get_running_loop()
        while data := await source.read(CHUNK):
            self._held_until = loop.time() + self._delay
            target.write(data)
            await target.drain()
        target.write_eof()

    async def answers(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        """Forwards answers, none before its time."""
        loop = asyncio.get_running_loop()
        while data := await source.read(CHUNK):
            if (left := self._held_until - loop.time()) > 0:
                await asyncio.sleep(left)
            target.write(data)
            await target.drain()
        target.close()


async def serve(host: str, port: int, to: int, delay: float) -> None:
    """Serves until it is killed."""

    async def connected(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        way = Way(delay)
        try:
            answer, request = await asyncio.open_connection(host, to, limit=CHUNK)
            await asyncio.gather(way.requests(source, request), way.answers(answer, target))
        except OSError:  # one of both has gone
            target.close()

    server = await asyncio.start_server(connected, host, port, limit=CHUNK)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
