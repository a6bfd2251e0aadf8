//! Which beginnings of prompts are computed once, and in which order everything is computed.
//!
//! The prompts of a call form a tree: an inner node is a beginning, in whole pages of the cache, that several prompts
//! share; a leaf is the rest of a prompt, at least its last token. Each node is computed once, from the cache of the
//! node above it, and kept until all that is directly below has branched off. Depth first keeps few nodes alive;
//! longest prompt first makes memory peak early and lets a batch end together. Order and composition follow from the
//! prompts alone.
//!
//! What is done with the computed rows is the caller's business: see [`crate::prefill`] and [`crate::generate`].

use crate::{
    decoder::{Decoder, Step, Stream},
    kv::{Keep, KvPool, PAGE, Sequence},
};
use std::{cmp::Reverse, ops::Range};

/// Something to compute: a beginning that several prompts share, or the rest of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Unit {
    /// The unit that holds the tokens before this one's.
    pub(crate) parent: Option<usize>,
    /// Position of the prompt in the list; of a shared beginning, of one of those that have it.
    pub(crate) row: usize,
    /// Its own tokens, as positions in that prompt. They begin with a page.
    pub(crate) tokens: Range<usize>,
    /// Prompts that it serves: 1 for the rest of a prompt, at least 2 for a shared beginning.
    pub(crate) prompts: usize,
    /// Where the units below it end; they follow it.
    below: usize,
}

impl Unit {
    /// Whether it is a beginning that several prompts share.
    pub(crate) fn is_shared(&self) -> bool {
        self.prompts > 1
    }

    /// Pages of the cache that it takes beside those of the units above it.
    pub(crate) fn pages(&self) -> usize {
        self.tokens.len().div_ceil(PAGE)
    }
}

/// Rows of one unit in a computed batch.
pub(crate) struct Span {
    pub(crate) unit: usize,
    /// Which rows of the batch.
    pub(crate) rows: Range<usize>,
    /// Whether the unit's last token is among them.
    pub(crate) complete: bool,
}

/// The tree of a call's prompts, each unit taken once and in order.
pub(crate) struct PrefixTree {
    /// Depth first: what is below a unit follows it.
    units: Vec<Unit>,
    taken: Vec<bool>,
    /// All units before this one are taken.
    next: usize,
    /// Of shared beginnings that are computed and still needed: their cache, and how many units are to branch off.
    held: Vec<Option<(Sequence, usize)>>,
}

impl PrefixTree {
    /// The tree of some prompts of a list, given by their positions. None of them is empty.
    pub(crate) fn new(prompts: &[Vec<u32>], rows: Vec<usize>) -> Self {
        let mut units = Vec::new();
        flatten(&branches(prompts, rows), prompts, None, 0, &mut units);
        let held = units.iter().map(|_| None).collect();
        Self { taken: vec![false; units.len()], next: 0, held, units }
    }

    pub(crate) fn unit(&self, unit: usize) -> &Unit {
        &self.units[unit]
    }

    /// Whether all units have been taken.
    pub(crate) fn is_done(&self) -> bool {
        self.next == self.units.len()
    }

    /// Whether the unit is a computed beginning from which others are still to branch off.
    pub(crate) fn is_held(&self, unit: usize) -> bool {
        self.held[unit].is_some()
    }

    /// The next units that can be computed together, as long as `wanted` says yes: none waits for another of them.
    pub(crate) fn take(&mut self, mut wanted: impl FnMut(&Unit) -> bool) -> Vec<usize> {
        let mut out = Vec::new();
        let mut index = self.next;
        while index < self.units.len() {
            let unit = &self.units[index];
            if self.taken[index] {
                index += 1;
                continue;
            }
            if !wanted(unit) {
                break;
            }
            self.taken[index] = true;
            out.push(index);
            // What is below waits for it.
            index = unit.below;
        }
        while self.taken.get(self.next) == Some(&true) {
            self.next += 1;
        }
        out
    }

