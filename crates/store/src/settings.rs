//! Where S3 is and who asks: the `AWS_…` variables of the environment, as for other tools, and where they say nothing
//! the `[s3]` table of a service's file. One way for the artifact store and for `s3:` sources.
//!
//! Files under `~/.aws` are not read. What is held here is never shown.

use crate::words::words;
use object_store::{
    BackoffConfig, ClientOptions, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey},
};
use serde::Deserialize;
use std::{fmt, path::PathBuf, time::Duration};

/// Why S3 cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// They contradict each other or make no sense.
    #[error("the AWS_… variables or the [s3] table cannot be used: {0}")]
    Settings(String),
    /// The file that the table names.
    #[error(
        "[s3] credentials = \"{path}\": {why}; it should have lines aws_access_key_id = … and aws_secret_access_key = …"
    )]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nobody to ask as.
    #[error(
        "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket; files under ~/.aws are not read ({0})"
    )]
    Credentials(String),
}

/// The `[s3]` table of a service's file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Table {
    /// Address of the server; Amazon's, if none is named.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// Whether the bucket stands in the path of an address, or else in the name of the host.
    pub path_style: Option<bool>,
    /// File with `aws_access_key_id = …`, `aws_secret_access_key = …` and perhaps `aws_session_token = …`.
    pub credentials: Option<PathBuf>,
}

/// How long S3 is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Longest wait for a connection.
    pub connect: Duration,
    /// Longest wait for an answer to begin, and for its next bytes.
    pub silence: Duration,
    /// Requests that fail in passing are sent again as often as this,
    pub retries: usize,
    /// and until this has gone by since the first.
    pub retry_for: Duration,
}

/// Whether the bucket stands in the name of the host.
const HOSTED: &str = "AWS_VIRTUAL_HOSTED_STYLE_REQUEST";

