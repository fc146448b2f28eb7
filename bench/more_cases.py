"""More rows as data: other files than the model's, parts of files, and every loader on the CPU."""

from __future__ import annotations

from bench.cases import FIRST, NEVER_SLOWER, WARM_PEERS, Row, Target

STATES = ("warm", "cold")
#: What loads every byte onto the CPU: the other ways of stock and ours, and the field.
CPU_LOADERS = (
    "stock",
    "stock-pread",
    "stock-0.9",
    "ours-pread",
    "fastsafetensors-cpu",
    "runai-cpu",
    "flashpack-cpu",
    "tensorizer-cpu",
)
#: The files of ``bench/single_files.py``.
KINDS = {
    "few": "8 large tensors",
    "moe": "50,000 experts' matrices",
    "mixed": "a quantised model of four types",
    "misaligned": "misaligned tensors",
}
KINDS_TOLD = {"model": "all shards to the GPU", "experts": "20,000 tensors of 4 KiB to the GPU"}
ONE = "safe_open + get_tensor of one large tensor out of many"
SLICES = "get_slice of half of each tensor, as the first of two ranks"


def _read(name: str, says: str, files: str, others: tuple[str, ...], cache: str) -> Row:
    return Row(
        name=f"{name}-{cache}",
        says=f"load_file + read of every byte, {says}{cache}",
        action="load",
        others=others,
        files=files,
        cache=(cache,),
        blocks=5,
        read=True,
        ceilings=("memory",) if cache == "warm" else ("disk",),
        target=NEVER_SLOWER,
    )


def _part(name: str, says: str, files: str, cache: str) -> Row:
    return Row(
        name=f"{name}-{cache}",
        says=f"{says} + read, {cache}",
        action=name,
        files=files,
        cache=(cache,),
        blocks=5,
        read=True,
        target=NEVER_SLOWER,
    )


def _part_to_gpu(name: str, says: str, files: str) -> Row:
    return Row(
        name=f"gpu-{name}",
        says=f"{says}, to the GPU, warm",
        action=f"{name}_cuda",
        ours="ours-cuda",
        others=("stock-cuda",),
        files=files,
        blocks=5,
        target=NEVER_SLOWER,
    )


def _to_gpu(kind: str, says: str) -> Row:
    return Row(
        name=f"gpu-{kind}",
        says=f"{says} to the GPU, warm, first load of the process",
        action="load_cuda",
        ours="ours-cuda",
        others=WARM_PEERS,
        files=kind,
        blocks=5,
        ceilings=("link",),
        target=FIRST,
    )


VERIFY = Row(
    name="verify",
    says="SHA-256 of every byte, cold, against raw reads and digests of memory on all processors",
    action="digest",
    others=("null-2", "sha256"),
    bounds=True,
    cache=("cold",),
    ceilings=("disk",),
    target=Target(1 / 0.9, "90 % of the slower one"),
)


def _told(name: str, files: str, most: float) -> Row:
    return Row(
        name=name,
        says=f"{KINDS_TOLD[files]}, with progress told and the report read, against without",
        action="load_cuda",
        ours="ours-told",
        others=("ours-cuda",),
        files=files,
        blocks=15,
        rehearse=True,
        target=Target(1 + most, f"{most:.0%} more at most"),
    )


MORE_CPU_ROWS = (
    VERIFY,
    *(_read("peers", "all loaders, ", "model", CPU_LOADERS, cache) for cache in STATES),
    *(_part("one", ONE, "shard", cache) for cache in STATES),
    *(_part("slices", SLICES, "model", cache) for cache in STATES),
    *(
        _read(kind, f"{says}, ", kind, ("stock",), cache)
        for kind, says in KINDS.items()
        for cache in STATES
    ),
)
MORE_SIM_ROWS = (
    _part_to_gpu("one", ONE, "shard"),
    _part_to_gpu("slices", SLICES, "model"),
    *(_to_gpu(kind, says) for kind, says in KINDS.items()),
    _told("gpu-told", "model", 0.01),
    _told("gpu-told-experts", "experts", 0.02),
)
