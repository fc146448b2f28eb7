"""Tiny random models for placed_cases.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


def save_everything(folder: Path) -> None:
    """Writes tiny random models."""
    import torch  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        LlamaConfig,
        LlamaForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)
    llama.save_pretrained(folder / "llama", max_shard_size="200KB")
    save_tokenizer(folder / "llama")
    tied = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    tied.save_pretrained(folder / "tied", max_shard_size="200KB")
    save_diffusers(folder)
    mixtral = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))
    mixtral.save_pretrained(folder / "mixtral", max_shard_size="1MB")
    qwen3 = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, num_experts=4, moe_intermediate_size=32))
    qwen3.save_pretrained(folder / "qwen3-moe", max_shard_size="1MB")
    save_embedder(folder / "embedder")
    save_peft(folder)


def save_embedder(folder: Path) -> None:
    """Writes a model that makes vectors of sentences."""
    from sentence_transformers import SentenceTransformer, models  # noqa: PLC0415
    from transformers import BertConfig, BertModel  # noqa: PLC0415

    sizes = {name: SIZES[name] for name in SIZES if name != "num_key_value_heads"}
    BertModel(BertConfig(**sizes)).save_pretrained(folder / "bert")
    save_tokenizer(folder / "bert")
    layers = models.Transformer(str(folder / "bert"))
    dense = models.Dense(64, 32)
    made = SentenceTransformer(modules=[layers, models.Pooling(64), dense], device="cpu")
    made.save(str(folder))


def save_peft(folder: Path) -> None:
    """Writes an adapter of the language model."""
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    base = AutoModelForCausalLM.from_pretrained(folder / "llama")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(folder / "lora")


def save_diffusers(folder: Path) -> None:
    """Writes a network of a picture model in one file, in shards and in a pipeline."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: PLC0415

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    unet.save_pretrained(folder / "unet")
    unet.save_pretrained(folder / "unet-shards", max_shard_size="500KB")
    unet.save_pretrained(folder / "unet-pickled", safe_serialization=False)
    pipeline = DDPMPipeline(unet=unet, scheduler=DDPMScheduler())
    pipeline.save_pretrained(folder / "ddpm")
    pipeline.save_pretrained(folder / "ddpm-shards", max_shard_size="500KB")
    assert len(list((folder / "ddpm-shards" / "unet").glob("*.safetensors"))) > 1


def save_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of two words, for what needs one."""
    from tokenizers import Tokenizer, models  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    words = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))  # noqa: S106
    made = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")  # noqa: S106
    made.save_pretrained(folder)
