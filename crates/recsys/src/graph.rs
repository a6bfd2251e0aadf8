//! The user-item graph of the training period, and the triples that LightGCN learns from.
//!
//! Users and items are row positions; nodes of the graph are the users, then the items. The graph has no weights
//! and no times: an edge is there or not. Which ratings are in the training period is the caller's business, so
//! that this module cannot leak a later one.

use crate::{draw, spmm::HostCsr};
use rallrec_core::{params::GraphEdges, rng::row_rng};

/// Why a graph cannot be built.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum GraphError {
    /// A rating names a user or item that is not there.
    #[error("rating {row} is of {what} {found}, but there are only {count}: the tables do not belong together")]
    OutOfRange {
        /// Position of the rating.
        row: usize,
        /// `user` or `item`.
        what: &'static str,
        /// Its row position.
        found: i32,
        /// How many there are.
        count: usize,
    },
    /// Columns of different length.
    #[error("the ratings have {users} users, {items} items and {stars} stars: columns must be equally long")]
    Ragged {
        /// Users.
        users: usize,
        /// Items.
        items: usize,
        /// Ratings.
        stars: usize,
    },
}

/// A bipartite graph of users and items.
#[derive(Clone, Debug)]
pub struct Graph {
    users: usize,
    items: usize,
    /// By user, then item; no edge twice.
    edges: Vec<(u32, u32)>,
    /// Edges of user u stand at `first[u]..first[u + 1]`.
    first: Vec<usize>,
}

impl Graph {
    /// The graph of ratings, given as equally long columns: user and item positions and stars. `Positive` keeps
    /// ratings above `like_above` stars. A pair that is rated twice is one edge.
    ///
    /// # Errors
    /// When the columns' lengths differ or a position is out of range.
    pub fn from_ratings(
        (users, items): (usize, usize),
        user: &[i32],
        item: &[i32],
        stars: &[f32],
        keep: GraphEdges,
        like_above: f64,
    ) -> Result<Self, GraphError> {
        if user.len() != item.len() || user.len() != stars.len() {
            return Err(GraphError::Ragged { users: user.len(), items: item.len(), stars: stars.len() });
        }
        let position = |row: usize, what, found: i32, count: usize| match u32::try_from(found) {
            Ok(p) if (p as usize) < count => Ok(p),
            _ => Err(GraphError::OutOfRange { row, what, found, count }),
        };
        let mut edges = Vec::new();
        for row in 0..user.len() {
            let edge = (position(row, "user", user[row], users)?, position(row, "item", item[row], items)?);
            if keep == GraphEdges::All || f64::from(stars[row]) > like_above {
                edges.push(edge);
            }
        }
        edges.sort_unstable();
        edges.dedup();
        let mut first = vec![0; users + 1];
        edges.iter().for_each(|&(u, _)| first[u as usize + 1] += 1);
        for u in 0..users {
            first[u + 1] += first[u];
        }
        Ok(Self { users, items, edges, first })
    }

    /// Users, with and without an edge.
    pub fn users(&self) -> usize {
        self.users
    }

    /// Items, with and without an edge.
    pub fn items(&self) -> usize {
        self.items
    }

    /// Users and items.
    pub fn nodes(&self) -> usize {
        self.users + self.items
    }

    /// The (user, item) edges, by user, then item.
    pub fn edges(&self) -> &[(u32, u32)] {
        &self.edges
    }

    /// The edges of one user, by item.
    pub fn edges_of(&self, user: u32) -> &[(u32, u32)] {
        &self.edges[self.first[user as usize]..self.first[user as usize + 1]]
    }

    /// The symmetric normalised adjacency [nodes, nodes]: 1 / sqrt(degree of one end x degree of the other) for each
    /// edge, in both directions.
    pub fn adjacency(&self) -> HostCsr {
        let mut degree = vec![0u32; self.nodes()];
        for &(u, i) in &self.edges {
            degree[u as usize] += 1;
            degree[self.users + i as usize] += 1;
        }
        let mut entries = Vec::with_capacity(2 * self.edges.len());
        for &(u, i) in &self.edges {
            let node = self.users as u32 + i;
            let ends = f64::from(degree[u as usize]) * f64::from(degree[node as usize]);
            let weight = (1.0 / ends.sqrt()) as f32;
            entries.extend([(u, node, weight), (node, u, weight)]);
        }
        HostCsr::from_entries(self.nodes(), self.nodes(), &entries)
    }

    /// One epoch's triples: every edge once, in an order drawn for the epoch, each with one item that its user has no
    /// edge with, all such items equally likely. Edges of a user with no such item are left out. Depends on nothing
    /// but the graph, `seed` and `epoch`.
    pub fn sample_epoch(&self, seed: u64, epoch: u64) -> Triples {
        let mut order: Vec<u32> = (0..self.edges.len() as u32).collect();
        draw::shuffle(&mut row_rng(seed, "lightgcn.order", epoch, 0), &mut order);
        let mut rng = row_rng(seed, "lightgcn.negative", epoch, 0);
        let mut triples = Triples::default();
        for edge in order {
            let (user, positive) = self.edges[edge as usize];
            let liked = self.edges_of(user);
            if liked.len() == self.items {
                continue;
            }
            let rank = draw::below(&mut rng, self.items - liked.len());
            triples.push(user, positive, nth_without_edge(liked, rank));
        }
        triples
    }
}

