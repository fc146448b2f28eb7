"""The rows of remote files."""

from __future__ import annotations

from bench.cases import FIRST, Row, Target

_LOOPBACK = "every byte from nginx on loopback through the ring, against curl"
_FAR = "200 MB/s, 80 ms to every first byte"

REMOTE_ROWS = (
    Row(
        name="remote-loopback",
        says=f"{_LOOPBACK}, 8 ranges of 8 MiB at once",
        action="engine",
        ours="ours-remote",
        others=("curl",),
        network="loopback",
        target=Target(1 / 0.9, "90 % of curl"),
    ),
    Row(
        name="remote-cpu",
        says="the same, CPU seconds of the processes",
        action="engine",
        ours="ours-remote",
        others=("curl",),
        network="loopback",
        counts="cpu_seconds",
        target=Target(2.0, "twice curl's at most"),
    ),
    Row(
        name="remote-rate",
        says=f"{_FAR}: every byte through the ring, against the rate itself",
        action="engine",
        ours="ours-remote",
        others=("clock",),
        network="far",
        ceilings=("proxy",),
        blocks=5,
        target=Target(1 / 0.85, "85 % of the rate"),
    ),
    Row(
        name="remote-far",
        says=f"{_FAR}: all shards into memory, every byte read",
        action="load",
        ours="ours-remote",
        others=("one-connection", "download"),
        network="far",
        ceilings=("proxy",),
        blocks=5,
        read=True,
        target=FIRST,
    ),
    Row(
        name="remote-far-gpu",
        says=f"{_FAR}: all shards to the GPU",
        action="load_cuda",
        ours="ours-remote-cuda",
        others=("one-connection-cuda", "download-cuda"),
        network="far",
        ceilings=("proxy",),
        blocks=5,
        target=FIRST,
    ),
    Row(
        name="remote-far-s3",
        says=f"{_FAR}, S3: all shards to the GPU",
        action="load_cuda",
        ours="ours-remote-s3",
        others=("runai-s3",),
        network="far",
        ceilings=("proxy",),
        blocks=5,
        target=FIRST,
    ),
    Row(
        name="remote-link",
        says="all shards from nginx on loopback to the GPU, against the link and the network alone",
        action="load_cuda",
        ours="ours-remote-cuda",
        others=("link", "ours-remote-dropped"),
        ceilings=("link",),
        network="loopback",
        bounds=True,
        target=Target(1 / 0.9, "90 % of the slower one"),
    ),
)
