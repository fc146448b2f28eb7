"""The rows of the benchmark as data: what is timed, on which files, and what it should reach."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Target:
    """What a row has to reach.

    Attributes:
        ratio: The highest allowed time of ours over the reference's.
        says: The same in words.
        certain: Whether the upper end of the confidence interval decides, not the median.
        weights: Whether it is about the weights alone, and their time at the slowest ceiling.
    """

    ratio: float
    says: str
    certain: bool = False
    weights: bool = False


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: How ``--rows`` calls it.
        says: What it times, in words.
        action: The loaders' method.
        ours: The loader judged.
        others: Those it is compared with; the one with the lowest median is the reference, or where
            they are bounds, the one with the highest.
        files: As ``models.files`` calls them; with a consumer, its name.
        cache: For each process of a sample: "cold", "warm", or "left" as the last one left it.
        blocks: Samples of each loader.
        read: Whether reading every byte is timed as well.
        rehearse: Whether an untimed call comes first.
        again: The row of the same processes' second calls.
        ceilings: What bounds the rate of bytes, of "disk", "memory", "link" and "proxy"; nothing
            where none need be read.
        target: None for a row that only reports.
        throttled: Whether the files come no faster than ``bench/throttle.c`` lets them.
        consumer: The library whose call is timed, a name in ``CONSUMERS``, if it is not the loader.
        device: Where that library shall put the tensors.
        bounds: Whether no loader can be faster than any one of the others.
        network: What kind of network the files come over, as ``network.serving`` calls it, if any.
        counts: What of a process is compared: its "seconds", or "cpu_seconds".
    """

    name: str
    says: str
    action: str
    ours: str = "ours"
    others: tuple[str, ...] = ("stock",)
    files: str = "model"
    cache: tuple[str, ...] = ("warm",)
    blocks: int = 7
    read: bool = False
    rehearse: bool = False
    again: str | None = None
    ceilings: tuple[str, ...] = ()
    target: Target | None = None
    throttled: bool = False
    consumer: str | None = None
    device: str = "cpu"
    bounds: bool = False
    network: str | None = None
    counts: str = "seconds"


NEVER_SLOWER = Target(1.05, "never slower", certain=True)
NULL_READERS = ("null-1", "null-2", "null-4", "null-8")
#: Those that only move bytes: what they reach is a ceiling.
CEILINGS = (*NULL_READERS, "null-source", "sha256", "link")

ROWS = (
    Row(
        name="small-5000",
        says="load_file of 5,000 small tensors, warm",
        action="load",
        files="small",
        blocks=15,
        target=Target(1 / 4, "1/4 of stock"),
    ),
    Row(
        name="open",
        says="safe_open + keys() of the model and of the 5,000 tensors, warm",
        action="names",
        files="both",
        blocks=15,
        target=NEVER_SLOWER,
    ),
    Row(
        name="warm-read",
        says="load_file + read of every byte, warm",
        action="load",
        blocks=9,
        read=True,
        ceilings=("memory",),
        target=NEVER_SLOWER,
    ),
    Row(
        name="cold-lazy",
        says="load_file, nothing read, cold",
        action="load",
        cache=("cold",),
        target=Target(1 / 20, "1/20 of stock"),
    ),
    Row(
        name="cold-read",
        says="load_file + read of every byte, cold",
        action="load",
        cache=("cold",),
        read=True,
        ceilings=("disk",),
        target=Target(1 / 1.5, "1.5x faster"),
    ),
    Row(
        name="engine",
        says="every byte through the ring, cold, direct, against the best null reader",
        action="engine",
        others=NULL_READERS,
        cache=("cold",),
        ceilings=("disk",),
        target=Target(1 / 0.9, "90 % of the null reader"),
    ),
    Row(
        name="engine-again",
        says="the same, second call of the process: its ring exists",
        action="engine",
        others=NULL_READERS,
        cache=("cold",),
        blocks=3,
        rehearse=True,
        ceilings=("disk",),
    ),
    Row(
        name="twice",
        says="load_file + read of every byte, cold, then once more by a second process: the sum",
        action="load",
        cache=("cold", "left"),
        read=True,
        target=NEVER_SLOWER,
    ),
    Row(
        name="pretrained-warm",
        says="transformers' from_pretrained, warm",
        action="load",
        consumer="transformers",
        blocks=5,
    ),
    Row(
        name="pretrained-cold",
        says="transformers' from_pretrained, cold",
        action="load",
        consumer="transformers",
        cache=("cold",),
        blocks=5,
    ),
    Row(
        name="pread-warm",
        says='load_file(backend="pread"), warm',
        action="load",
        ours="ours-pread",
        others=("stock-pread",),
        blocks=3,
        ceilings=("memory",),
    ),
)

OTHER_PEERS = ("stock-cuda", "prefetch", "fastsafetensors", "runai")
PEERS = (*OTHER_PEERS, "instanttensor")
#: With the one way of InstantTensor's that its authors advise for what is in the page cache.
WARM_PEERS = (*OTHER_PEERS, "instanttensor-buffered")
FIRST = Target(1.0, "before every peer")

