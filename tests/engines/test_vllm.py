"""The plug-in in vLLM itself: its engine on the CPU, and its loader; run by ci/long vllm."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from gpu import NEEDS_GPU
from oracle import Entry, bits, same, write_checkpoint, write_raw
from process import TESTS, run_python, run_script
from safetensors_streaming import status, unpatch
from safetensors_streaming.adapters import plugins
from vllm.config import ParallelConfig, VllmConfig, set_current_vllm_config
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import DefaultModelLoader, get_model_loader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMAT = "safetensors_streaming"
SCRIPT = TESTS / "engines" / "vllm_cases.py"
ENGINE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # so that a worker takes a function to call
}
PROCESSES = {
    "spawn": {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
    "fork": {"VLLM_WORKER_MULTIPROC_METHOD": "fork"},
    "in-process": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
}
SHARDS = 4


def generate(model: Path, load_format: str, **env: str) -> dict[str, Any]:
    result = model.parent / "result.json"
    run_script(SCRIPT, "generate", model, load_format, result, env={**ENGINE, **env})
    answer: dict[str, Any] = json.loads(result.read_text())
    return answer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "model"
    run_script(SCRIPT, "save", folder)
    assert len(list(folder.glob("*.safetensors"))) == SHARDS
    return folder


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    """The tokens of an engine that has loaded no plug-in."""
    answer = generate(model, "auto", VLLM_PLUGINS="")
    assert [(told["patched"], told["served"]) for told in answer["workers"]] == [(False, {})]
    tokens: list[list[int]] = answer["tokens"]
    assert len({tuple(line) for line in tokens}) == len(tokens)
    return tokens


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("load_format", [FORMAT, "auto"])
def test_the_engine_makes_the_same_tokens(
    model: Path, expected: list[list[int]], load_format: str, processes: str
) -> None:
    answer = generate(model, load_format, **PROCESSES[processes])
    assert answer["tokens"] == expected
    (told,) = answer["workers"]
    assert (told["process"] == answer["process"]) == (processes == "in-process")
    assert told["spawned"] == (processes == "spawn")
    assert told["adapters"]["vllm.model_executor.model_loader"] == "yes"
    streamed = {"vllm loader": 1, "stream": SHARDS}
    assert told["served"] == (streamed if load_format == FORMAT else {"safe_open": SHARDS})


def test_the_plugin_alone_starts_nothing() -> None:
    """vLLM calls it before it forks."""
    said = run_python("""
        import sys, threading
        import vllm.engine.arg_utils
        from vllm.plugins import load_general_plugins
        threads = threading.active_count()
        load_general_plugins()
        import torch
        from process import threads as ours
        from safetensors_streaming import status
        assert status().patched
        assert not torch.cuda.is_initialized()
        assert threading.active_count() == threads and not ours()
        assert "vllm.model_executor.model_loader" not in sys.modules
        from vllm.model_executor.model_loader import get_model_loader
        from vllm.config.load import LoadConfig
        print(type(get_model_loader(LoadConfig(load_format="Safetensors_Streaming"))).__name__)
    """)
    assert said.splitlines()[-1] == "StreamingModelLoader"


def test_in_a_version_that_nobody_has_checked() -> None:
    said = run_python("""
        import vllm
        vllm.__version__ = "0.34.0"
        from vllm.plugins import load_general_plugins
        load_general_plugins()
        from vllm.model_executor.model_loader import get_model_loader
        from vllm.config.load import LoadConfig
        try:
            get_model_loader(LoadConfig(load_format="safetensors_streaming"))
        except ValueError as error:
            print(error)
        from safetensors_streaming import status
        assert status().patched
        print(status().adapters["vllm.model_executor.model_loader"])
    """)
    assert said.splitlines()[-2:] == [
        "Load format `safetensors_streaming` is not supported",
        "0.34.0 is not among 0.32 <= version < 0.34",
    ]


def test_in_such_a_version_a_line_tells_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vllm.__version__", "0.34.0")
    plugins.vllm()
    unpatch()
    (record,) = caplog.records
    assert record.getMessage() == (
        "vllm 0.34.0 is not among 0.32 <= version < 0.34: "
        "the load format 'safetensors_streaming' is not registered; all else is served"
    )


# The loader itself, beside the one that it takes the place of.


@pytest.fixture
def plugin() -> Iterator[None]:
    for _ in range(3):
        plugins.vllm()
    yield
    unpatch()


class Model(torch.nn.Module):
    """Takes any weight, and keeps it."""

    def __init__(self, **attributes: object) -> None:
        super().__init__()
        self.taken: dict[str, torch.Tensor] = {}
        vars(self).update(attributes)

    def load_weights(self, pairs: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
        for name, tensor in pairs:
            assert tensor.device.type in {"cpu", "cuda"}
            self.taken[name] = tensor.cpu()
        return set(self.taken)


def load(
    folder: Path,
    load_format: str,
    model: Model | None = None,
    experts: set[int] | None = None,
    runner: str = "generate",
    **config: Any,  # noqa: ANN401
) -> dict[str, torch.Tensor]:
    """What the loader of a load format hands to a model."""
    loader: Any = get_model_loader(LoadConfig(load_format=load_format, **config))
    loader.local_expert_ids = experts
    loader._init_ep_weight_filter = lambda _: None  # noqa: SLF001 - it needs a group of ranks
    named: Any = SimpleNamespace(
        model=str(folder),
        revision=None,
        quantization=None,
        runner_type=runner,
        multimodal_config=None,
    )
    loader.download_model(named)
    model = model or Model()
    loader.load_weights(model, named)
    assert loader.counter_after_loading_weights > loader.counter_before_loading_weights > 0
    return model.taken


def agree(folder: Path, model: dict[str, Any] | None = None, **config: Any) -> set[str]:  # noqa: ANN401
    """Asserts that ours and vLLM's "safetensors" hand over the same, in the same order."""
    attributes = model or {}
    before = status().served.get("vllm loader", 0)
    ours = load(folder, FORMAT, Model(**attributes), **config)
    assert status().served["vllm loader"] > before
    known = load(folder, "safetensors", Model(**attributes), **config)
    assert same(ours, known)
    return set(ours)


