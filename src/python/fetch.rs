//! What the engine reads, as torch tensors: the one place that puts reader, devices and allocators
//! together for a caller in Python.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;

use crate::checkpoint::engine::{Options, Task, check_size, one_small, run_digesting};
use crate::device::cuda::kernels::Conversion;
use crate::device::workers::Workers;
use crate::device::{Allocator, Buffer, Destination};
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::format::dtype::FLOATING;
use crate::pipeline::Caller;
use crate::plan::Wanted;
use crate::python::allocator::{Made, take_all};
use crate::python::check::Check;
use crate::python::collector::{Collector, CollectorPause};
use crate::python::destination::{Goal, Goals};
use crate::python::lanes::{Hand, Lane};
use crate::python::tensor::{to_torch, torch_type};
use crate::report::Report;
use crate::source::Source;
use crate::tensor::{Form, Memory as TensorMemory, Tensor};

/// The sources of a load, by the shards' numbers.
pub(crate) type Sources = Arc<[Arc<dyn Source>]>;

/// What is wanted, and what it will be.
pub(crate) struct Targets {
    /// The ranges to read.
    pub(crate) wanted: Vec<Wanted>,
    /// The tensors that they make.
    pub(crate) forms: Vec<Form>,
    /// The types that these shall have in the end.
    pub(crate) dtypes: Vec<Dtype>,
}

impl Targets {
    /// With the types that they have.
    pub(crate) fn new(targets: Vec<(Wanted, Form)>, dtype: Option<Dtype>) -> Self {
        let (wanted, forms): (Vec<_>, Vec<Form>) = targets.into_iter().unzip();
        let wish = |form: &Form| dtype.filter(|_| is_floating(form.dtype)).unwrap_or(form.dtype);
        let dtypes = forms.iter().map(wish).collect();
        Self { wanted, forms, dtypes }
    }
}

/// Types that a wish for another type concerns: numbers, not the codes of a quantised tensor.
fn is_floating(dtype: Dtype) -> bool {
    FLOATING.contains(&dtype)
}

/// How it is to be done.
#[derive(Clone)]
pub(crate) struct Manner {
    /// Where the tensors shall be.
    pub(crate) goals: Goals,
    /// How the bytes are read.
    pub(crate) options: Options,
    /// The type that tensors of floating-point numbers shall have; none leaves them.
    pub(crate) dtype: Option<Dtype>,
    /// What has to be true of the bytes.
    pub(crate) check: Check,
}

impl Manner {
    /// To goals, the tensors as they are.
    pub(crate) fn new(goals: Goals, options: Options) -> Self {
        Self { goals, options, dtype: None, check: Check::Nothing }
    }

    /// The number of the GPU that the tensors go to, if all go to one.
    pub(crate) fn gpu(&self) -> Option<usize> {
        match self.goals.all[..] {
            [Goal::Cuda(ordinal, _)] => Some(ordinal),
            _ => None,
        }
    }

    /// The same, to the host.
    pub(crate) fn on_host(&self) -> Self {
        Self { goals: Goals::one(Goal::Host), ..self.clone() }
    }
}

/// Destinations, made ready with the interpreter attached, and used without it.
pub(crate) struct Ready {
    lanes: Vec<Lane>,
    goals: Goals,
    /// Memory that is there already, by target.
    given: Vec<Option<Buffer>>,
    /// What is converted on the way, by target; empty where nothing is.
    conversions: Vec<Option<Conversion>>,
    forms: Arc<[Form]>,
    made: Made,
}

impl Ready {
    /// Looks for the GPUs. What a kernel can convert on the way to the type wanted, it will, and its
    /// form becomes that type.
    pub(crate) fn new(py: Python<'_>, manner: &Manner, targets: &mut Targets) -> Result<Self> {
        let goals = manner.goals.clone();
        let conversions = convert(targets, &goals)?;
        let forms: Arc<[Form]> = targets.forms.as_slice().into();
        let made: Made = Arc::new(Mutex::new(forms.iter().map(|_| None).collect()));
        let lane = |&goal| Lane::new(py, goal, &forms, &made);
        let lanes = goals.all.iter().map(lane).collect::<Result<Vec<_>>>()?;
        Ok(Self { lanes, goals, given: Vec::new(), conversions, forms, made })
    }

