//! `hf:OWNER/REPO[@REVISION][/FILE]`: models from the Hugging Face Hub, or from a mirror that speaks its interface.
//!
//! A revision is resolved to its commit first, and everything is fetched by that commit. Weights have their SHA-256 in
//! the Hub's own listing and are held against it; small files have only the commit. What came is recorded with its
//! sums, and from then on the source is what was recorded: a branch that moves is not followed. `HF_ENDPOINT` names a
//! mirror and `HF_TOKEN` a token, which is sent to that address alone and shown nowhere.

use super::{
    Patience, PullEvent, SourceError, SourceRecord,
    download::{self, Wanted},
    files::sha256_of,
    model_files::model_files,
    pull::{Staging, now_ms},
    record::RecordedFile,
};
use serde_json::Value;
use std::{fs, path::Path, time::Duration};

/// Largest listing of a repository that is read.
const MAX_LISTING_BYTES: u64 = 16 << 20;

/// Where the Hub is, and who asks.
#[derive(Clone, Debug)]
pub struct Hub {
    endpoint: String,
    token: Option<Token>,
}

#[derive(Clone)]
struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Hub {
    /// A Hub at an address, with a token if there is one.
    pub fn new(endpoint: &str, token: Option<String>) -> Self {
        let token = token.map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).map(Token);
        Self { endpoint: endpoint.trim_end_matches('/').to_owned(), token }
    }

    /// As `HF_ENDPOINT` and `HF_TOKEN` say.
    pub fn from_environment() -> Self {
        let given = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
        Self::new(&given("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()), given("HF_TOKEN"))
    }

    fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|Token(token)| format!("Bearer {token}"))
    }
}

/// `OWNER/REPO[@REVISION][/FILE]`, as pipelines were checked to write it.
#[derive(Debug, PartialEq, Eq)]
struct Reference<'a> {
    owner: &'a str,
    repository: &'a str,
    revision: &'a str,
    file: Option<&'a str>,
}

impl<'a> Reference<'a> {
    fn parse(source: &'a str) -> Option<Self> {
        let (owner, rest) = source.strip_prefix("hf:")?.split_once('/')?;
        let (repository, file) = rest.split_once('/').map_or((rest, None), |(r, f)| (r, Some(f)));
        let (repository, revision) = repository.split_once('@').unwrap_or((repository, "main"));
        Some(Self { owner, repository, revision, file })
    }
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    bytes: u64,
    sha256: Option<String>,
}

/// Fetches a source into a staging folder and records it.
///
/// # Errors
/// [`SourceError::Remote`] with what the Hub said.
pub(super) fn pull(
    hub: &Hub,
    source: &str,
    staging: &Staging,
    downloads: &Path,
    patience: Patience,
    on: &dyn Fn(PullEvent),
) -> Result<SourceRecord, SourceError> {
    let failed = |why: String| SourceError::Remote { name: source.to_owned(), from: hub.endpoint.clone(), why };
    let reference = Reference::parse(source).ok_or_else(|| failed("write hf:OWNER/REPO".into()))?;
    on(PullEvent::Trying { mirror: format!("{}/{}/{}", hub.endpoint, reference.owner, reference.repository) });
    let listing = listing(hub, &reference, patience).map_err(failed)?;
    let commit = listing["sha"].as_str().filter(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_hexdigit()));
    let commit = commit.ok_or_else(|| failed("its listing names no commit".into()))?.to_owned();
    let licence = listing["cardData"]["license"].as_str().unwrap_or("not stated");
    let files = chosen(&listed(&listing), reference.file).map_err(failed)?;
    let folder = staging.path.join("complete");
    for folder in [folder.as_path(), downloads] {
        fs::create_dir_all(folder).map_err(SourceError::io(folder))?;
    }
    let total: u64 = files.iter().map(|f| f.bytes).sum();
    let (mut before, mut recorded) = (0, Vec::new());
    for file in &files {
        let Reference { owner, repository, .. } = reference;
        let url = format!("{}/{owner}/{repository}/resolve/{commit}/{}", hub.endpoint, escaped(&file.name));
        let name = file.name.rsplit('/').next().unwrap_or(&file.name).to_owned();
        // Outside the staging folder and under its commit, so that a pull that was interrupted goes on.
        let part = download::part(downloads, &name, &[source, &commit, &file.name]);
        let authorization = hub.authorization();
        let wanted = Wanted {
            url: &url,
            sha256: file.sha256.as_deref(),
            bytes: file.bytes,
            authorization: authorization.as_deref(),
        };
        let bytes = |done, _| on(PullEvent::Bytes { done: before + done, total });
        download::fetch(&wanted, &part, patience, &bytes).map_err(|why| failed(format!("{}: {why}", file.name)))?;
        let sha256 = sha256_of(&part).map_err(SourceError::io(&part))?;
        fs::rename(&part, folder.join(&name)).map_err(SourceError::io(&part))?;
        before += file.bytes;
        recorded.push(RecordedFile { name, sha256, bytes: file.bytes });
    }
    let origin = format!("{}/{}/{} at {commit}", hub.endpoint, reference.owner, reference.repository);
    let record = SourceRecord::as_it_came(source, &commit, recorded, origin, format!("licence: {licence}"), now_ms());
    staging.put(&folder, record)
}

