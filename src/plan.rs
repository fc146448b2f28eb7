//! Wanted byte ranges to few large reads in file order, and to the copies that follow. No I/O.

use std::ops::Range;

pub(crate) use self::chunks::Chunks;
use crate::config::{ALIGNMENT_BYTES, PIECES_MAX};

mod chunks;

/// Bytes of a shard that are to fill one target from its start: a range, or rows of equal length at
/// equal distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Which source.
    pub(crate) shard: usize,
    /// The first byte, from the start of the source.
    pub(crate) begin: u64,
    /// The byte after the last.
    pub(crate) end: u64,
    row_bytes: u64,
    /// From the beginning of a row to that of the next.
    stride_bytes: u64,
}

impl Wanted {
    /// All bytes of a range.
    pub(crate) fn range(shard: usize, begin: u64, end: u64) -> Self {
        let bytes = end - begin;
        Self { shard, begin, end, row_bytes: bytes, stride_bytes: bytes }
    }

    /// Of a range that consists of equal rows, the same bytes of each.
    pub(crate) fn columns(&self, stride_bytes: u64, columns: Range<u64>) -> Self {
        let row_bytes = columns.end - columns.start;
        if row_bytes == stride_bytes {
            return *self;
        }
        let Some(last) = self.bytes().checked_sub(stride_bytes).filter(|_| row_bytes > 0) else {
            return Self::range(self.shard, self.begin, self.begin);
        };
        let begin = self.begin + columns.start;
        Self { begin, end: begin + last + row_bytes, row_bytes, stride_bytes, ..*self }
    }

    /// The target's size.
    pub(crate) fn bytes(&self) -> u64 {
        let ended = self.end + (self.stride_bytes - self.row_bytes); // of the last stride
        (ended - self.begin).checked_div(self.stride_bytes).unwrap_or(0) * self.row_bytes
    }

    /// How many runs it is read in, where so many bytes between two are read rather than skipped.
    pub(crate) fn runs(&self, gap_bytes_max: u64) -> u64 {
        let apart = self.stride_bytes - self.row_bytes > gap_bytes_max;
        if apart { self.bytes() / self.row_bytes } else { 1 }
    }

    /// The first of these runs.
    pub(crate) fn first_run(&self, gap_bytes_max: u64) -> Range<u64> {
        let one = self.runs(gap_bytes_max) <= 1;
        self.begin..if one { self.end } else { self.begin + self.row_bytes }
    }

    /// What is read in one run: all of it, or row by row where too much lies between.
    fn parts(&self, target: usize, gap_bytes_max: u64) -> Vec<Part> {
        let Self { begin, end, row_bytes, stride_bytes, .. } = *self;
        let whole = Part { target, target_offset: 0, begin, end, row_bytes, stride_bytes };
        let row = |row: u64| {
            let begin = begin + row * stride_bytes;
            Part { target_offset: row * row_bytes, begin, end: begin + row_bytes, ..whole }
        };
        let runs = self.runs(gap_bytes_max);
        if runs > 1 { (0..runs).map(row).collect() } else { vec![whole] }
    }
}

/// One read: a piece of a source, no larger than a slot, beginning on an aligned offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    /// Which source.
    pub(crate) shard: usize,
    /// Where it begins, a multiple of the alignment.
    pub(crate) offset: u64,
    /// How many bytes; ends on an aligned offset or at the end of the source.
    pub(crate) bytes: usize,
    /// What is in it.
    pub(crate) pieces: Vec<Piece>,
}

/// A part of a read that belongs to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Which of the wanted ranges.
    pub(crate) target: usize,
    /// Where in the target it goes.
    pub(crate) target_offset: u64,
    /// Where in the read it stands.
    pub(crate) slot_offset: usize,
    /// How many bytes.
    pub(crate) bytes: usize,
}

/// All reads of a load, in the order in which they are to be done.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The ranges that were asked for; a piece's target is an index into them.
    pub(crate) wanted: Vec<Wanted>,
    /// The reads that bring them.
    pub(crate) reads: Vec<Read>,
}

