"""`verify=` on loads: nothing is handed out whose bytes are not those that are known."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

import pytest
import simulator
import torch
from gpu import ALLOCATORS, NEEDS_GPU, NEEDS_SIMULATOR, check
from oracle import DTYPES, STOCK, Entry, by_stock, evict, flip, same, shards, write_raw
from process import run_python
from safetensors import SafetensorError
from safetensors_streaming import last_report, load_checkpoint, load_file

if TYPE_CHECKING:
    from pathlib import Path

BACKENDS = ["mmap", "pread"]
MIB = 1 << 20
NO_ERROR, REFUSED = 0, 801


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def in_the_hubs_cache(path: Path, folder: Path) -> Path:
    """The file as `huggingface_hub` keeps it: named by its digest, and linked to."""
    blob = folder / "blobs" / sha256(path)
    blob.parent.mkdir(parents=True, exist_ok=True)
    path.rename(blob)
    link = folder / "snapshots" / path.name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(blob)
    return link


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("warm", [True, False])
def test_the_right_digest(large: Path, backend: str, *, warm: bool) -> None:
    digest = sha256(large)
    if not warm:
        evict(large)
    loaded = load_file(large, backend=backend, verify=digest.upper())
    assert same(loaded, STOCK.load_file(large))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_flipped_bit_anywhere(sample: Path, backend: str) -> None:
    content, digest = sample.read_bytes(), sha256(sample)
    data = 8 + int.from_bytes(content[:8], "little")
    in_the_metadata = content.index(b'"pt"') + 1
    for place in (in_the_metadata, data, (data + len(content)) // 2, len(content) - 1):
        flip(sample, place)
        with pytest.raises(SafetensorError) as caught:
            load_file(sample, backend=backend, verify=digest)
        assert str(sample) in str(caught.value)
        assert digest in str(caught.value)
        assert sha256(sample) in str(caught.value)
        flip(sample, place)
    assert same(load_file(sample, backend=backend, verify=digest), STOCK.load_file(sample))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_the_hubs_cache_named(sample: Path, tmp_path: Path, backend: str) -> None:
    link = in_the_hubs_cache(sample, tmp_path / "models--one")
    assert same(load_file(link, backend=backend, verify="sha256"), STOCK.load_file(link))
    flip(link, link.stat().st_size - 1)
    with pytest.raises(SafetensorError, match="sha256"):
        load_file(link, backend=backend, verify="sha256")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_shard_is_named(checkpoint: Path, backend: str) -> None:
    files = shards(checkpoint)
    digests = {path.name: sha256(path) for path in files}
    loaded = load_checkpoint(checkpoint, backend=backend, verify=digests)
    assert same(loaded, by_stock(checkpoint))
    flip(files[1], files[1].stat().st_size - 1)
    with pytest.raises(SafetensorError) as caught:
        load_checkpoint(checkpoint, backend=backend, verify=digests)
    assert str(files[1]) in str(caught.value)
    assert str(files[0]) not in str(caught.value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_filter_leaves_out_is_verified(sample: Path, backend: str) -> None:
    digest = sha256(sample)
    first = next(iter(STOCK.load_file(sample)))
    flip(sample, sample.stat().st_size - 1)

    def only_first(name: str) -> bool:
        return name == first

    def nothing(name: str) -> bool:
        return not name

    for wanted in (only_first, nothing):
        with pytest.raises(SafetensorError, match="sha256"):
            load_checkpoint(sample, backend=backend, filter=wanted, verify=digest)
        assert len(load_checkpoint(sample, backend=backend, filter=wanted)) <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress_ends_with_all_bytes(large: Path, backend: str) -> None:
    told: list[tuple[int, int]] = []
    load_checkpoint(
        large,
        backend=backend,
        verify=sha256(large),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 0


def test_the_report_says_that_a_mapped_file_was_read(sample: Path) -> None:
    load_file(sample, verify=sha256(sample))
    report = last_report()
    assert report is not None
    assert "digest" in report.reason
    assert "every byte digested" in report.explain()
    assert report.read_bytes == sample.stat().st_size
    load_file(sample)
    report = last_report()
    assert report is not None
    assert "digest" not in report.reason


@pytest.mark.parametrize(
    ("verify", "words"),
    [
        ("sha256", "no SHA-256 is known"),
        ("md5", "expected 'sha256', 'device'"),
        ("0" * 63, "expected 'sha256', 'device'"),
        ({"other.safetensors": "0" * 64}, "no file 'other.safetensors'"),
        ({}, "no SHA-256 is known"),
        ("device", "the device is the CPU"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_cannot_be_verified(
    sample: Path, verify: str | dict[str, str], words: str, backend: str
) -> None:
    with pytest.raises(ValueError, match=words):
        load_file(sample, backend=backend, verify=verify)
    with pytest.raises(ValueError, match=words):
        load_checkpoint(sample, backend=backend, verify=verify)


def test_other_types_are_refused(sample: Path) -> None:
    for verify in (True, bytes.fromhex(sha256(sample))):
        with pytest.raises(TypeError, match="a str or a mapping"):
            load_file(sample, verify=verify)  # type: ignore[arg-type]


def test_files_of_one_name_cannot_be_told_apart(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = write_raw(tmp_path / "other" / sample.name, {"another": Entry("F32", [2])})
    with pytest.raises(ValueError, match="one name"):
        load_checkpoint([sample, other], verify={sample.name: sha256(sample)})


def test_one_digest_for_several_files(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="give each its own"):
        load_checkpoint(checkpoint, verify="0" * 64)


def test_what_upstream_loads_is_not_verified(sample: Path) -> None:
    with pytest.raises(ValueError, match="upstream"):
        load_file(sample, "meta", verify=sha256(sample))


class TestOnAGpu:
    """To memory of a GPU."""

    pytestmark = NEEDS_GPU

    @pytest.mark.parametrize("allocator", ALLOCATORS)
    def test_sha256(self, large: Path, allocator: str) -> None:
        digest = sha256(large)
        evict(large)
        check(load_file(large, "cuda", allocator=allocator, verify=digest), STOCK.load_file(large))
        flipped = f"{int(digest[0], 16) ^ 1:x}{digest[1:]}"
        with pytest.raises(SafetensorError, match=digest):
            load_file(large, "cuda", allocator=allocator, verify=flipped)

    @pytest.mark.parametrize("allocator", ALLOCATORS)
    @pytest.mark.parametrize("misalign", [0, 3])
    def test_what_arrives(self, tmp_path: Path, allocator: str, misalign: int) -> None:
        entries = {f"{name}.{size}": Entry(name, [size, 2]) for name in DTYPES for size in (1, 701)}
        entries |= {"none": Entry("F32", [0]), "much": Entry("U8", [9 * MIB + 5])}
        path = write_raw(tmp_path / "types.safetensors", entries, misalign=misalign)
        loaded = load_file(path, "cuda", allocator=allocator, verify="device")
        check(loaded, STOCK.load_file(path))

    def test_with_nothing_compiled_by_the_driver(self, sample: Path) -> None:
        """The kernels ship as machine code; without any there is no sum of what arrives."""
        if torch.cuda.get_device_properties(0).is_integrated:
            pytest.skip("a GPU in one chip with a processor")
        script = """
            import sys
            from safetensors_streaming import load_file
            load_file(sys.argv[1], "cuda", verify="device")
        """
        run_python(script, sample, env={"CUDA_DISABLE_PTX_JIT": "1"})

    def test_what_arrives_of_shards(self, checkpoint: Path) -> None:
        loaded = load_checkpoint(checkpoint, "cuda", verify="device")
        check(loaded, by_stock(checkpoint))
        mixed = load_checkpoint(checkpoint, device_map={"": "cpu", "s0.*": 0}, verify="device")
        assert mixed.keys() == loaded.keys()

    def test_where_no_tensor_goes_to_a_gpu(self, sample: Path) -> None:
        with pytest.raises(SafetensorError, match="no tensor goes to a GPU"):
            load_checkpoint(sample, device_map={"": "cpu", "nobody": 0}, verify="device")

    def test_of_a_type_that_is_converted(self, sample: Path) -> None:
        with pytest.raises(ValueError, match="dtype changes"):
            load_file(sample, "cuda", dtype=torch.bfloat16, verify="device")


class TestOfTheSimulator:
    """Copies that the simulated driver loses, and says that it has done them."""

    pytestmark = NEEDS_SIMULATOR

    @pytest.mark.parametrize("allocator", ALLOCATORS)
    def test_a_copy_that_is_lost(self, tmp_path: Path, allocator: str) -> None:
        names = [f"t{number}" for number in range(4)]
        path, other = tmp_path / "four.safetensors", tmp_path / "other.safetensors"
        write_raw(path, {name: Entry("F32", [MIB]) for name in names})
        write_raw(other, {f"other.{name}": Entry("F32", [MIB]) for name in names})
        found = set()
        for lost in itertools.count(1):
            load_file(other, "cuda", allocator=allocator)  # what the memory holds before
            before = copies()
            simulator.fail("cuMemcpyHtoDAsync_v2", lost, NO_ERROR)
            try:
                load_file(path, "cuda", allocator=allocator, verify="device")
            except SafetensorError as error:
                told = str(error)
            else:
                assert copies() - before < lost  # all were lost in turn
                break
            finally:
                simulator.fail("*", 0, NO_ERROR)
            assert str(path) in told
            [name] = [name for name in names if f"tensor `{name}`" in told]
            found.add(name)
        assert found == set(names)

    @pytest.mark.parametrize("call", ["cuMemsetD8Async", "cuMemcpyDtoHAsync_v2"])
    def test_a_refusal_while_it_sums(self, sample: Path, call: str) -> None:
        simulator.fail(call, 1, REFUSED)
        with pytest.raises(RuntimeError, match=call.removesuffix("_v2")):
            load_file(sample, "cuda", verify="device")
        check(load_file(sample, "cuda", verify="device"), STOCK.load_file(sample))


def copies() -> int:
    called: int = simulator.statistics()["calls"]["cuMemcpyHtoDAsync_v2"]
    return called
