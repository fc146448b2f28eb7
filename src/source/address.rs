//! What a path or an address names, how it is reached, and what of it may be shown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object_store::path::Path as Key;
use url::Url;

use crate::error::Result;

/// The schemes that are served here.
const SCHEMES: [&str; 5] = ["http", "https", "s3", "gs", "az"];

/// Settings that say where a store is.
const PLACES: [&str; 2] = ["aws_endpoint_url", "azure_storage_account_name"];

/// Whether a part of a query signs an address, and so is another each time.
fn signs(name: &str) -> bool {
    const SIGNING: [&str; 16] = [
        "signature",
        "expires",
        "key-pair-id",
        "policy",
        "awsaccesskeyid",
        "sig",
        "se",
        "st",
        "ske",
        "skt",
        "sks",
        "skv",
        "skoid",
        "sktid",
        "sp",
        "sv",
    ];
    let name = name.to_ascii_lowercase();
    name.starts_with("x-amz-") || name.starts_with("x-goog-") || SIGNING.contains(&name.as_str())
}

/// What a remote file's address is made of.
pub(crate) enum Parts {
    /// On a web server.
    Web(Url),
    /// In an object store.
    Object {
        /// Whose: "s3", "gs" or "az".
        scheme: String,
        /// The bucket or container.
        bucket: String,
        /// The rest of the address, as it stands.
        key: Key,
    },
}

/// How remote files are reached.
#[derive(Clone)]
pub(crate) struct Access {
    /// Settings of object stores by `object_store`'s names, and `token` for HTTP.
    pub(crate) options: Arc<BTreeMap<String, String>>,
    /// The folder that keeps what was read.
    pub(crate) cache: Option<PathBuf>,
    /// Whether a load reads the whole file, and may keep it.
    pub(crate) whole: bool,
    /// Called now and then by who waits; an error ends the waiting.
    pub(crate) check: fn() -> Result<()>,
}

impl Default for Access {
    fn default() -> Self {
        Self { options: Arc::default(), cache: None, whole: true, check: || Ok(()) }
    }
}

impl fmt::Debug for Access {
    /// Without the settings, some of which are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("cache", &self.cache).finish_non_exhaustive()
    }
}

/// What a caller names: the path of a local file, or the address of a remote one.
#[derive(Clone)]
pub(crate) struct Address {
    path: PathBuf,
    /// How it is reached, if it is remote.
    pub(crate) access: Access,
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.shown(), f)
    }
}

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self { path, access: Access::default() }
    }
}

impl Address {
    /// A path or an address, and how it is reached.
    pub(crate) fn new(path: PathBuf, access: Access) -> Self {
        Self { path, access }
    }

    /// As it was given.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the address of a remote file.
    pub(crate) fn is_remote(&self) -> bool {
        let text = self.path.to_string_lossy();
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        scheme.is_some_and(|scheme| SCHEMES.contains(&scheme.as_str()))
    }

    /// What a remote file's address is made of, or what is wrong with it.
    pub(crate) fn parts(&self) -> std::result::Result<Parts, String> {
        let text = self.path.to_str().ok_or("an address has to be UTF-8")?;
        let (scheme, rest) = text.split_once("://").ok_or("an address begins with a scheme")?;
        let scheme = scheme.to_ascii_lowercase();
        if matches!(scheme.as_str(), "http" | "https") {
            // What follows may be read as a host after all, with a slash left out.
            let url = Url::parse(text).map_err(|error| format!("not an address: {error}"))?;
            if rest.starts_with(['/', '?', '#']) || url.host_str().is_none_or(str::is_empty) {
                return Err("an address has to name a host".to_owned());
            }
            return Ok(Parts::Web(url));
        }
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let plain =
            |character: char| character.is_ascii_alphanumeric() || "-._$".contains(character);
        if !bucket.chars().all(plain) || bucket.starts_with('.') {
            let why = "a bucket's name has letters, digits, `-`, `.` and `_` and is followed by a slash; \
                       who may read it, and from which server, is said by the environment";
            return Err(why.to_owned());
        }
        if rest.contains(['?', '#']) {
            let why =
                "`?` and `#` cannot be in the address of an object, which is its key as it stands";
            return Err(why.to_owned());
        }
        if bucket.is_empty() || key.is_empty() || key.starts_with('/') || key.ends_with('/') {
            return Err(format!("an object's address is {scheme}://bucket/key"));
        }
        let key = Key::parse(key).map_err(|error| error.to_string())?;
        Ok(Parts::Object { scheme, bucket: bucket.to_owned(), key })
    }

