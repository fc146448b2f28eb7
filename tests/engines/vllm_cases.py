"""A tiny Llama in vLLM's real engine; run by test_vllm.py.

Usage: python vllm_cases.py save FOLDER | generate FOLDER LOAD_FORMAT RESULT
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

PROMPTS = ["the quick brown fox", "a lazy dog sleeps", "one two three four five"]


def save(folder: str) -> None:
    """Writes the model in several shards, with a tokenizer of its own."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    words = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - a token of text
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    special = ["<unk>", "<s>", "</s>"]
    words.train_from_iterator(PROMPTS * 20, trainers.BpeTrainer(special_tokens=special))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():  # far enough from zero that the tokens tell one weight from another
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(folder, max_shard_size="400KB")


def told(_worker: object) -> dict[str, Any]:
    """What the loader says in a worker's process."""
    from safetensors_streaming import status  # noqa: PLC0415

    now = status()
    return {
        "process": os.getpid(),
        "spawned": any("spawn_main" in word for word in sys.orig_argv),
        "patched": now.patched,
        "served": now.served,
        "adapters": now.adapters,
    }


def fork() -> None:
    """Has vLLM fork its processes on the CPU as it does on a GPU; it would spawn them there."""
    from vllm.platforms.cpu import CpuPlatform  # noqa: PLC0415

    check = CpuPlatform.check_and_update_config

    def check_and_fork(config: Any) -> None:  # noqa: ANN401
        check(config)
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = staticmethod(check_and_fork)


def generate(folder: str, load_format: str, result: str) -> None:
    """Writes the tokens that the engine makes, and what each worker tells."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415

    if os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == "fork":
        fork()
    engine = LLM(
        model=folder,
        dtype="bfloat16",
        max_model_len=128,
        enforce_eager=True,
        load_format=load_format,
    )
    made = engine.generate(
        PROMPTS, SamplingParams(max_tokens=24, temperature=0, ignore_eos=True), use_tqdm=False
    )
    answer = {
        "tokens": [list(one.outputs[0].token_ids) for one in made],
        "process": os.getpid(),
        "workers": engine.collective_rpc(told),
    }
    Path(result).write_text(json.dumps(answer))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # a spawned child imports this file again
    {"save": save, "generate": generate}[sys.argv[1]](*sys.argv[2:])
