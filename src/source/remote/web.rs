//! A file on a web server.

use std::fmt;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, IF_MATCH, IF_UNMODIFIED_SINCE, LOCATION, RANGE,
};
use http::{HeaderMap, Method};
use reqwest::{Request, Response};
use url::Url;

use crate::source::address::Address;
use crate::source::remote::answer::{Answer, Known};
use crate::source::remote::failure::{Failure, Next, Secrets};
use crate::source::remote::transport::Transport;

/// The most redirects that one request follows.
const REDIRECTS_MAX: usize = 5;

/// Where a file is, and with which right it may be read.
pub(super) struct Web {
    url: Url,
    authorization: Option<HeaderValue>,
    /// Where redirects have led: the next ranges are asked for there.
    led_to: Mutex<Option<Url>>,
    secrets: Secrets,
}

impl fmt::Debug for Web {
    /// Without what may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").field("host", &self.url.host_str()).finish_non_exhaustive()
    }
}

impl Web {
    /// Of an address; what it says of user and password goes into a header.
    pub(super) fn new(address: &Address, mut url: Url) -> Result<Self, Failure> {
        let (user, password) = (url.username().to_owned(), url.password().map(str::to_owned));
        let token = address.access.options.get("token");
        let authorization = match (token, user.is_empty() && password.is_none()) {
            (Some(token), _) => Some(format!("Bearer {token}")),
            (None, true) => None,
            (None, false) => {
                let pair = format!(
                    "{}:{}",
                    decoded(&user),
                    decoded(password.as_deref().unwrap_or_default())
                );
                Some(format!("Basic {}", BASE64_STANDARD.encode(pair)))
            }
        };
        let query = url.query().map(str::to_owned);
        let written = password.as_deref().map(decoded);
        let hidden = [token.cloned(), password, written, query, authorization.clone()];
        let names = [user.clone(), decoded(&user)];
        let parts =
            url.query().unwrap_or_default().split('&').filter_map(|part| part.split_once('='));
        let parts = parts.flat_map(|(_, value)| [value.to_owned(), decoded(value)]);
        let secrets = Secrets::new(hidden.into_iter().flatten().chain(names).chain(parts));
        // A scheme of the web has both.
        let _user = url.set_username("");
        let _password = url.set_password(None);
        url.set_fragment(None);
        let sensitive = |text: String| -> Result<HeaderValue, Failure> {
            let refused =
                |_| Failure::lasting(libc::EINVAL, "the token has characters that no token has");
            let mut value = HeaderValue::from_str(&text).map_err(refused)?;
            value.set_sensitive(true);
            Ok(value)
        };
        let authorization = authorization.map(sensitive).transpose()?;
        Ok(Self { url, authorization, led_to: Mutex::default(), secrets })
    }

    /// Asks for a range. A place where redirects have led earlier may not be right any more, as one
    /// that is signed for a time: then the address itself is asked anew.
    pub(super) async fn get(
        &self,
        transport: &Transport,
        range: &Range<u64>,
        known: Option<&Known>,
    ) -> Result<Answer, Failure> {
        let led_to = self.led_to().clone();
        if let Some(begin) = led_to {
            match self.follow(transport, &begin, range, known).await {
                Err(Failure { next: Next::GiveUp | Next::Region(_), .. }) => {
                    // Unless another range was led elsewhere meanwhile.
                    self.led_to().take_if(|now| *now == begin);
                }
                answer => return answer,
            }
        }
        self.follow(transport, &self.url, range, known).await
    }

    async fn follow(
        &self,
        transport: &Transport,
        begin: &Url,
        range: &Range<u64>,
        known: Option<&Known>,
    ) -> Result<Answer, Failure> {
        let mut url = begin.clone();
        for _ in 0..=REDIRECTS_MAX {
            let request = self.request(&url, range, known);
            let response = transport.send(request, url.origin() != self.url.origin()).await?;
            let Some(next) = Self::redirect(&url, &response)? else {
                let answer = Answer::of_web(response, range, &self.secrets).await?;
                if url != self.url {
                    *self.led_to() = Some(url);
                }
                return Ok(answer);
            };
            url = next;
        }
        Err(Failure::lasting(libc::ELOOP, format!("more than {REDIRECTS_MAX} redirects")))
    }

    fn request(&self, url: &Url, range: &Range<u64>, known: Option<&Known>) -> Request {
        let mut request = Request::new(Method::GET, url.clone());
        let headers = request.headers_mut();
        let mut insert = |name, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        insert(RANGE, &format!("bytes={}-{}", range.start, range.end - 1));
        insert(ACCEPT_ENCODING, "identity");
        if let Some(known) = known {
            match (known.validator.strong(), &known.validator.modified) {
                (Some(etag), _) => insert(IF_MATCH, etag),
                (None, Some(modified)) => insert(IF_UNMODIFIED_SINCE, modified),
                (None, None) => {}
            }
        }
        if let Some(authorization) = &self.authorization
            && url.origin() == self.url.origin()
        {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        request
    }

    /// Where an answer leads, if it is elsewhere.
    fn redirect(from: &Url, response: &Response) -> Result<Option<Url>, Failure> {
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok(None);
        }
        let refused = |why: &str| {
            let status = response.status();
            Err(Failure::lasting(libc::EACCES, format!("the server answered {status}, {why}")))
        };
        let Some(location) = location(response.headers()) else {
            return refused("and does not tell where to");
        };
        let Ok(to) = from.join(&location) else {
            return refused("to something that is not an address");
        };
        match (from.scheme(), to.scheme()) {
            ("https", "http") => refused("from https to http, which is not followed"),
            (_, "http" | "https") => Ok(Some(to)),
            (_, scheme) => refused(&format!("to an address of {scheme}, which is not followed")),
        }
    }

    fn led_to(&self) -> std::sync::MutexGuard<'_, Option<Url>> {
        self.led_to.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn location(headers: &HeaderMap) -> Option<String> {
    Some(headers.get(LOCATION)?.to_str().ok()?.to_owned())
}

/// User and password as they are, not as an address writes them.
fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}
