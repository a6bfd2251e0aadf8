//! Cuts the attention of a forward pass into items of the kernels: see `rallrec_kernels::attention`.
//!
//! A sequence with several new tokens is cut into runs of consecutive tokens, each with all pages that it sees. A
//! sequence with one new token is cut into chunks of its pages; sequences that share a chunk's pages (the samples of a
//! prompt) share the item. Chunks begin at multiples of [`CHUNK`] pages, whatever the batch: what a token's softmax is
//! made of does not depend on its neighbours. Nothing here touches a device.

use crate::{
    kv::{PAGE, PageId},
    ops::Segment,
};
use std::collections::HashMap;

/// Pages of a chunk: 128 positions. Small enough that a few sequences keep all of a large device busy, large enough
/// that the partial results are a few hundredths of the keys and values read.
pub(crate) const CHUNK: usize = 4;

/// The tables of one launch of `attend`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Items {
    pub(crate) items: Vec<u32>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) pages: Vec<u32>,
    pub(crate) count: usize,
}

impl Items {
    fn add(&mut self, tokens: &[[u32; 3]], pages: impl Iterator<Item = u32>, first_page: usize) {
        let (first_token, first) = (self.tokens.len() / 3, self.pages.len());
        self.tokens.extend(tokens.concat());
        self.pages.extend(pages);
        let pages = self.pages.len() - first;
        self.items.extend([first_token, tokens.len(), first, pages, first_page * PAGE].map(|x| x as u32));
        self.count += 1;
    }
}

/// How many tokens the tiles take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TileTokens {
    /// Of an item with all pages.
    pub(crate) whole: usize,
    /// Of a chunk that sequences share.
    pub(crate) shared: usize,
}

/// The tables of a forward pass.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Of every new token: its position, and the code of its page.
    pub(crate) places: Vec<u32>,
    /// Runs of tokens with all pages.
    pub(crate) whole: Items,
    /// Chunks of one sequence.
    pub(crate) alone: Items,
    /// Chunks of several sequences.
    pub(crate) shared: Items,
    /// Of every token in chunks: its row, its first partial result, their number.
    pub(crate) ranges: Vec<u32>,
    /// Partial results.
    pub(crate) partials: usize,
}

/// Some pages, and the tokens that see them.
struct Chunk<'a> {
    /// Number of the chunk in its sequences.
    index: usize,
    pages: &'a [PageId],
    tokens: Vec<[u32; 3]>,
}

impl Plan {
    /// For the segments of a batch, in a cache whose pages have these codes.
    pub(crate) fn new(
        segments: &[Segment<'_>],
        code: impl Fn(PageId) -> u32,
        window: Option<usize>,
        tiles: TileTokens,
    ) -> Self {
        let mut plan = Self::default();
        // In the order in which they are met, so that a plan is a function of its arguments.
        let mut chunks: Vec<Chunk<'_>> = Vec::new();
        let mut known: HashMap<(usize, &[PageId]), usize> = HashMap::new();
        let mut row = 0;
        for segment in segments {
            for position in segment.start..segment.start + segment.count {
                plan.places.extend([position as u32, code(segment.pages[position / PAGE])]);
            }
            if segment.count > 1 {
                plan.add_runs(segment, row, &code, window, tiles.whole);
            } else if segment.count == 1 {
                let position = segment.start;
                let pages = &segment.pages[..=position / PAGE];
                let first = first_seen(position, window) / PAGE / CHUNK;
                let count = pages.len().div_ceil(CHUNK) - first;
                plan.ranges.extend([row, plan.partials, count].map(|x| x as u32));
                for (index, chunk) in pages.chunks(CHUNK).enumerate().skip(first) {
                    let token = [row as u32, position as u32, (plan.partials + index - first) as u32];
                    let place = *known.entry((index, chunk)).or_insert_with(|| {
                        chunks.push(Chunk { index, pages: chunk, tokens: Vec::new() });
                        chunks.len() - 1
                    });
                    chunks[place].tokens.push(token);
                }
                plan.partials += count;
            }
            row += segment.count;
        }
        for Chunk { index, pages, tokens } in chunks {
            for tokens in tokens.chunks(tiles.shared.max(1)) {
                let items = if tokens.len() == 1 { &mut plan.alone } else { &mut plan.shared };
                items.add(tokens, pages.iter().map(|&page| code(page)), index * CHUNK);
            }
        }
        plan
    }

    fn add_runs(
        &mut self,
        segment: &Segment<'_>,
        row: usize,
        code: &impl Fn(PageId) -> u32,
        window: Option<usize>,
        tile: usize,
    ) {
        // The last first: they see the most, and no cube should begin long work when the others are done.
        for first in (0..segment.count).step_by(tile).rev() {
            let count = tile.min(segment.count - first);
            let start = segment.start + first;
            let tokens: Vec<_> = (0..count).map(|i| [(row + first + i) as u32, (start + i) as u32, 0]).collect();
            let seen = first_seen(start, window) / PAGE..(start + count).div_ceil(PAGE);
            self.whole.add(&tokens, segment.pages[seen.clone()].iter().map(|&page| code(page)), seen.start);
        }
    }
}

/// First position that a token sees.
fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const TILES: TileTokens = TileTokens { whole: 16, shared: 8 };