/// The first wait before a request is sent again, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Where buckets are and who asks.
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

    /// With what a table says where these say nothing. Credentials come whole from one place.
    ///
    /// # Errors
    /// [`SettingsError::File`] when its credentials are needed and cannot be read.
    pub fn or(self, table: &S3Table) -> Result<Self, SettingsError> {
        let mut added: Vec<(String, String)> = Vec::new();
        let mut add = |name: &str, value: &str| added.push((name.to_owned(), value.to_owned()));
        if let (None, Some(url)) = (self.named_endpoint(), &table.endpoint) {
            add("AWS_ENDPOINT_URL", url);
        }
        if let (None, Some(region)) = (self.region(), &table.region) {
            add("AWS_REGION", region);
        }
        if let (None, Some(in_path)) = (self.get(HOSTED), table.path_style) {
            add(HOSTED, if in_path { "false" } else { "true" });
        }
        if let (false, Some(path)) = (self.name_credentials(), &table.credentials) {
            let failed = |why: String| SettingsError::File { path: path.display().to_string(), why };
            let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
            for (name, value) in credentials(&text).map_err(|why| failed(why.to_owned()))? {
                add(&name, value);
            }
        }
        Ok(Self([self.0, added].concat()))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn named_endpoint(&self) -> Option<&str> {
        ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"].iter().find_map(|name| self.get(name))
    }

    fn region(&self) -> Option<&str> {
        self.get("AWS_REGION").or_else(|| self.get("AWS_DEFAULT_REGION"))
    }

    /// Address of the server.
    pub fn endpoint(&self) -> String {
        let region = self.region().unwrap_or("us-east-1");
        let amazons = || format!("https://s3.{region}.amazonaws.com");
        self.named_endpoint().map_or_else(amazons, |url| url.trim_end_matches('/').to_owned())
    }

    /// A client for a bucket, once there are credentials to ask with. The bucket may still not be there.
    pub(crate) async fn client(&self, bucket: &str, patience: Patience) -> Result<AmazonS3, SettingsError> {
        // The client takes its TLS from the process and panics without. It is put there by the one place that builds
        // such clients, so that no program has to know; that somebody else was first is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        if self.endpoint().contains('@') {
            return Err(SettingsError::Settings("the endpoint must not hold a user name or password".into()));
        }
        let builder = self.builder(bucket, patience);
        let unsigned = builder.get_config_value(&AmazonS3ConfigKey::SkipSignature).is_some_and(|skip| skip == "true");
        let objects = builder.build().map_err(|error| SettingsError::Settings(words(&error)))?;
        if !unsigned {
            if !self.name_credentials() && self.get("AWS_EC2_METADATA_DISABLED") == Some("true") {
                return Err(SettingsError::Credentials("AWS_EC2_METADATA_DISABLED says not to ask the machine".into()));
            }
            objects.credentials().get_credential().await.map_err(|error| SettingsError::Credentials(words(&error)))?;
        }
        Ok(objects)
    }

    fn builder(&self, bucket: &str, patience: Patience) -> AmazonS3Builder {
        let options = ClientOptions::new()
            .with_connect_timeout(patience.connect)
            .with_read_timeout(patience.silence)
            .with_timeout_disabled()
            // Whoever writes http:// means it.
            .with_allow_http(self.endpoint().starts_with("http://"));
        let backoff = BackoffConfig { init_backoff: WAITS.0, max_backoff: WAITS.1, ..BackoffConfig::default() };
        let retry = RetryConfig { max_retries: patience.retries, retry_timeout: patience.retry_for, backoff };
        let known = |(name, value): &(String, String)| {
            Some((name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>().ok()?, value.clone()))
        };
        let builder = AmazonS3Builder::new().with_client_options(options).with_retry(retry);
        let builder =
            self.0.iter().filter_map(known).fold(builder, |builder, (key, value)| builder.with_config(key, value));
        let builder = match self.host_of_bucket(bucket) {
            Some(url) => builder.with_endpoint(url),
            None => builder,
        };
        builder.with_bucket_name(bucket)
    }

    /// The address with the bucket in the name of its host, where that is asked for and the address is not Amazon's.
    fn host_of_bucket(&self, bucket: &str) -> Option<String> {
        let hosted = self.get(HOSTED)?.eq_ignore_ascii_case("true");
        let (scheme, host) = self.named_endpoint().filter(|_| hosted)?.split_once("://")?;
        let host = host.trim_end_matches('/');
        let there = host.strip_prefix(bucket).is_some_and(|rest| rest.starts_with('.'));
        Some(if there { format!("{scheme}://{host}") } else { format!("{scheme}://{bucket}.{host}") })
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

/// The variables that a credentials file sets, in the format of Amazon's own; of several sections the first.
fn credentials(text: &str) -> Result<Vec<(String, &str)>, &'static str> {
    let wanted = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    let mut found: Vec<(String, &str)> = Vec::new();
    for (number, line) in lines.enumerate() {
        if line.starts_with('[') {
            if number == 0 { continue } else { break }
        }
        let (name, value) = line.split_once('=').ok_or("a line in it has no =")?;
        let name = name.trim().to_ascii_uppercase();
        if wanted.contains(&name.as_str()) && !value.trim().is_empty() {
            found.push((name, value.trim()));
        }
    }
    let complete = wanted[..2].iter().all(|name| found.iter().any(|(n, _)| n == name));
    if complete { Ok(found) } else { Err("it has no key, or no secret to it") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> BucketSettings {
        BucketSettings::new(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn the_environment_goes_before_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials");
        std::fs::write(
            &file,
            "[default]\naws_access_key_id = AKIA1\naws_secret_access_key=very secret\n[other]\nx = y\n",
        )
        .unwrap();
        let table = S3Table {
            endpoint: Some("http://s3.example:9000/".into()),
            region: Some("eu-north-1".into()),
            path_style: Some(false),
            credentials: Some(file),
        };
        let all = settings(&[]).or(&table).unwrap();
        assert_eq!(all.endpoint(), "http://s3.example:9000");
        assert_eq!(
            (all.get("AWS_REGION"), all.get("AWS_SECRET_ACCESS_KEY")),
            (Some("eu-north-1"), Some("very secret"))
        );
        assert_eq!(all.host_of_bucket("b").as_deref(), Some("http://b.s3.example:9000"));
        assert!(!format!("{all:?}").contains("very secret"));
        let own =
            settings(&[("AWS_ENDPOINT_URL", "http://b.other"), ("AWS_ACCESS_KEY_ID", "AKIA2")]).or(&table).unwrap();
        assert_eq!((own.endpoint().as_str(), own.get("AWS_SECRET_ACCESS_KEY")), ("http://b.other", None));
        assert_eq!(own.host_of_bucket("b").as_deref(), Some("http://b.other"));
        assert_eq!(settings(&[("AWS_ENDPOINT_URL", "http://s3")]).host_of_bucket("b"), None);
    }

    #[test]
    fn a_credentials_file_that_is_none_is_named_and_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        for (text, wanted) in [("wJalr-very-secret\n", "has no ="), ("aws_access_key_id = AKIA1\n", "no secret")] {
            let file = folder.path().join("credentials");
            std::fs::write(&file, text).unwrap();
            let table = S3Table { credentials: Some(file), ..S3Table::default() };
            let told = settings(&[]).or(&table).unwrap_err().to_string();
            assert!(told.contains(wanted) && told.contains("credentials\"") && !told.contains("secret\n"), "{told}");
            assert!(!told.contains("wJalr") && !told.contains("AKIA1"), "{told}");
        }
    }
}
