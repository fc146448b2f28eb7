"""Many loads in one process, faults among them; ci/soak says how it is called."""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import safetensors_streaming
import torch
from soak_cases import FAULTS, LOADS, MIB, Bed

# Helpers of the tests.
process, simulator = import_module("process"), import_module("simulator")

FAULTS_SHARE = 0.3
#: What loads keep for the next ones.
RING_BYTES_MAX = 256 * MIB
STREAMS_MAX = 8
GROWTH_KIB_MAX = 1024


@dataclass(frozen=True)
class Held:
    """What the process holds while no load is under way."""

    descriptors: int
    threads: int
    mapped_files: int
    pinned_bytes: int
    device_bytes: int
    memory_kib: int


def threads() -> list[str]:
    """The names of all threads but those that are the simulated GPU's streams."""
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if not name.startswith("simcuda")]


def held(folder: Path) -> Held:
    """What is left once everything that may be kept for the next load was given back."""
    gc.collect()
    if not process.eventually(lambda: not process.threads()):
        sys.exit(f"soak: threads of no load: {process.threads()}")
    ring_bytes = safetensors_streaming.release()
    if ring_bytes > RING_BYTES_MAX:
        sys.exit(f"soak: {ring_bytes} bytes of slots were kept")
    driver: dict[str, Any] = {"pinned": {"live_bytes": 0}, "devices": []}
    if simulator.DRIVER is not None:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        driver = simulator.statistics()
        if driver["streams"] > STREAMS_MAX:
            sys.exit(f"soak: {driver['streams']} streams were kept")
        if driver["violations"]["count"]:
            sys.exit(f"soak: out of order on the GPU: {driver['violations']['texts']}")
    process.give_back_freed()
    return Held(
        descriptors=len(process.descriptors()),
        threads=len(threads()),
        mapped_files=Path("/proc/self/maps").read_text().count(f" {folder}/"),
        pinned_bytes=driver["pinned"]["live_bytes"],
        device_bytes=sum(device["live_bytes"] for device in driver["devices"]),
        # Without pages of libraries, which come and go with what else the machine does.
        memory_kib=process.memory_kib("RssAnon") + process.memory_kib("RssShmem"),
    )


@dataclass
class Soak:
    """The loads, drawn from a seed, and what came of them."""

    bed: Bed
    seed: int
    done: Counter[str]
    wrong: list[str]

    def load(self, number: int) -> None:
        """One load; which, and of what, depends on its number alone."""
        draw = Random(f"{self.seed}/{number}")  # noqa: S311 - not a secret
        case = draw.choice(FAULTS if draw.random() < FAULTS_SHARE else LOADS)
        try:
            case(self.bed, draw)
        except Exception as error:  # noqa: BLE001 - each is a finding
            told = f"load {number}, {case.__name__}: {type(error).__name__}: {error}"
            self.wrong.append(told)
            print(f"soak: {told}", flush=True)
        self.done[case.__name__] += 1


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cuda", action="store_true")
    return parser.parse_args()


def drift_of(quarters: list[Held]) -> dict[str, int]:
    """The growth over the last quarter."""
    before, after = asdict(quarters[-2]), asdict(quarters[-1])
    return {name: after[name] - before[name] for name in after}


def main() -> int:
    """Makes the files, loads, and compares what is held."""
    chosen = options()
    if chosen.cuda and simulator.DRIVER is None:
        sys.exit("soak: --cuda without the simulated driver")
    devices = ("cuda", "cuda", "cpu") if chosen.cuda else ("cpu",)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        bed = Bed(Path(folder), devices)
        bed.make(Random(chosen.seed))  # noqa: S311 - not a secret
        soak = Soak(bed, chosen.seed, Counter(), [])
        quarters = []
        with ThreadPoolExecutor(chosen.threads) as pool:
            for quarter in range(4):
                numbers = range(quarter * chosen.loads // 4, (quarter + 1) * chosen.loads // 4)
                list(pool.map(soak.load, numbers))
                quarters.append(held(bed.folder))
                print(f"soak: after {numbers.stop} loads: {quarters[-1]}", flush=True)
    print(f"soak: devices {sorted(set(devices))}, {chosen.threads} threads")
    for name, count in soak.done.most_common():
        print(f"soak: {count:5} {name}")
    print(f"soak: {time.monotonic() - began:.0f} s")
    drift = drift_of(quarters)
    figure = {
        "loads": sum(soak.done.values()),
        "faults": sum(soak.done[case.__name__] for case in FAULTS),
        "wrong": len(soak.wrong),
        "drift_kib": drift.pop("memory_kib"),
        **{f"drift_{name}": grown for name, grown in drift.items()},
    }
    print(f"figure {json.dumps(figure)}")
    still = not any(drift.values()) and figure["drift_kib"] < GROWTH_KIB_MAX
    return 0 if still and not soak.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
