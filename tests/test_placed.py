"""Libraries that place tensors on GPUs: the same weights in the same places, by their own plan."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from shutil import copytree
from typing import TYPE_CHECKING, Any

import placed_cases
import pytest
import torch
from gpu import NEEDS_GPU, SIMULATED
from process import TESTS, run_python, run_script

if TYPE_CHECKING:
    from pathlib import Path

NEEDED = ["accelerate", "diffusers", "peft", "sentence_transformers", "transformers"]
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = [
    *NEEDS_GPU,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.timeout(600),
]
#: Two GPUs; torch's own kernels, which the simulator does not have, do nothing.
SIMULATION = {"SIMCUDA_DEVICES": "2", "SIMCUDART_SKIP_KERNELS": "1"}
MERGING = ("transformers experts", "transformers experts of another model")
SEVERAL = ("two GPUs", "another GPU", "device's context", "disk")
GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0


def runnable(case: str) -> bool:
    """Whether this machine has what a case needs."""
    if SIMULATED:
        return case not in MERGING
    return GPUS > 1 or not any(word in case for word in SEVERAL)


CASES = [case for case in placed_cases.CASES if runnable(case)]
DEFAULTS = [case for case in placed_cases.DEFAULTS if runnable(case)]
NOT_PLANNED = (
    "without a device",
    "without a plan",
    "float32",
    "on the host",
    "in the host's",
    "pipeline ",
    "accelerate",
    "torch.",
)
PLANNED = [case for case in CASES if not any(word in case for word in NOT_PLANNED)]
Results = dict[str, Any]


def run(*arguments: object) -> Results:
    output = run_script(TESTS / "placed_cases.py", *arguments, env=SIMULATION)
    results: Results = json.loads(output.splitlines()[-1])
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("placed")
    run("save", folder)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Results]:
    """Each case as it is, patched, and patched with a default device; side by side."""
    ways = {"stock": CASES, "ours": CASES, "default": DEFAULTS}
    with ThreadPoolExecutor(len(ways)) as pool:
        runs = {way: pool.submit(run, "load", folder, way, *cases) for way, cases in ways.items()}
    return {way: done.result() for way, done in runs.items()}


@pytest.fixture(scope="module")
def stock(results: dict[str, Results]) -> Results:
    return results["stock"]


@pytest.fixture(scope="module")
def ours(results: dict[str, Results]) -> Results:
    return results["ours"]


@pytest.fixture(scope="module")
def default(results: dict[str, Results]) -> Results:
    return results["default"]


@pytest.mark.parametrize("case", CASES)
def test_the_weights_and_their_places_are_the_same(
    case: str, stock: Results, ours: Results
) -> None:
    assert ours[case]["digest"] == stock[case]["digest"]
    assert ours[case]["places"] == stock[case]["places"]


@pytest.mark.parametrize("case", DEFAULTS)
def test_who_names_no_device_gets_the_default(case: str, stock: Results, default: Results) -> None:
    assert default[case]["digest"] == stock[case]["digest"]
    assert set(default[case]["places"].values()) == {placed_cases.DEFAULTS[case]}


def need_adapter(case: str, ours: Results) -> None:
    """Skips a case of a library whose version has no adapter: a GPU's host may have its own."""
    library = case.split(maxsplit=1)[0].replace("-", "_")
    refusals = [told for name, told in ours["adapters"].items() if name.startswith(library)]
    if refused := [told for told in refusals if "is not among" in told]:
        pytest.skip(refused[0])


@pytest.mark.parametrize("case", CASES)
def test_the_plan_is_read_where_there_is_one(case: str, ours: Results) -> None:
    if not SIMULATED:
        need_adapter(case, ours)
    assert bool(ours[case]["planned"]) == (case in PLANNED)


def check_copies(stock: Results, ours: Results, moved: int) -> None:
    """All tensors on GPUs, but so many that the library moves itself, came from pinned memory."""
    on_gpus = sum("cuda" in place for place in ours["places"].values())
    theirs, own = stock["driver"]["pageable"]["copies"], ours["driver"]["pageable"]["copies"]
    assert theirs >= on_gpus - moved
    assert own <= theirs - on_gpus + moved
    assert ours["driver"]["violations"]["count"] == 0


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver counts")
@pytest.mark.parametrize("case", PLANNED)
def test_costs(case: str, stock: Results, ours: Results) -> None:
    """Nothing is copied from pageable memory but what the library computes, nor is more used."""
    started_at_random = 48 if case == "peft" else 0  # on the host
    check_copies(stock[case], ours[case], moved=2 + started_at_random)
    for peak, their_peak in zip(ours[case]["peaks"], stock[case]["peaks"], strict=True):
        assert peak <= their_peak


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver counts")
@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("accelerate")])
def test_devices_by_number_are_served(case: str, stock: Results, ours: Results) -> None:
    """What accelerate opens for a GPU needs no plan."""
    check_copies(stock[case], ours[case], moved=0)


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver counts")
def test_no_map_touches_no_gpu(ours: Results) -> None:
    assert ours["transformers without a device"]["driver"]["calls_total"] == 0


