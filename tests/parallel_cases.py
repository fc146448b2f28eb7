"""One rank of a tensor-parallel load; run by test_parallel.py.

Usage: python parallel_cases.py FOLDER save|stock|ours; for the latter two with RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT as torch.distributed reads them.
"""

from __future__ import annotations

import json
import os
import sys

from library_cases import digest


def save(folder: str) -> None:
    """Writes a model whose rows are long enough to be read apart from each other."""
    import torch  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=1 << 16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="40MB")


def main() -> None:
    """Prints what came, as JSON in the last line."""
    import torch  # noqa: PLC0415
    from torch.distributed.tensor import DTensor  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415
    from transformers.distributed import DistributedConfig  # noqa: PLC0415

    folder, way = sys.argv[1:3]
    if way == "save":
        save(folder)
        return
    ours = None
    if way == "ours":
        import safetensors_streaming as ours  # noqa: PLC0415

        ours.patch()
    torch.distributed.init_process_group("gloo")
    config = DistributedConfig(tp_size=torch.distributed.get_world_size())
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=config)
    local, places = {}, {}
    for name, part in model.state_dict().items():
        local[name] = part.to_local() if isinstance(part, DTensor) else part
        placed = str(part.placements) if isinstance(part, DTensor) else "whole"
        places[name] = f"{placed} {tuple(local[name].shape)} {local[name].device}"
    report = ours.last_report().to_dict() if ours and ours.last_report() else None
    served = ours.status().served if ours else {}
    told = {"digest": digest(local), "places": places, "report": report, "served": served}
    print(json.dumps(told))  # noqa: T201
    sys.stdout.flush()
    torch.distributed.barrier()  # the first rank has the store that the others still meet at
    os._exit(0)  # libraries' own clean-up at exit is no part of this


if __name__ == "__main__":
    main()
