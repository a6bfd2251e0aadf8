//! Decoded tables in memory, shared by a worker's slots: what every shard of a stage reads is fetched, checked and decoded
//! once.
//!
//! It holds what was used last, up to a bound. It is never asked whether an artifact is there: only a task whose inputs
//! are committed reads, and a key's content does not change.

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use rallrec_core::key::Key;
use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::OnceCell;

/// A table of one artifact: schema and rows.
pub(crate) type Decoded = (SchemaRef, Vec<RecordBatch>);

/// An artifact's key, the table's name, and the columns; all with `None`.
type Name = (Key, String, Option<Vec<String>>);

/// What an entry counts beside its rows.
const ENTRY_BYTES: usize = 1024;

/// Bytes that a worker keeps unless it is told otherwise.
const BOUND: usize = 512 << 20;

/// Tables in memory.
pub struct TableCache {
    bound: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    entries: HashMap<Name, Entry>,
    /// Names by when they were used last.
    order: BTreeMap<u64, Name>,
    uses: u64,
    bytes: usize,
}

struct Entry {
    table: Arc<OnceCell<Decoded>>,
    /// 0 until it is loaded.
    bytes: usize,
    used: u64,
}

impl Default for TableCache {
    fn default() -> Self {
        Self::new(BOUND)
    }
}

impl TableCache {
    /// A cache of at most `bound` bytes.
    pub fn new(bound: usize) -> Self {
        Self { bound, held: Mutex::default() }
    }

    /// The table, loaded by `load` unless it is here. Whoever asks for it meanwhile waits for the same load.
    pub(crate) async fn get<E>(
        &self,
        name: Name,
        load: impl Future<Output = Result<Decoded, E>>,
    ) -> Result<Decoded, E> {
        let cell = self.lock().touch(&name);
        let loaded = cell.get_or_try_init(|| load).await;
        let mut held = self.lock();
        match loaded {
            Ok(table) => {
                let bytes = ENTRY_BYTES + table.1.iter().map(RecordBatch::get_array_memory_size).sum::<usize>();
                held.loaded(&name, bytes, self.bound);
                Ok(table.clone())
            }
            Err(error) => {
                held.forget_unloaded(&name);
                Err(error)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Notes a use; makes an empty entry where there is none.
    fn touch(&mut self, name: &Name) -> Arc<OnceCell<Decoded>> {
        self.uses += 1;
        let used = self.uses;
        let entry = self.entries.entry(name.clone()).or_insert_with(|| Entry { table: Arc::default(), bytes: 0, used });
        self.order.remove(&entry.used);
        entry.used = used;
        self.order.insert(used, name.clone());
        Arc::clone(&entry.table)
    }

    /// Counts a table, and drops what was not used for longest until the bound is kept.
    fn loaded(&mut self, name: &Name, bytes: usize, bound: usize) {
        if let Some(entry) = self.entries.get_mut(name)
            && entry.bytes == 0
        {
            entry.bytes = bytes;
            self.bytes += bytes;
        }
        while self.bytes > bound {
            // What is being loaded has no bytes yet, and is in use.
            let Some(used) = self.order.iter().find(|(_, name)| self.entries[*name].bytes > 0).map(|(used, _)| *used)
            else {
                return;
            };
            if let Some(entry) = self.order.remove(&used).and_then(|name| self.entries.remove(&name)) {
                self.bytes -= entry.bytes;
            }
        }
    }

    fn forget_unloaded(&mut self, name: &Name) {
        if self.entries.get(name).is_some_and(|entry| !entry.table.initialized())
            && let Some(entry) = self.entries.remove(name)
        {
            self.order.remove(&entry.used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array};
    use futures::future::join_all;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn table(rows: i64) -> Decoded {
        let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        let batch = RecordBatch::try_from_iter([("row", column)]).unwrap();
        (batch.schema(), vec![batch])
    }

    fn name(n: u32) -> Name {
        (Key(format!("{n:064x}")), "rows".to_owned(), None)
    }

    /// Asks for a table of 100 rows and tells whether it was loaded.
    async fn ask(cache: &TableCache, n: u32) -> bool {
        let loads = AtomicU32::new(0);
        let load = async {
            loads.fetch_add(1, Ordering::Relaxed);
            Ok::<_, ()>(table(100))
        };
        assert_eq!(cache.get(name(n), load).await.unwrap().1[0].num_rows(), 100);
        loads.load(Ordering::Relaxed) == 1
    }

    #[tokio::test]
    async fn a_table_that_many_ask_for_at_once_is_loaded_once() {
        let cache = TableCache::new(1 << 20);
        let loaded = join_all((0..8).map(|_| ask(&cache, 1))).await;
        assert_eq!(loaded.iter().filter(|loaded| **loaded).count(), 1);
    }

    #[tokio::test]
    async fn what_was_not_used_for_longest_goes_first() {
        let cache = TableCache::new(3 * (ENTRY_BYTES + 1200));
        for n in 0..3 {
            assert!(ask(&cache, n).await);
        }
        assert!(!ask(&cache, 0).await);
        assert!(ask(&cache, 3).await);
        assert!(!ask(&cache, 0).await && !ask(&cache, 2).await && !ask(&cache, 3).await);
        assert!(ask(&cache, 1).await);
        let held = cache.lock();
        assert!(held.bytes <= cache.bound && held.order.len() == held.entries.len());
    }

    #[tokio::test]
    async fn some_columns_are_not_taken_for_others() {
        let cache = TableCache::new(1 << 20);
        for columns in [None, Some(vec![]), Some(vec!["row".to_owned()])] {
            let loads = AtomicU32::new(0);
            for _ in 0..2 {
                let load = async {
                    loads.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, ()>(table(1))
                };
                cache.get((name(1).0, name(1).1, columns.clone()), load).await.unwrap();
            }
            assert_eq!(loads.load(Ordering::Relaxed), 1, "{columns:?}");
        }
    }

    #[tokio::test]
    async fn a_load_that_failed_is_tried_again() {
        let cache = TableCache::new(1 << 20);
        let failed = cache.get(name(1), async { Err::<Decoded, _>("no answer") }).await;
        assert_eq!(failed.unwrap_err(), "no answer");
        assert!(ask(&cache, 1).await && !ask(&cache, 1).await);
    }

    #[tokio::test]
    async fn a_table_larger_than_the_bound_is_given_and_not_kept() {
        let cache = TableCache::new(100);
        assert!(ask(&cache, 1).await && ask(&cache, 1).await);
        assert_eq!(cache.lock().bytes, 0);
    }
}