#: Loads to a GPU, a real or a simulated one. Each ends when the caller has all tensors and the GPU
#: is idle; the context is made before.
GPU_ROWS = (
    Row(
        name="gpu-link",
        says="all shards to the GPU, warm, second load, against the link's own rate",
        action="load_cuda",
        ours="ours-cuda",
        others=("link",),
        blocks=5,
        rehearse=True,
        ceilings=("link",),
        target=Target(1 / 0.95, "95 % of the link"),
    ),
    Row(
        name="gpu-warm",
        says="all shards to the GPU, warm, first load of the process",
        action="load_cuda",
        ours="ours-cuda",
        others=WARM_PEERS,
        blocks=5,
        again="gpu-warm-again",
        ceilings=("link",),
        target=FIRST,
    ),
    Row(
        name="gpu-warm-again",
        says="the same, second load of the process",
        action="load_cuda",
        ours="ours-cuda",
        others=WARM_PEERS,
        rehearse=True,
        ceilings=("link",),
        target=FIRST,
    ),
    Row(
        name="gpu-experts",
        says="20,000 tensors of 4 KiB to the GPU, warm, against stock",
        action="load_cuda",
        ours="ours-cuda",
        others=("stock-cuda",),
        files="experts",
        blocks=3,
        target=Target(1 / 4, "1/4 of stock"),
    ),
    Row(
        name="gpu-cold",
        says="all shards to the GPU, cold",
        action="load_cuda",
        ours="ours-cuda",
        others=PEERS,
        cache=("cold",),
        blocks=3,
        ceilings=("link",),
        target=FIRST,
    ),
    Row(
        name="gpu-driver",
        says="the same with allocator=driver",
        action="load_cuda",
        ours="ours-driver",
        others=("link",),
        blocks=5,
        rehearse=True,
        ceilings=("link",),
        target=Target(1 / 0.95, "95 % of the link"),
    ),
    Row(
        name="gpu-loop",
        says="one get_tensor after the other, by name, warm, second load, against the link",
        action="loop_cuda",
        ours="ours-cuda",
        others=("link", "stock-cuda"),
        blocks=5,
        rehearse=True,
        ceilings=("link",),
        target=Target(1 / 0.8, "80 % of the link"),
    ),
)

#: Where the link is faster than the disk, as a real one is.
DISK_ROWS = (
    Row(
        name="gpu-disk",
        says="all shards to the GPU, cold, against raw direct reads",
        action="load_cuda",
        ours="ours-cuda",
        others=NULL_READERS[:3],
        cache=("cold",),
        blocks=3,
        ceilings=("link",),
        target=Target(1 / 0.9, "90 % of raw reads"),
    ),
)

#: These read files of their own formats, which they make of the model first: of a real GPU's 15 GB
#: more than its host's disk may have room for.
CONVERTING_PEERS = ("flashpack", "tensorizer")


def _with_converting_peers(row: Row) -> Row:
    every_peer = row.others in {PEERS, WARM_PEERS}
    return replace(row, others=(*row.others, *CONVERTING_PEERS)) if every_peer else row


#: On the simulated link alone: no source of a real GPU's rate could be made of a file by waiting.
SIM_ROWS = (
    *map(_with_converting_peers, GPU_ROWS),
    Row(
        name="gpu-throttled",
        says="the same from a source as slow as the link, against either alone",
        action="load_cuda",
        ours="ours-cuda",
        others=("link", "null-source"),
        blocks=5,
        rehearse=True,
        ceilings=("link",),
        target=Target(1 / 0.9, "90 % of either"),
        throttled=True,
    ),
)

GPU = "cuda:0"
WEIGHTS_AT_90 = Target(1 / 0.9, "weights at 90 % of the slower ceiling", weights=True)
#: The call of each library's users that is timed.
CALLS = {
    "transformers": "AutoModelForCausalLM.from_pretrained",
    "diffusers": "FluxTransformer2DModel.from_pretrained",
    "sentence-transformers": "SentenceTransformer(path)",
    "accelerate": "load_checkpoint_and_dispatch",
    "peft": "PeftModel.from_pretrained",
    "dcp": "torch.distributed.checkpoint.load",
}
#: Samples of each loader, CPU and GPU; more of calls whose times scatter: they are short, or do
#: much besides loading.
CONSUMER_BLOCKS = {"dcp": (30, 30), "peft": (30, 30)}


def _consumer(name: str, device: str, cache: str) -> Row:
    on_gpu, cold = device == GPU, cache == "cold"
    library = "" if name == "dcp" else f"{name}: "
    return Row(
        name=f"{name}-{'gpu' if on_gpu else 'cpu'}{'-cold' if cold else ''}",
        says=f"{library}{CALLS[name]}, {'GPU' if on_gpu else 'CPU'}, {cache}",
        action="load",
        files=name,
        cache=(cache,),
        blocks=CONSUMER_BLOCKS.get(name, (15, 9))[on_gpu],
        ceilings=("link", "disk") if cold else ("link",) if on_gpu else (),
        target=WEIGHTS_AT_90 if cold else NEVER_SLOWER,
        consumer=name,
        device=device,
    )


#: The libraries' own loading calls, stock and patched.
CONSUMER_ROWS = (
    *(_consumer(name, "cpu", "warm") for name in CALLS),
    *(_consumer(name, GPU, "warm") for name in CALLS),
    *(_consumer(name, GPU, "cold") for name in ("transformers", "diffusers")),
)