    /// For memory that is there already, and on the goals' devices.
    pub(crate) fn with_given(mut self, given: Vec<Option<Buffer>>) -> Self {
        self.given = given;
        self
    }

    /// For tensors that will all be there at once: looks for room, which torch reserves by the block.
    pub(crate) fn make_room(&mut self, py: Python<'_>) -> Result<()> {
        let sizes = self.sizes();
        self.lanes.iter_mut().zip(&sizes).try_for_each(|(lane, sizes)| lane.make_room(py, sizes))
    }

    /// The tensors that torch makes.
    pub(crate) fn made(&self) -> Made {
        Arc::clone(&self.made)
    }

    /// For a thread of ours: what torch allocates in it belongs to the stream of the thread that
    /// asked.
    pub(crate) fn adopt_thread(&self) -> Result<()> {
        self.lanes.iter().try_for_each(Lane::adopt_thread)
    }

    /// Reads what is wanted.
    pub(crate) fn run(
        &mut self,
        sources: &Sources,
        wanted: Vec<Wanted>,
        options: Options,
        caller: &mut dyn Caller,
    ) -> Result<Report> {
        Ok(self.run_digesting(Task::new(sources, wanted, options), caller)?.0)
    }

    /// The same, and gives the digests of each source.
    pub(crate) fn run_digesting<H: Hasher>(
        &mut self,
        task: Task<'_, H>,
        caller: &mut dyn Caller,
    ) -> Result<(Report, Vec<Vec<H::Figure>>)> {
        let few = one_small(&task.wanted).is_some();
        let hands = self.hands();
        let mut workers =
            Workers::new(|done| hands.into_iter().map(|hand| hand.worker(few, done)).collect())?;
        let sizes = self.sizes();
        let mut allocators = self.allocators(&sizes);
        let to = Destination { device: &mut workers, allocator: &mut allocators };
        run_digesting(task, to, caller)
    }

    /// What starts who copies on each lane.
    pub(crate) fn hands(&self) -> Vec<Hand> {
        self.lanes.iter().map(Lane::hand).collect()
    }

    /// For memory that is made by [`Self::provide`], in threads that hold the interpreter.
    pub(crate) fn with_interpreter(mut self) -> Self {
        self.lanes.iter_mut().for_each(Lane::use_interpreter);
        self
    }

    /// Memory for one target, made in the calling thread; of torch's.
    pub(crate) fn provide(&mut self, target: usize, bytes: usize) -> Result<Buffer> {
        let none = vec![Vec::new(); self.lanes.len()];
        self.allocators(&none).allocate(target, bytes)
    }

    fn allocators(&mut self, sizes: &[Vec<u64>]) -> Allocators<'_> {
        let lanes = self.lanes.iter_mut().zip(sizes);
        Allocators {
            lanes: lanes.map(|(lane, sizes)| lane.allocator(sizes)).collect(),
            goals: &self.goals,
            given: &mut self.given,
            conversions: &self.conversions,
            forms: &self.forms,
        }
    }

    /// Of each lane, the size of each target's memory, zero for those that are not its to allocate.
    fn sizes(&self) -> Vec<Vec<u64>> {
        let given = |target: usize| self.given.get(target).is_some_and(Option::is_some);
        let of = |lane| {
            let theirs = |target: usize| self.goals.number(target) == lane && !given(target);
            let sizes = self.forms.iter().enumerate();
            sizes.map(|(target, form)| if theirs(target) { form.bytes() } else { 0 }).collect()
        };
        (0..self.lanes.len()).map(of).collect()
    }
}

/// Whose turn it is to allocate a target.
struct Allocators<'load> {
    lanes: Vec<Box<dyn Allocator + 'load>>,
    goals: &'load Goals,
    given: &'load mut Vec<Option<Buffer>>,
    conversions: &'load [Option<Conversion>],
    forms: &'load [Form],
}

