//! Which part of a tensor an index needs.

use std::ops::Range;

use pyo3::prelude::*;
use pyo3::types::{PyInt, PySlice, PyTuple};

use crate::format::Dtype;

/// The part of a tensor that an index needs, and the index that is left for that part.
pub(crate) struct Part<'py> {
    /// A range of each of the first dimensions; of the later ones at most one is not whole.
    pub(crate) ranges: Vec<Range<u64>>,
    /// What torch is asked for once they are there.
    pub(crate) rest: Bound<'py, PyAny>,
}

impl<'py> Part<'py> {
    /// All of it.
    pub(crate) fn whole(index: Bound<'py, PyAny>) -> Self {
        Self { ranges: Vec::new(), rest: index }
    }

    /// What a number or slices at the start of an index need. All else needs the whole dimension, and
    /// what torch refuses is torch's to refuse.
    pub(crate) fn of(index: &Bound<'py, PyAny>, shape: &[u64], dtype: Dtype) -> PyResult<Self> {
        let py = index.py();
        let tuple = match index.cast::<PyTuple>() {
            Ok(tuple) => tuple.clone(),
            Err(_) => PyTuple::new(py, [index])?,
        };
        let mut items: Vec<Bound<'_, PyAny>> = tuple.iter().collect();
        let mut ranges = Vec::new();
        let mut cut = false;
        for (dimension, &length) in shape.iter().enumerate() {
            let Some(item) = items.get(dimension) else { break };
            let Some((range, rest)) = range_of(item, length)? else { break };
            let later = dimension > 0;
            let is_part = range != (0..length);
            let row: u64 = shape[dimension + 1..].iter().product();
            let in_bytes = (row * dtype.bits()).is_multiple_of(8);
            let is_number = item.cast::<PySlice>().is_err();
            if (later && is_number) || (is_part && ((later && cut) || !in_bytes)) {
                break;
            }
            cut |= is_part && later;
            items[dimension] = rest;
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Ok(Self::whole(index.clone()));
        }
        Ok(Self { ranges, rest: PyTuple::new(py, items)?.into_any() })
    }

    /// Whether the part is what the index gives, with nothing left to do.
    pub(crate) fn is_result(&self) -> PyResult<bool> {
        let whole = PySlice::full(self.rest.py());
        let Ok(rest) = self.rest.cast::<PyTuple>() else { return Ok(false) };
        let kept = rest.iter().map(|item| item.eq(&whole)).collect::<PyResult<Vec<_>>>()?;
        Ok(kept.into_iter().all(|kept| kept))
    }
}

/// The places in a dimension that a number or a slice needs, and what is left of it for them.
fn range_of<'py>(
    item: &Bound<'py, PyAny>,
    length: u64,
) -> PyResult<Option<(Range<u64>, Bound<'py, PyAny>)>> {
    let py = item.py();
    let Ok(signed_length) = isize::try_from(length) else { return Ok(None) };
    let (range, rest) = if item.is_exact_instance_of::<PyInt>() {
        let Ok(place) = item.extract::<isize>() else { return Ok(None) };
        let place = if place < 0 { place + signed_length } else { place };
        let Ok(place) = u64::try_from(place) else { return Ok(None) };
        (place..place + 1, PyInt::new(py, 0).into_any())
    } else if let Ok(slice) = item.cast::<PySlice>() {
        let Ok(bounds) = slice.indices(signed_length) else { return Ok(None) };
        if bounds.step < 1 {
            return Ok(None);
        }
        let start = u64::try_from(bounds.start).unwrap_or(0);
        let stop = u64::try_from(bounds.stop).unwrap_or(0).max(start);
        let every = (bounds.step > 1).then_some(bounds.step);
        (start..stop, py.get_type::<PySlice>().call1((py.None(), py.None(), every))?)
    } else {
        return Ok(None);
    };
    Ok((range.end <= length).then_some((range, rest)))
}
