//! `s3://BUCKET/PATH`: models from S3, or from a server that speaks its interface.
//!
//! A path that ends with `.gguf` is that object; any other is a folder, of which is taken what a model is read from.
//! Objects have no sums to hold them against, so each is read under the ETag that it was found with: what lies in the
//! folder then is of one version a file. What came is recorded with its sums, and from then on the source is what was
//! recorded; what is put into the bucket later is not followed. Settings are the `AWS_…` variables, see [`Bucket`].

use super::{
    Patience, PullEvent, SourceError, SourceRecord,
    download::{self, length},
    files::sha256_of,
    model_files::model_files,
    pull::{Staging, now_ms},
    record::{self, RecordedFile},
};
use futures::{StreamExt, TryStreamExt, stream};
use rallrec_store::{Bucket, BucketError, BucketSettings, Object};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    sync::mpsc::{self, SyncSender},
    thread,
};

/// Bytes that are asked for at once: a pull that is killed loses no more of these than are under way.
const RANGE_BYTES: u64 = 8 << 20;
/// Ranges under way: enough to fill a line that one connection does not fill.
const RANGES_AT_ONCE: usize = 4;

/// `s3://BUCKET/PATH`, as pipelines were checked to write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reference<'a> {
    bucket: &'a str,
    /// Without a slash at its end.
    path: &'a str,
    file: bool,
}

impl<'a> Reference<'a> {
    fn parse(source: &'a str) -> Option<Self> {
        let rest = source.strip_prefix("s3://")?;
        let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
        let file = path.ends_with(".gguf");
        (!bucket.is_empty()).then_some(Self { bucket, path: path.trim_end_matches('/'), file })
    }
}

