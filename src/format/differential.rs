//! Our header reader against upstream's, on a million mutated files: the same verdict, and on
//! acceptance the same table.

use crate::format::agreement::{Verdict, verdict};

/// Headers that mutation starts from; each is valid for some length of data.
const SEEDS: [&str; 12] = [
    r#"{"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#,
    r#"{"__metadata__":{"format":"pt","k":"v"},"a":{"dtype":"BF16","shape":[3],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[],"data_offsets":[6,7]}}"#,
    r#"{"b":{"dtype":"F4","shape":[2,4],"data_offsets":[4,8]},"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]},"c":{"dtype":"I8","shape":[1],"data_offsets":[3,4]}}"#,
    r#"{"__metadata__":null,"a":["U8",[4],[0,4]]}"#,
    r#"{"a":{"dtype":{"U8":null},"shape":[4],"data_offsets":[0,4],"more":[1,{"x":-1.5e3}]}}"#,
    r#"{"a":{"dtype":{"U8":{}},"shape":[4],"data_offsets":[0,4],"more":"\ud83d\ude00"}}"#,
    r#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[0,9],"data_offsets":[0,0]}}"#,
    r#"{"a":{"shape":[18446744073709551615,0],"data_offsets":[0,0],"dtype":"F8_E8M0"}}"#,
    r#"{"\u0061":{"dtype":"C64","shape":[1],"data_offsets":[0,8]},"é":{"dtype":"BOOL","shape":[1,1],"data_offsets":[8,9]}}"#,
    " \t\n{}\r\n ",
    r#"{"a":{"dtype":"I64","shape":[9223372036854775808,2],"data_offsets":[0,16]}}"#,
    r#"{"__metadata__":{"a":"1","a":"2"},"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4],"unknown":null}}"#,
];

/// Pieces that mutation inserts.
const PIECES: [&str; 28] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "true",
    "0",
    "1",
    "-0",
    "1.0",
    "1e999",
    "18446744073709551616",
    "\\u0061",
    "\\ud800",
    "\u{0}",
    " ",
    "\"a\"",
    "\"U8\"",
    "\"dtype\"",
    "\"shape\":[1]",
    "{\"U8\":[]}",
    "\"__metadata__\":{}",
    "[[[[[[[[",
    "é",
    "\"x\":",
];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) as usize % bound.max(1)
    }
}

fn file_of(header: &[u8], data_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + data_bytes, 0);
    file
}

fn mutate(random: &mut Random, header: &mut Vec<u8>) {
    let place = random.below(header.len() + 1);
    match random.below(5) {
        0 if place < header.len() => drop(header.remove(place)),
        1 if place < header.len() => header[place] = random.below(256) as u8,
        2 => {
            let end = (place + random.below(20)).min(header.len());
            let copy = header[place..end].to_vec();
            header.splice(place..place, copy);
        }
        3 if place < header.len() => header[place] = b"0123456789,[]{}\""[random.below(16)],
        _ => {
            let piece = PIECES[random.below(PIECES.len())];
            header.splice(place..place, piece.bytes());
        }
    }
}

#[test]
fn mutated_headers_get_upstreams_verdict() {
    let (mut random, mut accepted, mut duplicates) = (Random(1), 0, 0);
    for round in 0..1_000_000 {
        let mut header = SEEDS[round % SEEDS.len()].as_bytes().to_vec();
        for _ in 0..random.below(4) {
            mutate(&mut random, &mut header);
        }
        let file = file_of(&header, [0, 4, 7, 8, 9, 16][random.below(6)]);
        match verdict(&file) {
            Verdict::Accepted => accepted += 1,
            Verdict::Duplicate => duplicates += 1,
            Verdict::Refused => {}
        }
    }
    assert!(accepted > 5_000 && duplicates > 0, "{accepted} accepted, {duplicates} duplicates");
}

#[test]
fn nesting_is_refused_where_upstream_refuses_it() {
    let verdicts = [1, 100, 120, 124, 125, 126, 127, 128, 129, 1000].map(|depth| {
        let value = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let header =
            format!(r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{value}}}}}"#);
        verdict(&file_of(header.as_bytes(), 1))
    });
    assert_eq!((verdicts[0], verdicts[9]), (Verdict::Accepted, Verdict::Refused));
}
