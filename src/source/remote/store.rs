//! A file in an object store: S3 and what speaks like it, GCS, Azure.

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::{StreamExt, TryStreamExt};
use http::Extensions;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{Attribute, GetOptions, GetRange, GetResult, ObjectStore, RetryConfig};
use tokio::time::timeout;

use crate::config::CREDENTIALS_PATIENCE;
use crate::source::address::Address;
use crate::source::remote::answer::{Answer, Body, Known, Validator};
use crate::source::remote::failure::{Failure, Next, Secrets};
use crate::source::remote::transport::{ForRange, OfProcess};

/// Settings whose values no message may show.
const SECRET_SETTINGS: [&str; 5] = ["secret", "token", "key", "password", "credential"];

/// A store's client, and whether it signs.
#[derive(Clone, Debug)]
struct Client {
    store: Arc<dyn ObjectStore>,
    anonymous: bool,
}

/// The clients of files that are opened together, by bucket: its shards share credentials, which are
/// looked for once.
#[derive(Debug, Default)]
pub(super) struct Clients(tokio::sync::Mutex<HashMap<Bucket, Client>>);

/// What credentials are for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Bucket {
    /// Whose: "s3", "gs" or "az".
    pub(super) scheme: String,
    /// Its name; of Azure, the container's.
    pub(super) name: String,
}

impl Clients {
    async fn of(&self, bucket: &Bucket, settings: &Settings) -> object_store::Result<Client> {
        let mut known = self.0.lock().await;
        if let Some(client) = known.get(bucket) {
            return Ok(client.clone());
        }
        let client = client(bucket, settings, None).await?;
        known.insert(bucket.clone(), client.clone());
        Ok(client)
    }
}

type Settings = BTreeMap<String, String>;

/// Where an object is.
pub(super) struct Store {
    bucket: Bucket,
    settings: Arc<Settings>,
    location: Path,
    client: Mutex<Client>,
    secrets: Secrets,
}

impl fmt::Debug for Store {
    /// Without the settings, some of which are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Store {
    /// Finds credentials, or goes on without.
    pub(super) async fn open(
        address: &Address,
        bucket: Bucket,
        location: Path,
        clients: &Clients,
    ) -> Result<Self, Failure> {
        let settings = Arc::clone(&address.access.options);
        let secret = |name: &str| SECRET_SETTINGS.iter().any(|part| name.contains(part));
        let hidden = settings.iter().filter(|(name, _)| secret(name));
        let secrets = Secrets::new(hidden.map(|(_, value)| value.clone()));
        let client = clients.of(&bucket, &settings).await;
        let client = Mutex::new(client.map_err(|error| failure(&error, &secrets))?);
        Ok(Self { bucket, settings, location, client, secrets })
    }

    /// Asks for a range; once more where the server says that the bucket is elsewhere.
    pub(super) async fn get(
        &self,
        range: &Range<u64>,
        known: Option<&Known>,
    ) -> Result<Answer, Failure> {
        let (region, message) = match self.ask(range, known).await {
            Err(Failure { next: Next::Region(region), message, .. }) => (region, message),
            answer => return answer,
        };
        let client = client(&self.bucket, &self.settings, Some(&region)).await;
        *self.client() = client.map_err(|error| failure(&error, &self.secrets))?;
        let again = self.ask(range, known).await;
        again.map_err(|failure| match failure.next {
            Next::Region(_) => Failure::lasting(libc::EIO, message),
            _ => failure,
        })
    }