@pytest.mark.usefixtures("plugin")
def test_all_weights(checkpoint: Path) -> None:
    assert len(agree(checkpoint)) == 60


@pytest.mark.usefixtures("plugin")
def test_a_file_that_the_index_does_not_name(checkpoint: Path) -> None:
    write_raw(checkpoint / "consolidated.safetensors", {"other": Entry("F32", [2])})
    assert "other" not in agree(checkpoint)


@pytest.mark.usefixtures("plugin")
def test_files_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """Of a name in two files the model sees the one in the later file last."""
    for number in (9, 10):
        content = {"a": Entry("U8", [1], bytes([number]))}
        write_raw(tmp_path / f"model-{number}.safetensors", content)
    agree(tmp_path)
    assert load(tmp_path, FORMAT)["a"].item() == 10


@pytest.mark.usefixtures("plugin")
def test_experts_of_other_ranks_are_left_out(tmp_path: Path) -> None:
    entries = {
        f"layers.0.mlp.experts.{expert}.up_proj.{kind}": Entry("BF16", [4, 3])
        for expert in range(8)
        for kind in ("weight", "weight_scale")
    }
    entries["layers.0.mlp.gate.weight"] = Entry("F32", [8, 3])
    write_raw(tmp_path / "model.safetensors", entries)
    names = agree(tmp_path, experts={1, 6})
    assert len(names) == 2 + 8 + 1


@pytest.mark.usefixtures("plugin")
def test_secondary_weights_and_their_prefix(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    second = write_checkpoint(tmp_path / "more" / "inner").parent
    source = DefaultModelLoader.Source(str(second), None, subfolder="inner", prefix="second.")
    names = agree(checkpoint, {"secondary_weights": [source]})
    assert sum(name.startswith("second.") for name in names) == 60
    assert len(names) == 120


@pytest.mark.usefixtures("plugin")
def test_patterns_and_shards_of_unused_weights(checkpoint: Path) -> None:
    only = agree(checkpoint, {"allow_patterns_overrides": ["*-00002-of-*.safetensors"]})
    assert {name[:3] for name in only} == {"s1."}

    def unused(name: str) -> bool:
        return name.startswith("s0.")

    used = agree(checkpoint, {"is_unused_checkpoint_weight": unused})
    assert {name[:3] for name in used} == {"s1.", "s2."}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    "extra", [{"unknown": 1}, {"num_threads": 0}, {"enable_multithread_load": "yes"}]
)
def test_extra_config_is_checked(extra: dict[str, Any]) -> None:
    said = []
    for name in (FORMAT, "safetensors"):
        with pytest.raises(ValueError, match=next(iter(extra))) as caught:
            get_model_loader(LoadConfig(load_format=name, model_loader_extra_config=extra))
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.usefixtures("plugin")
def test_the_callers_config_stays_as_it_is() -> None:
    config = LoadConfig(load_format=FORMAT)
    get_model_loader(config)
    assert config.load_format == FORMAT


@pytest.mark.usefixtures("plugin")
def test_no_weights(tmp_path: Path) -> None:
    for name in (FORMAT, "safetensors"):
        with pytest.raises(RuntimeError, match="Cannot find any model weights"):
            load(tmp_path, name)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    "config",
    [{"runner": "draft"}, {"safetensors_load_strategy": "eager"}, {"stages": 2}],
    ids=str,
)
def test_what_is_left_to_vllms_own_iterator(checkpoint: Path, config: dict[str, Any]) -> None:
    before = status().served.get("vllm loader", 0)
    stages = config.pop("stages", 1)
    whole = VllmConfig(parallel_config=ParallelConfig(pipeline_parallel_size=stages))
    with set_current_vllm_config(whole):
        ours, known = (load(checkpoint, name, **config) for name in (FORMAT, "safetensors"))
    assert same(ours, known)
    assert status().served.get("vllm loader", 0) == before


class TestOnGpu:
    pytestmark = NEEDS_GPU

    @pytest.mark.usefixtures("plugin")
    def test_tensors_come_on_the_gpu_and_torch_allocates_nothing(self, checkpoint: Path) -> None:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seen = {}

        class Watching(Model):
            def load_weights(self, pairs: Iterator[tuple[str, torch.Tensor]]) -> set[str]:
                for name, tensor in pairs:
                    assert tensor.device == torch.device("cuda", 0)
                    seen[name] = bits(tensor)
                return set(seen)

        with torch.device("cuda"):
            load(checkpoint, FORMAT, Watching(), device="cuda")
        assert torch.cuda.max_memory_allocated() == before
        known = load(checkpoint, "safetensors")
        assert seen == {name: bits(tensor) for name, tensor in known.items()}
