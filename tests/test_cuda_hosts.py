"""Hosts that differ from the usual one, scaled down: a card that is nearly full, WSL2, expandable
segments, other architectures. Each case has a process of its own, with a simulated driver that is
set for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from gpu import ALLOCATORS, NEEDS_SIMULATOR
from oracle import Entry, write_raw
from process import run_python
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = NEEDS_SIMULATOR
MIB = 1 << 20
GIB = 1 << 30

# A card of 24 GiB with a checkpoint of 21 GiB, on PCIe 4.

SCALE = 32
CARD = {
    "SIMCUDA_MEM": str(24 * GIB // SCALE),
    "SIMCUDA_H2D_GBPS": "25",
    "SIMCUDA_D2H_GBPS": "25",
    "SIMCUDA_COPY_US": "8",
}
SHARDS = 4
SHARD_BYTES = 21 * GIB // SCALE // SHARDS


@pytest.fixture(scope="module")
def checkpoint_of_a_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards like a language model's; the data of the third begins at an odd offset.

    The large tensors fill whole blocks of torch's: a rest would count with the last one in each.
    """
    folder = tmp_path_factory.mktemp("card")
    for shard in range(SHARDS):
        entries = {"embedding": Entry("BF16", [1024, 4096])}
        for layer in range(3):
            entries |= {
                f"{layer}.bias": Entry("F32", [5]),
                f"{layer}.down": Entry("BF16", [4096, 1536]),
                f"{layer}.norm": Entry("BF16", [4096]),
                f"{layer}.scale": Entry("F8_E4M3", [33, 48]),
                f"{layer}.up": Entry("F8_E4M3", [3072, 4096]),
            }
        sizes = [len(entry.content("")) for entry in entries.values()]
        entries["z"] = Entry("U8", [SHARD_BYTES - sum(size for size in sizes if size > MIB)])
        entries = {f"{shard}.{name}": entry for name, entry in entries.items()}
        path = folder / f"model-{shard}.safetensors"
        write_raw(path, entries, misalign=3 if shard == 2 else 0)
    return folder


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_a_card_that_is_nearly_full(checkpoint_of_a_card: Path, allocator: str) -> None:
    """Twice in one process: what the first load had is there for the second."""
    script = """
        import sys, simulator, torch
        from pathlib import Path
        from gpu import check
        from oracle import by_stock
        from safetensors_streaming import load_checkpoint
        folder, allocator, mib = Path(sys.argv[1]), sys.argv[2], 1 << 20
        expected = by_stock(folder)
        total = sum(tensor.nbytes for tensor in expected.values())
        assert total >= int(sys.argv[3]), total
        torch.cuda.init()
        assert simulator.statistics()["devices"][0]["live_allocations"] == 0
        for _ in range(2):
            simulator.reset()
            loaded = load_checkpoint(folder, "cuda", allocator=allocator)
            counted = simulator.statistics()
            assert counted["pageable"] == {"copies": 0, "bytes": 0}
            assert counted["h2d"]["bytes"] == total, counted["h2d"]
            assert counted["pinned"]["peak_bytes"] <= 256 * mib, counted["pinned"]
            assert counted["devices"][0]["peak_bytes"] <= total + 64 * mib, counted["devices"]
            rounded = sum(-(-tensor.nbytes // 512) * 512 for tensor in loaded.values())
            allocated = torch.cuda.memory_allocated()
            assert allocated == (rounded if allocator == "torch" else 0), (allocated, rounded)
            check(loaded, expected)
            loaded.clear()
            assert torch.cuda.memory_allocated() == 0
        torch.cuda.empty_cache()
        counted = simulator.statistics()
        assert counted["devices"][0]["live_allocations"] == 0, counted["devices"]
        assert counted["violations"] == {"count": 0, "texts": []}
    """
    run_python(script, checkpoint_of_a_card, allocator, SHARDS * SHARD_BYTES, env=CARD)


# WSL2: little memory can be pinned, and that slowly.

SLOT_BYTES = 8 * MIB + 128 * 1024


