//! The real data sets, where the archives are beside the repository (`../shared/data`): counts of the paper.

use rallrec_core::{
    params::{DatasetParams, Split, StageParams},
    spec::compile,
};
use rallrec_recsys::{
    dataset::{Dataset, Samples, load},
    history::UserHistories,
};
use std::{path::Path, process::Command, time::Instant};

/// Unpacks an archive of `../shared/data`; `None` when it is not there.
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn unpack(archive: &str) -> Option<tempfile::TempDir> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(archive);
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    let dir = tempfile::tempdir().expect("a temporary folder");
    let status = Command::new("tar").arg("xf").arg(&path).arg("-C").arg(dir.path()).status();
    assert!(status.expect("tar is installed").success());
    Some(dir)
}

/// The folder in `dir` that holds `file`: archives may wrap their files in one folder.
fn holding(dir: &Path, file: &str) -> std::path::PathBuf {
    let mut folders = vec![dir.to_path_buf()];
    folders.extend(std::fs::read_dir(dir).expect("a folder").filter_map(|e| Some(e.ok()?.path())));
    folders.into_iter().find(|f| f.join(file).exists()).expect("the archive holds the file")
}

fn positive_rate(samples: &Samples) -> f64 {
    samples.label.iter().map(|l| f64::from(*l)).sum::<f64>() / samples.len() as f64
}

fn sizes(data: &Dataset) -> [usize; 3] {
    [data.train.len(), data.valid.len(), data.test.len()]
}

#[test]
fn movielens_1m_has_the_papers_counts() {
    let Some(dir) = unpack("ml-1m.tar.xz") else { return };
    let started = Instant::now();
    let data = load(&holding(dir.path(), "ratings.dat"), &DatasetParams::default()).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    assert!(seconds < 20.0, "{seconds} s");
    assert_eq!(sizes(&data), [776_007, 97_000, 97_002]);
    assert_eq!((data.users.user.len(), data.items.item.len(), data.interactions.user.len()), (6_040, 3_883, 1_000_209));
    let rated: std::collections::HashSet<_> = data.interactions.item.iter().collect();
    assert_eq!((rated.len(), data.items.item_id.last().map(String::as_str)), (3_706, Some("3952")));
    let rates = [&data.train, &data.valid, &data.test].map(|s| (positive_rate(s) * 1_000.0).round());
    assert_eq!(rates, [580.0, 578.0, 544.0]);
    let stars = [1.0, 2.0, 3.0, 4.0, 5.0].map(|s| data.interactions.rating.iter().filter(|r| **r == s).count());
    assert_eq!(stars, [56_174, 107_557, 261_197, 348_971, 226_310]);
    assert!(data.items.year.iter().all(Option::is_some));
    assert!(data.items.title.iter().any(|t| t == "Misérables, Les (1995)"));
    // Nothing of the training period is at or after the first validation sample.
    let first = (data.valid.timestamp[0], data.valid.user[0], data.valid.item[0]);
    let all = &data.interactions;
    let keys = (0..all.user.len()).map(|i| ((all.timestamp[i], all.user[i], all.item[i]), all.period[i]));
    assert!(keys.filter(|(_, period)| *period == 0).all(|(key, _)| key < first));
    // A sample's history ends just before it.
    let histories = UserHistories::new(&all.user, &all.item, &all.rating, data.users.user.len()).unwrap();
    for i in (0..data.test.len()).step_by(997) {
        let (user, len) = (data.test.user[i], data.test.history_len[i]);
        assert!(!histories.of(user, len).unwrap().items.contains(&data.test.item[i]));
        assert_eq!(histories.of(user, len + 1).unwrap().items.last(), Some(&data.test.item[i]));
    }
}

#[test]
fn movielens_100k_is_read_whole() {
    let Some(dir) = unpack("ml-100k.tar.xz") else { return };
    let folder = holding(dir.path(), "u.data");
    let data = load(&folder, &DatasetParams::default()).unwrap();
    assert_eq!((data.users.user.len(), data.items.item.len(), data.interactions.user.len()), (943, 1_682, 100_000));
    // Every user has at least 20 ratings, so exactly five a user are no samples.
    let samples = 100_000 - 5 * 943;
    assert_eq!(sizes(&data), [samples * 8 / 10, samples / 10, samples - samples * 8 / 10 - samples / 10]);
    assert_eq!((data.items.title[0].as_str(), data.items.genre[0].as_str()), ("Toy Story (1995)", "Animation"));
    assert_eq!(data.items.year.iter().filter(|y| y.is_none()).count(), 1);
    let params = DatasetParams { split: Split::LeaveLastOut, ..DatasetParams::default() };
    assert_eq!(sizes(&load(&folder, &params).unwrap()), [samples - 2 * 943, 943, 943]);
}

