"""`safetensors-streaming doctor`: what the machine has and allows, and what loads can be."""

from collections.abc import Iterator

import click

from safetensors_streaming._checkpoint import named_ordinal, paths_of
from safetensors_streaming._machine import Diagnosis, Files, Machine, advice, diagnose
from safetensors_streaming.cli._common import ends_well, json_option, say, say_json, say_table, size
from safetensors_streaming.cuda import GpuFacts

NUMBERS = frozenset({"rate", "seconds"})


@click.command()
@click.argument("path", type=click.Path(), required=False)
@click.option(
    "--device",
    metavar="DEVICE",
    help="cpu, cuda or cuda:N.  [default: the first GPU, or cpu without one]",
)
@json_option
@ends_well
def doctor(path: str | None, device: str | None, as_json: bool) -> None:  # noqa: FBT001 - click passes it by name
    """Tell what this machine has and allows, measure it, and predict the load of PATH.

    Each measurement moves at most 256 MiB. Without PATH, disk and page cache are not measured.
    """
    ordinal = None if device is None else named_ordinal(device)
    paths = [] if path is None else paths_of(path)
    told = diagnose(paths, ordinal, any_gpu=device is None)
    if as_json:
        say_json(told.to_dict())
        return
    say_table(["machine", "is"], [list(row) for row in _facts(told)], frozenset())
    say("")
    rates = [[name, f"{rate / 1e9:.2f} GB/s"] for name, rate in told.bytes_per_second.items()]
    rates += [[name, f"not measured: {why}"] for name, why in told.not_measured.items()]
    if told.pin_seconds is not None:
        rates.append(["pinning a slot", f"{told.pin_seconds * 1e3:.2f} ms"])
    say_table([f"measured, to {told.device}", "rate"], rates, frozenset())
    if told.files is not None:
        say("")
        predictions = [
            [name, f"{prediction.seconds:.3f}", prediction.bound]
            for name, prediction in told.predictions.items()
        ]
        say_table(["first load", "seconds", "bound by"], predictions, NUMBERS)
    for sentence in advice(told):
        say("")
        say(f"- {sentence}")


def _facts(told: Diagnosis) -> Iterator[tuple[str, str]]:
    yield from _of_machine(told.machine)
    if told.gpu is not None:
        yield from _of_gpu(told.device, told.gpu)
    if told.files is not None:
        yield from _of_files(told.files)


def _of_machine(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "processors", str(machine.processors)
    yield "last-level cache", size(machine.last_level_cache_bytes)
    yield "memory available", size(machine.memory_available_bytes)
    limits = [
        f"{machine.container_processors:g} processors" if machine.container_processors else None,
        size(machine.container_memory_bytes) if machine.container_memory_bytes else None,
    ]
    yield "container's limits", ", ".join(filter(None, limits)) or "none"
    memlock = "none" if machine.memlock_bytes is None else size(machine.memlock_bytes)
    yield (
        "limit on locked memory",
        memlock + ("" if machine.memlock_binds else ", which does not bind this process"),
    )
    yield "transparent huge pages", machine.transparent_huge_pages or "none"
    yield "io_uring", machine.io_uring_refusal or "allowed"


def _of_gpu(device: str, gpu: GpuFacts) -> Iterator[tuple[str, str]]:
    for name, now, most in (
        ("PCIe generation", gpu.pcie_generation, gpu.pcie_generation_max),
        ("PCIe lanes", gpu.pcie_width, gpu.pcie_width_max),
    ):
        yield f"{device} {name}", "unknown" if now is None else f"{now} of {most}"
    yield f"{device} NUMA node", "unknown" if gpu.numa_node is None else str(gpu.numa_node)
    if gpu.memory_free is not None and gpu.memory_total is not None:
        yield f"{device} memory", f"{size(gpu.memory_free)} of {size(gpu.memory_total)} free"


def _of_files(files: Files) -> Iterator[tuple[str, str]]:
    yield "checkpoint", f"{size(files.bytes)} in {files.count} files"
    yield "file system", ", ".join(files.file_systems)
    alignment = files.direct_alignment_bytes
    yield "direct reads", "none" if alignment is None else f"aligned to {alignment} bytes"
    cached = files.cached_fraction
    yield "page cache", "unknown" if cached is None else f"holds {cached:.0%}"