fn listing(hub: &Hub, reference: &Reference<'_>, patience: Patience) -> Result<Value, String> {
    let Reference { owner, repository, revision, .. } = reference;
    let url = format!("{}/api/models/{owner}/{repository}/revision/{revision}?blobs=true", hub.endpoint);
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_connect(Some(patience.connect))
        .timeout_global(Some(patience.silence.max(Duration::from_secs(1))))
        .http_status_as_error(false)
        .user_agent(concat!("rallrec/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let mut request = agent.get(&url);
    if let Some(authorization) = hub.authorization() {
        request = request.header("authorization", authorization);
    }
    let response = request.call().map_err(|e| e.to_string())?;
    let status = response.status().as_u16();
    let text = response.into_body().into_with_config().limit(MAX_LISTING_BYTES).read_to_string();
    let text = text.map_err(|e| format!("the listing was cut off: {e}"))?;
    match status {
        200 => serde_json::from_str(&text).map_err(|e| format!("the listing is not JSON: {e}")),
        401 | 403 if hub.token.is_none() => {
            Err(format!("status {status}: it is not there, or not public; put a token that may read it into HF_TOKEN"))
        }
        401 | 403 => {
            Err(format!("status {status}: the token in HF_TOKEN may not read it; accept its terms on its page"))
        }
        404 => Err(format!("there is no repository {owner}/{repository} with a revision {revision}")),
        status => Err(format!("status {status}")),
    }
}

fn listed(listing: &Value) -> Vec<Listed> {
    let file = |sibling: &Value| {
        let lfs = &sibling["lfs"];
        Some(Listed {
            name: sibling["rfilename"].as_str()?.to_owned(),
            bytes: lfs["size"].as_u64().or_else(|| sibling["size"].as_u64())?,
            sha256: lfs["sha256"].as_str().map(str::to_owned),
        })
    };
    let mut files: Vec<Listed> = listing["siblings"].as_array().into_iter().flatten().filter_map(file).collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

/// The named file; or else what a model is read from.
fn chosen(files: &[Listed], named: Option<&str>) -> Result<Vec<Listed>, String> {
    let Some(name) = named else {
        return Ok(model_files(files, |f| &f.name)?.into_iter().cloned().collect());
    };
    let found = files.iter().find(|f| f.name == name);
    let same_end = || files.iter().filter(|f| f.name.ends_with(ending(name))).map(|f| f.name.as_str());
    found.map(|f| vec![f.clone()]).ok_or_else(|| {
        let near: Vec<&str> = same_end().take(8).collect();
        format!("there is no file {name} in it; there are: {}", near.join(", "))
    })
}

fn ending(name: &str) -> &str {
    Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default()
}

/// A file's name as a part of an address.
fn escaped(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'/');
    name.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> Vec<Listed> {
        names.iter().map(|n| Listed { name: (*n).to_owned(), bytes: 1, sha256: None }).collect()
    }

    #[test]
    fn references_have_a_revision_and_may_name_a_file() {
        let read = |text| Reference::parse(text).map(|r| (r.owner, r.repository, r.revision, r.file));
        assert_eq!(read("hf:a/b"), Some(("a", "b", "main", None)));
        assert_eq!(read("hf:a/b@v1/d/f.gguf"), Some(("a", "b", "v1", Some("d/f.gguf"))));
        assert_eq!(read("hf:a"), None);
    }

    #[test]
    fn a_named_file_is_taken_or_others_are_told() {
        let several = files(&["a-Q4.gguf", "a-Q8.gguf", "README.md"]);
        let named = chosen(&several, Some("a-Q8.gguf")).unwrap();
        assert_eq!(named, several[1..2]);
        assert!(chosen(&several, Some("b.gguf")).unwrap_err().ends_with("there are: a-Q4.gguf, a-Q8.gguf"));
    }

    #[test]
    fn names_are_escaped_in_addresses() {
        assert_eq!(escaped("d/a b#1.é.json"), "d/a%20b%231.%C3%A9.json");
    }

    #[test]
    fn a_token_is_not_shown() {
        assert!(!format!("{:?}", Hub::new("http://a", Some("hf_secret".into()))).contains("hf_secret"));
    }
}
