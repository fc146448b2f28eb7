"""Loads of libraries that place tensors on GPUs, each with the call that its users make; run by
test_placed.py, once as it is and once patched.

Usage: python placed_cases.py save FOLDER | load FOLDER stock|ours|default CASE ...
("default" is patched with a device for calls that name none.)
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import simulator
from library_cases import digest
from placed_diffusers import (
    diffusers_auto,
    diffusers_cast,
    diffusers_nowhere,
    diffusers_pickled,
    diffusers_pipeline,
    diffusers_pipeline_given,
    diffusers_pipeline_nowhere,
    diffusers_pipeline_shards,
    diffusers_shards,
    diffusers_spread,
    diffusers_whole,
)
from placed_models import save_everything

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import torch

Weights = dict[str, "torch.Tensor"]


def load(folder: Path, **keywords: object) -> Weights:
    """A language model's weights, those on the disk left out."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_pretrained(folder, **keywords)
    return {name: part for name, part in model.state_dict().items() if not part.is_meta}


def llama(folder: Path) -> Weights:
    """In shards, to one GPU, as its file is."""
    return load(folder / "llama", device_map="cuda:0")


def llama_unnumbered(folder: Path) -> Weights:
    """To a GPU without a number, while torch's current one is the second."""
    import torch  # noqa: PLC0415

    torch.cuda.set_device(1)
    try:
        return load(folder / "llama", device_map={"": torch.device("cuda")})
    finally:
        torch.cuda.set_device(0)


def llama_inference(folder: Path) -> Weights:
    """In a mode that marks what is made in it."""
    import torch  # noqa: PLC0415

    with torch.inference_mode():
        weights = load(folder / "llama", device_map="cuda:0")
    marked = torch.tensor([part.is_inference() for part in weights.values()])
    return {**weights, "marked": marked}


def llama_half(folder: Path) -> Weights:
    """Converted to the other small type."""
    import torch  # noqa: PLC0415

    return load(folder / "tied", device_map="cuda:0", dtype=torch.float16)


def tied(folder: Path) -> Weights:
    """One weight under two names."""
    return load(folder / "tied", device_map=0)


def tied_cast(folder: Path) -> Weights:
    """Converted to a smaller type on the way."""
    import torch  # noqa: PLC0415

    return load(folder / "tied", device_map="cuda:0", dtype=torch.bfloat16)


def llama_cast(folder: Path) -> Weights:
    """Converted to a larger type, for which there is no kernel."""
    import torch  # noqa: PLC0415

    return load(folder / "llama", device_map="cuda:0", dtype=torch.float32)


def spread(folder: Path, last: str, **keywords: object) -> Weights:
    """Over two GPUs and another place."""
    placed: dict[str, object] = {"model.embed_tokens": 0, "model.rotary_emb": 0}
    placed |= {f"model.layers.{layer}": layer % 2 for layer in range(11)}
    placed |= {"model.layers.11": last, "model.norm": "cpu", "lm_head": 1}
    return load(folder / "llama", device_map=placed, **keywords)


def llama_spread(folder: Path) -> Weights:
    """Over two GPUs and the host."""
    return spread(folder, "cpu")


def llama_offload(folder: Path) -> Weights:
    """Over two GPUs, the host and the disk."""
    return spread(folder, "disk", offload_folder=str(folder / "offload"))


def llama_nowhere(folder: Path) -> Weights:
    """Without a word about devices."""
    return load(folder / "llama")


def mixtral(folder: Path) -> Weights:
    """Experts that are merged on the GPU."""
    return load(folder / "mixtral", device_map="cuda:0")


def qwen3_moe(folder: Path) -> Weights:
    """Experts of another model."""
    return load(folder / "qwen3-moe", device_map="cuda:0")


def llama_on_host(folder: Path) -> Weights:
    """To the host, by name."""
    return load(folder / "llama", device_map="cpu")


def llama_in_context(folder: Path) -> Weights:
    """To the device of a context."""
    import torch  # noqa: PLC0415

    with torch.device("cuda:1"):
        return load(folder / "llama")


