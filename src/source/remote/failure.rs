//! Why a try failed, and whether another may do better.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};

use crate::config::RETRY_AFTER_MAX;
use crate::error::Refusal;
use crate::source::remote::transport::LinkLocal;

/// The most of a server's own words that a message repeats, in characters.
const WORDS_MAX: usize = 200;

/// Codes by which an object store says, in an answer that looks like a success, that it is busy.
const STORE_IS_BUSY: [&str; 2] = ["SlowDown", "InternalError"];

/// What to do after a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing: the same request fails again.
    GiveUp,
    /// Try again after a pause that grows.
    Retry,
    /// Try again, not before the time that the server named.
    RetryAfter(Duration),
    /// Ask in the region that the server named.
    Region(String),
}

/// Why a try failed, in words without secrets.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Failure {
    /// The system's number that comes closest; it decides the exception.
    pub(super) errno: i32,
    /// What happened, in the server's or the system's words.
    pub(super) message: String,
    /// What to do.
    pub(super) next: Next,
}

impl Failure {
    /// One that another try cannot mend.
    pub(super) fn lasting(errno: i32, message: impl Into<String>) -> Self {
        Self { errno, message: message.into(), next: Next::GiveUp }
    }

    /// One that another try may mend.
    pub(super) fn passing(errno: i32, message: impl Into<String>) -> Self {
        Self { errno, message: message.into(), next: Next::Retry }
    }

    /// The file is another than it was.
    pub(super) fn changed(what: &str) -> Self {
        let message =
            format!("the file was changed while it was being loaded ({what}); load it again");
        Self::lasting(libc::ESTALE, message)
    }

    /// An answer whose status tells of a failure.
    pub(super) fn of_answer(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &Secrets,
    ) -> Self {
        let whole = status == StatusCode::OK;
        let empty = headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0");
        let said = match (whole, words(headers, body, secrets)) {
            (true, said) if STORE_IS_BUSY.iter().any(|busy| said.starts_with(busy)) => said,
            (true, _) if empty => "the file is empty".to_owned(),
            (true, _) => {
                "it serves no ranges, or not of this file; download it, and load that".to_owned()
            }
            (false, said) => said,
        };
        let said = if said.is_empty() { said } else { format!(": {said}") };
        let advice = match status.as_u16() {
            401 | 403 => "; its credentials (user, token or keys) are missing, wrong or not enough",
            _ => "",
        };
        let whole = if whole { " to a request for a range" } else { "" };
        let message = format!("the server answered {status}{whole}{said}{advice}");
        let region = headers.get("x-amz-bucket-region").and_then(|region| region.to_str().ok());
        let next = match status.as_u16() {
            301 | 307 | 400 if region.is_some() => {
                Next::Region(region.unwrap_or_default().to_owned())
            }
            408 | 429 | 500 | 502 | 503 | 504 => {
                retry_after(headers).map_or(Next::Retry, Next::RetryAfter)
            }
            200 if STORE_IS_BUSY.iter().any(|busy| said.contains(busy)) => Next::Retry,
            _ => Next::GiveUp,
        };
        let errno = match status.as_u16() {
            401 | 403 | 407 => libc::EACCES,
            404 | 410 => libc::ENOENT,
            408 | 504 => libc::ETIMEDOUT,
            412 => return Self::changed("412 Precondition Failed"),
            416 => {
                let message = "the server has no such bytes (416): the file is empty, or was changed \
                               while it was being loaded";
                return Self::lasting(libc::ESTALE, message);
            }
            429 | 503 => libc::EBUSY,
            _ => libc::EIO,
        };
        Self { errno, message, next }
    }

