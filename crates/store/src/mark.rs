//! Marks of collections: whoever removes what nobody needs says so first, so that nobody begins to need it meanwhile.
//!
//! A mark is a row of numbered objects under `gc/ID/`; its owner puts the next number every few seconds. Who waits for it
//! watches the number, and no clock but its own: a mark whose number stays is of somebody who is gone.

use crate::{Store, StoreError};
use object_store::path::Path;
use rallrec_core::ids::TimeMs;
use std::collections::BTreeMap;

const FOLDER: &str = "gc";

impl Store {
    /// The marks that are there: by id, the largest number.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn marks(&self) -> Result<BTreeMap<String, u64>, StoreError> {
        let (_, folders) = self.objects_in(FOLDER).await?;
        let mut marks = BTreeMap::new();
        for folder in folders {
            let (objects, _) = self.objects_in(&folder).await?;
            let numbers = objects.iter().filter_map(|o| o.path.rsplit('/').next()?.parse::<u64>().ok());
            if let (Some(id), Some(number)) = (folder.rsplit('/').next(), numbers.max()) {
                marks.insert(id.to_owned(), number);
            }
        }
        Ok(marks)
    }

    /// Puts a mark's next number, and removes the one before. Gives the time of it, by the store's own clock.
    ///
    /// # Errors
    /// When the store cannot be reached, or somebody else has a mark of this id.
    pub async fn put_mark(&self, id: &str, number: u64) -> Result<TimeMs, StoreError> {
        let path = |number: u64| Path::from_iter([FOLDER, id, &format!("{number:012}")]);
        self.create(&path(number), format!("{id} {number}").into_bytes()).await?;
        if let Some(before) = number.checked_sub(1) {
            self.remove_objects(&[path(before).to_string()]).await?;
        }
        let put = self.open_object(path(number).as_ref(), 0..0).await?;
        Ok(put.map_or(TimeMs(0), |opened| opened.object.modified_at))
    }

    /// Removes a mark.
    ///
    /// # Errors
    /// When the store cannot be reached.
    pub async fn remove_mark(&self, id: &str) -> Result<(), StoreError> {
        let (objects, _) = self.objects_in(&format!("{FOLDER}/{id}")).await?;
        let paths: Vec<_> = objects.into_iter().map(|object| object.path).collect();
        self.remove_objects(&paths).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_counts_and_goes() {
        let store = Store::memory();
        assert!(store.marks().await.unwrap().is_empty());
        for number in 0..3 {
            assert!(store.put_mark("a", number).await.unwrap().0 > 0);
        }
        store.put_mark("b", 0).await.unwrap();
        assert_eq!(store.marks().await.unwrap(), [("a".to_owned(), 2), ("b".to_owned(), 0)].into());
        store.remove_mark("a").await.unwrap();
        assert_eq!(store.marks().await.unwrap(), [("b".to_owned(), 0)].into());
    }
}
