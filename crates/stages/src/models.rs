//! Models in memory, shared by a worker's slots.
//!
//! Loading a model costs more than a task, so models stay until the memory that is theirs is wanted for another: then the
//! one that was used longest ago goes, of those that no task holds. Deliberately not here: which tasks come to this worker,
//! so that its models are of use (the fleet's matter), and the memory that computing takes beside the weights.

use crate::{Cancel, ModelSource, StageError, remote::ChatFormat};
use burn::tensor::Device;
use rallrec_core::models::{Precision, RemoteModel};
use rallrec_llm::LanguageModel;
use rallrec_provider::{Backoff, Server, ServerKey};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Time between two looks whether a task has let go of a model.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Models in memory, and servers that are in use.
#[derive(Default)]
pub struct ModelCache {
    loaded: Mutex<Shelf<LanguageModel>>,
    servers: Mutex<Vec<Arc<Server>>>,
    formats: Mutex<HashMap<String, Arc<ChatFormat>>>,
}

impl ModelCache {
    /// A cache whose models' weights take at most so many bytes together. [`Self::default`] has no limit.
    pub fn with_limit(bytes: u64) -> Self {
        Self { loaded: Mutex::new(Shelf { limit: bytes, ..Shelf::default() }), ..Self::default() }
    }

    /// The model, loaded if it is not in memory yet. A second slot that wants it meanwhile waits, and loads nothing; so does
    /// one that wants another while other tasks hold all of the memory.
    ///
    /// # Errors
    /// [`StageError::Invalid`] when its files are wrong (the message names the file and the tensor),
    /// [`StageError::Resource`] when it is larger than the limit, [`StageError::Cancelled`].
    pub fn get(
        &self,
        source: &ModelSource,
        device: &Device,
        cancel: &Cancel,
    ) -> Result<Arc<LanguageModel>, StageError> {
        let key = (source.digest.clone(), source.precision.word());
        let size = files_bytes(&source.path);
        loop {
            let mut shelf = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(model) = shelf.find(&key) {
                return Ok(model);
            }
            match shelf.make_room(size) {
                Room::Free => {
                    let model = Arc::new(load(source, device)?);
                    shelf.put(key, &model, model.weight_bytes() as u64);
                    return Ok(model);
                }
                Room::Held => {}
                Room::Never => return Err(too_large(source, size, shelf.limit)),
            }
            drop(shelf);
            if cancel.is_set() {
                return Err(StageError::Cancelled);
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Digests of the models in memory; `None` while one is being loaded.
    pub fn digests(&self) -> Option<Vec<String>> {
        let shelf = self.loaded.try_lock().ok()?;
        Some(shelf.models.iter().map(|model| model.key.0.clone()).collect())
    }

    /// The server with these settings. All tasks of this process share it, and with it its limits.
    ///
    /// # Errors
    /// When the variable that should hold its key is not set, or holds what can't be a key. Neither is shown.
    pub(crate) fn server(&self, settings: &RemoteModel) -> Result<Arc<Server>, StageError> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.iter().find(|s| s.settings() == settings) {
            return Ok(server.clone());
        }
        let key = match settings.api_key_env.as_str() {
            "" => None,
            name => {
                let wrong = |what: &str| {
                    StageError::Invalid(format!(
                        "the environment variable {name}, which should hold the key of {}, {what} on this machine",
                        settings.url
                    ))
                };
                let key = std::env::var(name).map_err(|_| wrong("is not set (or not text)"))?;
                Some(ServerKey::new(&key).map_err(wrong)?)
            }
        };
        let server = Server::new(settings.clone(), key, Backoff::default());
        servers.push(server.clone());
        Ok(server)
    }

    /// The tokenizer and chat template of a file.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn format(&self, digest: &str, path: &Path) -> Result<Arc<ChatFormat>, StageError> {
        let mut formats = self.formats.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(format) = formats.get(digest) {
            return Ok(format.clone());
        }
        let format = Arc::new(ChatFormat::open(path)?);
        formats.insert(digest.to_owned(), format.clone());
        Ok(format)
    }
}

/// Digest and precision.
type ModelKey = (String, &'static str);

/// Models with their sizes, those that were used longest ago first.
struct Shelf<M> {
    /// The most that they may take together, in bytes.
    limit: u64,
    models: Vec<Shelved<M>>,
}

struct Shelved<M> {
    key: ModelKey,
    model: Arc<M>,
    bytes: u64,
}

/// Whether a model of some size can be loaded.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    /// Now.
    Free,
    /// Once tasks let go of models that they hold.
    Held,
    /// It is larger than everything together may be.
    Never,
}

impl<M> Default for Shelf<M> {
    fn default() -> Self {
        Self { limit: u64::MAX, models: Vec::new() }
    }
}

impl<M> Shelf<M> {
    fn find(&mut self, key: &ModelKey) -> Option<Arc<M>> {
        let at = self.models.iter().position(|shelved| shelved.key == *key)?;
        let used = self.models.remove(at);
        let model = Arc::clone(&used.model);
        self.models.push(used);
        Some(model)
    }