/// The item of this rank (from 0) among those that are in none of a user's edges.
fn nth_without_edge(liked: &[(u32, u32)], rank: usize) -> u32 {
    // Before liked item number k stand (its position - k) items without an edge.
    let mut low = 0;
    let mut high = liked.len();
    while low < high {
        let middle = usize::midpoint(low, high);
        if liked[middle].1 as usize - middle <= rank { low = middle + 1 } else { high = middle }
    }
    (rank + low) as u32
}

/// (user, liked item, item without an edge) triples, as columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Triples {
    /// Users.
    pub user: Vec<u32>,
    /// An item with an edge to the user.
    pub positive: Vec<u32>,
    /// An item without.
    pub negative: Vec<u32>,
}

impl Triples {
    /// Adds one.
    pub fn push(&mut self, user: u32, positive: u32, negative: u32) {
        self.user.push(user);
        self.positive.push(positive);
        self.negative.push(negative);
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.user.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.user.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{spmm::spmm, training::values};
    use burn::tensor::{Device, Tensor};

    fn graph() -> Graph {
        let (user, item, stars) = ([0, 0, 1, 1, 1, 0, 2], [3, 1, 0, 1, 2, 1, 2], [5., 4., 4., 5., 3., 5., 1.]);
        Graph::from_ratings((3, 4), &user, &item, &stars, GraphEdges::Positive, 3.0).expect("consistent")
    }

    #[test]
    fn keeps_likes_once_and_by_user() {
        assert_eq!(graph().edges(), [(0, 1), (0, 3), (1, 0), (1, 1)]);
        assert_eq!(graph().edges_of(2), []);
    }

    #[test]
    fn adjacency_is_normalised_on_both_sides() {
        let device = Device::flex();
        let a = graph().adjacency().to_device(&device);
        let dense = values(spmm(&a, &a, Tensor::eye(7, &device)));
        // Users 0 and 1 have 2 edges; item 1 has 2, items 0 and 3 have 1. Nodes 3.. are the items.
        let at = |row: usize, col: usize| dense[row * 7 + col];
        assert_eq!((at(0, 4), at(4, 0)), (0.5, 0.5));
        assert!((at(0, 6) - 0.5f32.sqrt()).abs() < 1e-7 && at(6, 0) == at(0, 6));
        assert_eq!(dense.iter().filter(|&&v| v != 0.0).count(), 8);
    }

    #[test]
    fn negatives_are_uniform_over_items_without_an_edge() {
        let graph = graph();
        let mut seen = [[0u32; 4]; 3];
        for epoch in 0..2000 {
            let triples = graph.sample_epoch(5, epoch);
            assert_eq!(triples.len(), 4);
            for (&u, &n) in triples.user.iter().zip(&triples.negative) {
                seen[u as usize][n as usize] += 1;
            }
        }
        // User 0 lacks items 0 and 2, user 1 lacks 2 and 3; 2 edges x 2000 epochs each.
        assert_eq!((seen[0][1], seen[0][3], seen[1][0], seen[1][1]), (0, 0, 0, 0));
        for count in [seen[0][0], seen[0][2], seen[1][2], seen[1][3]] {
            assert!(count.abs_diff(2000) < 200, "{seen:?}");
        }
    }

    #[test]
    fn an_epoch_has_every_edge_once_in_its_own_order() {
        let graph = graph();
        let sorted = |epoch| {
            let t = graph.sample_epoch(1, epoch);
            let mut edges: Vec<_> = t.user.into_iter().zip(t.positive).collect();
            edges.sort_unstable();
            edges
        };
        assert_eq!(sorted(0), graph.edges());
        assert_eq!(graph.sample_epoch(1, 3), graph.sample_epoch(1, 3));
        assert!((1..20).any(|e| graph.sample_epoch(1, e).user != graph.sample_epoch(1, 0).user));
    }

    #[test]
    fn a_user_with_every_item_has_no_negative() {
        let g = Graph::from_ratings((1, 2), &[0, 0], &[0, 1], &[1., 1.], GraphEdges::All, 3.0).expect("consistent");
        assert!(g.sample_epoch(0, 0).is_empty());
    }

    #[test]
    fn refuses_positions_out_of_range() {
        let error = Graph::from_ratings((1, 2), &[0], &[2], &[5.], GraphEdges::All, 3.0).expect_err("item 2 of 2");
        assert_eq!(error.to_string(), "rating 0 is of item 2, but there are only 2: the tables do not belong together");
    }
}
