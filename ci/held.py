"""Many loads at once, and the memory beside a load's result; ci/held says how it is called.

``ci/held.py CASE PATH`` is one load whose memory is watched, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

from held_peak import CASES, DROPPED, measured
from held_rate import rates

# A helper of the tests.
oracle = import_module("oracle")

ROOT = Path(__file__).resolve().parent.parent
MIB, GIB = 1 << 20, 1 << 30
FILE_BYTES, TENSORS = 4 * GIB, 64
RING_MIB_MAX, OTHER_MIB_MAX, AHEAD_MIB_MAX = 256, 32, 256
RATIO_MIN = 0.9


def say(line: str) -> None:
    """One line for people."""
    print(f"held: {line}", flush=True)


def peaks(folder: Path) -> dict[str, int]:
    """The memory beside the result for each case, in MiB."""
    path = oracle.write_sparse(folder / "large.safetensors", TENSORS, FILE_BYTES // TENSORS)
    found = {}
    for name in CASES:
        bed = []
        if name.endswith("cuda"):
            if shutil.which("g++") is None:
                say(f"skipped: {name}: no g++, which builds the simulated driver")
                continue
            bed = [str(ROOT / "ci/sim")]
        command = [*bed, sys.executable, str(ROOT / "ci/held.py"), name, str(path)]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
        beside = json.loads(ended.stdout)
        found[name] = beside["bytes"] // MIB
        say(f"{name}: {found[name]} MiB beside the result, slots {beside['slots'] // MIB} MiB")
    return found


def main() -> int:
    """Runs what is named, or everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", choices=["rate", "peak", *CASES])
    parser.add_argument("path", nargs="?")
    chosen = parser.parse_args()
    if chosen.path is not None:
        print(json.dumps(measured(chosen.only, chosen.path)))
        return 0
    figure: dict[str, object] = {}
    good = True
    with tempfile.TemporaryDirectory(prefix="held-") as folder:
        if chosen.only in {None, "rate"}:
            ratios, errors = rates(Path(folder), say)
            figure |= ratios | {"errors": errors, "throughput_ratio": min(ratios.values())}
            good = errors == 0 and min(ratios.values()) >= RATIO_MIN
        if chosen.only in {None, "peak"}:
            found = peaks(Path(folder))
            limit = RING_MIB_MAX + OTHER_MIB_MAX
            dropped = max(mib for name, mib in found.items() if name in DROPPED)
            kept = max(mib for name, mib in found.items() if name not in DROPPED)
            figure |= {"beside_mib": found, "peak_mib": kept, "stream_dropped_mib": dropped}
            good = good and kept <= limit and dropped <= limit + AHEAD_MIB_MAX
    print(f"figure {json.dumps(figure)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
