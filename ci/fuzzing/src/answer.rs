//! Any bytes as a server's answer: lines of headers, an empty line, and the body, in which `$` stands
//! for a secret that the server repeats.

use std::time::Duration;

use http::header::{CONTENT_RANGE, HeaderName, RETRY_AFTER};
use http::{HeaderMap, HeaderValue};

use crate::config::RETRY_AFTER_MAX;
use crate::source::remote::answer::content_range;
use crate::source::remote::failure::{Secrets, retry_after, words};

/// What two users keep secret: a password each, and the same name, which is a part of it.
const NAME: &str = "hunter22";
const PASSWORDS: [&str; 2] = ["hunter22plus1111", "hunter22plus2222"];

/// The most of a server's words that are repeated, in characters.
const WORDS_MAX: usize = 200;

/// Panics unless ranges, pauses and words are read as they should be.
pub fn check(answer: &[u8]) {
    let end = answer.windows(2).position(|pair| pair == b"\n\n").unwrap_or(answer.len());
    let body = answer.get(end + 2..).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in answer[..end].split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.insert(name, value);
        }
    }
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    check_range(text(CONTENT_RANGE).unwrap_or_default());
    check_pause(&headers, text(RETRY_AFTER).unwrap_or_default());
    check_words(&headers, body);
}

fn check_range(text: &str) {
    let written = |first: u64, last: u64, whole: u64| format!("bytes {first}-{last}/{whole}");
    if let Some((range, whole)) = content_range(text) {
        assert!(range.start < range.end && range.end <= whole, "disagreement: {text:?}");
        let again = content_range(&written(range.start, range.end - 1, whole));
        assert_eq!(again, Some((range, whole)), "disagreement: {text:?}");
    }
    let digits = text.split(|character: char| !character.is_ascii_digit());
    let numbers: Vec<u64> = digits.filter_map(|digits| digits.parse().ok()).collect();
    if let [first, last, whole, ..] = numbers[..] {
        let read = content_range(&written(first, last, whole));
        let right = first <= last && last < whole;
        assert_eq!(read, right.then(|| (first..last + 1, whole)), "disagreement: {text:?}");
    }
}

fn check_pause(headers: &HeaderMap, told: &str) {
    let pause = retry_after(headers);
    assert!(pause.is_none_or(|pause| pause <= RETRY_AFTER_MAX), "disagreement: {told:?}");
    if let Ok(seconds) = told.parse() {
        let wanted = Duration::from_secs(seconds).min(RETRY_AFTER_MAX);
        assert_eq!(pause, Some(wanted), "disagreement: {told:?}");
    }
}

/// What is told of an answer must not depend on the secret in it.
fn check_words(headers: &HeaderMap, body: &[u8]) {
    let told = PASSWORDS.map(|password| {
        let parts: Vec<&[u8]> = body.split(|byte| *byte == b'$').collect();
        let secrets = Secrets::new([password.to_owned(), NAME.to_owned()]);
        words(headers, &parts.join(password.as_bytes()), &secrets)
    });
    for told in &told {
        let plain = !told.contains(char::is_control) && told.chars().count() <= WORDS_MAX;
        assert!(plain, "disagreement: {told:?}");
    }
    let theirs = String::from_utf8_lossy(body).contains(NAME); // the server's own, then
    assert!(theirs || told[0] == told[1], "disagreement: {told:?}");
}
