//! LightGCN on real ratings: MovieLens-100k, where its archive is beside the repository (`../shared/data`).

use burn::tensor::Device;
use rallrec_core::params::{GraphEdges, LightGcnParams};
use rallrec_recsys::{graph::Graph, lightgcn::train, training::NoCheckpoints};
use std::{path::Path, process::Command};

const TOP: usize = 20;

/// Ratings (timestamp, user, item, stars) by time; `None` when the archive is not there.
#[expect(clippy::print_stdout, reason = "a skipped test must say so")]
fn ratings() -> Option<Vec<(i64, i32, i32, i32)>> {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/ml-100k.tar.xz");
    if !archive.is_file() {
        println!("skipped: {} is not there", archive.display());
        return None;
    }
    // The archive's own folder name is its business: every member ending in u.data is taken.
    let output = Command::new("tar").arg("xOf").arg(&archive).args(["--wildcards", "*u.data"]).output();
    let text = String::from_utf8(output.expect("tar is installed").stdout).expect("ASCII");
    let row = |line: &str| {
        let parts: Vec<i64> = line.split('\t').map(|v| v.parse().expect("a number")).collect();
        (parts[3], parts[0] as i32 - 1, parts[1] as i32 - 1, parts[2] as i32)
    };
    let mut ratings: Vec<_> = text.lines().map(row).collect();
    ratings.sort_unstable();
    assert_eq!(ratings.len(), 100_000);
    Some(ratings)
}

/// Mean over users with edges and new likes of the share of those likes among the 20 best items without an edge.
fn recall(graph: &Graph, future: &[(i64, i32, i32, i32)], score: &dyn Fn(usize, usize) -> f32) -> f64 {
    let mut likes = vec![Vec::new(); graph.users()];
    future.iter().filter(|r| r.3 > 3).for_each(|r| likes[r.1 as usize].push(r.2 as u32));
    let (mut sum, mut count) = (0.0, 0.0);
    for (user, likes) in likes.iter().enumerate() {
        let known = graph.edges_of(user as u32);
        let unknown = |i: &u32| known.binary_search_by_key(i, |edge| edge.1).is_err();
        let new: Vec<u32> = likes.iter().copied().filter(unknown).collect();
        if known.is_empty() || new.is_empty() {
            continue;
        }
        let mut ranked: Vec<u32> = (0..graph.items() as u32).filter(unknown).collect();
        ranked.sort_by(|&a, &b| score(user, b as usize).total_cmp(&score(user, a as usize)));
        sum += ranked[..TOP].iter().filter(|i| new.contains(i)).count() as f64 / new.len() as f64;
        count += 1.0;
    }
    sum / count
}

#[test]
fn beats_popularity_on_the_likes_of_the_later_fifth() {
    let Some(ratings) = ratings() else { return };
    let (past, future) = ratings.split_at(80_000);
    let (user, item): (Vec<i32>, Vec<i32>) = past.iter().map(|r| (r.1, r.2)).unzip();
    let stars: Vec<f32> = past.iter().map(|r| r.3 as f32).collect();
    let graph = Graph::from_ratings((943, 1682), &user, &item, &stars, GraphEdges::Positive, 3.0).expect("consistent");
    let params = LightGcnParams { epochs: 10, ..LightGcnParams::default() };
    let learned = train(&graph, &params, 42, &Device::flex(), &mut |_| true, &mut NoCheckpoints).expect("trains");

    let dim = params.dim as usize;
    let ours = recall(&graph, future, &|u, i| {
        let (user, item) = (&learned.users[u * dim..][..dim], &learned.items[i * dim..][..dim]);
        user.iter().zip(item).map(|(a, b)| a * b).sum()
    });
    let mut popular = vec![0f32; graph.items()];
    graph.edges().iter().for_each(|&(_, i)| popular[i as usize] += 1.0);
    let popularity = recall(&graph, future, &|_, i| popular[i]);
    println!("Recall@{TOP}: LightGCN {ours:.4}, popularity {popularity:.4}; losses {:.4?}", learned.losses);
    assert!(ours > popularity * 1.05, "LightGCN {ours}, popularity {popularity}");
}
