//! LightGCN on MovieLens' time split: Recall@20 and AUC on the test period's likes against popularity, and seconds an
//! epoch.
//!
//! Usage: `cargo run --release -p rallrec-recsys --example lightgcn_movielens -- RATINGS [EPOCHS]`, where RATINGS is
//! ratings.dat or u.data. The first 80 % of the ratings by time are the graph, the last 20 % the test.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an example for developers")]

use burn::tensor::Device;
use rallrec_core::params::{GraphEdges, LightGcnParams};
use rallrec_recsys::{
    graph::Graph,
    lightgcn::{LightGcnEmbeddings, train},
    metrics,
    training::NoCheckpoints,
};
use std::time::Instant;

const TOP: usize = 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut ratings: Vec<(i64, i32, i32, f32)> = std::fs::read_to_string(&arguments[0])
        .unwrap()
        .lines()
        .map(|l| {
            let parts: Vec<i64> = l.replace("::", "\t").split('\t').map(|v| v.parse().unwrap()).collect();
            (parts[3], parts[0] as i32 - 1, parts[1] as i32 - 1, parts[2] as f32)
        })
        .collect();
    ratings.sort_unstable_by_key(|r| (r.0, r.1, r.2));
    let users = ratings.iter().map(|r| r.1 as usize + 1).max().unwrap();
    let items = ratings.iter().map(|r| r.2 as usize + 1).max().unwrap();
    let (past, future) = ratings.split_at(ratings.len() * 8 / 10);
    let (user, item): (Vec<i32>, Vec<i32>) = past.iter().map(|r| (r.1, r.2)).unzip();
    let stars: Vec<f32> = past.iter().map(|r| r.3).collect();
    let graph = Graph::from_ratings((users, items), &user, &item, &stars, GraphEdges::Positive, 3.0).unwrap();
    let epochs = arguments.get(1).map_or(100, |e| e.parse().unwrap());
    println!("{users} users, {items} items, {} edges, {} test ratings", graph.edges().len(), future.len());

    let params = LightGcnParams { epochs, ..LightGcnParams::default() };
    let start = Instant::now();
    let learned = train(&graph, &params, 42, &Device::flex(), &mut |_| true, &mut NoCheckpoints).unwrap();
    println!("{:.2} s an epoch, losses {:.4?}", start.elapsed().as_secs_f64() / f64::from(epochs), learned.losses);

    let mut popular = vec![0f32; items];
    graph.edges().iter().for_each(|&(_, i)| popular[i as usize] += 1.0);
    let dim = params.dim as usize;
    let score = |u: usize, i: usize| -> f32 {
        let LightGcnEmbeddings { users, items, .. } = &learned;
        users[u * dim..][..dim].iter().zip(&items[i * dim..][..dim]).map(|(a, b)| a * b).sum()
    };
    report("LightGCN", &graph, future, &score);
    report("popularity", &graph, future, &|_, i| popular[i]);
}

/// Over users with training edges and new likes: Recall@20 among items without an edge; and the mean AUC of those
/// likes against all other such items.
fn report(name: &str, graph: &Graph, future: &[(i64, i32, i32, f32)], score: &dyn Fn(usize, usize) -> f32) {
    let mut likes = vec![Vec::new(); graph.users()];
    future.iter().filter(|r| r.3 > 3.0).for_each(|r| likes[r.1 as usize].push(r.2 as u32));
    let (mut recall, mut auc, mut count) = (0.0, 0.0, 0.0);
    for (user, likes) in likes.iter().enumerate() {
        let known = graph.edges_of(user as u32);
        let new: Vec<u32> = likes.iter().copied().filter(|i| known.binary_search_by_key(i, |e| e.1).is_err()).collect();
        if known.is_empty() || new.is_empty() {
            continue;
        }
        let mut ranked: Vec<u32> =
            (0..graph.items() as u32).filter(|i| known.binary_search_by_key(i, |e| e.1).is_err()).collect();
        ranked.sort_by(|&a, &b| score(user, b as usize).total_cmp(&score(user, a as usize)));
        recall += ranked[..TOP].iter().filter(|i| new.contains(i)).count() as f64 / new.len() as f64;
        let labels: Vec<i8> = ranked.iter().map(|i| i8::from(new.contains(i))).collect();
        // `auc` takes probabilities; this keeps the order.
        let in_unit = |s: f32| 0.5 + 0.5 * s / (1.0 + s.abs());
        let scores: Vec<f32> = ranked.iter().map(|&i| in_unit(score(user, i as usize))).collect();
        auc += metrics::auc(&labels, &scores).unwrap().unwrap_or(0.5);
        count += 1.0;
    }
    println!("{name}: Recall@{TOP} {:.4}, AUC {:.4} over {count} users", recall / count, auc / count);
}
