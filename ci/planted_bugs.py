"""Bugs to be planted: ``ci/planted``."""

from __future__ import annotations

from dataclasses import dataclass

PIPELINE, SLABS, COPIES = "src/pipeline.rs", "src/device/cuda/memory.rs", "src/device/cuda/copy.rs"
URING, ANSWER = "src/reader/uring.rs", "src/source/remote/answer.rs"


@dataclass(frozen=True)
class Edit:
    """A text of a file, and what takes its place."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Bug:
    """A name, the edits that make the bug, and the figure of the scoreboard that must find it."""

    name: str
    edits: tuple[Edit, ...]
    figure: str = "cuda"


def bug(name: str, file: str, *texts: str, figure: str = "cuda") -> Bug:
    """A bug in one file: old and new texts in turn."""
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return Bug(name, tuple(Edit(file, old, new) for old, new in pairs), figure)


MARKS = "        Ok(Marks { copied, done: event })\n"
RECORD = "        event.record(&self.stream)?;\n" + MARKS
EVENT = "        let event = self.event()?;\n"
STAGED = """        let mut copied = None;
        if !staged.is_empty() {
            copied = Some(self.place_staged(&mut job.slot, &staged)?);
        }
"""
RUNS = """        for run in runs(pieces) {
            self.copy(staging + run.0 as u64, slot, run.0, run.1 - run.0)?;
        }
