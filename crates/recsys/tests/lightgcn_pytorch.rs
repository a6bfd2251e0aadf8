//! LightGCN's steps against PyTorch's autograd: `fixtures/neural_pytorch.py` made the numbers.

use burn::tensor::Device;
use rallrec_core::params::{GraphEdges, LightGcnParams};
use rallrec_recsys::{
    graph::{Graph, Triples},
    lightgcn::{LightGcn, train},
    training::NoCheckpoints,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    users: usize,
    items: usize,
    dim: u32,
    layers: u32,
    lr: f64,
    l2: f64,
    edges: Vec<(i32, i32)>,
    base: Vec<f32>,
    batches: Vec<[Vec<u32>; 3]>,
    losses: Vec<f32>,
    final_users: Vec<f32>,
    final_items: Vec<f32>,
}

fn close(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{name} differs by {worst:e}");
}

fn fixture() -> (Fixture, Graph, LightGcnParams) {
    let fixture: Fixture = serde_json::from_str(include_str!("fixtures/lightgcn.json")).expect("fixture");
    let (user, item): (Vec<i32>, Vec<i32>) = fixture.edges.iter().copied().unzip();
    let stars = vec![5.0; user.len()];
    let size = (fixture.users, fixture.items);
    let graph = Graph::from_ratings(size, &user, &item, &stars, GraphEdges::Positive, 3.0).expect("consistent");
    let params = LightGcnParams {
        dim: fixture.dim,
        layers: fixture.layers,
        epochs: 5,
        batch_size: 16,
        learning_rate: fixture.lr,
        l2: fixture.l2,
        edges: GraphEdges::Positive,
    };
    (fixture, graph, params)
}

#[test]
fn losses_and_embeddings_follow_pytorch() {
    let (fixture, graph, params) = fixture();
    let mut model = LightGcn::new(&graph, &params, &fixture.base, &Device::flex());
    let mut losses = Vec::new();
    for [user, positive, negative] in fixture.batches {
        let triples = Triples { user, positive, negative };
        losses.push(model.step(&triples, 0..triples.len()).into_scalar::<f32>());
    }
    close("loss", &losses, &fixture.losses);
    let (users, items) = model.embeddings();
    close("users", &users, &fixture.final_users);
    close("items", &items, &fixture.final_items);
}

#[test]
fn training_is_the_same_to_the_bit_on_any_number_of_threads() {
    let (_, graph, params) = fixture();
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| train(&graph, &params, 7, &Device::flex(), &mut |_| true, &mut NoCheckpoints).expect("trains"))
    };
    let once = on(1);
    assert_eq!(once, on(2));
    assert_eq!(once, on(3));
    let dim = params.dim as usize;
    assert!(once.items[(graph.items() - 1) * dim..].iter().all(|&v| v == 0.0), "the last item has no edge");
    assert!(once.losses.last() < once.losses.first(), "{:?}", once.losses);
}

#[test]
fn the_callback_stops_training() {
    let (_, graph, params) = fixture();
    let mut calls = 0;
    let result = train(
        &graph,
        &params,
        7,
        &Device::flex(),
        &mut |p| {
            calls += 1;
            p.epoch < 2
        },
        &mut NoCheckpoints,
    );
    assert_eq!(result.expect_err("stopped").to_string(), "training was stopped in epoch 2");
    assert!(calls > 1);
}

#[test]
fn a_graph_large_enough_for_threads_gives_the_same_bits() {
    let edges: Vec<(i32, i32)> = (0..40_000i32).map(|k| (k % 2000, (k * 7919 / 13) % 1500)).collect();
    let (user, item): (Vec<i32>, Vec<i32>) = edges.into_iter().unzip();
    let stars = vec![5.0; user.len()];
    let graph = Graph::from_ratings((2000, 1500), &user, &item, &stars, GraphEdges::All, 3.0).expect("consistent");
    let params = LightGcnParams { epochs: 1, batch_size: 8192, ..LightGcnParams::default() };
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| train(&graph, &params, 7, &Device::flex(), &mut |_| true, &mut NoCheckpoints).expect("trains"))
    };
    let once = on(1);
    assert_eq!(once, on(2));
    assert_eq!(once, on(4));
}
