//! Keys and values in host memory. Keys lie transposed within a page, the way the attention loop reads them.

use crate::{
    attention::attend,
    config::ModelConfig,
    host::RopeTable,
    kv::{Keep, PAGE, PageId},
    ops::{Cache, HeadWeights, Segment, StepAttention},
};
use burn::tensor::Tensor;
use std::sync::Arc;

/// The pages of a pool.
pub(crate) struct HostCache {
    config: Arc<ModelConfig>,
    rope: Arc<RopeTable>,
    /// For each layer that a page holds: keys \[kv heads, head width, PAGE\], then values \[kv heads, PAGE, head width\].
    pages: Vec<Vec<f32>>,
}

impl HostCache {
    pub(crate) fn new(config: ModelConfig, rope: Arc<RopeTable>) -> Self {
        Self { config: Arc::new(config), rope, pages: Vec::new() }
    }

    fn layer_floats(&self) -> usize {
        2 * self.config.kv_width() * PAGE
    }

    /// One layer of a page: where it begins in the page's data.
    fn layer_start(&self, page: PageId, layer: usize) -> usize {
        let floats = self.layer_floats();
        layer % (self.pages[page.0].len() / floats) * floats
    }

    /// Stores the key and value of one token, each \[kv heads * head width\], in a page that one sequence uses.
    pub(crate) fn store(&mut self, sequence: &[PageId], layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let page = sequence[position / PAGE];
        let start = self.layer_start(page, layer);
        let (slot, width, heads) = (position % PAGE, self.config.head_width, self.config.kv_heads);
        let floats = self.layer_floats();
        let data = &mut self.pages[page.0][start..start + floats];
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
        let size = self.config.head_width * PAGE;
        let start = self.layer_start(page, layer) + head * size;
        let data = &self.pages[page.0];
        let values = start + self.config.kv_heads * size;
        (&data[start..start + size], &data[values..values + size])
    }
}

impl Cache for HostCache {
    fn add(&mut self, keep: Keep) {
        let layers = match keep {
            Keep::AllLayers => self.config.layers,
            Keep::CurrentLayer => 1,
        };
        self.pages.push(vec![0.0; layers * self.layer_floats()]);
    }

    fn copy(&mut self, from: PageId, to: PageId) {
        let mut data = std::mem::take(&mut self.pages[to.0]);
        data.copy_from_slice(&self.pages[from.0]);
        self.pages[to.0] = data;
    }

    fn page_bytes(&self) -> u64 {
        (self.config.layers * self.layer_floats() * size_of::<f32>()) as u64
    }

    fn step<'a>(&'a mut self, segments: &'a [Segment<'a>]) -> Box<dyn StepAttention + 'a> {
        Box::new(HostStep { cache: self, segments })
    }
}

struct HostStep<'a> {
    cache: &'a mut HostCache,
    segments: &'a [Segment<'a>],
}

impl StepAttention for HostStep<'_> {
    fn attend(&mut self, projections: Tensor<2>, layer: usize, heads: &HeadWeights) -> Tensor<2> {
        let (config, rope) = (self.cache.config.clone(), self.cache.rope.clone());
        attend(projections, self.segments, layer, &config, heads, &rope, self.cache)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::RopeScaling;

    /// Two layers, two heads of width 2.
    pub(crate) fn cache() -> HostCache {
        let config = ModelConfig {
            vocabulary: 1,
            hidden: 1,
            feed_forward: 1,
            layers: 2,
            heads: 2,
            kv_heads: 2,
            head_width: 2,
            context: 1,
            rope_base: 1.0,
            rope: RopeScaling::None,
            norm_epsilon: 1.0,
            qkv_bias: false,
            qk_norm: false,
            sliding_window: None,
            tied_head: true,
        };
        HostCache::new(config, Arc::new(RopeTable::new(vec![1.0], 1)))
    }

    #[test]
    fn a_copied_page_has_the_same_numbers() {
        let mut cache = cache();
        cache.add(Keep::AllLayers);
        cache.add(Keep::AllLayers);
        let (from, to) = (PageId(0), PageId(1));
        cache.store(&[from], 1, 2, &[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]);
        cache.copy(from, to);
        let (keys, values) = cache.head(to, 1, 1);
        assert_eq!((keys[2], keys[PAGE + 2], &values[4..6]), (3.0, 4.0, &[7.0, 8.0][..]));
    }

    #[test]
    fn a_passing_page_holds_one_layer_at_a_time() {
        let mut cache = cache();
        cache.add(Keep::CurrentLayer);
        let page = PageId(0);
        cache.store(&[page], 0, 0, &[1.0; 4], &[2.0; 4]);
        cache.store(&[page], 1, 0, &[3.0; 4], &[4.0; 4]);
        assert_eq!(cache.head(page, 1, 0).0[0], 3.0);
        assert_eq!(cache.pages[0].len(), 2 * 2 * 2 * PAGE);
    }
}
