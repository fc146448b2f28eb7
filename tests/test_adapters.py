"""Adapters of libraries: installed where the version is known, undone exactly."""

from __future__ import annotations

import gc
import sys
import threading
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors_streaming import _patch, patch, status, unpatch
from safetensors_streaming._default import device_for_caller_of
from safetensors_streaming.adapters import ADAPTERS

LIBRARIES = ["accelerate", "diffusers", "peft", "sentence_transformers", "transformers"]
MISSING = [name for name in LIBRARIES if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
CYCLES = 50
INSTALLED = [adapter.module for adapter in ADAPTERS if find_spec(adapter.library) is not None]
MODULES = [
    *INSTALLED,
    "accelerate.utils.modeling",
    "accelerate.utils.offload",
    "diffusers.loaders.lora_base",
    "diffusers.models.model_loading_utils",
    "peft.peft_model",
    "peft.utils.save_and_load",
    "sentence_transformers.base.modules.module",
    "transformers.core_model_loading",
    "transformers.integrations.accelerate",
]
#: Classes whose methods adapters change.
CLASSES = [
    "diffusers.loaders.single_file.FromSingleFileMixin",
    "diffusers.loaders.single_file_model.FromOriginalModelMixin",
    "diffusers.models.modeling_utils.ModelMixin",
    "diffusers.pipelines.pipeline_utils.DiffusionPipeline",
    "sentence_transformers.base.model.BaseModel",
    "transformers.core_model_loading.WeightTransform",
]


def holders() -> dict[str, object]:
    """The modules and classes that a patch changes, by name."""
    found: dict[str, object] = {name: import_module(name) for name in MODULES}
    for name in CLASSES:
        module, _, owner = name.rpartition(".")
        found[name] = getattr(import_module(module), owner)
    return found


def all_modules() -> dict[str, object]:
    """Every module of these libraries and of safetensors that is there."""
    known = {*LIBRARIES, "safetensors"}
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] in known}


def attributes(found: dict[str, object] | None = None) -> dict[str, object]:
    """Every attribute by its full name."""
    return {
        f"{name}.{attribute}": value
        for name, holder in (found or holders()).items()
        for attribute, value in list(getattr(holder, "__dict__", {}).items())
    }


def differences(before: dict[str, object], now: dict[str, object]) -> set[str]:
    return {name for name in before | now if before.get(name) is not now.get(name)}


def changed(before: dict[str, object]) -> set[str]:
    return differences(before, attributes())


def alive() -> tuple[int, int, int, int]:
    """Objects, open files, threads and hooks of imports."""
    gc.collect()
    files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
    return len(gc.get_objects()), files, threads, len(sys.meta_path)


def test_every_attribute_is_as_before_after_fifty_times() -> None:
    attributes()  # what is imported late is there
    for _ in range(5):  # what is made once is there
        patch()
        unpatch()
    before, everywhere, (objects, *kept) = attributes(), attributes(all_modules()), alive()
    for _ in range(CYCLES):
        patch()
        there = changed(before)
        unpatch()
        assert not changed(before)
    assert not differences(everywhere, attributes(all_modules()))
    objects_now, *kept_now = alive()
    assert kept_now == kept
    assert objects_now - objects < CYCLES  # less than one a time
    assert there >= {
        "accelerate.utils.modeling.safe_open",
        "diffusers.loaders.single_file.FromSingleFileMixin.from_single_file",
        "diffusers.models.modeling_utils.ModelMixin.from_pretrained",
        "diffusers.models.modeling_utils.load_state_dict",
        "diffusers.pipelines.pipeline_utils.DiffusionPipeline.from_pretrained",
        "peft.peft_model.safe_open",
        "sentence_transformers.base.model.BaseModel.__init__",
        "transformers.core_model_loading.WeightTransform.add_tensor",
        "transformers.core_model_loading.spawn_materialize",
        "transformers.modeling_utils.check_and_set_device_map",
        "transformers.modeling_utils.convert_and_load_state_dict_in_model",
        "transformers.pipelines.pipeline",
    }


def test_status_names_the_libraries() -> None:
    attributes()
    patch()
    try:
        assert status().adapters == dict.fromkeys(INSTALLED, "yes")
        said = str(status()).splitlines()[-1]
        assert said.startswith("libraries adapted to: ")
        assert all(f"{module} (yes)" in said for module in INSTALLED)
    finally:
        unpatch()
    assert status().adapters == {}


def test_a_version_that_nobody_has_checked_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = attributes()
    older = tuple(replace(adapter, since="0.1", before="0.2") for adapter in ADAPTERS)
    monkeypatch.setattr(_patch, "ADAPTERS", older)
    patch()
    try:
        upstream = {"safe_open", "load_file", "load", "safe_load_file", "_safe_load_bytes"}
        upstream.add("load_safetensors_file")
        assert {name.rpartition(".")[2] for name in changed(before)} <= upstream
        reason = status().adapters["transformers.modeling_utils"]
        assert version("transformers") in reason
        assert "0.1 <= version < 0.2" in reason
    finally:
        unpatch()
    assert not changed(before)


def test_an_adapter_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    before = attributes()

    def fail() -> list[tuple[object, object]]:
        raise ValueError("the library has changed")

    failing = tuple(replace(adapter, replacements=fail) for adapter in ADAPTERS)
    monkeypatch.setattr(_patch, "ADAPTERS", failing)
    patch()
    try:
        assert set(status().adapters.values()) == {"ValueError: the library has changed"}
    finally:
        unpatch()
    assert not changed(before)


def test_an_import_under_way_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    attributes()
    specification = import_module("transformers.modeling_utils").__spec__
    monkeypatch.setattr(specification, "_initializing", True)
    try:
        patch()
        assert "transformers.modeling_utils" not in status().adapters
        monkeypatch.setattr(specification, "_initializing", False)
        assert status().adapters["transformers.modeling_utils"] == "yes"
    finally:
        unpatch()


def test_the_default_is_for_callers_who_place_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    patch(device="cuda:3")  # as it is named: libraries take "cuda" for the rank's
    try:
        assert device_for_caller_of("transformers") == "cuda:3"
        monkeypatch.setitem(globals(), "__name__", "peft.tuners")
        assert device_for_caller_of("transformers") == "cpu"
        monkeypatch.setitem(globals(), "__name__", "transformers_modules.of_a_model")
        assert device_for_caller_of("transformers") == "cuda:3"  # pytest's call
    finally:
        unpatch()
    assert device_for_caller_of("transformers") == "cpu"