    /// What every token of a plan sees: (row, position) pairs, each once.
    fn seen(plan: &Plan, window: usize) -> BTreeSet<(u32, u32, u32)> {
        let mut all = BTreeSet::new();
        for items in [&plan.whole, &plan.alone, &plan.shared] {
            assert_eq!(items.items.len(), 5 * items.count);
            for item in items.items.chunks(5) {
                let [first, tokens, first_page, pages, position] = item.try_into().unwrap();
                for token in items.tokens.chunks(3).skip(first as usize).take(tokens as usize) {
                    for (number, &page) in (0..).zip(&items.pages[first_page as usize..][..pages as usize]) {
                        for at in position + number * PAGE as u32..position + (number + 1) * PAGE as u32 {
                            if at <= token[1] && at + window as u32 > token[1] {
                                assert!(all.insert((token[0], at, page)), "seen twice");
                            }
                        }
                    }
                }
            }
        }
        all
    }

    fn pages(ids: impl IntoIterator<Item = usize>) -> Vec<PageId> {
        ids.into_iter().map(PageId).collect()
    }

    #[test]
    fn every_token_sees_each_position_of_its_window_once() {
        let (a, b) = (pages(0..13), pages((0..9).chain(20..22)));
        let (c, d) = (pages((0..9).chain(30..31)), pages(40..42));
        let segments = [
            Segment { pages: &a, start: 32 * 12 + 3, count: 1 },
            Segment { pages: &d, start: 5, count: 40 },
            Segment { pages: &b, start: 32 * 11 - 1, count: 1 },
            Segment { pages: &c, start: 32 * 9, count: 1 },
        ];
        for window in [usize::MAX >> 33, 1, 32, 100] {
            let plan = Plan::new(&segments, |page| page.0 as u32, Some(window), TILES);
            let mut want = BTreeSet::new();
            let mut row = 0;
            for segment in &segments {
                for position in segment.start..segment.start + segment.count {
                    for at in first_seen(position, Some(window))..=position {
                        want.insert((row, at as u32, segment.pages[at / PAGE].0 as u32));
                    }
                    row += 1;
                }
            }
            assert_eq!(seen(&plan, window), want);
            let partials: BTreeSet<u32> =
                [&plan.alone, &plan.shared].iter().flat_map(|items| items.tokens.chunks(3).map(|t| t[2])).collect();
            assert_eq!(partials, (0..plan.partials as u32).collect());
        }
    }

    #[test]
    fn samples_of_a_prompt_share_its_chunks() {
        let samples: Vec<Vec<PageId>> = (0..12).map(|i| pages((0..8).chain([100 + i]))).collect();
        let segments: Vec<_> = samples.iter().map(|pages| Segment { pages, start: 8 * PAGE + 1, count: 1 }).collect();
        let plan = Plan::new(&segments, |page| page.0 as u32, None, TILES);
        // Two chunks of the prompt, for 8 samples and for 4; each sample's own page.
        assert_eq!((plan.shared.count, plan.alone.count, plan.whole.count), (4, 12, 0));
        assert_eq!(plan.shared.pages.len(), 16);
        assert_eq!(plan.ranges[..6], [0, 0, 3, 1, 3, 3]);
    }
}
