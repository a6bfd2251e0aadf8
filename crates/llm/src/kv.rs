//! Keys and values of the tokens that were computed, in pages of 32 positions.
//!
//! A sequence is a list of pages. Sequences with a common beginning share its full pages, so a prompt's samples, and
//! prompts with the same instruction, keep its keys and values once; a page that is only partly filled is copied when
//! a sequence branches off, so page `i` always holds the positions `32 i` and on. Nothing is ever moved when a cache
//! grows. Keys lie transposed within a page, the way the attention loop reads them.

use crate::{config::ModelConfig, host::PAGE_LANES};

/// Positions in a page.
pub(crate) const PAGE: usize = PAGE_LANES;

/// A page's place in the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageId(usize);

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

struct Page {
    /// For each layer that it holds: keys \[kv heads, head width, PAGE\], then values \[kv heads, PAGE, head width\].
    data: Vec<f32>,
    users: usize,
}

/// All pages.
pub(crate) struct KvPool {
    layers: usize,
    kv_heads: usize,
    head_width: usize,
    pages: Vec<Page>,
    free: Vec<PageId>,
    free_single: Vec<PageId>,
}

impl KvPool {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        Self {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_width: config.head_width,
            pages: Vec::new(),
            free: Vec::new(),
            free_single: Vec::new(),
        }
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
            let data = std::mem::take(&mut self.pages[copy.0].data);
            let mut data = data;
            data.copy_from_slice(&self.pages[base.pages[full].0].data);
            self.pages[copy.0].data = data;
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
                let single = page.data.len() == 2 * self.kv_heads * self.head_width * PAGE && self.layers > 1;
                if single { self.free_single.push(id) } else { self.free.push(id) }
            }
        }
    }

    fn take(&mut self, keep: Keep) -> PageId {
        let single = keep == Keep::CurrentLayer && self.layers > 1;
        let free = if single { &mut self.free_single } else { &mut self.free };
        if let Some(id) = free.pop() {
            self.pages[id.0].users = 1;
            return id;
        }
        let layers = if single { 1 } else { self.layers };
        self.pages.push(Page { data: vec![0.0; layers * self.layer_floats()], users: 1 });
        PageId(self.pages.len() - 1)
    }

    fn layer_floats(&self) -> usize {
        2 * self.kv_heads * self.head_width * PAGE
    }

    /// One layer of a page: where it begins in the page's data.
    fn layer_start(&self, page: PageId, layer: usize) -> usize {
        let floats = self.layer_floats();
        layer % (self.pages[page.0].data.len() / floats) * floats
    }

    /// Stores the key and value of one token, each \[kv heads * head width\].
    pub(crate) fn store(&mut self, sequence: &[PageId], layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let page = sequence[position / PAGE];
        debug_assert_eq!(self.pages[page.0].users, 1, "a shared page is never written");
        let start = self.layer_start(page, layer);
        let (slot, width, heads) = (position % PAGE, self.head_width, self.kv_heads);
        let floats = self.layer_floats();
        let data = &mut self.pages[page.0].data[start..start + floats];
        let (keys, values) = data.split_at_mut(floats / 2);
        for (lane, &k) in keys.chunks_exact_mut(PAGE).zip(key) {
            lane[slot] = k;
        }
        for head in 0..heads {
            let to = (head * PAGE + slot) * width;
            values[to..to + width].copy_from_slice(&value[head * width..(head + 1) * width]);
        }
    }

    /// Keys \[head width, PAGE\] and values \[PAGE, head width\] of one head in a page.
    pub(crate) fn head(&self, page: PageId, layer: usize, head: usize) -> (&[f32], &[f32]) {
        let size = self.head_width * PAGE;
        let start = self.layer_start(page, layer) + head * size;
        let data = &self.pages[page.0].data;
        let values = start + self.kv_heads * size;
        (&data[start..start + size], &data[values..values + size])
    }

    /// Bytes of a page of all layers.
    pub(crate) fn page_bytes(&self) -> u64 {
        (self.layers * self.layer_floats() * size_of::<f32>()) as u64
    }

    /// Pages that some sequence uses.
    pub(crate) fn used(&self) -> usize {
        self.pages.len() - self.free.len() - self.free_single.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> KvPool {
        KvPool { layers: 2, kv_heads: 2, head_width: 2, pages: Vec::new(), free: Vec::new(), free_single: Vec::new() }
    }

    #[test]
    fn a_fork_shares_full_pages_and_copies_the_last() {
        let mut pool = pool();
        let mut base = Sequence::new(Keep::AllLayers);
        pool.extend(&mut base, PAGE + 3);
        let pages = base.pages().to_vec();
        pool.store(&pages, 1, PAGE + 2, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]);
        let mut fork = pool.fork(&base, Keep::AllLayers);
        assert_eq!((fork.len(), fork.pages()[0]), (PAGE + 3, base.pages()[0]));
        assert_ne!(fork.pages()[1], base.pages()[1]);
        let (keys, values) = pool.head(fork.pages()[1], 1, 1);
        assert_eq!((keys[2], keys[PAGE + 2], &values[4..6]), (3.0, 4.0, &[7.0, 8.0][..]));
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

    #[test]
    fn a_passing_page_holds_one_layer_at_a_time() {
        let mut pool = pool();
        let mut sequence = Sequence::new(Keep::CurrentLayer);
        pool.extend(&mut sequence, 1);
        let pages = sequence.pages().to_vec();
        pool.store(&pages, 0, 0, &[1.0; 4], &[2.0; 4]);
        pool.store(&pages, 1, 0, &[3.0; 4], &[4.0; 4]);
        assert_eq!(pool.head(pages[0], 1, 0).0[0], 3.0);
        assert_eq!(pool.pages[0].data.len(), 2 * 2 * 2 * PAGE);
    }
}
