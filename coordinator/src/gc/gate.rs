//! Collections and runs keep out of each other's way.
//!
//! A run puts its plan, then looks for a collection's mark, and waits while there is one. A collection puts its mark,
//! then lists the runs. Whichever was second sees the other: either the collection keeps what the run reaches, or the
//! run begins when the collection is over. It costs a run one listing, and nobody a lock.
//!
//! A mark is renewed all the time. One whose number has not moved for two minutes is of a process that is gone, and is
//! passed over; so a collection stops by itself if it has not renewed its mark for half a minute.

use super::GcError;
use rallrec_core::ids::TimeMs;
use rallrec_store::{Store, StoreError};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{task::JoinHandle, time::Instant};

/// Time between two renewals.
const RENEW_EVERY: Duration = Duration::from_secs(10);

/// Oldest renewal after which its owner still removes something.
const FRESH: Duration = Duration::from_secs(30);

/// How often somebody who waits looks, and how often a number must be the same before its owner is gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOKS: u32 = 120;

/// Waits until no collection is under way. Gives whether it had to: what was looked up before may be gone. Call it when
/// the run's plan is in the store.
///
/// # Errors
/// When the store cannot be reached.
pub async fn wait_for_collections(store: &Store) -> Result<bool, StoreError> {
    wait(store, LOOK_EVERY).await
}

pub(super) async fn wait(store: &Store, look_every: Duration) -> Result<bool, StoreError> {
    let mut watched = Watched::default();
    let mut waited = false;
    while watched.look(store, "").await?.is_some() {
        if !std::mem::replace(&mut waited, true) {
            tracing::info!("waiting for a collection (`rallrec gc`) to end");
        }
        tokio::time::sleep(look_every).await;
    }
    Ok(waited)
}

/// Marks of others, and how often each was seen with its number.
#[derive(Default)]
struct Watched(BTreeMap<String, (u64, u32)>);

impl Watched {
    /// A mark, other than `own`, whose owner may live.
    async fn look(&mut self, store: &Store, own: &str) -> Result<Option<String>, StoreError> {
        let mut marks = store.marks().await?;
        marks.remove(own);
        self.0.retain(|id, _| marks.contains_key(id));
        for (id, number) in marks {
            let seen = self.0.entry(id).or_insert((number, 0));
            *seen = if seen.0 == number { (number, seen.1 + 1) } else { (number, 1) };
        }
        Ok(self.0.iter().find(|(_, (_, times))| *times < LOOKS).map(|(id, _)| id.clone()))
    }

    /// Whether a mark's number has moved while it was watched.
    fn moved(&self, id: &str, first: &BTreeMap<String, u64>) -> bool {
        self.0.get(id).is_some_and(|(number, _)| first.get(id) != Some(number))
    }
}

/// A collection's own mark, renewed until it is dropped.
pub(super) struct Mark {
    store: Store,
    id: String,
    renewed: Arc<Mutex<Option<Instant>>>,
    renewing: JoinHandle<()>,
    /// When it was put, by the store's clock.
    pub(super) put_at: TimeMs,
}

impl Mark {
    /// Puts a mark, once no other collection is under way.
    pub(super) async fn raise(store: &Store, id: &str, look_every: Duration) -> Result<Self, GcError> {
        let put_at = store.put_mark(id, 0).await?;
        let renewed = Arc::new(Mutex::new(Some(Instant::now())));
        let renewing = tokio::spawn(renew(store.clone(), id.to_owned(), Arc::clone(&renewed)));
        let mark = Self { store: store.clone(), id: id.to_owned(), renewed, renewing, put_at };
        let mut watched = Watched::default();
        let first = store.marks().await?;
        while let Some(other) = watched.look(store, id).await? {
            if watched.moved(&other, &first) {
                mark.lower().await;
                return Err(GcError::Busy { other });
            }
            tokio::time::sleep(look_every).await;
        }
        // What is left is of the dead.
        for other in watched.0.into_keys() {
            store.remove_mark(&other).await?;
        }
        Ok(mark)
    }

    /// Whether it may still remove something.
    pub(super) fn check(&self) -> Result<(), GcError> {
        let renewed = *self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        if renewed.is_some_and(|at| at.elapsed() < FRESH) { Ok(()) } else { Err(GcError::Stalled) }
    }

    /// Takes it away.
    pub(super) async fn lower(self) {
        self.renewing.abort();
        if let Err(error) = self.store.remove_mark(&self.id).await {
            tracing::warn!(%error, "the collection's mark cannot be removed; runs begin two minutes later");
        }
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn renew(store: Store, id: String, renewed: Arc<Mutex<Option<Instant>>>) {
    for number in 1.. {
        tokio::time::sleep(RENEW_EVERY).await;
        let put = store.put_mark(&id, number).await;
        let mut renewed = renewed.lock().unwrap_or_else(PoisonError::into_inner);
        // Once others may have given it up, it stays given up.
        let late = renewed.is_none_or(|at| at.elapsed() >= 2 * FRESH);
        *renewed = if put.is_ok() && !late { Some(Instant::now()) } else { renewed.filter(|_| !late) };
        if let Err(error) = put {
            tracing::warn!(%error, "the collection's mark cannot be renewed");
        }
        if late {
            return;
        }
    }
}
