"""Remote checkpoints onto a GPU."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import safetensors_streaming
import simulator
import torch
from gpu import NEEDS_GPU
from safetensors.torch import save_file
from servers import BUCKET, nginx, seaweed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = NEEDS_GPU

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """Four shards, 320 MB: more than the ring has."""
    folder = tmp_path_factory.mktemp("model")
    generator = torch.Generator().manual_seed(3)
    tensors = {
        f"layer.{number}.weight": torch.rand(2000, 2500, generator=generator).bfloat16()
        for number in range(32)
    }
    weight_map = {}
    for number in range(4):
        names = list(tensors)[number::4]
        shard = f"model-{number}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / shard)
        (folder / shard).chmod(0o644)
        weight_map |= dict.fromkeys(names, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder, tensors


def right(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    assert {str(tensor.device) for tensor in got.values()} == {"cuda:0"}
    return got.keys() == wanted.keys() and all(
        torch.equal(got[name].cpu().view(torch.int16), tensor.view(torch.int16))
        for name, tensor in wanted.items()
    )


def _bounded() -> None:
    report = safetensors_streaming.last_report()
    assert report.reader == "network"
    assert report.ring_bytes_peak <= 256 << 20
    if simulator.DRIVER is not None:
        assert simulator.statistics()["pageable"]["copies"] == 0


@pytest.mark.parametrize("allocator", ["torch", "driver"])
def test_from_nginx(
    model: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, allocator: str
) -> None:
    folder, tensors = model
    with nginx(tmp_path / "nginx", folder) as server:
        got = safetensors_streaming.load_checkpoint(
            server.url(INDEX), device="cuda:0", allocator=allocator
        )
        _bounded()  # before the comparison copies, too
        assert right(got, tensors)
        del got


def test_from_s3(
    model: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = model
    with seaweed(tmp_path / "seaweed") as store:
        for name, value in store.variables().items():
            monkeypatch.setenv(name, value)
        for file in folder.iterdir():
            store.client.upload_file(str(file), BUCKET, f"m/{file.name}")
        got = safetensors_streaming.load_checkpoint(f"s3://{BUCKET}/m/{INDEX}", device="cuda:0")
        _bounded()  # before the comparison copies, too
        assert right(got, tensors)
        del got