impl Plan {
    /// Plans reads over sources of the given lengths: one window of targets (see [`windows`]) after the
    /// other, each in file order.
    pub(crate) fn new(
        wanted: Vec<Wanted>,
        source_bytes: &[u64],
        chunks: Chunks,
        window_bytes: u64,
    ) -> Self {
        let mut reads = Vec::new();
        let all_bytes: u64 = wanted.iter().map(Wanted::bytes).sum();
        let chunks = chunks.of_load(all_bytes);
        for window in windows(&wanted, window_bytes) {
            plan_window(&wanted, window, source_bytes, chunks, &mut reads);
        }
        Self { wanted, reads }
    }
}

/// Runs of targets, in their order, that have so many bytes together; a larger one has its own.
pub(crate) fn windows(wanted: &[Wanted], window_bytes: u64) -> Vec<Range<usize>> {
    let mut windows = Vec::new();
    let (mut begin, mut bytes) = (0, 0_u64);
    for (target, range) in wanted.iter().enumerate() {
        if target > begin && bytes.saturating_add(range.bytes()) > window_bytes {
            windows.push(begin..target);
            (begin, bytes) = (target, 0);
        }
        bytes = bytes.saturating_add(range.bytes());
    }
    windows.push(begin..wanted.len());
    windows
}

fn plan_window(
    wanted: &[Wanted],
    window: Range<usize>,
    source_bytes: &[u64],
    chunks: Chunks,
    reads: &mut Vec<Read>,
) {
    let targets = window.filter(|&target| wanted[target].bytes() > 0);
    let parts = |target: usize| wanted[target].parts(target, chunks.gap_bytes_max);
    let mut parts: Vec<Part> = targets.flat_map(parts).collect();
    parts.sort_by_key(|part| (wanted[part.target].shard, part.begin));
    let mut span: Option<Span> = None;
    for part in parts {
        let shard = wanted[part.target].shard;
        span = match span.take() {
            Some(open) if open.reaches(shard, &part, chunks) => Some(open.with(part)),
            finished => {
                if let Some(open) = finished {
                    open.cut(source_bytes[open.shard], chunks, reads);
                }
                Some(Span { shard, begin: part.begin, end: part.end, parts: vec![part] })
            }
        };
    }
    if let Some(open) = span {
        open.cut(source_bytes[open.shard], chunks, reads);
    }
}

/// Rows of a target that are read in one run.
#[derive(Clone, Copy)]
struct Part {
    target: usize,
    /// Where in the target they go.
    target_offset: u64,
    begin: u64,
    end: u64,
    row_bytes: u64,
    stride_bytes: u64,
}

impl Part {
    /// What of it lies between two offsets of the source.
    fn pieces(&self, from: u64, to: u64) -> impl Iterator<Item = Piece> + '_ {
        let first = from.saturating_sub(self.begin) / self.stride_bytes;
        let rows = (first..).map(move |row| (row, self.begin + row * self.stride_bytes));
        let size = |bytes: u64| usize::try_from(bytes).expect("a chunk fits in memory");
        rows.take_while(move |&(_, begin)| begin < to.min(self.end)).filter_map(
            move |(row, row_begin)| {
                let (begin, end) = (row_begin.max(from), (row_begin + self.row_bytes).min(to));
                let target_offset = self.target_offset + row * self.row_bytes + (begin - row_begin);
                (begin < end).then(|| Piece {
                    target: self.target,
                    target_offset,
                    slot_offset: size(begin - from),
                    bytes: size(end - begin),
                })
            },
        )
    }
}

/// Parts of one source that are read as one run.
struct Span {
    shard: usize,
    begin: u64,
    end: u64,
    parts: Vec<Part>,
}

impl Span {
    fn reaches(&self, shard: usize, part: &Part, chunks: Chunks) -> bool {
        shard == self.shard && part.begin <= self.end.saturating_add(chunks.gap_bytes_max)
    }

    fn with(mut self, part: Part) -> Self {
        self.end = self.end.max(part.end);
        self.parts.push(part);
        self
    }

