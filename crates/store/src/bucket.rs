//! Buckets: other people's objects in S3, or on a server that speaks its interface, listed and read in ranges.
//!
//! Where it is and who asks is said by the `AWS_…` variables of the environment, as for other tools; files under `~/.aws`
//! are not read. An object is read under the ETag that it was found with, so that all of its ranges are of one version.
//! Nothing is written here, and nothing kept: that is for the caller. What is told of a failure is the server's code and
//! message and nothing else of its answer, which may repeat a token.

use bytes::Bytes;
use object_store::{
    BackoffConfig, ClientOptions, Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
    path::Path,
};
use std::{fmt, ops::Range, time::Duration};

/// Requests that fail in passing are sent again as often as this.
const RETRIES: usize = 3;
/// The first wait before that, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// What of a server's own words is passed on, in characters.
const WORDS: usize = 300;

/// Why a bucket or an object in it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    /// The variables contradict each other or make no sense.
    #[error("the environment's AWS_… variables cannot be used: {0}")]
    Settings(String),
    /// Nobody to ask as.
    #[error(
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket; files under ~/.aws are not read ({0})"
    )]
    Credentials(String),
    /// Whoever asks may not.
    #[error("access is denied ({0}): the credentials in the AWS_… variables may not read it, or it is not there")]
    Denied(String),
    /// No such bucket.
    #[error("there is no bucket {0}")]
    NoBucket(String),
    /// No such object.
    #[error("there is no object {0}")]
    NoObject(String),
    /// It was replaced after it was found.
    #[error("{0} was replaced while it was being read; pull again")]
    Replaced(String),
    /// Nobody answers, or not as S3 does.
    #[error("{0}")]
    Failed(String),
}

/// Where buckets are and who asks: the `AWS_…` variables.
#[derive(Clone, Default)]
pub struct BucketSettings(Vec<(String, String)>);

impl BucketSettings {
    /// As these variables say; those that do not begin with `AWS_` are passed over.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(variables.into_iter().filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty()).collect())
    }

    /// As the environment says.
    pub fn from_environment() -> Self {
        Self::new(
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Address of the server.
    pub fn endpoint(&self) -> String {
        let given = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"].iter().find_map(|name| self.get(name));
        let region = self.get("AWS_REGION").or_else(|| self.get("AWS_DEFAULT_REGION")).unwrap_or("us-east-1");
        given.map_or_else(|| format!("https://s3.{region}.amazonaws.com"), |url| url.trim_end_matches('/').to_owned())
    }

    fn builder(&self, bucket: &str, connect: Duration, silence: Duration) -> AmazonS3Builder {
        let options = ClientOptions::new()
            .with_connect_timeout(connect)
            .with_read_timeout(silence)
            .with_timeout_disabled()
            // Whoever writes http:// means it.
            .with_allow_http(self.endpoint().starts_with("http://"));
        let backoff = BackoffConfig { init_backoff: WAITS.0, max_backoff: WAITS.1, ..BackoffConfig::default() };
        let retry = RetryConfig { max_retries: RETRIES, backoff, ..RetryConfig::default() };
        let known = |(name, value): &(String, String)| {
            Some((name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().ok()?, value.clone()))
        };
        let builder = AmazonS3Builder::new().with_client_options(options).with_retry(retry);
        let builder =
            self.0.iter().filter_map(known).fold(builder, |builder, (key, value)| builder.with_config(key, value));
        builder.with_bucket_name(bucket)
    }

    /// Whether the variables themselves say who asks, or where to learn it. If not, the machine is asked, which is known
    /// only to those in Amazon's cloud.
    fn name_credentials(&self) -> bool {
        let names = [
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ];
        names.iter().any(|name| self.get(name).is_some())
    }
}

impl fmt::Debug for BucketSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// An object as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its key: names between slashes.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// What its version is known by, where the server tells.
    pub etag: Option<String>,
}

impl Object {
    /// The last of its key's names.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or(&self.key)
    }
}

impl From<ObjectMeta> for Object {
    fn from(meta: ObjectMeta) -> Self {
        // A weak one does not say that bytes are equal.
        let etag = meta.e_tag.filter(|tag| !tag.is_empty() && !tag.starts_with("W/"));
        Self { key: meta.location.to_string(), bytes: meta.size, etag }
    }
}

/// A bucket that can be read.
#[derive(Debug)]
pub struct Bucket {
    objects: AmazonS3,
    name: String,
}

