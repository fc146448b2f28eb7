//! The inputs that fuzzing the header kept (`ci/fuzz`), each tried again.

use std::fs::{File, read_dir};
use std::io::Read;
use std::path::Path;

use crate::format::agreement::{Verdict, verdict};

#[test]
fn what_fuzzing_kept_gets_upstreams_verdict() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ci/fuzzing/corpus/header");
    let verdict_of = |entry: std::io::Result<std::fs::DirEntry>| {
        let mut bytes = Vec::new();
        File::open(entry.unwrap().path()).unwrap().read_to_end(&mut bytes).unwrap();
        verdict(&bytes)
    };
    let verdicts: Vec<Verdict> = read_dir(folder).unwrap().map(verdict_of).collect();
    for verdict in [Verdict::Accepted, Verdict::Refused, Verdict::Duplicate] {
        assert!(verdicts.contains(&verdict), "none of {} is {verdict:?}", verdicts.len());
    }
}