"""
LAUNCH = "unsafe { kernels.launch(kernel, &self.stream, table + offset, count)? }\n        }\n"
LAUNCHES = "        for (kernel, offset, count) in tables.launches() {\n"
SORTED = "        let (staged, direct) = self.sorted(&job.placements);\n"

#: What the tests on the simulated driver are there for.
ORDER = (
    bug(
        "a slot is given back before its copies ran",
        COPIES,
        "let seen = done.synchronize();",
        "let seen = Ok(());",
    ),
    bug(
        "the event stands before the copies",
        COPIES,
        SORTED,
        EVENT + "        event.record(&self.stream)?;\n" + SORTED,
        EVENT + RECORD,
        MARKS,
    ),
    bug(
        "the event stands before the kernels",
        COPIES,
        STAGED,
        EVENT + "        event.record(&self.stream)?;\n" + STAGED,
        EVENT + RECORD,
        MARKS,
    ),
    bug(
        "the event is put on another stream",
        COPIES,
        RECORD,
        "        event.record(&Stream::new(self.gpu)?)?;\n" + MARKS,
    ),
    bug(
        "tensors are handed out when their copies begin",
        PIPELINE,
        "                self.to.device.place(request.tag, slot, placements);\n"
        "                Ok(())\n",
        "                self.to.device.place(request.tag, slot, placements);\n"
        "                let (tag, slot, copied) = (request.tag, None, None);\n"
        "                self.placed(progress, Placed { tag, slot, copied, result: Ok(()) })\n",
        "            self.lease.put(slot);\n        }\n        result?;\n",
        "            self.lease.put(slot);\n            return result;\n        }\n"
        "        result?;\n",
    ),
    bug(
        "copies do not wait for the user's stream",
        COPIES,
        "        ready.record(user)?;\n        self.stream.wait_for(&ready)?;\n",
        "        let _ = user;\n",
    ),
    bug(
        "only the first copies wait for the user's stream",
        COPIES,
        "let Some(user) = &self.user else { return Ok(()) };\n",
        "let Some(user) = &self.user else { return Ok(()) };\n"
        "        if self.ready.is_some() {\n            return Ok(());\n        }\n",
    ),
    bug(
        "staging memory is freed before the kernels ran",
        COPIES,
        LAUNCHES,
        "        self.staging.take();\n" + LAUNCHES,
    ),
    Bug(
        "staging memory is freed behind the kernels, by the host",
        (
            Edit(COPIES, LAUNCH, LAUNCH + "        self.staging.take();\n"),
            Edit(
                SLABS,
                "sys::cuMemFreeAsync(*address, stream.raw())",
                "sys::cuMemFree_v2(*address)",
            ),
        ),
    ),
    bug(
        "staging memory is allocated in the order of another stream",
        SLABS,
        "match stream.allocate(bytes)? {",
        "match Stream::new(stream.gpu())?.allocate(bytes)? {",
    ),
    bug(
        "the kernels are launched before the copies",
        COPIES,
        RUNS,
        "",
        LAUNCH,
        LAUNCH + RUNS,
    ),
    bug(
        "the kernels are launched on another stream",
        COPIES,
        "kernels.launch(kernel, &self.stream, table + offset, count)",
        "kernels.launch(kernel, &Stream::new(self.gpu)?, table + offset, count)",
    ),
    bug(
        "a tensor's memory is freed while it is filled",
        SLABS,
        "let (conversion, slab) = (None, Some(slab));",
        "drop(slab);\n        let (conversion, slab) = (None, None);",
    ),
    bug(
        "a failed load does not wait for the device",
        PIPELINE,
        "while self.to.device.in_flight() > 0 {",
        "while false {",
    ),
    bug(
        "a failed load does not wait for the reader",
        PIPELINE,
        "while self.reader.in_flight() > 0 {",
        "while false {",
    ),
    bug(
        "a slot whose copies failed is given back without waiting",
        COPIES,
        "if result.is_err() && self.stream.synchronize().is_err() {",
        "if false {",
    ),
    bug(
        "a slot whose copies nobody can confirm is unmapped",
        COPIES,
        "            Box::leak(Box::new(slot.take()));\n",
        "            drop(slot.take());\n",
    ),
)

#: One of each kind that loaders have had.
KINDS = (
    ORDER[0],
    bug(
        "a completion is not waited for",
        URING,
        "        if let Err(error) = self.push(index) {\n            self.end(index, Err(error));\n"
        "        }\n    }\n\n    fn poll",
        "        let bytes = request.bytes;\n        let pushed = self.push(index);\n"
        "        self.end(index, pushed.map(|()| bytes));\n    }\n\n    fn poll",
        figure="readers",
    ),
    bug(
        "a wrong offset after a short direct read",
        "src/reader/blocks.rs",
        "self.offset + from as u64",
        "self.offset + self.done as u64",
        figure="readers",
    ),
    next(known for known in ORDER if known.name == "copies do not wait for the user's stream"),
    bug(
        "a file is unmapped under its tensors",
        "src/python/tensor.rs",
        "shape, memory });",
        "shape, memory: match memory {\n"
        "        Memory::Mapped(..) => Memory::Owned(Buffer::Host(HostBuffer::new(0)?)),\n"
        "        owned @ Memory::Owned(_) => owned,\n    } });",
        figure="verdicts",
    ),
    bug(
        "the interpreter's lock is held while reading",
        "src/python/fetch.rs",
        "py.detach(|| manner.check.run(&mut ready, task, &mut collector))?",
        "manner.check.run(&mut ready, task, &mut collector)?",
        figure="disturbed",
    ),
    bug(
        "the ETag is not compared",
        ANSWER,
        "self.etag == other.etag && (self.strong().is_some() || self.modified == other.modified)",
        "let _ = other;\n        true",
        figure="network",
    ),
    bug(
        "a counter overflows",
        "src/format/header.rs",
        "product.checked_mul(dimension)",
        "Some(product.wrapping_mul(dimension))",
        figure="verdicts",
    ),
    bug(
        "an error is lost",
        PIPELINE,
        "            self.lease.put(slot);\n        }\n        result?;\n",
        "            self.lease.put(slot);\n        }\n        let _ = result;\n",
        figure="simulation",
    ),
    bug(
        "a slot is lost when a load is stopped",
        PIPELINE,
        "progress.early.drain(..).for_each(|completion| self.lease.put(completion.slot));",
        "progress.early.clear();",
        figure="simulation",
    ),
)