    /// A request that got no answer, or whose answer broke off.
    pub(super) fn of_transport(error: reqwest::Error) -> Self {
        let what = if error.is_connect() {
            "no connection"
        } else if error.is_body() || error.is_decode() {
            "the answer broke off"
        } else {
            "the request failed"
        };
        let mut errno = match (error.is_timeout(), error.is_connect()) {
            (true, _) => libc::ETIMEDOUT,
            (false, true) => libc::EHOSTUNREACH,
            (false, false) => libc::ECONNRESET,
        };
        let (error, mut lasting) = (error.without_url(), false);
        let mut deepest: &(dyn Error + 'static) = &error;
        while let Some(cause) = below(deepest) {
            deepest = cause;
            let system = cause.downcast_ref::<io::Error>();
            errno = system.and_then(io::Error::raw_os_error).unwrap_or(errno);
            if cause.is::<rustls::Error>() {
                (errno, lasting) = (libc::EPROTO, true);
            }
            if cause.is::<LinkLocal>() {
                (errno, lasting) = (libc::EACCES, true);
            }
        }
        let advice =
            if errno == libc::EPROTO { "; SSL_CERT_FILE names certificates to trust" } else { "" };
        let message = format!("{what}: {deepest}{advice}");
        if lasting { Self::lasting(errno, message) } else { Self::passing(errno, message) }
    }

    /// The same, after so many tries.
    pub(super) fn refusal(self, tries: u32) -> Refusal {
        let Self { errno, message, .. } = self;
        let message = if tries > 1 { format!("{message} ({tries} tries)") } else { message };
        Refusal { errno, message }
    }
}

/// Texts that no message may show.
#[derive(Clone, Default)]
pub(crate) struct Secrets(Vec<String>);

impl Secrets {
    /// Those, shorter than which nothing is a secret.
    pub(crate) fn new(texts: impl IntoIterator<Item = String>) -> Self {
        const CHARACTERS_MIN: usize = 4;
        let mut texts: Vec<String> =
            texts.into_iter().filter(|text| text.len() >= CHARACTERS_MIN).collect();
        // One may be a part of another.
        texts.sort_by_key(|text| std::cmp::Reverse(text.len()));
        Self(texts)
    }

    /// A text without them.
    pub(super) fn hide(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "..."))
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

/// The cause of an error. What an error of the system's type is made of is one of its own.
fn below<'error>(error: &'error (dyn Error + 'static)) -> Option<&'error (dyn Error + 'static)> {
    let made_of = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    made_of.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
}

/// What the server says about it: of an object store's answer code and message, which repeat no part of
/// the request; of others a text's beginning.
pub(crate) fn words(headers: &HeaderMap, body: &[u8], secrets: &Secrets) -> String {
    let text = String::from_utf8_lossy(body);
    let part = |tag: &str| {
        let begin = text.split_once(&format!("<{tag}>"))?.1;
        Some(begin.split_once(&format!("</{tag}>"))?.0.trim().to_owned())
    };
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let said = match (part("Code"), part("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ if kind.contains("html") => part("title").unwrap_or_default(),
        _ if kind.contains("xml") => String::new(),
        _ => text.trim().to_owned(),
    };
    let said = match (part("RequestTime"), part("ServerTime")) {
        (Some(ours), Some(theirs)) => format!("{said} (sent {ours}, there it is {theirs})"),
        _ => said,
    };
    let said = secrets.hide(&said);
    let plain = said.chars().map(|character| if character.is_control() { ' ' } else { character });
    plain.take(WORDS_MAX).collect()
}

/// The pause that a server asks for, as far as we wait.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let told = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let until = || httpdate::parse_http_date(told).ok();
    let left = |until: SystemTime| until.duration_since(SystemTime::now()).unwrap_or_default();
    let seconds = told.parse().ok().map(Duration::from_secs);
    Some(seconds.or_else(|| until().map(left))?.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderMap, StatusCode};

    use super::{Failure, Next, Secrets};

    fn failure(status: u16, headers: &[(&'static str, &str)], body: &str) -> Failure {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let secrets = Secrets::new(["hunter".to_owned(), "hunter22".to_owned()]);
        Failure::of_answer(StatusCode::from_u16(status).unwrap(), &map, body.as_bytes(), &secrets)
    }

    #[test]
    fn a_status_decides_what_comes_next() {
        let next = |status, headers: &[_]| failure(status, headers, "").next;
        assert_eq!(next(404, &[]), Next::GiveUp);
        assert_eq!(next(503, &[]), Next::Retry);
        let five = Next::RetryAfter(Duration::from_secs(5));
        assert_eq!(next(429, &[("retry-after", "5")]), five);
        let past = Next::RetryAfter(Duration::ZERO);
        assert_eq!(next(503, &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")]), past);
        let sixty = Next::RetryAfter(Duration::from_secs(60));
        assert_eq!(next(503, &[("retry-after", "86400")]), sixty);
        let region = Next::Region("eu-west-1".to_owned());
        assert_eq!(next(301, &[("x-amz-bucket-region", "eu-west-1")]), region);
    }

    #[test]
    fn the_servers_words_are_told_without_secrets() {
        let xml = "<Error><Code>SignatureDoesNotMatch</Code><Message>It differs</Message>\
                   <StringToSign>hunter22</StringToSign></Error>";
        let told = failure(403, &[("content-type", "application/xml")], xml).message;
        let words = "the server answered 403 Forbidden: SignatureDoesNotMatch: It differs";
        assert!(told.starts_with(words), "{told}");
        let told = failure(400, &[], "no hunter22\nhere").message;
        assert_eq!(told, "the server answered 400 Bad Request: no ... here");
    }
}