    /// Lets models go that no task holds, those that were used longest ago first, until there is room for `bytes`. Lets none
    /// go when that would not be enough.
    fn make_room(&mut self, bytes: u64) -> Room {
        if bytes > self.limit {
            return Room::Never;
        }
        let held = |shelved: &&Shelved<M>| Arc::strong_count(&shelved.model) > 1;
        let kept: u64 = self.models.iter().filter(held).map(|shelved| shelved.bytes).sum();
        if kept.saturating_add(bytes) > self.limit {
            return Room::Held;
        }
        self.let_go(bytes);
        Room::Free
    }

    /// Lets idle models go until there is room for `bytes`, or all are gone.
    fn let_go(&mut self, bytes: u64) {
        while self.models.iter().map(|shelved| shelved.bytes).sum::<u64>().saturating_add(bytes) > self.limit {
            let idle = self.models.iter().position(|shelved| Arc::strong_count(&shelved.model) == 1);
            let Some(gone) = idle.map(|at| self.models.remove(at)) else { return };
            tracing::info!(digest = gone.key.0, precision = gone.key.1, bytes = gone.bytes, "a model leaves memory");
        }
    }

    /// Its true size may be another than it was made room for.
    fn put(&mut self, key: ModelKey, model: &Arc<M>, bytes: u64) {
        self.models.push(Shelved { key, model: Arc::clone(model), bytes });
        self.let_go(0);
    }
}

fn load(source: &ModelSource, device: &Device) -> Result<LanguageModel, StageError> {
    let precision = match source.precision {
        Precision::Auto => rallrec_llm::Precision::Auto,
        Precision::F32 => rallrec_llm::Precision::F32,
        Precision::Bf16 => rallrec_llm::Precision::Bf16,
        Precision::F16 => rallrec_llm::Precision::F16,
        Precision::Int8 => rallrec_llm::Precision::Int8,
    };
    LanguageModel::load(&source.path, device, precision).map_err(|e| StageError::Invalid(e.to_string()))
}

/// Bytes of a file, or of a folder's files: about what the weights will take. Files that cannot be read are for whoever
/// loads them to tell.
fn files_bytes(path: &Path) -> u64 {
    let of_file = |path: &Path| std::fs::metadata(path).map_or(0, |about| about.len());
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| of_file(&entry.path())).sum(),
        Err(_) => of_file(path),
    }
}

fn too_large(source: &ModelSource, bytes: u64, limit: u64) -> StageError {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    StageError::Resource(format!(
        "{} has {} MiB, and this worker keeps at most {} MiB of models; use a larger worker, a smaller model, or raise `model_memory_mb` in worker.toml",
        source.path.display(),
        mib(bytes),
        mib(limit)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ModelKey {
        (name.to_owned(), "auto")
    }

    fn put(shelf: &mut Shelf<()>, name: &str, bytes: u64) -> Arc<()> {
        let model = Arc::new(());
        shelf.put(key(name), &model, bytes);
        model
    }

    fn names(shelf: &Shelf<()>) -> Vec<&str> {
        shelf.models.iter().map(|shelved| shelved.key.0.as_str()).collect()
    }

    #[test]
    fn the_model_used_longest_ago_goes_first() {
        let mut shelf = Shelf { limit: 10, ..Shelf::default() };
        ["a", "b", "c"].iter().for_each(|name| drop(put(&mut shelf, name, 3)));
        assert!(shelf.find(&key("a")).is_some());
        assert_eq!(shelf.make_room(4), Room::Free);
        assert_eq!(names(&shelf), ["c", "a"]);
        assert!(shelf.find(&key("b")).is_none());
    }

    #[test]
    fn a_model_that_a_task_holds_stays() {
        let mut shelf = Shelf { limit: 10, ..Shelf::default() };
        let held = put(&mut shelf, "a", 6);
        drop(put(&mut shelf, "b", 3));
        assert_eq!(shelf.make_room(5), Room::Held);
        assert_eq!(names(&shelf), ["a", "b"], "none goes when that is not enough");
        assert_eq!(shelf.make_room(4), Room::Free);
        assert_eq!(names(&shelf), ["a"]);
        assert_eq!(shelf.make_room(11), Room::Never);
        drop(held);
        assert_eq!(shelf.make_room(10), Room::Free);
        assert_eq!(names(&shelf), <[&str; 0]>::default());
    }

    #[test]
    fn a_model_that_came_out_larger_takes_the_place_of_idle_ones() {
        let mut shelf = Shelf { limit: 10, ..Shelf::default() };
        drop(put(&mut shelf, "a", 4));
        assert_eq!(shelf.make_room(3), Room::Free);
        let _large = put(&mut shelf, "b", 12);
        assert_eq!(names(&shelf), ["b"]);
    }

    #[test]
    fn a_model_beyond_the_limit_is_for_a_larger_worker() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        std::fs::write(&path, [0; 3000]).unwrap();
        let source = ModelSource { digest: "d".into(), path, precision: Precision::Auto };
        let refused = ModelCache::with_limit(2000).get(&source, &Device::flex(), &Cancel::default());
        let Err(refused @ StageError::Resource(_)) = refused else { panic!("it was not refused") };
        assert!(refused.to_string().contains("has 1 MiB, and this worker keeps at most 1 MiB"), "{refused}");
        // One that is small enough is looked into.
        let opened = ModelCache::with_limit(3000).get(&source, &Device::flex(), &Cancel::default());
        assert!(matches!(opened, Err(StageError::Invalid(_))));
    }
}
