//! Keys and values of the tokens that were computed, in pages of 32 positions.
//!
//! A sequence is a list of pages. Sequences with a common beginning share its full pages, so a prompt's samples, and
//! prompts with the same instruction, keep its keys and values once; a page that is only partly filled is copied when
//! a sequence branches off, so page `i` always holds the positions `32 i` and on. Nothing is ever moved when a cache
//! grows. Pages are counted here; the numbers in them are in the memory of a device ([`Cache`]).

use crate::{host::PAGE_LANES, ops::Cache};

/// Positions in a page.
pub(crate) const PAGE: usize = PAGE_LANES;

/// A page's place in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PageId(pub(crate) usize);

/// How long a sequence's keys and values are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keep {
    /// For later tokens: a page has room for every layer.
    AllLayers,
    /// Only while the layer is computed: one layer's room, which the next layer overwrites.
    CurrentLayer,
}

/// Tokens whose keys and values are in the pool. Not `Clone`: pages are counted, see [`KvPool::fork`].
#[derive(Debug)]
pub(crate) struct Sequence {
    pages: Vec<PageId>,
    length: usize,
    keep: Keep,
}

impl Sequence {
    /// Nothing computed yet.
    pub(crate) fn new(keep: Keep) -> Self {
        Self { pages: Vec::new(), length: 0, keep }
    }

    /// Tokens computed.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }
}

/// What is counted of a page.
struct Page {
    users: usize,
    keep: Keep,
}

/// All pages.
pub(crate) struct KvPool {
    cache: Box<dyn Cache>,
    pages: Vec<Page>,
    free: Vec<PageId>,
    free_single: Vec<PageId>,
}

impl KvPool {
    /// No pages yet, in the memory of a device.
    pub(crate) fn new(cache: Box<dyn Cache>) -> Self {
        Self { cache, pages: Vec::new(), free: Vec::new(), free_single: Vec::new() }
    }

    /// Makes room for `count` more tokens and counts them as computed: the forward pass fills them in.
    pub(crate) fn extend(&mut self, sequence: &mut Sequence, count: usize) {
        sequence.length += count;
        while sequence.pages.len() * PAGE < sequence.length {
            let page = self.take(sequence.keep);
            sequence.pages.push(page);
        }
    }

    /// A sequence that begins with all of `base`'s tokens, or with its full pages only where just the current layer
    /// is kept (a partly filled page of all layers cannot be copied into it).
    pub(crate) fn fork(&mut self, base: &Sequence, keep: Keep) -> Sequence {
        let full = base.length / PAGE;
        let mut sequence = Sequence { pages: base.pages[..full].to_vec(), length: full * PAGE, keep };
        for page in &sequence.pages {
            self.pages[page.0].users += 1;
        }
        if keep == Keep::AllLayers && base.length > sequence.length {
            let copy = self.take(keep);
            self.cache.copy(base.pages[full], copy);
            sequence.pages.push(copy);
            sequence.length = base.length;
        }
        sequence
    }

    /// Gives a sequence's pages back, those that no other sequence uses.
    pub(crate) fn release(&mut self, sequence: Sequence) {
        for id in sequence.pages {
            let page = &mut self.pages[id.0];
            page.users -= 1;
            if page.users == 0 {
                match page.keep {
                    Keep::AllLayers => self.free.push(id),
                    Keep::CurrentLayer => self.free_single.push(id),
                }
            }
        }
    }

    fn take(&mut self, keep: Keep) -> PageId {
        let free = match keep {
            Keep::AllLayers => &mut self.free,
            Keep::CurrentLayer => &mut self.free_single,
        };
        if let Some(id) = free.pop() {
            self.pages[id.0].users = 1;
            return id;
        }
        self.cache.add(keep);
        self.pages.push(Page { users: 1, keep });
        PageId(self.pages.len() - 1)
    }

    /// The device's part: what a forward pass reads and writes.
    pub(crate) fn cache(&mut self) -> &mut dyn Cache {
        &mut *self.cache
    }

    /// Bytes of a page of all layers.
    pub(crate) fn page_bytes(&self) -> u64 {
        self.cache.page_bytes()
    }

    /// Pages that some sequence uses.
    pub(crate) fn used(&self) -> usize {
        self.pages.len() - self.free.len() - self.free_single.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_cache::tests::cache;

    #[test]
    fn a_fork_shares_full_pages() {
        let mut pool = KvPool::new(Box::new(cache()));
        let mut base = Sequence::new(Keep::AllLayers);
        pool.extend(&mut base, PAGE + 3);
        let mut fork = pool.fork(&base, Keep::AllLayers);
        assert_eq!((fork.len(), fork.pages()[0]), (PAGE + 3, base.pages()[0]));
        assert_ne!(fork.pages()[1], base.pages()[1]);
        let passing = pool.fork(&base, Keep::CurrentLayer);
        assert_eq!((passing.len(), pool.used()), (PAGE, 3));
        pool.release(base);
        assert_eq!(pool.used(), 2);
        pool.extend(&mut fork, PAGE);
        assert_eq!(pool.used(), 3);
        pool.release(passing);
        pool.release(fork);
        assert_eq!((pool.used(), pool.pages.len()), (0, 3));
    }
}