    /// Computes units that [`Self::take`] gave, together; `chunk` tokens at a time if it is a single one that is
    /// longer. Shows `visit` the rows that the decoder returns. Returns the sequences of the units that are rests of
    /// prompts, in their order; those kept for one layer are good for nothing but [`KvPool::release`].
    pub(crate) fn compute(
        &mut self,
        decoder: &Decoder,
        pool: &mut KvPool,
        prompts: &[Vec<u32>],
        units: &[usize],
        (keep, chunk): (Keep, usize),
        mut visit: impl FnMut(&Self, Stream, &[Span]),
    ) -> Vec<Sequence> {
        if let [unit] = units
            && self.units[*unit].tokens.len() > chunk
        {
            return self.compute_in_chunks(decoder, pool, prompts, *unit, chunk, visit).into_iter().collect();
        }
        let keep = |unit: &Unit| if unit.is_shared() { Keep::AllLayers } else { keep };
        let mut sequences: Vec<Sequence> =
            units.iter().map(|&unit| self.branch_off(unit, keep(&self.units[unit]), pool)).collect();
        let (mut steps, mut spans, mut end) = (Vec::new(), Vec::new(), 0);
        for (sequence, &unit) in sequences.iter_mut().zip(units) {
            let Unit { row, tokens, .. } = &self.units[unit];
            steps.push(Step { sequence, tokens: &prompts[*row][tokens.clone()] });
            spans.push(Span { unit, rows: end..end + tokens.len(), complete: true });
            end += tokens.len();
        }
        let x = decoder.forward(pool, &mut steps);
        drop(steps);
        visit(self, x, &spans);
        let rests = units.iter().zip(sequences).filter_map(|(&unit, sequence)| self.hold(unit, sequence));
        rests.collect()
    }

    fn compute_in_chunks(
        &mut self,
        decoder: &Decoder,
        pool: &mut KvPool,
        prompts: &[Vec<u32>],
        unit: usize,
        chunk: usize,
        mut visit: impl FnMut(&Self, Stream, &[Span]),
    ) -> Option<Sequence> {
        // Every chunk reads the keys and values of those before it, in every layer.
        let mut sequence = self.branch_off(unit, Keep::AllLayers, pool);
        let Unit { row, tokens, .. } = self.units[unit].clone();
        let mut left = tokens.len();
        for tokens in prompts[row][tokens].chunks(chunk) {
            left -= tokens.len();
            let x = decoder.forward(pool, &mut [Step { sequence: &mut sequence, tokens }]);
            visit(self, x, &[Span { unit, rows: 0..tokens.len(), complete: left == 0 }]);
        }
        self.hold(unit, sequence)
    }

    /// A sequence that begins with what the unit's parent has computed, which is let go after the last such call.
    fn branch_off(&mut self, unit: usize, keep: Keep, pool: &mut KvPool) -> Sequence {
        let Some(parent) = self.units[unit].parent else { return Sequence::new(keep) };
        let (sequence, left) = self.held[parent].as_mut().expect("a unit is taken after its parent is computed");
        let branch = pool.fork(sequence, keep);
        *left -= 1;
        if *left == 0
            && let Some((sequence, _)) = self.held[parent].take()
        {
            pool.release(sequence);
        }
        branch
    }

    /// Keeps a shared beginning; gives back the rest of a prompt.
    fn hold(&mut self, unit: usize, sequence: Sequence) -> Option<Sequence> {
        let Unit { below, prompts, .. } = self.units[unit];
        if prompts == 1 {
            return Some(sequence);
        }
        let mut children = 0;
        let mut child = unit + 1;
        while child < below {
            children += 1;
            child = self.units[child].below;
        }
        self.held[unit] = Some((sequence, children));
        None
    }
}

/// A node of the tree while it is built.
enum Branch {
    Prompt { row: usize },
    Shared { pages: usize, below: Vec<Branch>, longest: usize, first: usize },
}