impl Allocator for Allocators<'_> {
    fn allocate(&mut self, target: usize, bytes: usize) -> Result<Buffer> {
        let conversion = self.conversions.get(target).copied().flatten();
        let buffer = if let Some(given) = self.given.get_mut(target).and_then(Option::take) {
            given
        } else {
            let converted = || usize::try_from(self.forms[target].bytes()).unwrap_or(usize::MAX);
            let bytes = if conversion.is_some() { converted() } else { bytes };
            self.lanes[self.goals.number(target)].allocate(target, bytes)?
        };
        Ok(match (buffer, conversion) {
            (Buffer::Cuda(buffer), Some(how)) => Buffer::Cuda(buffer.converting(how)),
            (buffer, _) => buffer,
        })
    }
}

/// The conversions that kernels do; the forms become what they make. An element that two reads share
/// is not theirs.
fn convert(targets: &mut Targets, goals: &Goals) -> Result<Vec<Option<Conversion>>> {
    let Targets { wanted, forms, dtypes } = targets;
    if forms.iter().zip(&*dtypes).all(|(form, dtype)| form.dtype == *dtype) {
        return Ok(Vec::new());
    }
    let able = goals.all.iter().map(|goal| goal.has_kernels()).collect::<Result<Vec<_>>>()?;
    let conversion = |(target, form): (usize, &mut Form)| {
        let known = Conversion::new(form.dtype, dtypes[target]);
        let known = known.filter(|_| able[goals.number(target)])?;
        if !wanted[target].begin.is_multiple_of(known.width() as u64) {
            return None;
        }
        form.dtype = dtypes[target];
        Some(known)
    };
    Ok(forms.iter_mut().enumerate().map(conversion).collect())
}

/// Tensors of the types that are wanted; torch converts those that are not yet of them. While it does
/// others have the interpreter: Python's collector must be as they left it.
pub(crate) fn of_types<'py>(
    tensors: Vec<(Bound<'py, PyAny>, Dtype)>,
    wanted: &[Dtype],
) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let of_type = |((tensor, is), wanted): ((Bound<'py, PyAny>, Dtype), &Dtype)| {
        if is == *wanted {
            return Ok(tensor);
        }
        tensor.call_method1("to", (torch_type(tensor.py(), *wanted)?,))
    };
    tensors.into_iter().zip(wanted).map(of_type).collect()
}

/// The tensor that was delivered: torch's own, or one over memory of ours.
pub(crate) fn to_tensor<'py>(
    py: Python<'py>,
    made: Option<Bound<'py, PyAny>>,
    buffer: Buffer,
    form: Form,
) -> PyResult<Bound<'py, PyAny>> {
    match made {
        Some(made) => Ok(made),
        None => to_torch(py, Tensor { memory: TensorMemory::Owned(buffer), form }),
    }
}

/// Reads the targets; gives them in their order.
pub(crate) fn fetch<'py>(
    py: Python<'py>,
    sources: &Sources,
    mut targets: Targets,
    manner: &Manner,
    progress: Option<Py<PyAny>>,
) -> Result<(Vec<Bound<'py, PyAny>>, Report)> {
    check_size(&targets.wanted, sources)?;
    let mut ready = Ready::new(py, manner, &mut targets)?;
    manner.check.prepare(&manner.goals)?;
    ready.make_room(py)?;
    let Targets { wanted, forms, dtypes } = targets;
    let mut collector = Collector::new(&wanted, progress);
    let made = ready.made();
    let task = Task::new(sources, wanted, manner.options);
    let report = py.detach(|| manner.check.run(&mut ready, task, &mut collector))?;
    let gone = || Error::Internal("a tensor of the plan is gone".to_owned());
    let pause = CollectorPause::begin(py)?;
    let mut tensors = Vec::with_capacity(forms.len());
    let arrived = take_all(py, &made)?.into_iter().zip(collector.take());
    for ((made, buffer), form) in arrived.zip(forms) {
        let dtype = form.dtype;
        tensors.push((to_tensor(py, made, buffer.ok_or_else(gone)?, form)?, dtype));
    }
    drop(pause);
    collector.finish(py)?;
    Ok((of_types(tensors, &dtypes)?, report))
}