/// The parameters of the shipped pipeline for data of one's own.
fn your_own_data() -> DatasetParams {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pipelines/your-own-data.yaml");
    let text = std::fs::read_to_string(path).expect("a shipped pipeline");
    let stages = compile("your-own-data.yaml", &text, &[]).expect("a right pipeline").stages;
    match stages.into_iter().next().expect("a stage").params {
        StageParams::Dataset(params) => params,
        other => panic!("{other:?}"),
    }
}

#[test]
fn movielens_latest_small_is_read_through_its_mapping() {
    let Some(dir) = unpack("ml-latest-small.tar.xz") else { return };
    let folder = holding(dir.path(), "ratings.csv");
    let whole = DatasetParams { min_user_ratings: 0, min_item_ratings: 0, ..your_own_data() };
    let data = load(&folder, &whole).unwrap();
    assert_eq!((data.users.user.len(), data.items.item.len(), data.interactions.user.len()), (610, 9_742, 100_836));
    // Every user has at least 20 ratings, so exactly five a user are no samples.
    let samples = 100_836 - 5 * 610;
    assert_eq!(sizes(&data), [samples * 8 / 10, samples / 10, samples - samples * 8 / 10 - samples / 10]);
    assert_eq!(data.items.genres.iter().filter(|g| g.is_empty()).count(), 34);
    assert_eq!((data.items.title[0].as_str(), data.items.genre[0].as_str()), ("Toy Story (1995)", "Adventure"));
    assert_eq!(data.items.year[0], Some(1995));
    // A comma within quotes, and a letter that is not ASCII.
    assert!(data.items.title.iter().any(|t| t == "American President, The (1995)"));
    assert!(data.items.title.iter().any(|t| t == "City of Lost Children, The (Cité des enfants perdus, La) (1995)"));
    let kept = load(&folder, &your_own_data()).unwrap();
    let count = |rows: &[i32], of: usize| {
        let mut counts = vec![0; of];
        rows.iter().for_each(|row| counts[*row as usize] += 1);
        counts
    };
    assert!(count(&kept.interactions.user, kept.users.user.len()).iter().all(|n| *n >= 10));
    assert!(count(&kept.interactions.item, kept.items.item.len()).iter().all(|n| *n >= 5));
}

#[test]
fn movielens_100k_is_the_same_through_a_mapping() {
    let Some(dir) = unpack("ml-100k.tar.xz") else { return };
    let folder = holding(dir.path(), "u.data");
    let text = "rallrec: 1
name: t
data: {d: {source: 'file:d'}}
stages:
  s:
    kind: dataset
    data: d
    with:
      mapping:
        ratings: {file: u.data, format: csv, separator: \"\\t\", columns: [u, i, r, t], user: u, item: i, rating: r, time: t}
        users: {file: u.user, format: csv, separator: '|', quote: '', columns: [u, age, sex, job, zip], id: u, gender: sex, age: age, job: job, zip: zip}
";
    let StageParams::Dataset(params) = compile("t.yaml", text, &[]).unwrap().stages.remove(0).params else { panic!() };
    let (mapped, known) = (load(&folder, &params).unwrap(), load(&folder, &DatasetParams::default()).unwrap());
    assert_eq!((mapped.interactions, mapped.users), (known.interactions, known.users));
    assert_eq!((mapped.train, mapped.valid, mapped.test), (known.train, known.valid, known.test));
    assert_eq!(mapped.items.item_id, known.items.item_id);
}

/// The archive has explicit ratings only, and only books that others kept, so fewer remain than the paper's 8,723 users,
/// 3,547 books and 227,735 ratings (147,856 of them implicit).
#[test]
fn bookcrossing_is_read_by_the_papers_rule_as_far_as_it_is_there() {
    let Some(dir) = unpack("bookcrossing-explicit.tar.xz") else { return };
    let params = DatasetParams {
        split: Split::ShuffledUsers,
        valid_fraction: 0.0,
        min_history: 4,
        like_above: 4.0,
        ..DatasetParams::default()
    };
    let data = load(&holding(dir.path(), "BX-Books.csv"), &params).unwrap();
    assert!(data.interactions.rating.iter().all(|r| (1.0..=10.0).contains(r)));
    assert_eq!((data.users.user.len(), data.items.item.len(), data.interactions.user.len()), (3_100, 1_201, 39_517));
    assert_eq!(sizes(&data), [2_790, 0, 310]);
}
