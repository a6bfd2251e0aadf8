//! Checkpoints: what an unfinished task goes on from. Numbered under the task's key and put by create-if-absent, so
//! that two attempts at one task never spoil each other's; a later one replaces the earlier. They are a convenience:
//! whatever is wrong with one, the task can begin again.

use crate::{Store, StoreError};
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};
use rallrec_core::key::{Key, hex};
use sha2::{Digest, Sha256};

/// A task's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Its number; the next one has a larger number.
    pub number: u64,
    /// What was saved.
    pub state: Vec<u8>,
}

impl Store {
    /// The newest state of a task that can be read, under the largest number that is there, if one can. The two are
    /// apart where the newest is damaged: the next save must have a number that is free.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn checkpoint(&self, key: &Key) -> Result<Option<Checkpoint>, StoreError> {
        let numbers = self.checkpoint_numbers(key).await?;
        for &at in numbers.iter().rev() {
            if let (Some(state), Some(&number)) = (self.checkpoint_state(&path(key, at)).await, numbers.last()) {
                return Ok(Some(Checkpoint { number, state }));
            }
        }
        Ok(None)
    }

    /// What was saved there, if it is there and can be read.
    async fn checkpoint_state(&self, path: &Path) -> Option<Vec<u8>> {
        match self.get(path).await {
            Ok(Some(bytes)) => {
                let state = unsealed(&bytes).map(<[u8]>::to_vec);
                if state.is_none() {
                    tracing::warn!(path = path.as_ref(), "a damaged checkpoint is passed over");
                }
                state
            }
            // Another attempt has replaced it meanwhile.
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(path = path.as_ref(), %error, "a checkpoint that cannot be read is passed over");
                None
            }
        }
    }

    /// Puts a checkpoint, and removes those with smaller numbers. One that is there already is left as it is, and the
    /// smaller ones too: they are for whoever put it to remove, and if it is damaged they are all there is.
    ///
    /// # Errors
    /// When the store cannot be reached or is full.
    pub async fn put_checkpoint(&self, key: &Key, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let sealed = [hex(&Sha256::digest(&checkpoint.state)).as_bytes(), b"\n", &checkpoint.state].concat();
        match self.create(&path(key, checkpoint.number), sealed).await {
            Ok(()) => {}
            Err(StoreError::Conflict { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let numbers = self.checkpoint_numbers(key).await?;
        self.remove_checkpoints(key, numbers.into_iter().filter(|&number| number < checkpoint.number)).await;
        Ok(())
    }

    /// Removes all checkpoints of a task, which has finished.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn clear_checkpoints(&self, key: &Key) -> Result<(), StoreError> {
        let numbers = self.checkpoint_numbers(key).await?;
        self.remove_checkpoints(key, numbers.into_iter()).await;
        Ok(())
    }

    /// Their numbers, in order.
    async fn checkpoint_numbers(&self, key: &Key) -> Result<Vec<u64>, StoreError> {
        let folder = folder(key);
        let listed: Vec<_> = self
            .objects
            .list(Some(&folder))
            .try_collect()
            .await
            .map_err(|e| StoreError::object("list", folder.as_ref(), e))?;
        let mut numbers: Vec<u64> =
            listed.iter().filter_map(|object| object.location.filename()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    async fn remove_checkpoints(&self, key: &Key, numbers: impl Iterator<Item = u64>) {
        for number in numbers {
            let path = path(key, number);
            match self.objects.delete(&path).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => tracing::warn!(path = path.as_ref(), %error, "cannot remove an old checkpoint"),
            }
        }
    }
}

fn folder(key: &Key) -> Path {
    Path::from_iter(["checkpoints", key.0.as_str()])
}

fn path(key: &Key, number: u64) -> Path {
    folder(key).join(format!("{number:012}"))
}

/// The state behind its checksum, if that is right.
fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    let state = &bytes[end + 1..];
    (hex(&Sha256::digest(state)).as_bytes() == &bytes[..end]).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::Faulty;
    use std::sync::Arc;

    fn checkpoint(number: u64, state: &[u8]) -> Checkpoint {
        Checkpoint { number, state: state.to_vec() }
    }

    #[tokio::test]
    async fn the_last_one_is_found_and_earlier_ones_are_removed() {
        let (store, key, other) = (Store::memory(), Key("aa".into()), Key("ab".into()));
        assert_eq!(store.checkpoint(&key).await.unwrap(), None);
        for number in [1, 2, 10] {
            store.put_checkpoint(&key, &checkpoint(number, &[number as u8, b'\n'])).await.unwrap();
            assert_eq!(store.checkpoint(&key).await.unwrap(), Some(checkpoint(number, &[number as u8, b'\n'])));
        }
        assert_eq!(store.checkpoint_numbers(&key).await.unwrap(), [10]);
        store.put_checkpoint(&other, &checkpoint(3, b"x")).await.unwrap();
        store.clear_checkpoints(&key).await.unwrap();
        assert_eq!(store.checkpoint(&key).await.unwrap(), None);
        assert_eq!(store.checkpoint(&other).await.unwrap(), Some(checkpoint(3, b"x")));
    }

    #[tokio::test]
    async fn the_first_of_two_attempts_stands_and_a_damaged_one_is_passed_over() {
        let (store, key) = (Store::memory(), Key("aa".into()));
        store.put_checkpoint(&key, &checkpoint(7, b"first")).await.unwrap();
        store.put_checkpoint(&key, &checkpoint(7, b"second")).await.unwrap();
        assert_eq!(store.checkpoint(&key).await.unwrap(), Some(checkpoint(7, b"first")));
        store.create(&path(&key, 8), b"00\ncut".to_vec()).await.unwrap();
        assert_eq!(store.checkpoint(&key).await.unwrap(), Some(checkpoint(8, b"first")), "8 is taken");
        store.put_checkpoint(&key, &checkpoint(8, b"lost")).await.unwrap();
        assert_eq!(store.checkpoint(&key).await.unwrap(), Some(checkpoint(8, b"first")), "what is whole stays");
        store.put_checkpoint(&key, &checkpoint(9, b"next")).await.unwrap();
        assert_eq!(store.checkpoint(&key).await.unwrap(), Some(checkpoint(9, b"next")));
        assert_eq!(store.checkpoint_numbers(&key).await.unwrap(), [9]);
    }

    #[tokio::test]
    async fn one_that_cannot_be_read_is_passed_over() {
        let key = Key("aa".into());
        // As on a disk with a bad sector.
        let unreadable = path(&key, 8);
        let failing = move |path: &Path| (*path == unreadable).then(|| std::io::Error::other("input/output error"));
        let store = Store::over(Arc::new(Faulty::new(failing, |_| None)));
        store.put_checkpoint(&key, &checkpoint(7, b"first")).await.unwrap();
        store.create(&path(&key, 8), b"whatever".to_vec()).await.unwrap();
        assert_eq!(store.checkpoint(&key).await.unwrap(), Some(checkpoint(8, b"first")));
    }
}
