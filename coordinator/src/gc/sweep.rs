//! Goes through the store, folder by folder, and removes what is not reached.

use super::{
    Ages, Collected, GcError, Keep, Tally,
    gate::Mark,
    reach::{self, Reach},
};
use futures::TryStreamExt;
use rallrec_core::{
    ids::{RunId, TimeMs},
    key::Key,
};
use rallrec_store::{Listed, Store};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Objects removed between two looks at the mark.
const BATCH: usize = 64;

/// Longest time for a batch: what is asked for later than that may come too late.
const BATCH_TIME: Duration = Duration::from_secs(20);

pub(super) struct Sweep<'a> {
    store: &'a Store,
    ages: Ages,
    /// `None`: nothing is removed.
    mark: Option<&'a Mark>,
    began: TimeMs,
    found: Collected,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(store: &'a Store, ages: Ages, mark: Option<&'a Mark>, began: TimeMs) -> Self {
        Self { store, ages, mark, began, found: Collected { deleted: mark.is_some(), ..Collected::default() } }
    }

    pub(super) async fn run(
        mut self,
        keep: &Keep,
        is_driven: &(dyn Fn(&RunId) -> bool + Sync),
        now: TimeMs,
    ) -> Result<Collected, GcError> {
        let found = reach::runs(self.store).await?;
        let (kept, gone) = reach::part(self.store, found, keep, is_driven, now).await?;
        let reach = Reach::of(&kept);
        self.found.kept_runs = kept.len() as u64;
        drop(kept);
        self.runs(gone).await?;
        self.artifacts(&reach).await?;
        self.checkpoints(&reach).await?;
        self.sources(&reach).await?;
        Ok(self.found)
    }

    /// The plan first: a run without one is none.
    async fn runs(&mut self, gone: Vec<RunId>) -> Result<(), GcError> {
        for run in &gone {
            let mut objects: Vec<Listed> = self.store.objects_below(&format!("runs/{run}")).try_collect().await?;
            objects.sort_by_key(|object| !object.path.ends_with("/plan.json"));
            objects.iter().for_each(|object| self.found.run_files.add(object.bytes));
            self.remove(objects).await?;
        }
        self.found.runs = gone;
        self.found.runs.sort();
        Ok(())
    }

    async fn artifacts(&mut self, reach: &Reach) -> Result<(), GcError> {
        let (_, folders) = self.store.objects_in("artifacts").await?;
        for folder in folders {
            let mut by_key: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
            let mut listed = Box::pin(self.store.objects_below(&folder));
            while let Some(object) = listed.try_next().await? {
                if let Some(key) = object.path.split('/').nth(2).filter(|key| reach::digest(key).is_some()) {
                    by_key.entry(key.to_owned()).or_default().push(object);
                }
            }
            for (key, objects) in by_key {
                self.artifact(&key, objects, reach).await?;
            }
        }
        Ok(())
    }

    async fn artifact(&mut self, key: &str, objects: Vec<Listed>, reach: &Reach) -> Result<(), GcError> {
        let is_manifest = |object: &Listed| object.path.split('/').nth(3) == Some("manifest.json");
        let bytes = objects.iter().map(|object| object.bytes).sum();
        let (manifest, parts): (Vec<_>, Vec<_>) = objects.into_iter().partition(is_manifest);
        let Some(committed) = manifest.first() else {
            // Nobody may be about to commit them.
            if !reach.grows(key) {
                self.abandoned_parts(parts).await?;
            }
            return Ok(());
        };
        if reach.has(key) || !self.is_older(committed, self.ages.recent_ms) || self.is_of_family(key, reach).await? {
            self.found.kept_artifacts.add(bytes);
            let attempts: BTreeSet<_> = parts.iter().filter_map(|part| part.path.split('/').nth(3)).collect();
            if attempts.len() > 1 {
                self.losers(key, parts).await?;
            }
            return Ok(());
        }
        self.found.artifacts.add(bytes);
        // The manifest first, and alone: without it the parts are nothing.
        self.remove(manifest).await?;
        self.remove(parts).await
    }

    /// Whether some run may ask for it once it knows its rows.
    async fn is_of_family(&self, key: &str, reach: &Reach) -> Result<bool, GcError> {
        if reach.families.is_empty() {
            return Ok(false);
        }
        let manifest = self.store.manifest(&Key(key.to_owned())).await?;
        Ok(manifest.is_some_and(|manifest| reach.families.contains(&manifest.fields.key())))
    }

    /// Parts beside those that the manifest names.
    async fn losers(&mut self, key: &str, mut parts: Vec<Listed>) -> Result<(), GcError> {
        let Some(manifest) = self.store.manifest(&Key(key.to_owned())).await? else { return Ok(()) };
        let named: BTreeSet<_> =
            manifest.tables.values().flat_map(|table| &table.parts).map(|part| part.path.as_str()).collect();
        parts.retain(|part| !named.contains(part.path.as_str()));
        self.abandoned_parts(parts).await
    }

    /// Parts that no manifest names, by attempt: one that wrote lately may go on.
    async fn abandoned_parts(&mut self, parts: Vec<Listed>) -> Result<(), GcError> {
        let mut by_attempt: BTreeMap<String, Vec<Listed>> = BTreeMap::new();
        for part in parts {
            by_attempt.entry(part.path.split('/').nth(3).unwrap_or_default().to_owned()).or_default().push(part);
        }
        for parts in by_attempt.into_values() {
            if parts.iter().all(|part| self.is_older(part, self.ages.abandoned_ms)) {
                parts.iter().for_each(|part| self.found.parts.add(part.bytes));
                self.remove(parts).await?;
            }
        }
        Ok(())
    }

    /// Checkpoints that nobody goes on from.
    async fn checkpoints(&mut self, reach: &Reach) -> Result<(), GcError> {
        let mut objects: Vec<Listed> = self.store.objects_below("checkpoints").try_collect().await?;
        objects.retain(|object| {
            let key = object.path.split('/').nth(1).unwrap_or_default();
            self.is_older(object, self.ages.abandoned_ms) && !reach.has(key)
        });
        self.all(objects, |found| &mut found.checkpoints).await
    }

    /// Models and data that no plan names. `submit` puts them before there is a plan, hence the age.
    async fn sources(&mut self, reach: &Reach) -> Result<(), GcError> {
        let mut objects: Vec<Listed> = self.store.objects_below("sources").try_collect().await?;
        objects.retain(|object| {
            let digest = object.path.split('/').nth(1).unwrap_or_default();
            self.is_older(object, self.ages.abandoned_ms) && !reach.has_source(digest)
        });
        self.all(objects, |found| &mut found.sources).await
    }

    async fn all(&mut self, objects: Vec<Listed>, tally: impl Fn(&mut Collected) -> &mut Tally) -> Result<(), GcError> {
        objects.iter().for_each(|object| tally(&mut self.found).add(object.bytes));
        self.remove(objects).await
    }

    fn is_older(&self, object: &Listed, age_ms: u64) -> bool {
        object.modified_at.0 + age_ms <= self.began.0
    }

    /// Removes objects, in their order as far as batches go.
    async fn remove(&self, objects: Vec<Listed>) -> Result<(), GcError> {
        let Some(mark) = self.mark else { return Ok(()) };
        let paths: Vec<_> = objects.into_iter().map(|object| object.path).collect();
        for batch in paths.chunks(BATCH) {
            mark.check()?;
            tokio::time::timeout(BATCH_TIME, self.store.remove_objects(batch))
                .await
                .map_err(|_| GcError::Stalled)??;
        }
        Ok(())
    }
}
