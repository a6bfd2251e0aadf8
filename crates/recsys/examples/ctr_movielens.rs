//! A CTR model on MovieLens-1M's time split: test AUC, log loss and accuracy, to be set beside `ctr_pytorch.py`'s.
//!
//! Usage: `cargo run --release --workspace --example ctr_movielens -- FOLDER MODEL [SEEDS] [NAME=VALUE...]`, where FOLDER
//! has ratings.dat, users.dat and movies.dat, and NAME is a parameter of the `ctr` stage. It reads the raw files itself, so that it depends on the training alone.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an example for developers")]

use burn::tensor::Device;
use rallrec_core::params::CtrParams;
use rallrec_recsys::{
    ctr::{Encoded, FeatureSpace, FieldSource, SampleColumns, train},
    metrics,
};
use std::{collections::HashMap, path::Path, time::Instant};

/// Samples of one split as columns.
#[derive(Default)]
struct Columns {
    user: Vec<i32>,
    item: Vec<i32>,
    label: Vec<i8>,
}

impl Columns {
    fn samples(&self) -> SampleColumns<'_> {
        SampleColumns { user: &self.user, item: &self.item }
    }
}

fn lines(folder: &Path, file: &str) -> Vec<Vec<String>> {
    let bytes = std::fs::read(folder.join(file)).unwrap();
    let text: String = bytes.into_iter().map(char::from).collect(); // ISO-8859-1
    text.lines().map(|l| l.split("::").map(str::to_owned).collect()).collect()
}

fn column(rows: &[Vec<String>], at: usize) -> Vec<String> {
    rows.iter().map(|r| r[at].clone()).collect()
}

/// Samples by (timestamp, user, item) with 5 earlier ratings of their user, cut 80/10/10.
fn splits(folder: &Path, users: &[Vec<String>], movies: &[Vec<String>]) -> [Columns; 3] {
    let position =
        |rows: &[Vec<String>]| -> HashMap<String, i32> { (0..).zip(rows).map(|(i, r)| (r[0].clone(), i)).collect() };
    let (user_at, item_at) = (position(users), position(movies));
    let mut ratings: Vec<(i64, i64, i64, i32, i32, i8)> = lines(folder, "ratings.dat")
        .iter()
        .map(|r| {
            let number = |at: usize| r[at].parse::<i64>().unwrap();
            (number(3), number(0), number(1), user_at[&r[0]], item_at[&r[1]], i8::from(number(2) > 3))
        })
        .collect();
    ratings.sort_unstable();
    let mut seen = vec![0u32; users.len()];
    ratings.retain(|r| {
        seen[r.3 as usize] += 1;
        seen[r.3 as usize] > 5
    });
    let first = ratings.len() * 8 / 10;
    let second = first + ratings.len() / 10;
    let mut out = [Columns::default(), Columns::default(), Columns::default()];
    for (row, rating) in ratings.iter().enumerate() {
        let part = &mut out[usize::from(row >= first) + usize::from(row >= second)];
        part.user.push(rating.3);
        part.item.push(rating.4);
        part.label.push(rating.5);
    }
    out
}

/// The stage's defaults, but for the model and what the command line says.
fn params(model: &str, set: &[String]) -> CtrParams {
    let mut all = serde_json::to_value(CtrParams::default()).unwrap();
    all["model"] = model.into();
    for setting in set {
        let (name, value) = setting.split_once('=').unwrap();
        all[name] = serde_json::from_str(value).unwrap();
    }
    serde_json::from_value(all).unwrap()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = Path::new(&arguments[0]);
    let model = &arguments[1];
    let seeds: u64 = arguments.get(2).map_or(1, |s| s.parse().unwrap());
    let params = params(model, arguments.get(3..).unwrap_or_default());
    let (users, movies) = (lines(folder, "users.dat"), lines(folder, "movies.dat"));
    let splits = splits(folder, &users, &movies);
    println!("samples {:?}", splits.each_ref().map(|s| s.label.len()));

    let genre: Vec<String> = movies.iter().map(|m| m[2].split('|').next().unwrap().to_owned()).collect();
    let year: Vec<Option<i32>> =
        movies.iter().map(|m| m[1].trim_end_matches(')').rsplit('(').next().and_then(|y| y.parse().ok())).collect();
    let (gender, age, job, zip) = (column(&users, 1), column(&users, 2), column(&users, 3), column(&users, 4));
    let source = FieldSource { gender: &gender, age: &age, job: &job, zip: &zip, genre: &genre, year: &year };
    let space = FeatureSpace::fit(source, splits[0].samples()).unwrap();
    let encoded = splits.each_ref().map(|s| space.encode(s.samples()).unwrap());
    println!("features {}", space.len());

    let auc = |labels: &[i8], p: &[f32]| metrics::auc(labels, p).unwrap();
    for seed in 1..=seeds {
        let given = |i: usize| Encoded { features: &encoded[i], labels: &splits[i].label };
        let start = Instant::now();
        let trained = train(&space, &params, seed, [given(0), given(1)], &Device::flex(), &mut |_| true).unwrap();
        let seconds = start.elapsed().as_secs_f64() / trained.losses.len() as f64;
        let (p, labels) = (trained.model.predict(&encoded[2]), &splits[2].label);
        let count = labels.len() as f64;
        let log_loss =
            labels.iter().zip(&p).map(|(&l, &p)| -f64::from(if l == 1 { p } else { 1.0 - p }).ln()).sum::<f64>()
                / count;
        let right = labels.iter().zip(&p).filter(|(l, p)| (**l == 1) == (**p > 0.5)).count() as f64 / count;
        println!(
            "{model}, seed {seed}: test auc {:.4} logloss {log_loss:.4} accuracy {right:.4}; best epoch {} of {}, valid auc {:.4?}, {seconds:.1} s an epoch",
            auc(labels, &p).unwrap(),
            trained.best_epoch,
            trained.losses.len(),
            trained.valid_auc,
        );
    }
}
