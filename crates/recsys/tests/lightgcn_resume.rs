//! A training of LightGCN that is interrupted anywhere ends with the bytes of one that is not.

use burn::tensor::Device;
use rallrec_core::params::{GraphEdges, LightGcnParams};
use rallrec_recsys::{
    graph::Graph,
    lightgcn::{LightGcnEmbeddings, train},
    training::{Checkpoints, NoCheckpoints, TrainError},
};

/// Keeps the last state, every so many steps.
#[derive(Default)]
struct Kept {
    state: Option<Vec<u8>>,
    every: usize,
    steps: usize,
    used: usize,
}

impl Checkpoints for Kept {
    fn latest(&mut self) -> Option<Vec<u8>> {
        self.used += usize::from(self.state.is_some());
        self.state.clone()
    }
    fn is_due(&mut self) -> bool {
        self.steps += 1;
        self.every > 0 && self.steps.is_multiple_of(self.every)
    }
    fn save(&mut self, state: Vec<u8>) {
        self.state = Some(state);
    }
}

fn graph() -> Graph {
    let pairs: Vec<(i32, i32)> = (0..30).flat_map(|u| (0..7).map(move |n| (u, (u * 5 + n * n * 3) % 40))).collect();
    let (users, items): (Vec<i32>, Vec<i32>) = pairs.into_iter().unzip();
    let stars = vec![5.0; users.len()];
    Graph::from_ratings((30, 40), &users, &items, &stars, GraphEdges::All, 3.0).expect("consistent")
}

fn params() -> LightGcnParams {
    LightGcnParams { dim: 8, epochs: 4, batch_size: 64, learning_rate: 0.05, ..LightGcnParams::default() }
}

/// Trains until `steps` steps of this attempt are made; a `kill` forgets what was not due.
fn attempt(kept: &mut Kept, steps: usize) -> Result<LightGcnEmbeddings, TrainError> {
    let mut left = steps;
    let mut on_progress = |_: &_| {
        left = left.saturating_sub(1);
        left > 0
    };
    train(&graph(), &params(), 3, &Device::flex(), &mut on_progress, kept)
}

fn whole() -> LightGcnEmbeddings {
    train(&graph(), &params(), 3, &Device::flex(), &mut |_| true, &mut NoCheckpoints).expect("trains")
}

#[test]
fn a_training_that_was_stopped_goes_on_to_the_same_bytes() {
    let whole = whole();
    for steps in [1, 2, 3, 4, 5, 7] {
        let mut kept = Kept::default();
        let mut attempts = 0;
        let found = loop {
            attempts += 1;
            match attempt(&mut kept, steps + 1) {
                Err(TrainError::Stopped { .. }) => assert!(attempts < 100, "it goes on"),
                found => break found.expect("trains"),
            }
        };
        assert!(attempts > 1 && kept.used == attempts - 1);
        assert_eq!(found, whole, "{steps} steps an attempt");
    }
}

#[test]
fn a_killed_training_goes_on_from_its_last_checkpoint() {
    let mut kept = Kept { every: 3, ..Kept::default() };
    // After 8 steps the state of the sixth is what is left; what a stop adds, a kill does not.
    let mut sixth = None;
    let stopped = train(
        &graph(),
        &params(),
        3,
        &Device::flex(),
        &mut |_| true,
        &mut Watched { kept: &mut kept, sixth: &mut sixth },
    );
    let whole = stopped.expect("trains");
    assert_eq!(whole, self::whole(), "keeping states changes nothing");
    let mut kept = Kept { state: sixth, ..Kept::default() };
    assert_eq!(attempt(&mut kept, usize::MAX).expect("trains"), whole);
    assert_eq!(kept.used, 1);
}

/// Keeps the second state that was due.
struct Watched<'a> {
    kept: &'a mut Kept,
    sixth: &'a mut Option<Vec<u8>>,
}

impl Checkpoints for Watched<'_> {
    fn latest(&mut self) -> Option<Vec<u8>> {
        None
    }
    fn is_due(&mut self) -> bool {
        self.kept.is_due()
    }
    fn save(&mut self, state: Vec<u8>) {
        if self.kept.steps == 6 {
            *self.sixth = Some(state);
        }
    }
}

#[test]
fn a_state_that_is_none_is_left_alone() {
    let whole = whole();
    let mut kept = Kept::default();
    assert!(attempt(&mut kept, 3).is_err());
    let good = kept.state.expect("a stop keeps a state");
    let mut longer = good.clone();
    longer.push(0);
    for bad in [Vec::new(), b"lightgcn".to_vec(), good[..good.len() - 4].to_vec(), longer, vec![7; good.len()]] {
        let mut kept = Kept { state: Some(bad), ..Kept::default() };
        assert_eq!(attempt(&mut kept, usize::MAX).expect("trains from the beginning"), whole);
    }
}
