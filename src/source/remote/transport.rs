//! Requests on the wire: connections, TLS, redirects, and addresses that no redirect may lead to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Request, Response};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::config::{CONNECTIONS_MAX, PATIENCE_VARIABLE, config};
use crate::source::remote::failure::{Failure, Secrets};
use crate::source::remote::runtime::Network;

/// Clients with pools of their own, among which requests take turns: an HTTP/2 server gets as many
/// connections, where one client would put all ranges on one.
const LANES: usize = 4;

/// What one stream of HTTP/2 may have under way, in bytes: a range of the usual size.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// The most of an answer that tells of a failure which is read, in bytes.
const REFUSAL_BYTES_MAX: usize = 16 << 10;

/// An address that only machines of a data centre's own answer, credentials among what they say.
#[derive(Debug, thiserror::Error)]
#[error("{0} is a link-local address, where no redirect may lead")]
pub(super) struct LinkLocal(IpAddr);

/// All clients of a process.
#[derive(Clone, Debug)]
pub(super) struct Transport(Arc<Clients>);

#[derive(Debug)]
struct Clients {
    free: Vec<Client>,
    /// For redirects: their names may not resolve to link-local addresses.
    guarded: Vec<Client>,
    turn: AtomicUsize,
}

/// Marks a request for a range of ours, whose failures are ours to judge.
#[derive(Clone, Copy, Debug)]
pub(super) struct ForRange;

impl Transport {
    /// Clients without connections yet.
    pub(super) fn new() -> Result<Self, Failure> {
        let tls = tls()?;
        let lanes = |guarded| {
            let client = |_| client(&tls, guarded);
            (0..LANES).map(client).collect::<Result<Vec<_>, _>>().map_err(Failure::of_transport)
        };
        let (free, guarded) = (lanes(false)?, lanes(true)?);
        Ok(Self(Arc::new(Clients { free, guarded, turn: AtomicUsize::new(0) })))
    }

    /// Sends a request; gives the head of the answer, whatever it says.
    pub(super) async fn send(
        &self,
        request: Request,
        redirected: bool,
    ) -> Result<Response, Failure> {
        let host = request.url().host();
        let literal = match host {
            Some(url::Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(url::Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            _ => None,
        };
        if let Some(ip) = literal.filter(|ip| redirected && is_link_local(*ip)) {
            return Err(Failure::lasting(libc::EACCES, LinkLocal(ip).to_string()));
        }
        let lanes = if redirected { &self.0.guarded } else { &self.0.free };
        let client = &lanes[self.0.turn.fetch_add(1, Ordering::Relaxed) % LANES];
        let patience = config().network_patience;
        let answer = timeout(patience, client.execute(request)).await;
        let late = |_| {
            let seconds = patience.as_secs_f32();
            let message = format!("no answer within {seconds} s, which {PATIENCE_VARIABLE} sets");
            Failure::passing(libc::ETIMEDOUT, message)
        };
        answer.map_err(late)?.map_err(Failure::of_transport)
    }
}

/// The failure that an answer tells of.
pub(super) async fn refused(answer: Response, secrets: &Secrets) -> Failure {
    let (status, headers) = (answer.status(), answer.headers().clone());
    let body = timeout(config().network_patience, beginning(answer)).await;
    Failure::of_answer(status, &headers, &body.unwrap_or_default(), secrets)
}

async fn beginning(mut answer: Response) -> Vec<u8> {
    let mut text = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        text.extend_from_slice(&chunk);
        if text.len() >= REFUSAL_BYTES_MAX {
            break;
        }
    }
    text.truncate(REFUSAL_BYTES_MAX);
    text
}

fn tls() -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    // Without any, or with some that cannot be read, https says so when it is asked for.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| Failure::lasting(libc::EPROTO, error.to_string()))?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn client(tls: &ClientConfig, guarded: bool) -> reqwest::Result<Client> {
    let builder = Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .user_agent(concat!("safetensors-streaming/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        .connect_timeout(config().network_patience)
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(CONNECTIONS_MAX)
        .tcp_nodelay(true)
        .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(STREAM_WINDOW_BYTES * 8);
    let builder = if guarded { builder.dns_resolver(Guard) } else { builder };
    builder.build()
}

/// Resolves names as the system does, and refuses those of link-local addresses.
#[derive(Debug)]
struct Guard;

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            match found.iter().find(|address| is_link_local(address.ip())) {
                Some(address) => Err(LinkLocal(address.ip()).into()),
                None => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}

/// Link-local addresses of both versions, and the one that a cloud answers to in place of them.
fn is_link_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local() || ip.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

/// The clients of whichever process asks: an object store that was opened before a fork goes on with
/// connections of the child's own.
#[derive(Clone, Copy, Debug)]
pub(super) struct OfProcess;

impl HttpConnector for OfProcess {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(*self))
    }
}

#[async_trait]
impl HttpService for OfProcess {
    /// What an object store's client asks: ranges of ours, and credentials.
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let failed = |failure| HttpError::new(HttpErrorKind::Unknown, failure);
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string().parse();
        let url = url.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        let mut plain = Request::new(parts.method, url);
        let secrets = secrets_of(&parts.headers);
        *plain.headers_mut() = parts.headers;
        if let Some(bytes) = body.as_bytes() {
            *plain.body_mut() = Some(Bytes::clone(bytes).into());
        }
        let transport = &Network::of_process().map_err(failed)?.transport;
        let answer = transport.send(plain, false).await.map_err(failed)?;
        let partial = answer.status() == http::StatusCode::PARTIAL_CONTENT;
        if parts.extensions.get::<ForRange>().is_some() && !partial {
            return Err(failed(refused(answer, &secrets).await));
        }
        let (parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        let broken = |error| HttpError::new(HttpErrorKind::Unknown, Failure::of_transport(error));
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body.map_err(broken))))
    }
}

/// What a server may repeat of a request, and no message may show.
fn secrets_of(headers: &HeaderMap) -> Secrets {
    let secret =
        |name: &str| ["authorization", "token", "key"].iter().any(|part| name.contains(part));
    let values = headers.iter().filter(|(name, _)| secret(name.as_str()));
    let texts = values.filter_map(|(_, value)| value.to_str().ok());
    // Of "Bearer ..." the second word alone as well.
    let parts = texts.flat_map(|text| [Some(text), text.split_once(' ').map(|(_, word)| word)]);
    Secrets::new(parts.flatten().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::is_link_local;

    #[test]
    fn link_local_addresses_in_every_writing() {
        let link_local = |text: &str| is_link_local(text.parse().unwrap());
        for text in ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254"] {
            assert!(link_local(text), "{text}");
        }
        for text in ["127.0.0.1", "10.0.0.1", "::1", "fd00::1", "2001:db8::1"] {
            assert!(!link_local(text), "{text}");
        }
    }
}
