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
        files: "model", "small" or "both".
        cache: For each process of a sample: "cold", "warm", or "left" as the last one left it.
        blocks: Samples of each loader.
        read: Whether reading every byte is timed as well.
        rehearse: Whether an untimed call comes first.
        ceiling: What bounds the rate of bytes, "disk" or "memory"; none where none need be read.
        target: None for a row that only reports.
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


NEVER_SLOWER = Target(1.05, "never slower", certain=True)
NULL_READERS = ("null-2", "null-4", "null-8")

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