MAPPED_TWICE = """
    import sys
    from safetensors_streaming import _native, patch

    load_file, asked = _native.load_file, []

    def seen(*arguments):
        asked.append(arguments[5])  # read_ahead
        return load_file(*arguments)

    _native.load_file = seen
    patch()
    from diffusers import UNet2DModel

    for device_map in ("cuda:0", {"": 0, "mid_block": "cpu"}):
        asked.clear()
        UNet2DModel.from_pretrained(sys.argv[1], device_map=device_map)
        print(len(asked), sum(asked))
"""


@pytest.mark.skipif(find_spec("diffusers") is None, reason="diffusers is not installed")
def test_what_a_plan_reads_is_not_read_ahead_for_its_mapping_as_well(folder: Path) -> None:
    shards = len(list((folder / "unet-shards").glob("*.safetensors")))
    told = run_python(MAPPED_TWICE, folder / "unet-shards", env=SIMULATION).split("\n")
    assert shards > 1
    assert told[0] == f"{shards} 0"
    files, read_ahead = told[1].split()
    assert int(files) == shards
    assert 0 < int(read_ahead) <= shards  # what lies on the host is


DISTURBED = """
    import os
    import sys
    from pathlib import Path

    import pytest
    import safetensors_streaming
    import simulator
    import torch
    from process import busy
    from transformers import LlamaForCausalLM

    folder = Path(sys.argv[1])
    shards = sorted(folder.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    safetensors_streaming.patch()
    from safetensors_streaming.adapters import transformers as adapter

    begin = adapter._Load.begin

    def load():
        return LlamaForCausalLM.from_pretrained(folder, device_map="cuda:0")

    def check_clean():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() == 0
        assert not busy()

    load()  # what stays for the process is made
    check_clean()
    kept = simulator.statistics()["devices"][0]["live_bytes"]

    def load_disturbed(disturb):
        def begin_disturbed(load):
            disturb()
            begin(load)

        adapter._Load.begin = begin_disturbed
        try:
            load()
        finally:
            adapter._Load.begin = begin
            simulator.fail("*", 0, 0)
            shards[1].write_bytes(whole)

    # The GPU has no room any more once the plan is known.
    def fill():
        torch.cuda.empty_cache()
        simulator.fail_from("cuMemAlloc_v2", 1, 2)

    with pytest.raises(torch.OutOfMemoryError):
        load_disturbed(fill)
    check_clean()

    # A shard is cut once it is open.
    with pytest.raises(OSError) as caught:
        load_disturbed(lambda: os.truncate(shards[1], len(whole) - 1000))
    print("cut:", caught.value)
    del caught
    check_clean()

    # A copy fails.
    with pytest.raises(RuntimeError):
        load_disturbed(lambda: simulator.fail("cuMemcpyHtoDAsync_v2", 2, 1))
    check_clean()

    # A shard that is missing: the library's own error.
    shards[1].unlink()
    with pytest.raises(OSError, match="safetensors"):
        load()
    shards[1].write_bytes(whole)
    check_clean()

    model = load()
    assert all(part.is_cuda for part in model.state_dict().values())
    del model
    check_clean()
    assert simulator.statistics()["devices"][0]["live_bytes"] == kept
"""


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver fails at will")
def test_a_load_that_fails_leaves_nothing_and_the_next_one_works(
    folder: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "llama"
    copytree(folder / "llama", copy)
    said = run_python(DISTURBED, copy, env=SIMULATION)
    assert "model-00002-of" in said
    assert "tensor `model.layers" in said


WITHOUT_KERNELS = """
    import sys

    import safetensors_streaming
    import simulator
    import torch
    from transformers import LlamaForCausalLM

    simulator.fail_from("cuModuleLoadData", 1, 209)
    wanted = LlamaForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).state_dict()
    safetensors_streaming.patch()
    found = LlamaForCausalLM.from_pretrained(
        sys.argv[1], dtype=torch.bfloat16, device_map="cuda:0"
    ).state_dict()
    assert {part.dtype for part in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[name].cpu(), part) for name, part in wanted.items())
"""


@pytest.mark.skipif(not SIMULATED, reason="the simulated driver fails at will")
def test_types_are_right_where_no_kernel_can_be_loaded(folder: Path) -> None:
    run_python(WITHOUT_KERNELS, folder / "tied", env=SIMULATION)


IN_ORDER = """
    import json
    import sys

    import safetensors_streaming
    from safetensors_streaming import _native
    from transformers import AutoModelForCausalLM

    safetensors_streaming.patch()
    from safetensors_streaming.adapters import transformers as adapter

    told, taken = [], []

    class Recorded:
        def __init__(self):
            self.load = _native.PlannedLoad()
            self.add, self.close = self.load.add, self.load.close

        def begin(self, order, ahead_bytes):
            told.extend(order)
            self.load.begin(order, ahead_bytes)

        def take(self, number):
            taken.append(number)
            return self.load.take(number)

    adapter.PlannedLoad = Recorded
    AutoModelForCausalLM.from_pretrained(sys.argv[1], device_map="cuda:0")
    assert len(taken) > 50
    assert taken == told, (told, taken)
"""


@pytest.mark.skipif(not SIMULATED, reason="kernels that do nothing are enough for it")
@pytest.mark.parametrize("name", ["llama", "mixtral", "qwen3-moe"])
def test_tensors_are_read_in_the_order_in_which_they_are_waited_for(
    folder: Path, name: str
) -> None:
    run_python(IN_ORDER, folder / name, env=SIMULATION)