def llama_in_context_of_host(folder: Path) -> Weights:
    """To the host, by a context."""
    import torch  # noqa: PLC0415

    with torch.device("cpu"):
        return load(folder / "llama")


def pipeline(folder: Path, **keywords: object) -> Weights:
    """A text generator's weights."""
    from transformers import pipeline as make  # noqa: PLC0415

    return make("text-generation", str(folder / "llama"), **keywords).model.state_dict()


def pipeline_nowhere(folder: Path) -> Weights:
    """A pipeline without a word about devices."""
    return pipeline(folder)


def pipeline_on_host(folder: Path) -> Weights:
    """A pipeline on the host, by name."""
    return pipeline(folder, device="cpu")


def pipeline_elsewhere(folder: Path) -> Weights:
    """A pipeline on another GPU, by number."""
    return pipeline(folder, device=1)


def embedder(folder: Path, **keywords: object) -> Weights:
    """What makes vectors of sentences: several modules, one of them a model of transformers."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    return SentenceTransformer(str(folder / "embedder"), **keywords).state_dict()


def embedder_elsewhere(folder: Path) -> Weights:
    """On another GPU, by name."""
    return embedder(folder, device="cuda:1")


def embedder_by_number(folder: Path) -> Weights:
    """On a GPU, by number."""
    return embedder(folder, device=0)


def embedder_on_host(folder: Path) -> Weights:
    """On the host, by name."""
    return embedder(folder, device="cpu")


def embedder_mapped(folder: Path) -> Weights:
    """Placed by transformers."""
    return embedder(folder, model_kwargs={"device_map": "cuda:0"})


def dispatched(folder: Path, placed: dict[str, object], **keywords: object) -> Weights:
    """A language model that accelerate fills, those on the disk left out."""
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "llama"))
    load_checkpoint_and_dispatch(model, folder / "llama", device_map=placed, **keywords)
    return {name: part for name, part in model.state_dict().items() if not part.is_meta}


def accelerate(folder: Path) -> Weights:
    """To one GPU, by number."""
    return dispatched(folder, {"": 0})


def accelerate_spread(folder: Path) -> Weights:
    """Over two GPUs, the host and the disk."""
    placed: dict[str, object] = {f"model.layers.{layer}": layer % 2 for layer in range(11)}
    placed |= {"model.embed_tokens": 0, "model.rotary_emb": 0, "model.norm": "cpu", "lm_head": 1}
    placed["model.layers.11"] = "disk"
    return dispatched(folder, placed, offload_folder=str(folder / "dispatched"))


def peft(folder: Path) -> Weights:
    """An adapter on a model on a GPU."""
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    base = AutoModelForCausalLM.from_pretrained(folder / "llama", device_map="cuda:0")
    return PeftModel.from_pretrained(base, folder / "lora").state_dict()


def distributed_checkpoint(folder: Path) -> Weights:
    """torch's own reader of the format, into tensors on a GPU."""
    import torch  # noqa: PLC0415
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "llama"))
    weights = {
        name: torch.empty(part.shape, dtype=torch.bfloat16, device="cuda")
        for name, part in model.state_dict().items()
    }
    reader = dcp.HuggingFaceStorageReader(str(folder / "llama"))
    dcp.load(weights, storage_reader=reader, no_dist=True)
    return weights