    /// As messages show it: what may carry secrets, user, query and fragment, is left out.
    pub(crate) fn shown(&self) -> PathBuf {
        if !self.is_remote() {
            return self.path.clone();
        }
        match self.parts() {
            Ok(Parts::Web(mut url)) => {
                // A scheme of the web has both.
                let _user = url.set_username("");
                let _password = url.set_password(None);
                url.set_query(None);
                url.set_fragment(None);
                PathBuf::from(String::from(url))
            }
            Ok(Parts::Object { .. }) => self.path.clone(),
            Err(_) => PathBuf::from("<address>"),
        }
    }

    /// What tells it from other addresses: all of it but fragment, password and what signs for a time.
    pub(super) fn identity(&self) -> String {
        let places = PLACES.iter().filter_map(|name| self.access.options.get(*name));
        let places: Vec<&str> = places.map(String::as_str).collect();
        let (what, kept) = match self.parts() {
            Ok(Parts::Web(mut url)) => {
                let _password = url.set_password(None); // a scheme of the web has one
                url.set_fragment(None);
                let kept = url.query_pairs().filter(|(name, _)| !signs(name));
                let kept: Vec<String> =
                    kept.map(|(name, value)| format!("{name}={value}")).collect();
                url.set_query(None);
                (String::from(url), kept.join("\n"))
            }
            Ok(Parts::Object { scheme, bucket, key }) => {
                (format!("{scheme}://{bucket}/{key}"), String::new())
            }
            Err(_) => return String::new(),
        };
        format!("{what}\n{kept}\n{}", places.join("\n"))
    }

    /// A file that lies beside this one, or below; the query of an address goes with it.
    pub(crate) fn beside(&self, name: &str) -> Self {
        let path = match self.parts() {
            Ok(Parts::Web(mut url)) if self.is_remote() => {
                if let Ok(mut parts) = url.path_segments_mut() {
                    parts.pop().extend(name.split('/'));
                }
                PathBuf::from(String::from(url))
            }
            _ => self.path.parent().unwrap_or(Path::new("")).join(name),
        };
        Self { path, access: self.access.clone() }
    }

    /// Whether it ends so, an address without its query.
    pub(crate) fn ends_with(&self, ending: &str) -> bool {
        self.shown().to_string_lossy().ends_with(ending)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{Address, Parts};

    fn address(text: &str) -> Address {
        Address::from(PathBuf::from(text))
    }

    #[test]
    fn what_is_remote_and_what_is_shown() {
        for text in ["http://h/a", "HTTPS://h/a", "s3://b/k", "gs://b/k", "az://c/k"] {
            assert!(address(text).is_remote(), "{text}");
        }
        for text in ["a/http://b", "ftp://h/a", "/s3:/b", "file:///a", "model.safetensors"] {
            assert!(!address(text).is_remote(), "{text}");
            assert_eq!(address(text).shown(), Path::new(text));
        }
        let told = address("https://user:secret@h:8/a%20b?token=secret#secret");
        assert_eq!(told.shown(), Path::new("https://h:8/a%20b"));
        assert_eq!(format!("{told:?}"), "\"https://h:8/a%20b\"");
    }

    #[test]
    fn the_key_of_an_object_is_taken_as_it_stands() {
        let told = address("S3://b/c d/é%20@.safetensors");
        let Ok(Parts::Object { scheme, bucket, key }) = told.parts() else { panic!("an object") };
        assert_eq!((scheme.as_str(), bucket.as_str()), ("s3", "b"));
        assert_eq!(key.as_ref(), "c d/é%20@.safetensors");
        for text in [
            "s3://b",
            "s3://b/",
            "s3:///k",
            "s3://b//k",
            "s3://b/k/",
            "s3://b/../k",
            "s3://b/k?id=secret",
            "s3://b/k#1",
            "s3://secret:secret@b/k",
            "s3://h:9000/b/k",
            "s3://../b/k",
            "s3://h\\x/k",
            "s3://b\n/k",
            "http:///h/a",
            "https://",
        ] {
            assert!(address(text).parts().is_err(), "{text}");
            assert_eq!(address(text).shown(), Path::new("<address>"), "{text}");
        }
    }

    #[test]
    fn a_shard_lies_beside_its_index() {
        let beside = |text: &str, name| address(text).beside(name).path;
        let index = "https://h/m/model.safetensors.index.json?sig=1";
        let shard = "https://h/m/a%20b.safetensors?sig=1";
        assert_eq!(beside(index, "a b.safetensors"), Path::new(shard));
        assert_eq!(beside("s3://b/i.json", "x/y"), Path::new("s3://b/x/y"));
        assert_eq!(beside("s3://b/c%20d/i.json", "x y"), Path::new("s3://b/c%20d/x y"));
        assert_eq!(beside("m/i.json", "x/y"), Path::new("m/x/y"));
        assert!(address(index).ends_with(".json"));
    }
}
