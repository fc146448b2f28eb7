//! Loops over `get_tensor` on a GPU: once two tensors were asked for in their order, the next ones are
//! read in the background into memory that torch allocates in the caller's thread, a little ahead.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use crate::checkpoint::engine::Options;
use crate::checkpoint::{Shard, Storage};
use crate::config::{AHEAD_BYTES_MAX, AHEAD_PATIENCE};
use crate::error::Result;
use crate::format::Header;
use crate::plan::Wanted;
use crate::python::ahead::{Ahead, Limits};
use crate::python::destination::{Goal, Goals, Memory, TorchGpu};
use crate::python::errors::{foreseen, is_refusal};
use crate::python::fetch::{Manner, Ready, Targets};
use crate::python::tensor::torch_type;
use crate::reader::CachePolicy;
use crate::tensor::Form;

/// What the last calls asked for, and what is read ahead because of it.
#[derive(Default)]
pub(crate) struct Habit {
    last: Option<usize>,
    /// How many calls in a row were in order, the first one not counted.
    steps: usize,
    /// How many loops that were read ahead broke off: each doubles the steps that make a loop.
    broken: u32,
    ahead: Option<Loop>,
}

impl Habit {
    /// The tensor at a place of the file, if it was read ahead or is the next of a loop.
    pub(crate) fn tensor<'py>(
        &mut self,
        py: Python<'py>,
        shard: &Shard,
        ordinal: usize,
        place: usize,
    ) -> Result<Option<Bound<'py, PyAny>>> {
        let before = self.last.replace(place);
        let gpu = TorchGpu::open(py, ordinal)?;
        if self.ahead.as_ref().is_some_and(|ahead| !ahead.goes_on(&gpu, place)) {
            self.ahead = None;
            self.broken = (self.broken + 1).min(BROKEN_MAX);
        }
        if self.ahead.is_none() {
            let order = before.and_then(|before| order_from(&shard.header, before, place));
            self.steps = if order.is_some() { self.steps + 1 } else { 0 };
            let Some(order) = order.filter(|_| self.steps >= 1 << self.broken) else {
                return Ok(None);
            };
            // What hinders it does not hinder reading one tensor alone.
            self.ahead = match Loop::begin(py, shard, gpu, order) {
                Err(error) if is_refusal(py, &error) => None,
                begun => begun?,
            };
        }
        let Some(ahead) = &mut self.ahead else { return Ok(None) };
        if ahead.places.front() != Some(&place) {
            return Ok(None); // one that lies where the loop has been
        }
        let tensor = ahead.next(py)?;
        if tensor.is_none() {
            self.broken = (self.broken + 1).min(BROKEN_MAX);
            self.steps = 0;
        }
        if tensor.is_none() || ahead.places.is_empty() {
            self.ahead = None;
        }
        Ok(tensor)
    }
}

/// The most that broken loops count.
const BROKEN_MAX: u32 = 8;

type Order<'header> = Box<dyn Iterator<Item = usize> + 'header>;

/// The places that a loop will come to, if two calls make one: by name, or as in the file.
fn order_from(header: &Header, before: usize, place: usize) -> Option<Order<'_>> {
    let by_name = header.places_by_name();
    let rank = header.rank(place)?;
    if rank > 0 && by_name[rank - 1] as usize == before {
        return Some(Box::new(by_name[rank..].iter().map(|&place| place as usize)));
    }
    let as_in_file: Order<'_> = Box::new(place..header.len());
    (place == before + 1).then_some(as_in_file)
}

/// A loop that is read ahead.
struct Loop {
    /// Of the tensors that are read ahead, those not taken yet, in the order of the loop.
    places: VecDeque<usize>,
    waiting: HashSet<usize>,
    taken: usize,
    gpu: TorchGpu,
    ahead: Ahead,
}

impl Loop {
    /// Begins to read the tensors of a loop, where there are several that are worth it.
    fn begin(
        py: Python<'_>,
        shard: &Shard,
        gpu: TorchGpu,
        order: Order<'_>,
    ) -> Result<Option<Self>> {
        let Storage::Engine(source) = &shard.storage else { return Ok(None) };
        let (places, targets) = worth_it(py, shard, order)?;
        if places.len() < 2 {
            return Ok(None);
        }
        let mut targets = Targets::new(targets, None);
        let goals = Goals::one(Goal::Cuda(gpu.gpu.ordinal(), Memory::Torch));
        let options = Options::with_cache(CachePolicy::Auto);
        let ready = Ready::new(py, &Manner::new(goals, options), &mut targets)?;
        let limits = Limits {
            window_bytes: AHEAD_BYTES_MAX / 2,
            ahead_bytes: AHEAD_BYTES_MAX,
            patience: Some(AHEAD_PATIENCE),
        };
        let ahead = Ahead::begin(ready, Arc::from([Arc::clone(source)]), targets, limits)?;
        let waiting = places.iter().copied().collect();
        Ok(Some(Self { places, waiting, taken: 0, gpu, ahead }))
    }

    /// Whether a call is as expected: on the same stream of torch's, and not out of order.
    fn goes_on(&self, gpu: &TorchGpu, place: usize) -> bool {
        self.ahead.is_of_this_process()
            && self.gpu.is(gpu)
            && (self.places.front() == Some(&place) || !self.waiting.contains(&place))
    }

    /// Waits for the next tensor; none where it could not be read, for whatever reason: who then
    /// reads it alone will see.
    fn next<'py>(&mut self, py: Python<'py>) -> Result<Option<Bound<'py, PyAny>>> {
        let tensor = self.ahead.take(py, self.taken)?;
        self.taken += 1;
        if let Some(place) = self.places.pop_front() {
            self.waiting.remove(&place);
        }
        Ok(tensor)
    }
}

/// Places in the file, and what is to be read of each.
type Worthwhile = (VecDeque<usize>, Vec<(Wanted, Form)>);

/// Of an order, the tensors that one pass over the file brings.
fn worth_it(py: Python<'_>, shard: &Shard, order: Order<'_>) -> Result<Worthwhile> {
    let mut places = VecDeque::new();
    let mut targets = Vec::new();
    for place in order {
        let (wanted, form) = shard.wanted(place, &[])?;
        let forward = places.back().is_none_or(|&last| place > last);
        let worthwhile = forward && wanted.bytes() > 0 && form.torch_shape().is_ok();
        if worthwhile && foreseen::<PyException, _>(py, torch_type(py, form.dtype))?.is_some() {
            places.push_back(place);
            targets.push((wanted, form));
        }
    }
    Ok((places, targets))
}