/// Fetches a source into a staging folder and records it.
///
/// # Errors
/// [`SourceError::Remote`] with what the server said.
pub(super) fn pull(
    settings: &BucketSettings,
    source: &str,
    staging: &Staging,
    downloads: &Path,
    patience: Patience,
    on: &dyn Fn(PullEvent),
) -> Result<SourceRecord, SourceError> {
    let from = settings.endpoint();
    let failed = |why: String| SourceError::Remote { name: source.to_owned(), from: from.clone(), why };
    let reference = Reference::parse(source).ok_or_else(|| failed("write s3://BUCKET/PATH".into()))?;
    on(PullEvent::Trying { mirror: format!("{from}/{}/{}", reference.bucket, reference.path) });
    let folder = staging.path.join("complete");
    for folder in [folder.as_path(), downloads] {
        fs::create_dir_all(folder).map_err(SourceError::io(folder))?;
    }
    let fetch = Fetch { settings, source, reference, folder: &folder, downloads, patience };
    // On a thread of its own: whoever calls may be in a runtime already, where none may wait for another.
    let (say, heard) = mpsc::sync_channel(1);
    let fetched = thread::scope(|scope| {
        let fetching = scope.spawn(|| fetch.run(say));
        heard.into_iter().for_each(on);
        fetching.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    let objects = fetched.map_err(failed)?;
    let version = objects.iter().map(|(object, _)| (object.key.as_str(), object.etag.as_deref().unwrap_or_default()));
    let version = record::digest(version)[..12].to_owned();
    let origin = format!("{from}/{}/{}", reference.bucket, reference.path);
    let files = objects.into_iter().map(|(object, sha256)| {
        let name = object.name().to_owned();
        RecordedFile { name, sha256, bytes: object.bytes }
    });
    let terms = "licence: not stated by the bucket".to_owned();
    let record = SourceRecord::as_it_came(source, &version, files.collect(), origin, terms, now_ms());
    staging.put(&folder, record)
}

/// One pull.
struct Fetch<'a> {
    settings: &'a BucketSettings,
    source: &'a str,
    reference: Reference<'a>,
    folder: &'a Path,
    downloads: &'a Path,
    patience: Patience,
}

impl Fetch<'_> {
    /// Every object in the folder, with its SHA-256; or one line that says why not.
    fn run(&self, say: SyncSender<PullEvent>) -> Result<Vec<(Object, String)>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        runtime.block_on(async {
            let Patience { connect, silence } = self.patience;
            let bucket = Bucket::open(self.reference.bucket, self.settings, connect, silence).await;
            let bucket = bucket.map_err(|e| e.to_string())?;
            let objects = self.find(&bucket).await?;
            let total = objects.iter().map(|o| o.bytes).sum();
            let (mut before, mut fetched) = (0, Vec::new());
            for object in objects {
                // Nobody listens any more when the terminal is gone; the pull goes on.
                let on = |done| _ = say.send(PullEvent::Bytes { done: before + done, total });
                let sha256 = self.fetch(&bucket, &object, &on).await?;
                before += object.bytes;
                fetched.push((object, sha256));
            }
            Ok(fetched)
        })
    }

    /// The objects that the model is read from.
    async fn find(&self, bucket: &Bucket) -> Result<Vec<Object>, String> {
        let Reference { path, file, .. } = self.reference;
        if file {
            return match bucket.object(path).await {
                Ok(object) => Ok(vec![object]),
                Err(BucketError::NoObject(_)) => Err(self.nearest(bucket).await),
                Err(error) => Err(error.to_string()),
            };
        }
        let objects = bucket.folder(path).await.map_err(|e| e.to_string())?;
        if objects.is_empty() {
            let place = if path.is_empty() { "the bucket".to_owned() } else { format!("{path}/") };
            return Err(format!("there are no files in {place}; name a folder that holds a model, or a .gguf file"));
        }
        let chosen = model_files(&objects, Object::name)?.into_iter().cloned().collect();
        Ok(chosen)
    }

    /// Why there is no such object, as far as the folder that it should be in can be looked at: a server does not say
    /// of one object whether it is the bucket that is missing.
    async fn nearest(&self, bucket: &Bucket) -> String {
        let path = self.reference.path;
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        match bucket.folder(folder).await {
            Err(error @ BucketError::NoBucket(_)) => error.to_string(),
            Ok(found) if found.iter().any(|o| o.key.ends_with(".gguf")) => {
                let near: Vec<_> = found.iter().map(|o| o.key.as_str()).filter(|k| k.ends_with(".gguf")).collect();
                format!("there is no object {path}; there are: {}", near[..near.len().min(8)].join(", "))
            }
            _ => BucketError::NoObject(path.to_owned()).to_string(),
        }
    }

    /// Fetches an object into the folder; gives its SHA-256.
    async fn fetch(&self, bucket: &Bucket, object: &Object, on: &dyn Fn(u64)) -> Result<String, String> {
        let version = object.etag.as_deref().unwrap_or_default();
        let part = download::part(self.downloads, object.name(), &[self.source, &object.key, version]);
        let told = |e: std::io::Error| format!("{}: {e}", part.display());
        // What cannot be told to be of the same version is begun anew.
        if part.exists() && (object.etag.is_none() || length(&part) > object.bytes) {
            fs::remove_file(&part).map_err(told)?;
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&part).map_err(told)?;
        let mut done = length(&part);
        on(done);
        let starts = (done..object.bytes).step_by(RANGE_BYTES as usize);
        let ranges = starts.map(|start| start..object.bytes.min(start + RANGE_BYTES));
        let mut pieces = stream::iter(ranges.map(|range| bucket.read(object, range))).buffered(RANGES_AT_ONCE);
        while let Some(piece) = pieces.try_next().await.map_err(|e| e.to_string())? {
            file.write_all(&piece).and_then(|()| file.sync_data()).map_err(told)?;
            done += piece.len() as u64;
            on(done);
        }
        let sha256 = sha256_of(&part).map_err(told)?;
        fs::rename(&part, self.folder.join(object.name())).map_err(told)?;
        Ok(sha256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_name_an_object_or_a_folder() {
        let read = |text| Reference::parse(text).map(|r| (r.bucket, r.path, r.file));
        assert_eq!(read("s3://b/m/a.gguf"), Some(("b", "m/a.gguf", true)));
        assert_eq!(read("s3://b/m/llama"), Some(("b", "m/llama", false)));
        assert_eq!(read("s3://b/m/llama/"), Some(("b", "m/llama", false)));
        assert_eq!(read("s3://b"), Some(("b", "", false)));
        assert_eq!((read("s3:///a"), read("s3:b/a"), read("hf:a/b")), (None, None, None));
    }
}