    /// Cuts the run at multiples of a chunk of the source, so that every read is aligned; what is no longer
    /// than a chunk is not cut.
    fn cut(&self, source_bytes: u64, chunks: Chunks, reads: &mut Vec<Read>) {
        let alignment = ALIGNMENT_BYTES as u64;
        let end = self.end.next_multiple_of(alignment).min(source_bytes);
        let mut offset = self.begin / alignment * alignment;
        let mut first = 0;
        while offset < end {
            let chunk = chunks.bytes(reads.len());
            let next = if end - offset <= chunk { end } else { (offset / chunk + 1) * chunk };
            let mut stop = next.min(end);
            let mut pieces = self.pieces(&mut first, offset, stop);
            if let Some(surplus) = pieces.get(PIECES_MAX) {
                // A block holds fewer pieces than that, so something is left before it.
                let begin = offset + surplus.slot_offset as u64;
                stop = (begin / alignment * alignment).max(offset + alignment);
                pieces = self.pieces(&mut first, offset, stop);
            }
            if !pieces.is_empty() {
                let bytes = usize::try_from(stop - offset).expect("a chunk fits in memory");
                reads.push(Read { shard: self.shard, offset, bytes, pieces });
            }
            offset = stop;
        }
    }

    /// What of the parts from `first` on lies between two offsets.
    fn pieces(&self, first: &mut usize, from: u64, to: u64) -> Vec<Piece> {
        while self.parts.get(*first).is_some_and(|part| part.end <= from) {
            *first += 1;
        }
        let candidates = self.parts[*first..].iter().take_while(|part| part.begin < to);
        candidates.flat_map(|part| part.pieces(from, to)).take(PIECES_MAX + 1).collect()
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of tests")]
mod tests {
    use super::{ALIGNMENT_BYTES, Chunks, Plan, Read, Wanted, windows};
    use crate::config::{GAP_BYTES_MAX, SMALL_CHUNK_BYTES_MAX, SMALL_FIRST_CHUNK_BYTES};

    const CHUNK: usize = 4 * ALIGNMENT_BYTES;

    fn wanted(begin: u64, end: u64) -> Wanted {
        Wanted::range(0, begin, end)
    }

    /// Carries the plan out on a source whose every byte is known, and compares.
    fn check(ranges: &[Wanted], source_bytes: &[u64]) -> Plan {
        check_windows(ranges, source_bytes, u64::MAX)
    }

    fn check_windows(ranges: &[Wanted], source_bytes: &[u64], window_bytes: u64) -> Plan {
        let plan = Plan::new(ranges.to_vec(), source_bytes, Chunks::growing(CHUNK), window_bytes);
        check_plan(plan, ranges, source_bytes, CHUNK)
    }

    fn check_plan(plan: Plan, ranges: &[Wanted], source_bytes: &[u64], most: usize) -> Plan {
        let byte = |shard: usize, offset: u64| (offset * 31 + shard as u64 * 7) as u8;
        let mut filled: Vec<Vec<Option<u8>>> =
            ranges.iter().map(|range| vec![None; range.bytes() as usize]).collect();
        for read in &plan.reads {
            assert!(read.offset.is_multiple_of(ALIGNMENT_BYTES as u64));
            assert!(read.bytes <= most && !read.pieces.is_empty());
            let end = read.offset + read.bytes as u64;
            let source_end = source_bytes[read.shard];
            assert!(end == source_end || end.is_multiple_of(ALIGNMENT_BYTES as u64));
            for piece in &read.pieces {
                for index in 0..piece.bytes {
                    let target = &mut filled[piece.target][piece.target_offset as usize + index];
                    assert!(target.is_none(), "written twice");
                    let offset = read.offset + (piece.slot_offset + index) as u64;
                    *target = Some(byte(read.shard, offset));
                }
            }
        }
        for (range, bytes) in ranges.iter().zip(filled) {
            for (index, found) in bytes.into_iter().enumerate() {
                let (row, column) =
                    (index as u64 / range.row_bytes, index as u64 % range.row_bytes);
                let offset = range.begin + row * range.stride_bytes + column;
                assert_eq!(found, Some(byte(range.shard, offset)));
            }
        }
        plan
    }

    #[test]
    fn neighbours_ride_in_one_read() {
        let neighbours = [wanted(100, 200), wanted(200, 300), wanted(300, 300)];
        assert_eq!(check(&neighbours, &[5000]).reads.len(), 1);
    }

    #[test]
    fn the_reads_of_one_small_tensor_are_aligned_whatever_its_size() {
        for only in [
            wanted(2_297_152, 3_197_154),
            wanted(88, 88 + 1_500_001),
            wanted(SMALL_FIRST_CHUNK_BYTES - 5, 2 * SMALL_FIRST_CHUNK_BYTES - 10_000),
            wanted(88, 88 + 513 * 4092).columns(4092, 0..1020),
        ] {
            let chunks = Chunks::of_one_small(only.end - only.begin);
            let (only, sources) = ([only], [3_300_000]);
            let plan = Plan::new(only.to_vec(), &sources, chunks, u64::MAX);
            let most = SMALL_CHUNK_BYTES_MAX as usize;
            let reads = check_plan(plan, &only, &sources, most).reads;
            assert!(reads[0].bytes as u64 <= SMALL_FIRST_CHUNK_BYTES);
        }
    }

    #[test]
    fn far_ranges_are_not_read_through() {
        let far = 10 * GAP_BYTES_MAX;
        let plan = check(&[wanted(far, far + 10), wanted(0, 10)], &[far + 10]);
        assert_eq!(plan.reads.len(), 2);
        assert!(plan.reads.iter().all(|read| read.bytes <= ALIGNMENT_BYTES));
    }

    #[test]
    fn columns_far_apart_are_read_alone() {
        let stride = 3 * GAP_BYTES_MAX;
        let table = wanted(0, 8 * stride);
        let read = |plan: Plan| plan.reads.iter().map(|read| read.bytes as u64).sum::<u64>();
        let far = table.columns(stride, 0..GAP_BYTES_MAX);
        assert_eq!((far.runs(GAP_BYTES_MAX), table.runs(GAP_BYTES_MAX)), (8, 1));
        assert_eq!(read(check(&[far], &[8 * stride])), far.bytes());
        let near = [0..stride - 1, stride - 1..stride].map(|part| table.columns(stride, part));
        assert_eq!(read(check(&near, &[8 * stride])), table.bytes());
        assert_eq!(table.columns(stride, 0..stride), table);
        assert_eq!(table.columns(stride, 7..7).bytes(), 0);
    }

    #[test]
    fn random_ranges_of_two_sources_arrive_whole() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let sizes = [random(400_000) + 1, random(400_000) + 1];
            let ranges: Vec<Wanted> = (0..random(20))
                .map(|_| {
                    let shard = random(2) as usize;
                    let begin = random(sizes[shard]);
                    let end = begin + random(sizes[shard] - begin + 1);
                    let range = Wanted::range(shard, begin, end);
                    let stride = random(300_000) + 1;
                    let rows = range.bytes() / stride;
                    if random(2) == 0 || rows == 0 {
                        return range;
                    }
                    let columns = random(stride)..stride;
                    Wanted::range(shard, begin, begin + rows * stride).columns(stride, columns)
                })
                .collect();
            check(&ranges, &sizes);
            let window_bytes = random(500_000);
            let plan = check_windows(&ranges, &sizes, window_bytes);
            let windows = windows(&ranges, window_bytes);
            let window_of = |target| windows.iter().position(|window| window.contains(&target));
            let of_read = |read: &Read| {
                let window = window_of(read.pieces[0].target);
                assert!(read.pieces.iter().all(|piece| window_of(piece.target) == window));
                window
            };
            assert!(plan.reads.iter().map(of_read).is_sorted());
            for window in windows.iter().filter(|window| window.len() > 1) {
                let bytes: u64 = ranges[window.clone()].iter().map(Wanted::bytes).sum();
                assert!(bytes <= window_bytes);
            }
        }
    }
}
