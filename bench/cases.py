"""The rows of the benchmark as data: what is timed, on which files, and what it should reach."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """What a row has to reach.

    Attributes:
        ratio: The highest allowed time of ours over the reference's.
        says: The same in words.
        certain: Whether the upper end of the confidence interval decides, not the median.
    """

    ratio: float
    says: str
    certain: bool = False


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: How ``--rows`` calls it.
        says: What it times, in words.
        action: The loaders' method.
        ours: The loader judged.
        others: Those it is compared with; the one with the lowest median is the reference.
        files: "model", "small", "both" or "experts".
        cache: For each process of a sample: "cold", "warm", or "left" as the last one left it.
        blocks: Samples of each loader.
        read: Whether reading every byte is timed as well.
        rehearse: Whether an untimed call comes first.
        ceiling: What bounds the rate of bytes, "disk", "memory" or "link"; none where none need be
            read.
        target: None for a row that only reports.
        throttled: Whether the files come no faster than ``bench/throttle.c`` lets them.
    """

    name: str
    says: str
    action: str
    ours: str = "ours"
    others: tuple[str, ...] = ("stock",)
    files: str = "model"
    cache: tuple[str, ...] = ("warm",)
    blocks: int = 7
    read: bool = False
    rehearse: bool = False
    ceiling: str | None = None
    target: Target | None = None
    throttled: bool = False


NEVER_SLOWER = Target(1.05, "never slower", certain=True)
NULL_READERS = ("null-2", "null-4", "null-8")
#: Those that only move bytes: what they reach is a ceiling.
CEILINGS = (*NULL_READERS, "null-source", "link")

ROWS = (
    Row(
        name="small-5000",
        says="load_file of 5,000 small tensors, warm",
        action="load",
        files="small",
        blocks=15,
        target=Target(1 / 4, "1/4 of stock"),
    ),
    Row(
        name="open",
        says="safe_open + keys() of the model and of the 5,000 tensors, warm",
        action="names",
        files="both",
        blocks=15,
        target=NEVER_SLOWER,
    ),
    Row(
        name="warm-read",
        says="load_file + read of every byte, warm",
        action="load",
        blocks=9,
        read=True,
        ceiling="memory",
        target=NEVER_SLOWER,
    ),
    Row(
        name="cold-lazy",
        says="load_file, nothing read, cold",
        action="load",
        cache=("cold",),
        target=Target(1 / 20, "1/20 of stock"),
    ),
    Row(
        name="cold-read",
        says="load_file + read of every byte, cold",
        action="load",
        cache=("cold",),
        read=True,
        ceiling="disk",
        target=Target(1 / 1.5, "1.5x faster"),
    ),
    Row(
        name="engine",
        says="every byte through the ring, cold, direct, against the best null reader",
        action="engine",
        others=NULL_READERS,
        cache=("cold",),
        ceiling="disk",
        target=Target(1 / 0.9, "90 % of the null reader"),
    ),
    Row(
        name="engine-again",
        says="the same, second call of the process: its ring exists",
        action="engine",
        others=NULL_READERS,
        cache=("cold",),
        blocks=3,
        rehearse=True,
        ceiling="disk",
    ),
    Row(
        name="twice",
        says="load_file + read of every byte, cold, then once more by a second process: the sum",
        action="load",
        cache=("cold", "left"),
        read=True,
        target=NEVER_SLOWER,
    ),
    Row(
        name="pretrained-warm",
        says="transformers' from_pretrained, warm",
        action="pretrained",
        ours="patched",
        others=("transformers",),
        blocks=5,
    ),
    Row(
        name="pretrained-cold",
        says="transformers' from_pretrained, cold",
        action="pretrained",
        ours="patched",
        others=("transformers",),
        cache=("cold",),
        blocks=5,
    ),
    Row(
        name="pread-warm",
        says='load_file(backend="pread"), warm',
        action="load_pread",
        blocks=3,
        ceiling="memory",
    ),
)

PEERS = ("stock-cuda", "prefetch", "fastsafetensors", "instanttensor", "runai")
WARM_PEERS = (*PEERS, "instanttensor-buffered")
FIRST = Target(1.0, "before every peer")

#: Loads to a GPU, a real or a simulated one. Each ends when the caller has all tensors and the GPU
#: is idle; the context is made before.
GPU_ROWS = (
    Row(
        name="gpu-warm",
        says="all shards to the GPU, warm, first load of the process",
        action="load_cuda",
        ours="ours-cuda",
        others=WARM_PEERS,
        blocks=5,
        ceiling="link",
        target=FIRST,
    ),
    Row(
        name="gpu-warm-again",
        says="the same, second load of the process",
        action="load_cuda",
        ours="ours-cuda",
        others=WARM_PEERS,
        blocks=3,
        rehearse=True,
        ceiling="link",
        target=FIRST,
    ),
    Row(
        name="gpu-link",
        says="all shards to the GPU, warm, second load, against the link's own rate",
        action="load_cuda",
        ours="ours-cuda",
        others=("link",),
        blocks=5,
        rehearse=True,
        ceiling="link",
        target=Target(1 / 0.95, "95 % of the link"),
    ),
    Row(
        name="gpu-driver",
        says="the same with allocator=driver",
        action="load_cuda",
        ours="ours-driver",
        others=("link",),
        blocks=5,
        rehearse=True,
        ceiling="link",
        target=Target(1 / 0.95, "95 % of the link"),
    ),
    Row(
        name="gpu-loop",
        says="one get_tensor after the other, by name, warm, second load, against the link",
        action="loop_cuda",
        ours="ours-cuda",
        others=("link", "stock-cuda"),
        blocks=5,
        rehearse=True,
        ceiling="link",
        target=Target(1 / 0.8, "80 % of the link"),
    ),
    Row(
        name="gpu-cold",
        says="all shards to the GPU, cold",
        action="load_cuda",
        ours="ours-cuda",
        others=PEERS,
        cache=("cold",),
        blocks=3,
        ceiling="link",
        target=FIRST,
    ),
    Row(
        name="gpu-experts",
        says="20,000 tensors of 4 KiB to the GPU, warm, against stock",
        action="load_cuda",
        ours="ours-cuda",
        others=("stock-cuda",),
        files="experts",
        blocks=3,
        target=Target(1 / 4, "1/4 of stock"),
    ),
)

#: On the simulated link alone: no source of a real GPU's rate could be made of a file by waiting.
SIM_ROWS = (
    *GPU_ROWS,
    Row(
        name="gpu-throttled",
        says="the same from a source as slow as the link, against either alone",
        action="load_cuda",
        ours="ours-cuda",
        others=("link", "null-source"),
        blocks=5,
        rehearse=True,
        ceiling="link",
        target=Target(1 / 0.9, "90 % of either"),
        throttled=True,
    ),
)
