//! An answer to a request for a range, its head checked.

use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, LAST_MODIFIED,
};
use http::{HeaderMap, StatusCode};
use reqwest::Response;

use crate::source::remote::failure::{Failure, Secrets};
use crate::source::remote::transport::refused;

/// What tells one state of a file from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Validator {
    /// The server's name for the state.
    pub(super) etag: Option<String>,
    /// When it was made, as the server writes it.
    pub(super) modified: Option<String>,
}

impl Validator {
    /// The name, if it promises the same bytes.
    pub(super) fn strong(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/"))
    }

    /// Whether another answer was of the same state, as far as both tell.
    fn is_same(&self, other: &Self) -> bool {
        self.etag == other.etag && (self.strong().is_some() || self.modified == other.modified)
    }
}

/// What is known of a file since it was opened.
#[derive(Clone, Debug)]
pub(super) struct Known {
    /// Its length.
    pub(super) bytes: u64,
    /// Its state.
    pub(super) validator: Validator,
}

/// The bytes of an answer, as they come.
pub(super) enum Body {
    /// From a web server.
    Web(Response),
    /// From an object store.
    Store(BoxStream<'static, Result<Bytes, Failure>>),
}

impl Body {
    /// The next ones; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::Web(response) => response.chunk().await.map_err(Failure::of_transport),
            Self::Store(stream) => stream.next().await.transpose(),
        }
    }
}

/// An answer that holds what was asked for.
pub(super) struct Answer {
    /// What it tells of the file.
    pub(super) known: Known,
    /// The range that it holds; shorter than asked for where the file is.
    pub(super) range: Range<u64>,
    /// The bytes.
    pub(super) body: Body,
}

impl Answer {
    /// Checks the answer of a web server.
    pub(super) async fn of_web(
        response: Response,
        asked: &Range<u64>,
        secrets: &Secrets,
    ) -> Result<Self, Failure> {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Err(refused(response, secrets).await);
        }
        let headers = response.headers();
        let lasting = |message: String| Failure::lasting(libc::EIO, message);
        if let Some(coding) = text(headers, &CONTENT_ENCODING).filter(|coding| coding != "identity")
        {
            return Err(lasting(format!(
                "the server sends {coding}, where bytes of the file are asked for; download it, \
                 and load that"
            )));
        }
        let told = text(headers, &CONTENT_RANGE)
            .ok_or_else(|| lasting("the server does not tell which range it sends".to_owned()))?;
        let (range, bytes) = content_range(&told)
            .ok_or_else(|| lasting(format!("the server tells of a range {told:?}")))?;
        let wanted = asked.start..asked.end.min(bytes);
        if range != wanted {
            let asked = format!("bytes {}-{}", asked.start, asked.end - 1);
            return Err(lasting(format!("the server sends {told}, where {asked} were asked for")));
        }
        let length = text(headers, &CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        if length.is_some_and(|length| length != range.end - range.start) {
            return Err(lasting(format!("the server sends {told} in another number of bytes")));
        }
        let validator =
            Validator { etag: text(headers, &ETAG), modified: text(headers, &LAST_MODIFIED) };
        Ok(Self { known: Known { bytes, validator }, range, body: Body::Web(response) })
    }

    /// The same answer, if it is of the file as it was known.
    pub(super) fn of_same(self, known: &Known) -> Result<Self, Failure> {
        if self.known.bytes != known.bytes {
            let bytes = format!("{} bytes, by now {}", known.bytes, self.known.bytes);
            return Err(Failure::changed(&bytes));
        }
        if !known.validator.is_same(&self.known.validator) {
            return Err(Failure::changed("the server names another state of it"));
        }
        Ok(self)
    }
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

/// The range and the length of the whole in `bytes 0-9/100`.
pub(crate) fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, whole) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let whole = whole.parse().ok()?;
    (first <= last && last < whole).then(|| (first..last + 1, whole))
}

#[cfg(test)]
mod tests {
    use super::{Validator, content_range};

    #[test]
    fn a_range_is_read_or_refused() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0..10, 100)));
        let most = u64::MAX;
        assert_eq!(content_range(&format!("bytes 0-{most}/{most}")), None);
        for text in
            ["bytes */100", "bytes 0-9/*", "bytes 9-0/100", "bytes 0-100/100", "0-9/100", ""]
        {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn a_strong_name_suffices_and_a_weak_one_does_not() {
        let state = |etag: &str, modified: &str| Validator {
            etag: Some(etag.to_owned()).filter(|etag| !etag.is_empty()),
            modified: Some(modified.to_owned()).filter(|modified| !modified.is_empty()),
        };
        assert!(state("\"a\"", "1").is_same(&state("\"a\"", "2")));
        assert!(!state("\"a\"", "1").is_same(&state("\"b\"", "1")));
        assert!(!state("W/\"a\"", "1").is_same(&state("W/\"a\"", "2")));
        assert!(!state("", "1").is_same(&state("", "2")));
        assert!(state("", "").is_same(&state("", "")));
    }
}
