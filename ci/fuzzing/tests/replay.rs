//! The inputs that fuzzing kept, each tried again.

use std::fs;
use std::path::Path;

use fuzzing::{answer, header, index};

/// Every input of a target, checked.
fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let inputs: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(inputs.len() > 10, "the corpus of {target} is not all there");
    inputs.iter().for_each(|path| check(&fs::read(path).unwrap()));
}

#[test]
fn headers() {
    replay("header", header::check);
}

#[test]
fn indexes() {
    replay("index", index::check);
}

#[test]
fn answers() {
    replay("answer", answer::check);
}

#[test]
fn a_large_header_takes_memory_in_proportion() {
    const COUNT: usize = 200_000;
    let nothing = r#"["U8",[0],[0,0]]"#;
    let tensors: String = (0..COUNT).map(|number| format!("\"{number}\":{nothing},")).collect();
    for header in [
        format!("{{{tensors}\"\":{nothing}}}"),
        format!("{{\"a\":[\"U8\",[{}0],[0,0]]}}", "0,".repeat(COUNT)),
        format!("{{\"__metadata__\":{{{}\"\":\"\"}}}}", "\"\":\"\",".repeat(COUNT)),
        format!("{{\"{}\":{nothing}}}", "\\u0061".repeat(COUNT)),
        format!("{{\"a\":[\"U8\",\"{}\",[0,0]]}}", "\u{7f}".repeat(COUNT)),
        format!("{{\"a\":[\"{}\",[0],[0,0]]}}", "\u{7f}".repeat(COUNT)),
        format!("{{\"a\":{{\"{}\":0}}}}", "\u{7f}".repeat(COUNT)),
    ] {
        header::check(&[&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat());
    }
}