    async fn ask(&self, range: &Range<u64>, known: Option<&Known>) -> Result<Answer, Failure> {
        let mut extensions = Extensions::new();
        extensions.insert(ForRange);
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match: known.and_then(|known| known.validator.strong()).map(str::to_owned),
            extensions,
            ..GetOptions::default()
        };
        let Client { store, anonymous } = self.client().clone();
        let result = store.get_opts(&self.location, options).await;
        let result = result.map_err(|error| {
            let mut failure = failure(&error, &self.secrets);
            if anonymous && failure.errno == libc::EACCES {
                failure.message.push_str("; asked without credentials, none were found");
            }
            failure
        })?;
        answer(result, &self.secrets)
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(result: GetResult, secrets: &Secrets) -> Result<Answer, Failure> {
    let coding = result.attributes.get(&Attribute::ContentEncoding).map(AsRef::as_ref);
    // What a client has signed piece by piece keeps that name of it, and is stored plain.
    if let Some(coding) =
        coding.filter(|coding| !matches!(*coding, "" | "identity" | "aws-chunked"))
    {
        let message = format!("the object is kept as {coding}, not as bytes of a file");
        return Err(Failure::lasting(libc::EIO, message));
    }
    let modified = result.meta.last_modified.to_rfc2822();
    let validator = Validator { etag: result.meta.e_tag.clone(), modified: Some(modified) };
    let known = Known { bytes: result.meta.size, validator };
    let (range, secrets) = (result.range.clone(), secrets.clone());
    let body = result.into_stream().map_err(move |error| failure(&error, &secrets));
    Ok(Answer { known, range, body: Body::Store(body.boxed()) })
}

/// A client for the store of an address. Where nothing names credentials, and the machine has none of
/// its own, it does not sign, as for public objects.
async fn client(
    Bucket { scheme, name }: &Bucket,
    settings: &Settings,
    region: Option<&str>,
) -> object_store::Result<Client> {
    // The region that a server has named is righter than any setting.
    let region = region.map(|region| ("aws_region".to_owned(), region.to_owned()));
    let settings = settings.iter().map(|(name, value)| (name.clone(), value.clone())).chain(region);
    // It concerns credentials alone: failures of ranges are ours, and none that it tries again.
    let retry = RetryConfig { max_retries: 3, ..RetryConfig::default() };
    macro_rules! client {
        ($builder:expr, $named_by:expr, $skip:expr) => {{
            let mut builder = $builder.with_retry(retry).with_http_connector(OfProcess);
            for (setting, value) in settings {
                if let Ok(key) = setting.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            let named = $named_by.iter().any(|key| builder.get_config_value(key).is_some());
            let unwanted = builder.get_config_value(&$skip).is_some_and(|skip| skip == "true");
            let signing = builder.clone().build()?;
            let credentials = Arc::clone(signing.credentials());
            let look = async move { credentials.get_credential().await };
            if !unwanted && (named || are_found(look).await) {
                return Ok(Client { store: Arc::new(signing), anonymous: false });
            }
            let store = builder.with_skip_signature(true).build()?;
            Ok(Client { store: Arc::new(store), anonymous: true })
        }};
    }
    match scheme.as_str() {
        "gs" => {
            use GoogleConfigKey::{
                ApplicationCredentials, ServiceAccount, ServiceAccountKey, SkipSignature,
            };
            let named_by = [ApplicationCredentials, ServiceAccount, ServiceAccountKey];
            let builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(name);
            client!(builder, named_by, SkipSignature)
        }
        "az" => {
            use AzureConfigKey::{
                AccessKey, ClientId, FederatedTokenFile, SasKey, SkipSignature, Token, UseAzureCli,
            };
            let named_by = [AccessKey, ClientId, FederatedTokenFile, SasKey, Token, UseAzureCli];
            let builder = MicrosoftAzureBuilder::from_env().with_container_name(name);
            client!(builder, named_by, SkipSignature)
        }
        _ => {
            use AmazonS3ConfigKey::{
                AccessKeyId, ContainerCredentialsFullUri, ContainerCredentialsRelativeUri,
                SkipSignature, WebIdentityTokenFile,
            };
            let named_by = [
                AccessKeyId,
                ContainerCredentialsFullUri,
                ContainerCredentialsRelativeUri,
                WebIdentityTokenFile,
            ];
            let builder = AmazonS3Builder::from_env().with_bucket_name(name);
            client!(builder, named_by, SkipSignature)
        }
    }
}

/// Whether this machine has credentials of its own, as those of a cloud have; elsewhere nobody answers.
async fn are_found<T>(credentials: impl Future<Output = object_store::Result<T>>) -> bool {
    timeout(CREDENTIALS_PATIENCE, credentials).await.is_ok_and(|found| found.is_ok())
}

/// Our own failure, where it lies below a store's error, or the store's words.
fn failure(error: &object_store::Error, secrets: &Secrets) -> Failure {
    let mut deepest: &(dyn Error + 'static) = error;
    loop {
        if let Some(own) = deepest.downcast_ref::<Failure>() {
            return Failure { message: secrets.hide(&own.message), ..own.clone() };
        }
        let Some(cause) = deepest.source() else {
            return Failure::lasting(libc::EIO, secrets.hide(&deepest.to_string()));
        };
        deepest = cause;
    }
}
