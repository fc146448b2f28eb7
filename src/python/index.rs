//! Which part of a tensor an index needs.

use std::ops::Range;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PySlice, PyTuple};

use crate::config::COLUMN_BYTES_MIN;
use crate::format::Dtype;
use crate::python::errors::foreseen;

/// The part of a tensor that an index needs, and the index that is left for that part.
pub(crate) struct Part<'py> {
    /// A range of each of the first dimensions; of the later ones at most one is not whole.
    pub(crate) ranges: Vec<Range<u64>>,
    /// What torch is asked for once they are there.
    pub(crate) rest: Bound<'py, PyAny>,
    /// Whether that is nothing, or the one row that is there.
    pub(crate) is_view: bool,
}

impl<'py> Part<'py> {
    /// All of it.
    pub(crate) fn whole(index: Bound<'py, PyAny>) -> Self {
        let is_view = index.is(index.py().Ellipsis());
        Self { ranges: Vec::new(), rest: index, is_view }
    }

    /// What a number or slices at the start of an index need: rows, and columns that are long enough to
    /// be read one by one. All else needs the whole dimension, and what torch refuses is torch's to
    /// refuse.
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
            let is_number = item.cast::<PySlice>().is_err();
            let Some(row_bytes) = row_bytes(&shape[dimension + 1..], dtype) else { break };
            let is_short = (range.end - range.start).saturating_mul(row_bytes) < COLUMN_BYTES_MIN;
            if later && (is_number || (is_part && (cut || is_short))) {
                break;
            }
            cut |= is_part && later;
            items[dimension] = rest;
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Ok(Self::whole(index.clone()));
        }
        let kept = items.iter().skip(usize::from(items[0].is_instance_of::<PyInt>()));
        let is_view = items.len() <= ranges.len() && all_whole(kept)?;
        Ok(Self { ranges, rest: PyTuple::new(py, items)?.into_any(), is_view })
    }

    /// Whether the part is what the index gives, with nothing left to do.
    pub(crate) fn is_result(&self) -> PyResult<bool> {
        let Ok(rest) = self.rest.cast::<PyTuple>() else { return Ok(false) };
        all_whole(rest.iter().collect::<Vec<_>>().iter())
    }
}

fn all_whole<'item, 'py: 'item>(
    mut items: impl Iterator<Item = &'item Bound<'py, PyAny>>,
) -> PyResult<bool> {
    items.try_fold(true, |all, item| Ok(all && item.eq(PySlice::full(item.py()))?))
}

/// The bytes of so many dimensions; none where they do not end with a byte.
fn row_bytes(shape: &[u64], dtype: Dtype) -> Option<u64> {
    let bits = shape.iter().try_fold(dtype.bits(), |bits, &length| bits.checked_mul(length))?;
    bits.is_multiple_of(8).then_some(bits / 8)
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
        // Torch asks the same of it once more, and says what is wrong.
        let bounds = foreseen::<PyException, _>(py, slice.indices(signed_length))?;
        let Some(bounds) = bounds else { return Ok(None) };
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