@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("slots", [0, 1, 3])
def test_little_memory_can_be_pinned(large: Path, allocator: str, slots: int) -> None:
    """Some copies are staged by the driver, slower; none fails, the second time neither."""
    script = """
        import sys, simulator, torch
        from gpu import check
        from oracle import STOCK
        from safetensors_streaming import load_file
        path, allocator, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
        expected = STOCK.load_file(path)
        for fewest in (1, 0):
            simulator.reset()
            loaded = load_file(path, "cuda", allocator=allocator)
            counted = simulator.statistics()
            assert counted["pinned"]["peak_bytes"] <= limit
            staged, copies = counted["pageable"]["copies"], counted["h2d"]["copies"]
            assert fewest <= staged <= copies, (staged, copies)
            assert limit > 0 or staged == copies, (staged, copies)
            check(loaded, expected)
            loaded.clear()
        assert torch.cuda.memory_allocated() == 0
        assert simulator.statistics()["violations"] == {"count": 0, "texts": []}
    """
    limit = slots * SLOT_BYTES
    settings = {"SIMCUDA_PINNED_MAX": str(limit), "SIMCUDA_PIN_MS_PER_GIB": "10000"}
    run_python(script, large, allocator, limit, env=settings)


# Torch with expandable segments.


@pytest.mark.parametrize("allocator", ALLOCATORS)
def test_expandable_segments(large: Path, allocator: str) -> None:
    script = """
        import sys, simulator, torch
        from gpu import check
        from oracle import STOCK
        from safetensors_streaming import load_file
        path, allocator, mib = sys.argv[1], sys.argv[2], 1 << 20
        expected = STOCK.load_file(path)
        total = sum(tensor.nbytes for tensor in expected.values())
        for _ in range(2):
            simulator.reset()
            loaded = load_file(path, "cuda", allocator=allocator)
            counted = simulator.statistics()
            assert counted["devices"][0]["peak_bytes"] <= total + 64 * mib, counted["devices"]
            assert torch.cuda.memory_allocated() == (total if allocator == "torch" else 0)
            check(loaded, expected)
            loaded.clear()
            assert torch.cuda.memory_allocated() == 0
        torch.cuda.empty_cache()
        counted = simulator.statistics()
        assert counted["devices"][0]["live_bytes"] == 0, counted["devices"]
        assert counted["violations"] == {"count": 0, "texts": []}
        torch.empty(30 * mib, dtype=torch.uint8, device="cuda")
        assert simulator.statistics()["calls"]["cuMemMap"] > 0  # the segments are of that kind
    """
    settings = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    run_python(script, large, allocator, env=settings)


# Other architectures: most have machine code that ships.

KERNELS = """
    import sys, simulator, torch
    from gpu import check
    from oracle import STOCK
    from safetensors_streaming import load_file
    path, *images = sys.argv[1:]
    expected = STOCK.load_file(path)
    check(load_file(path, "cuda"), expected)
    cast = load_file(path, "cuda", dtype=torch.bfloat16)
    check(cast, {name: tensor.bfloat16() for name, tensor in expected.items()})
    counted = simulator.statistics()
    assert counted["modules"] == dict.fromkeys(images, 1), counted["modules"]
    assert counted["kernels"] == {"cast": 1, "scatter": 1}, counted["kernels"]
"""
#: What the driver is asked for; each is asked for once, and taken.
GPUS = {
    "7.5": ("75", "13000", "cubin"),
    "8.6": ("86", "13000", "cubin"),
    "8.9": ("89", "12000", "cubin"),
    "9.0": ("90", "13000", "cubin"),
    "10.3": ("103", "13000", "cubin"),
    "12.0": ("120", "13000", "cubin"),
    "in one chip with a processor": ("87", "13000", "ptx"),
    "another one of those": ("121", "13000", "ptx"),
    "one that is not known": ("150", "13000", "ptx"),
    "an old driver": ("80", "11080", "ptx"),
}
#: Calls that fail once: what is loaded then, and how many modules are asked for.
REFUSED = {
    "cuModuleLoadData:1:209": (["ptx"], 2),
    "cuModuleGetFunction:1:209": (["cubin", "ptx"], 2),
    "cuModuleGetFunction:3:500": (["cubin", "ptx"], 2),
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_file({f"{number}": torch.linspace(-number, 9, 33) for number in range(12)}, path)
    return path


@pytest.mark.parametrize("name", GPUS)
def test_kernels_are_for_every_gpu(name: str, small: Path) -> None:
    capability, driver, image = GPUS[name]
    asked = 'assert counted["calls"]["cuModuleLoadData"] == 1, counted["calls"]'
    settings = {"SIMCUDA_CC": capability, "SIMCUDA_DRIVER": driver}
    run_python(f"{KERNELS}    {asked}", small, image, env=settings)


@pytest.mark.parametrize("fault", REFUSED)
def test_kernels_are_compiled_where_the_driver_refuses_them(fault: str, small: Path) -> None:
    images, asked = REFUSED[fault]
    count = f'assert counted["calls"]["cuModuleLoadData"] == {asked}, counted["calls"]'
    run_python(f"{KERNELS}    {count}", small, *images, env={"SIMCUDA_FAIL": fault})
