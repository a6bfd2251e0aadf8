//! The CTR models' steps against PyTorch's autograd (`fixtures/neural_pytorch.py` made the numbers), and the training loop.

use burn::tensor::Device;
use rallrec_core::{
    params::{CtrModel, CtrParams},
    rng::row_rng,
};
use rallrec_recsys::{
    ctr::{CtrNetwork, Encoded, FeatureSpace, FieldSource, Matrix, SampleColumns, initial, train},
    draw, metrics,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    params: serde_json::Value,
    weights: Vec<(String, [usize; 2], Vec<f32>)>,
    batches: Vec<(Vec<u32>, Vec<i8>)>,
    losses: Vec<f32>,
    probe: Vec<u32>,
    probe_p: Vec<f32>,
    #[serde(rename = "final")]
    last: Vec<Vec<f32>>,
}

impl Fixture {
    /// The stage's defaults, but for what the fixture says.
    fn params(&self) -> CtrParams {
        let mut all = serde_json::to_value(CtrParams::default()).expect("plain values");
        let (all_map, own) = (all.as_object_mut().expect("a map"), self.params.as_object().expect("a map"));
        own.iter().for_each(|(name, value)| drop(all_map.insert(name.clone(), value.clone())));
        serde_json::from_value(all).expect("parameters of the stage")
    }
}

fn close(name: &str, ours: &[f32], theirs: &[f32]) {
    assert_eq!(ours.len(), theirs.len(), "{name}");
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4, "{name} differs by {worst:e}");
}

fn follows_pytorch(fixture: &str) {
    let f: Fixture = serde_json::from_str(fixture).expect("fixture");
    let params = f.params();
    let listed: Vec<_> = initial(56, &params, 1).into_iter().map(|m| (m.name, m.shape)).collect();
    assert_eq!(listed, f.weights.iter().map(|(name, shape, _)| (name.clone(), *shape)).collect::<Vec<_>>());
    let weights = f.weights.into_iter().map(|(name, shape, values)| Matrix { name, shape, values }).collect();
    let mut model = CtrNetwork::new(weights, &params, &Device::flex());
    let mut masks = row_rng(0, "unused", 0, 0);
    let losses: Vec<f32> = f.batches.iter().map(|(x, y)| model.step(x, y, &mut masks)).collect();
    close("loss", &losses, &f.losses);
    let ours = model.weights();
    assert_eq!(ours.len(), f.last.len());
    ours.iter().zip(&f.last).for_each(|(ours, theirs)| close(&ours.name, &ours.values, theirs));
    close("prediction", &model.predict(&f.probe), &f.probe_p);
}

#[test]
fn deepfm_follows_pytorch() {
    follows_pytorch(include_str!("fixtures/deepfm.json"));
}

#[test]
fn xdeepfm_follows_pytorch() {
    follows_pytorch(include_str!("fixtures/xdeepfm.json"));
}

#[test]
fn dcn_follows_pytorch() {
    follows_pytorch(include_str!("fixtures/dcn.json"));
}

#[test]
fn autoint_follows_pytorch() {
    follows_pytorch(include_str!("fixtures/autoint.json"));
}

/// Users and items in two camps each; a like is a match of camps, which only the product of two embeddings can tell.
struct Camps {
    user: Vec<i32>,
    item: Vec<i32>,
    label: Vec<i8>,
}

impl Camps {
    fn columns(&self) -> SampleColumns<'_> {
        SampleColumns { user: &self.user, item: &self.item }
    }
}

fn camps(count: usize, stream: u64) -> Camps {
    let mut rng = row_rng(1, "ctr.test", stream, 0);
    let user: Vec<i32> = (0..count).map(|_| draw::below(&mut rng, 20) as i32).collect();
    let item: Vec<i32> = (0..count).map(|_| draw::below(&mut rng, 30) as i32).collect();
    let label = user.iter().zip(&item).map(|(u, i)| i8::from(u % 2 == i % 2)).collect();
    Camps { user, item, label }
}

#[test]
fn training_finds_interactions_stops_early_and_is_repeatable() {
    let (same_user, same_item) = (vec![String::new(); 20], vec![String::new(); 30]);
    let source = FieldSource {
        gender: &same_user,
        age: &same_user,
        job: &same_user,
        zip: &same_user,
        genre: &same_item,
        year: &[None; 30],
    };
    let (fit, valid) = (camps(2000, 0), camps(500, 1));
    let space = FeatureSpace::fit(source, fit.columns()).expect("consistent");
    let (x, v) = (space.encode(fit.columns()).expect("known"), space.encode(valid.columns()).expect("known"));
    let auc = |labels: &[i8], p: &[f32]| metrics::auc(labels, p).expect("equally long");
    let run = |model, threads| {
        let params = CtrParams {
            model,
            embedding_dim: 4,
            hidden: vec![16],
            attention_dim: 8,
            dropout: 0.1,
            learning_rate: 0.01,
            batch_size: 64,
            ..CtrParams::default()
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            let samples =
                [Encoded { features: &x, labels: &fit.label }, Encoded { features: &v, labels: &valid.label }];
            train(&space, &params, 5, samples, &Device::flex(), &mut |_| true).expect("trains")
        })
    };
    for model in [CtrModel::DeepFm, CtrModel::XDeepFm, CtrModel::Dcn, CtrModel::AutoInt] {
        let (one, two) = (run(model, 1), run(model, 2));
        assert_eq!(one.model.weights(), two.model.weights(), "{model:?}");
        let best = one.valid_auc[one.best_epoch as usize - 1];
        assert!(best > 0.95, "{model:?}: {:?}", one.valid_auc);
        assert_eq!(auc(&valid.label, &one.model.predict(&v)), Some(best), "the best epoch's weights are restored");
        assert!(one.valid_auc.len() <= CtrParams::default().max_epochs as usize);
    }
}

#[test]
fn batches_large_enough_for_threads_give_the_same_bits() {
    let fit = camps(3000, 2);
    let x: Vec<u32> = (0..fit.user.len() * 8).map(|k| (k as u32 * 7 + fit.user[k / 8] as u32) % 500).collect();
    let run = |model, threads| {
        let params = CtrParams { model, dropout: 0.2, ..CtrParams::default() };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            let mut model = CtrNetwork::new(initial(500, &params, 1), &params, &Device::flex());
            for step in 0..3 {
                model.step(&x, &fit.label, &mut row_rng(1, "ctr.test", step, 9));
            }
            model.weights()
        })
    };
    for model in [CtrModel::DeepFm, CtrModel::XDeepFm, CtrModel::Dcn, CtrModel::AutoInt] {
        let once = run(model, 1);
        assert_eq!(once, run(model, 2), "{model:?}");
        assert_eq!(once, run(model, 4), "{model:?}");
    }
}
