"""``patch(children=True)``: processes started in every way are patched too (contract 5 F)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from process import run_python, run_script

if TYPE_CHECKING:
    from pathlib import Path

START_METHODS = ["spawn", "fork", "forkserver"]

# A script, because spawn needs a main module that can be imported.

PARENT = '''
import multiprocessing, os, subprocess, sys

CHILD = """
import sys, safetensors.torch
safetensors.torch.load_file(sys.argv[1])
state = sys.modules.get("safetensors_streaming")
print(sum(state.status().served.values()) if state else 0)
"""

def work(path, answers):
    import safetensors.torch
    before = 0
    if "safetensors_streaming" in sys.modules:
        before = sum(sys.modules["safetensors_streaming"].status().served.values())
    safetensors.torch.load_file(path)
    with safetensors.safe_open(path, "pt") as handle:
        handle.get_tensor("a")
    state = sys.modules.get("safetensors_streaming")
    answers.put(sum(state.status().served.values()) - before if state else 0)

def run(method, path):
    context = multiprocessing.get_context(method)
    answers = context.SimpleQueue()
    child = context.Process(target=work, args=(path, answers))
    child.start()
    child.join()
    assert child.exitcode == 0, child.exitcode
    return answers.get()

def subprocess_counts(path):
    for extra in ([], ["-I"]):
        command = [sys.executable, *extra, "-c", CHILD, path]
        yield int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

if __name__ == "__main__":
    from safetensors_streaming import load_file, patch, unpatch

    path, method = sys.argv[1:]
    load_file(path, backend="pread")
    patch(children=True)
    assert os.environ["SAFETENSORS_STREAMING_PATCH"] == "1"
    if method == "subprocess":
        assert list(subprocess_counts(path)) == [1, 1]
    else:
        assert run(method, path) == 2
    unpatch()
    assert "SAFETENSORS_STREAMING_PATCH" not in os.environ
    if method == "subprocess":
        assert list(subprocess_counts(path)) == [0, 0]
    elif method != "forkserver":  # its server has the environment of its first start
        assert run(method, path) == 0
    if method == "fork":
        patch()
        assert run(method, path) == 2
        unpatch()
'''


@pytest.mark.parametrize("method", [*START_METHODS, "subprocess"])
def test_children(sample: Path, tmp_path: Path, method: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    run_script(script, sample, method)


def test_children_are_patched_only_when_asked(sample: Path) -> None:
    run_python(
        """
        import os, subprocess, sys
        from safetensors_streaming import patch
        patch()
        assert "SAFETENSORS_STREAMING_PATCH" not in os.environ
        code = "import safetensors, sys; print('safetensors_streaming' in sys.modules)"
        command = [sys.executable, "-c", code]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said == "False\\n", said
        """,
        sample,
    )
