"""The plug-in in SGLang's own loader; run by ci/long sglang.

Its engine needs a GPU with kernels; its loader does not.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
import torch
from gpu import NEEDS_GPU
from oracle import Entry, bits, same, write_checkpoint, write_raw
from process import run_python
from safetensors_streaming import status, unpatch
from safetensors_streaming.adapters import plugins

with patch("torch.cuda.is_available", return_value=False):  # else it wants its kernels
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader import loader as library
    from sglang.srt.model_loader.loader import DefaultModelLoader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WISHES = {
    "weight_loader_disable_mmap": False,
    "weight_loader_prefetch_checkpoints": False,
    "weight_loader_prefetch_num_threads": 4,
    "weight_loader_drop_cache_after_load": False,
    "model_checksum": None,
}


@pytest.fixture(autouse=True)
def _server(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server has published of its arguments when it loads."""
    serve(monkeypatch)


def serve(monkeypatch: pytest.MonkeyPatch, stages: int = 1, **wishes: bool) -> None:
    published = SimpleNamespace(**{**WISHES, **wishes})
    ranks = SimpleNamespace(pp_size=stages, tp_size=1, tp_rank=0, dp_size=1)
    monkeypatch.setattr(library, "get_model", lambda: published)
    monkeypatch.setattr(library, "get_parallel", lambda: ranks)
    monkeypatch.setattr(library, "get_server_args", lambda: None)


def load(folder: Path, *, draft: bool = False, **attributes: object) -> dict[str, torch.Tensor]:
    """What the default loader hands to a model."""
    loader = DefaultModelLoader(LoadConfig())
    config = SimpleNamespace(
        model_path=str(folder),
        revision=None,
        is_draft_model=draft,
        hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]),
    )
    taken = {}
    for name, tensor in loader._get_all_weights(config, SimpleNamespace(**attributes)):  # noqa: SLF001
        assert name not in taken
        taken[name] = tensor
    return taken


def patched_load(folder: Path, **keywords: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
    plugins.sglang()
    try:
        assert status().adapters["sglang.srt.model_loader.loader"] == "yes"
        return load(folder, **keywords)
    finally:
        unpatch()


def test_sglang_finds_and_calls_the_plugin() -> None:
    said = run_python("""
        import sys, threading
        from sglang.srt.plugins import load_plugins
        threads = threading.active_count()
        load_plugins()
        import torch
        from process import threads as ours
        from safetensors_streaming import status
        assert status().patched
        assert not torch.cuda.is_initialized()
        assert threading.active_count() == threads and not ours()
        import sglang.srt.model_loader.loader
        print(status().adapters["sglang.srt.model_loader.loader"])
    """)
    assert said.splitlines()[-1] == "yes"


def test_a_version_that_nobody_has_checked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sglang.__version__", "0.5.24.post1")
    before = DefaultModelLoader._get_all_weights  # noqa: SLF001
    plugins.sglang()
    try:
        assert DefaultModelLoader._get_all_weights is before  # noqa: SLF001
        assert status().patched
    finally:
        unpatch()
    (record,) = caplog.records
    assert record.getMessage() == (
        "sglang 0.5.24.post1 is not among 0.5.23 <= version < 0.5.24: "
        "weights for GPUs are not streamed; all else is served"
    )


def test_on_the_cpu_files_are_mapped(checkpoint: Path) -> None:
    before = status().served.get("safe_open", 0)
    ours = patched_load(checkpoint)
    assert status().served["safe_open"] == before + 3
    assert same(ours, load(checkpoint))
    assert status().served["safe_open"] == before + 3


class TestOnGpu:
    pytestmark = NEEDS_GPU

    def test_a_load_at_the_start_is_streamed(self, checkpoint: Path, tmp_path: Path) -> None:
        (tmp_path / "more").mkdir()
        second = DefaultModelLoader.Source(
            str(write_checkpoint(tmp_path / "more" / "second")), None, prefix="second."
        )
        write_raw(checkpoint / "unnamed.safetensors", {"unnamed": Entry("F32", [2])})
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        before = status().served.get("sglang loader", 0)
        ours = patched_load(checkpoint, secondary_weights=[second])
        assert status().served["sglang loader"] == before + 2
        assert torch.cuda.max_memory_allocated() == allocated
        assert {tensor.device.type for tensor in ours.values()} == {"cuda"}
        known = load(checkpoint, secondary_weights=[second])
        assert ours.keys() == known.keys()
        assert all(bits(ours[name]) == bits(tensor) for name, tensor in known.items())

    @pytest.mark.parametrize(
        "kept",
        [
            {"draft": True},
            {"stages": 2},
            {"weight_loader_disable_mmap": True},
            {"weight_loader_prefetch_checkpoints": True},
            {"weight_loader_drop_cache_after_load": True},
        ],
        ids=str,
    )
    def test_what_is_left_to_sglang(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: dict[str, Any]
    ) -> None:
        write_raw(tmp_path / "model.safetensors", {"a": Entry("F32", [5]), "b": Entry("BF16", [2])})
        draft = kept.pop("draft", False)
        serve(monkeypatch, **kept)
        ours = patched_load(tmp_path, draft=draft)
        assert same(ours, load(tmp_path, draft=draft))

    def test_loads_that_name_no_model_are_left_to_sglang(self, checkpoint: Path) -> None:
        """As those of a LoRA, a backup of experts, an update while it serves."""
        loader = DefaultModelLoader(LoadConfig())
        source = DefaultModelLoader.Source(str(checkpoint), None)
        plugins.sglang()
        try:
            pairs: Iterator[tuple[str, torch.Tensor]] = loader._get_weights_iterator(source)  # noqa: SLF001
            assert {tensor.device.type for _, tensor in pairs} == {"cpu"}
        finally:
            unpatch()