CASES: dict[str, Callable[[Path], Weights]] = {
    "transformers without a device": llama_nowhere,  # before anything has touched a GPU
    "transformers": llama,
    "transformers on a GPU without a number, two GPUs": llama_unnumbered,
    "transformers in inference mode": llama_inference,
    "transformers cast to float16": llama_half,
    "transformers tied": tied,
    "transformers cast to bfloat16": tied_cast,
    "transformers cast to float32": llama_cast,
    "transformers on two GPUs and the host": llama_spread,
    "transformers with a part on the disk": llama_offload,
    "transformers experts": mixtral,
    "transformers experts of another model": qwen3_moe,
    "transformers on the host": llama_on_host,
    "transformers in a device's context": llama_in_context,
    "transformers in the host's context": llama_in_context_of_host,
    "pipeline without a device": pipeline_nowhere,
    "pipeline on the host": pipeline_on_host,
    "pipeline on another GPU": pipeline_elsewhere,
    "diffusers without a device": diffusers_nowhere,
    "diffusers on another GPU": diffusers_whole,
    "diffusers cast to bfloat16": diffusers_cast,
    "diffusers shards": diffusers_shards,
    "diffusers pickled without a plan": diffusers_pickled,
    "diffusers with a part on the disk, without a plan": diffusers_spread,
    "diffusers by its finder without a device": diffusers_auto,
    "diffusers' own generator": diffusers_pipeline,
    "diffusers' own generator of a network with hooks": diffusers_pipeline_given,
    "diffusers' own generator in shards": diffusers_pipeline_shards,
    "diffusers' own generator without a device": diffusers_pipeline_nowhere,
    "sentence-transformers": embedder,
    "sentence-transformers on another GPU": embedder_elsewhere,
    "sentence-transformers by number": embedder_by_number,
    "sentence-transformers on the host": embedder_on_host,
    "sentence-transformers by a map": embedder_mapped,
    "accelerate": accelerate,
    "accelerate on two GPUs, the host and the disk": accelerate_spread,
    "peft": peft,
    "torch.distributed.checkpoint": distributed_checkpoint,
}
#: With what calls that name no device get, and where the weights are to be then.
DEFAULTS = {
    "transformers without a device": "cuda:0",
    "transformers on the host": "cpu",
    "transformers in a device's context": "cuda:1",
    "transformers in the host's context": "cpu",
    "pipeline without a device": "cuda:0",
    "pipeline on the host": "cpu",
    "pipeline on another GPU": "cuda:1",
    "diffusers without a device": "cuda:0",
    "diffusers on another GPU": "cuda:1",
    "diffusers by its finder without a device": "cuda:0",
    "diffusers' own generator of a network with hooks": "cuda:0",
    "diffusers' own generator without a device": "cuda:0",
    "sentence-transformers": "cuda:0",
    "sentence-transformers on the host": "cpu",
    "sentence-transformers on another GPU": "cuda:1",
}


def carry_out(case: str, folder: Path) -> dict[str, Any]:
    """What came of a case: the weights, where they are, and what it cost."""
    import torch  # noqa: PLC0415

    gc.collect()  # models that are dispatched are cycles
    if simulator.DRIVER is not None:
        simulator.reset()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)
    weights = CASES[case](folder)
    counted = simulator.statistics() if simulator.DRIVER is not None else None
    peaks = [torch.cuda.max_memory_allocated(gpu) for gpu in gpus]
    places = {name: str(part.device) for name, part in weights.items()}
    found = digest(weights)
    weights.clear()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    return {"digest": found, "places": places, "driver": counted, "peaks": peaks}


def planned(ours: ModuleType | None) -> int:
    """How many plans were read."""
    served = ours.status().served if ours else {}
    return sum(count for name, count in served.items() if name.endswith(" plan"))


def main() -> None:
    """Does as the arguments say, and prints the results as JSON in the last line."""
    task, folder = sys.argv[1], Path(sys.argv[2])
    results: dict[str, Any] = {}
    if task == "save":
        save_everything(folder)
    else:
        ours = None
        if sys.argv[3] != "stock":
            import safetensors_streaming as ours  # noqa: PLC0415

            ours.patch(device="cuda" if sys.argv[3] == "default" else None)
        for case in sys.argv[4:]:
            before = planned(ours)
            results[case] = carry_out(case, folder)
            results[case]["planned"] = planned(ours) - before
        results["adapters"] = ours.status().adapters if ours else {}
    print(json.dumps(results))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)  # libraries' own clean-up at exit is no part of this


if __name__ == "__main__":
    main()