impl Branch {
    /// What comes first: the longest prompt, of equals the first in the list.
    fn order(&self, prompts: &[Vec<u32>]) -> (Reverse<usize>, usize) {
        match self {
            Self::Prompt { row } => (Reverse(prompts[*row].len()), *row),
            Self::Shared { longest, first, .. } => (Reverse(*longest), *first),
        }
    }
}

/// A beginning whose end has not been reached in the sorted list.
struct Open {
    pages: usize,
    below: Vec<Branch>,
}

/// The tree's topmost branches, sorted.
fn branches(prompts: &[Vec<u32>], mut rows: Vec<usize>) -> Vec<Branch> {
    rows.sort_by(|&a, &b| prompts[a].cmp(&prompts[b]).then(a.cmp(&b)));
    let mut open = vec![Open { pages: 0, below: Vec::new() }];
    for (index, &row) in rows.iter().enumerate() {
        let after = rows.get(index + 1).map_or(0, |&next| shared_pages(&prompts[row], &prompts[next]));
        // In sorted order a prompt's longest shared beginning is with one of its neighbours.
        if after > open[open.len() - 1].pages {
            open.push(Open { pages: after, below: Vec::new() });
        }
        let innermost = open.len() - 1;
        open[innermost].below.push(Branch::Prompt { row });
        // Beginnings that the next prompt does not share end here; what they share with it begins inside of them.
        while open[open.len() - 1].pages > after {
            let Some(done) = open.pop() else { break };
            let closed = close(done, prompts);
            if open[open.len() - 1].pages < after {
                open.push(Open { pages: after, below: Vec::new() });
            }
            let innermost = open.len() - 1;
            open[innermost].below.push(closed);
        }
    }
    let mut top = open.pop().map_or_else(Vec::new, |top| top.below);
    top.sort_by_key(|branch| branch.order(prompts));
    top
}

fn close(open: Open, prompts: &[Vec<u32>]) -> Branch {
    let Open { pages, mut below } = open;
    below.sort_by_key(|branch| branch.order(prompts));
    let (Reverse(longest), first) = below[0].order(prompts);
    Branch::Shared { pages, below, longest, first }
}

/// Whole pages that two prompts have in common before the last token of either.
fn shared_pages(a: &[u32], b: &[u32]) -> usize {
    let equal = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    equal.min(a.len() - 1).min(b.len() - 1) / PAGE
}