impl Bucket {
    /// A bucket, once there are credentials to ask with. It may still not be there. `connect` is the longest wait for a
    /// connection, `silence` that for the next bytes.
    ///
    /// # Errors
    /// [`BucketError::Settings`], [`BucketError::Credentials`].
    pub async fn open(
        name: &str,
        settings: &BucketSettings,
        connect: Duration,
        silence: Duration,
    ) -> Result<Self, BucketError> {
        // The client finds its TLS there. That somebody else was first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        if settings.endpoint().contains('@') {
            return Err(BucketError::Settings("the endpoint must not hold a user name or password".into()));
        }
        let builder = settings.builder(name, connect, silence);
        let unsigned = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).is_some_and(|skip| skip == "true");
        let objects = builder.build().map_err(|error| BucketError::Settings(words(&error)))?;
        if !unsigned {
            if !settings.name_credentials() && settings.get("AWS_EC2_METADATA_DISABLED") == Some("true") {
                return Err(BucketError::Credentials("AWS_EC2_METADATA_DISABLED says not to ask the machine".into()));
            }
            objects.credentials().get_credential().await.map_err(|error| BucketError::Credentials(words(&error)))?;
        }
        Ok(Self { objects, name: name.to_owned() })
    }

    /// One object.
    ///
    /// # Errors
    /// [`BucketError`].
    pub async fn object(&self, key: &str) -> Result<Object, BucketError> {
        let path = parsed(key)?;
        self.objects.head(&path).await.map(Object::from).map_err(|error| self.failure(key, &error))
    }

    /// The objects right under a folder; `""` is the bucket itself.
    ///
    /// # Errors
    /// [`BucketError`]; a folder that is not there is an empty one.
    pub async fn folder(&self, folder: &str) -> Result<Vec<Object>, BucketError> {
        let path = parsed(folder)?;
        let found =
            self.objects.list_with_delimiter(Some(&path)).await.map_err(|error| self.failure(folder, &error))?;
        // Some tools put an empty object in the place of a folder.
        let inside = found.objects.into_iter().filter(|object| object.location != path);
        Ok(inside.map(Object::from).collect())
    }

    /// Some bytes of an object, all of them of the version that was found.
    ///
    /// # Errors
    /// [`BucketError`].
    pub async fn read(&self, object: &Object, range: Range<u64>) -> Result<Bytes, BucketError> {
        let wanted = range.end - range.start;
        let options = GetOptions {
            range: Some(GetRange::Bounded(range)),
            if_match: object.etag.clone(),
            ..GetOptions::default()
        };
        let failed = |error: Error| self.failure(&object.key, &error);
        let bytes = self.objects.get_opts(&parsed(&object.key)?, options).await.map_err(failed)?.bytes().await;
        let bytes = bytes.map_err(failed)?;
        if bytes.len() as u64 != wanted {
            return Err(BucketError::Failed(format!("{}: {} bytes came of {wanted}", object.key, bytes.len())));
        }
        Ok(bytes)
    }

    fn failure(&self, key: &str, error: &Error) -> BucketError {
        let words = words(error);
        let of = if key.is_empty() { String::new() } else { format!("{key}: ") };
        match error {
            _ if words.starts_with("NoSuchBucket") => BucketError::NoBucket(self.name.clone()),
            Error::NotFound { .. } => BucketError::NoObject(key.to_owned()),
            Error::Precondition { .. } => BucketError::Replaced(key.to_owned()),
            Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => BucketError::Denied(words),
            // What S3 says to requests that are for another region.
            _ if words.contains("400 Bad Request") || words.contains("redirect") => {
                BucketError::Failed(format!("{of}{words}; look at AWS_REGION and at the endpoint"))
            }
            _ => BucketError::Failed(format!("{of}{words}")),
        }
    }
}

/// A key as it is: what looks like an escape is none.
fn parsed(key: &str) -> Result<Path, BucketError> {
    Path::parse(key).map_err(|error| BucketError::Failed(error.to_string()))
}

/// What a failure says in the end: code and message of the server's answer, or the first of its causes. The other words
/// of an answer are left out, as are addresses.
fn words(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    let mut text = String::new();
    loop {
        let all = cause.to_string();
        if let Some(code) = element(&all, "Code") {
            text = element(&all, "Message").map_or_else(|| code.to_owned(), |message| format!("{code}: {message}"));
            break;
        }
        match cause.source() {
            Some(source) => cause = source,
            None => {
                text.push_str(&all);
                break;
            }
        }
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.trim_end_matches([':', ' ']).chars().take(WORDS).collect()
}

/// The text of an XML element without others in it.
fn element<'t>(xml: &'t str, name: &str) -> Option<&'t str> {
    let rest = &xml[xml.find(&format!("<{name}>"))? + name.len() + 2..];
    rest.find('<').map(|end| &rest[..end])
}
