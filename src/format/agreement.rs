//! Our header reader against upstream's on one file: the same verdict, and on acceptance the same
//! table. Compiled into tests, and into the fuzzer of `ci/fuzzing`.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::format::header::{Fault, LENGTH_BYTES, TensorInfo, header_bytes};
use crate::format::sniff::hint;
use crate::format::{Dtype, Header};

type Tensors = BTreeMap<String, (&'static str, Vec<u64>, u64, u64)>;

/// What a header says: tensors by name, with ranges from the start of the data, and free text.
#[derive(Debug, PartialEq)]
struct Table {
    tensors: Tensors,
    metadata: Option<BTreeMap<String, String>>,
}

/// What both readers say of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Both accept it.
    Accepted,
    /// Both refuse it.
    Refused,
    /// Ours refuses it because a name stands twice: the declared difference.
    Duplicate,
}

/// Parses a whole file's header with our reader.
pub(crate) fn parse(file: &[u8]) -> Result<Header, Fault> {
    let length = header_bytes(file, file.len() as u64)?;
    Header::parse(&file[LENGTH_BYTES..LENGTH_BYTES + length], file.len() as u64)
}

/// The verdict on a file; panics where the readers disagree.
pub(crate) fn verdict(file: &[u8]) -> Verdict {
    match (ours(file), theirs(file)) {
        (Ok(table), Some(other)) => {
            assert_eq!(table, other, "disagreement: {}", shown(file));
            Verdict::Accepted
        }
        (Err(Fault::Duplicate(name)), _) => {
            assert!(
                stands_twice(file, &name),
                "disagreement: {name:?} stands once: {}",
                shown(file)
            );
            Verdict::Duplicate
        }
        (Err(fault), None) => {
            hint(file, file.len() as u64, &fault);
            Verdict::Refused
        }
        (ours, theirs) => panic!("disagreement: {}: {ours:?}, upstream {theirs:?}", shown(file)),
    }
}

fn shown(file: &[u8]) -> String {
    String::from_utf8_lossy(file).into_owned()
}

fn ours(file: &[u8]) -> Result<Table, Fault> {
    let header = parse(file)?;
    let start = header.data_start();
    let entry = |info: TensorInfo<'_>| {
        let found = header.find(info.name).and_then(|place| header.tensor(place)).unwrap();
        assert_eq!((found.begin, found.end), (info.begin, info.end));
        let (begin, end) = (info.begin - start, info.end - start);
        (info.name.to_owned(), (info.dtype.name(), info.shape.to_vec(), begin, end))
    };
    let tensors: Tensors = header.tensors().map(entry).collect();
    assert!(header.sorted_names().eq(tensors.keys()));
    let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Ok(Table { tensors, metadata: header.metadata().map(|pairs| pairs.map(pair).collect()) })
}

fn theirs(file: &[u8]) -> Option<Table> {
    let (_, metadata) = SafeTensors::read_metadata(file).ok()?;
    let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let name_of = serde_json::to_value(info.dtype).unwrap();
        let dtype = Dtype::from_name(name_of.as_str().unwrap()).unwrap().name();
        let shape = info.shape.iter().map(|&dimension| dimension as u64).collect();
        (name, (dtype, shape, info.data_offsets.0 as u64, info.data_offsets.1 as u64))
    };
    let text = metadata.metadata().clone();
    let text = text.map(|pairs| pairs.into_iter().collect());
    Some(Table { tensors: metadata.tensors().into_iter().map(entry).collect(), metadata: text })
}

/// Whether a name of the outermost object stands there more than once.
fn stands_twice(file: &[u8], name: &str) -> bool {
    let length = header_bytes(file, file.len() as u64).unwrap();
    let header = &file[LENGTH_BYTES..LENGTH_BYTES + length];
    let Names(names) = serde_json::from_slice(header).unwrap();
    names.iter().filter(|other| *other == name).count() > 1
}

/// The names of an object's values, each as often as it stands there.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct NamesVisitor;
        impl<'de> Visitor<'de> for NamesVisitor {
            type Value = Names;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = map.next_entry()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        json.deserialize_map(NamesVisitor)
    }
}