/// Appends branches and what is below them, depth first. Returns how many prompts there are.
fn flatten(
    branches: &[Branch],
    prompts: &[Vec<u32>],
    parent: Option<usize>,
    start: usize,
    units: &mut Vec<Unit>,
) -> usize {
    let mut count = 0;
    for branch in branches {
        let unit = units.len();
        match branch {
            Branch::Prompt { row } => {
                let tokens = start..prompts[*row].len();
                units.push(Unit { parent, row: *row, tokens, prompts: 1, below: unit + 1 });
            }
            Branch::Shared { pages, below, first, .. } => {
                let end = pages * PAGE;
                units.push(Unit { parent, row: *first, tokens: start..end, prompts: 0, below: 0 });
                units[unit].prompts = flatten(below, prompts, Some(unit), end, units);
                units[unit].below = units.len();
            }
        }
        count += units[unit].prompts;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tree(prompts: &[Vec<u32>]) -> PrefixTree {
        PrefixTree::new(prompts, (0..prompts.len()).collect())
    }

    /// A prompt of pages that are each of one token, and some tokens more.
    fn prompt(pages: &[u32], more: usize) -> Vec<u32> {
        let pages = pages.iter().flat_map(|&page| [page; PAGE]);
        pages.chain((0..more as u32).map(|token| 100 + token)).collect()
    }

    #[test]
    fn beginnings_are_shared_where_prompts_part() {
        let prompts = [prompt(&[1, 2, 3], 1), prompt(&[1, 2, 4], 9), prompt(&[1, 5], 2), prompt(&[6], 3)];
        let units: Vec<_> =
            tree(&prompts).units.iter().map(|u| (u.parent, u.row, u.tokens.start, u.tokens.end, u.prompts)).collect();
        let expected = [
            (None, 1, 0, 32, 3),
            (Some(0), 1, 32, 64, 2),
            (Some(1), 1, 64, 105, 1),
            (Some(1), 0, 64, 97, 1),
            (Some(0), 2, 32, 66, 1),
            (None, 3, 0, 35, 1),
        ];
        assert_eq!(units, expected);
    }

    #[test]
    fn the_last_token_is_never_shared() {
        let long = vec![7; 100];
        let own = |prompts: &[Vec<u32>]| tree(prompts).units.iter().map(|u| u.tokens.clone()).collect::<Vec<_>>();
        assert!(own(&[]).is_empty());
        assert_eq!(own(std::slice::from_ref(&long)), std::slice::from_ref(&(0..100)));
        assert_eq!(own(&[long.clone(), long.clone()]), [0..96, 96..100, 96..100]);
        assert_eq!(own(&[long.clone(), long[..64].to_vec()]), [0..32, 32..100, 32..64]);
        assert_eq!(own(&[long[..65].to_vec(), long.clone()]), [0..64, 64..100, 64..65]);
    }

    #[test]
    fn nothing_is_taken_before_what_it_begins_with() {
        let prompts = [prompt(&[1, 2, 3], 1), prompt(&[1, 2, 4], 9), prompt(&[1, 5], 2), prompt(&[6], 3)];
        let mut tree = tree(&prompts);
        assert_eq!(tree.take(|_| true), [0, 5]);
        assert_eq!(tree.take(|_| true), [1, 4]);
        let mut room = 1;
        let one = |_: &Unit| std::mem::replace(&mut room, 0) > 0;
        assert_eq!(tree.take(one), [2]);
        assert_eq!((tree.take(|_| true), tree.is_done()), (vec![3], true));
        assert!(tree.take(|_| true).is_empty());
    }

    proptest! {
        /// Every prompt is covered once, from the units above its rest; no more is computed than distinct pages need.
        #[test]
        fn units_cover_every_prompt(
            pages in proptest::collection::vec((proptest::collection::vec(1_u32..3, 0..5), 1_usize..40), 1..24),
        ) {
            let prompts: Vec<_> = pages.iter().map(|(pages, more)| prompt(pages, *more)).collect();
            let tree = tree(&prompts);
            let mut seen = vec![0; prompts.len()];
            for (index, unit) in tree.units.iter().enumerate() {
                prop_assert!(unit.tokens.start % PAGE == 0 && !unit.tokens.is_empty());
                let start = unit.parent.map_or(0, |parent| tree.units[parent].tokens.end);
                prop_assert_eq!(start, unit.tokens.start);
                if let Some(parent) = unit.parent {
                    prop_assert!(parent < index && index < tree.units[parent].below);
                    let shared = &prompts[tree.units[parent].row][..start];
                    prop_assert_eq!(&prompts[unit.row][..start], shared);
                }
                if unit.is_shared() {
                    prop_assert!(unit.tokens.end % PAGE == 0);
                } else {
                    prop_assert_eq!(unit.tokens.end, prompts[unit.row].len());
                    seen[unit.row] += 1;
                }
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
            // Whole pages before the last token, counted once each, and the tokens after them.
            let mut distinct = std::collections::BTreeSet::new();
            let mut rests = 0;
            for prompt in &prompts {
                let full = (prompt.len() - 1) / PAGE;
                distinct.extend((1..=full).map(|page| &prompt[..page * PAGE]));
                rests += prompt.len() - full * PAGE;
            }
            let computed: usize = tree.units.iter().map(|unit| unit.tokens.len()).sum();
            prop_assert_eq!(computed, distinct.len() * PAGE + rests);
        }
    }
}
