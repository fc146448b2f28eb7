"""Figures in words, as the terminal, README.md and the page have them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safetensors_streaming._statistics import CONFIDENCE

from bench.statistics import CONFIDENCE_MIN, TOO_NOISY

if TYPE_CHECKING:
    from bench.records import Record

GB, MB = 1e9, 1e6


def size(count: int) -> str:
    """A number of bytes, to three digits."""
    return f"{count / GB:.3g} GB" if count >= GB else f"{count / MB:.3g} MB"


def time_and_rate(loader: Record) -> str:
    """The median time of a loader, and its rate where every byte was read."""
    time = f"{loader['median'] * 1e3:,.1f} ms"
    rate = loader["gb_per_second"]
    return f"{time} ({rate:.2f} GB/s)" if rate else time


def weights_and_rest(weights: Record | None) -> tuple[str, str]:
    """What the weights took of a library's call, and what the rest took."""
    if weights is None:
        return "-", "-"
    told = f"{weights['seconds'] * 1e3:,.1f} ms ({weights['gb_per_second']:.2f} GB/s"
    if weights["share"]:
        told += f", {weights['share']:.0%} of the ceiling"
    return f"{told})", f"{weights['rest_seconds'] * 1e3:,.1f} ms"


def ratio_of_times(ratio: Record | None, doubt: str | None, blocks: int) -> str:
    """A ratio and its interval; of four blocks or fewer no interval can be told."""
    if ratio is None or doubt == TOO_NOISY:
        return doubt or "-"
    if ratio["confidence"] < CONFIDENCE_MIN:
        return f"{ratio['median']:.3f} ({blocks} block{'s'[: blocks - 1]})"
    told = f"{ratio['median']:.3f} [{ratio['low']:.3f}..{ratio['high']:.3f}]"
    return (
        told
        if ratio["confidence"] == CONFIDENCE
        else f"{told} at {100 * ratio['confidence']:.0f} %"
    )


def verdict(row: Record) -> str:
    """Whether a row reaches its target, or why that is not said; nothing where it has none."""
    if row["impossible"]:
        return f"impossible: {', '.join(row['impossible'])}"
    if row["definition"]["target"] is None:
        return ""
    return {True: "reached", False: "missed", None: row["doubt"] or ""}[row["reached"]]


def machine(run: Record) -> str:
    """What a run ran on, and the ceilings that it measured."""
    facts = run["environment"]
    gpu = f"{facts['gpu']}, " if facts.get("gpu") else ""
    memory = facts["memory_bytes"] / 2**30
    return (
        f"{gpu}{facts['cores']} cores ({facts['cpu']}), {memory:.0f} GiB, "
        f"Linux {facts['kernel']}, {facts['file_system'][2]}"
    )


def ceilings(rates: dict[str, float]) -> str:
    """Ceilings by name."""
    return ", ".join(f"{name} {rate / GB:.2f} GB/s" for name, rate in rates.items())
