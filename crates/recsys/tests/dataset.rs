//! The invented data set of `tests/fixtures` in its three layouts, splits by hand, and every refusal's message.

use rallrec_core::params::{DatasetFormat, DatasetParams, Split};
use rallrec_recsys::dataset::{Dataset, Samples, load};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn read(name: &str) -> Dataset {
    load(&fixture(name), &DatasetParams::default()).expect("a committed fixture")
}

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("a small file");
    }
    dir
}

#[test]
fn three_layouts_give_one_data_set() {
    let (ml_1m, ml_100k, recbole) = (read("tiny-1m"), read("tiny-100k"), read("tiny-recbole"));
    assert_eq!(ml_100k, recbole);
    assert_eq!((&ml_1m.users.age, &ml_1m.users.job), (&ml_100k.users.age, &ml_100k.users.job));
    assert_eq!(ml_1m, ml_100k);
}

#[test]
fn fields_are_those_of_the_files() {
    let data = read("tiny-1m");
    assert_eq!((data.items.item.len(), data.users.user.len(), data.interactions.user.len()), (60, 40, 1004));
    assert_eq!((data.verb.as_str(), data.like_above), ("watched", 3.0));
    assert_eq!(data.items.item, (0..60).collect::<Vec<_>>());
    assert_eq!((data.items.item_id[20].as_str(), data.items.item_id[59].as_str()), ("22", "62"));
    assert_eq!(data.items.title[9], "Café of the Lighthouse (1967)");
    assert_eq!((data.items.genre[1].as_str(), data.items.year[1]), ("Action", Some(1959)));
    assert_eq!(data.items.genres[1], ["Action", "Animation"]);
    let user = [&data.users.user_id, &data.users.gender, &data.users.age, &data.users.job, &data.users.zip]
        .map(|c| c[0].as_str());
    assert_eq!(user, ["1", "female", "50-55", "retired", "42731"]);
}

/// Promises that hold for every data set and split.
fn check(data: &Dataset, min_history: i32) {
    let all = &data.interactions;
    let order: Vec<_> = (0..all.user.len()).map(|i| (all.timestamp[i], all.user[i], all.item[i])).collect();
    assert!(order.is_sorted());
    let parts: [&Samples; 3] = [&data.train, &data.valid, &data.test];
    let mut positions: Vec<i64> = parts.iter().flat_map(|p| p.sample.clone()).collect();
    positions.sort_unstable();
    assert_eq!(positions, (0..positions.len() as i64).collect::<Vec<_>>());
    for (period, samples) in (0_i8..).zip(parts) {
        for i in 0..samples.len() {
            let key = (samples.timestamp[i], samples.user[i], samples.item[i]);
            let row = order.binary_search(&key).expect("a sample is an interaction");
            assert_eq!(all.period[row], period);
            let earlier = all.user[..row].iter().filter(|u| **u == samples.user[i]).count();
            assert_eq!(earlier as i32, samples.history_len[i]);
            assert!(samples.history_len[i] >= min_history);
            assert_eq!(samples.label[i] == 1, f64::from(samples.rating[i]) > data.like_above);
        }
    }
    let train: i32 = data.items.train_ratings.iter().sum();
    assert_eq!(train as usize, all.period.iter().filter(|p| **p == 0).count());
}

#[test]
fn samples_are_cut_by_time() {
    let data = read("tiny-100k");
    check(&data, 5);
    // 1004 ratings less the first five of each of 40 users: 804 samples.
    assert_eq!([data.train.len(), data.valid.len(), data.test.len()], [643, 80, 81]);
    assert!(data.interactions.period.is_sorted());
    for samples in [&data.train, &data.valid, &data.test] {
        assert!(samples.label.contains(&0) && samples.label.contains(&1));
    }
    let params = DatasetParams {
        min_history: 0,
        valid_fraction: 0.0,
        test_fraction: 0.25,
        like_above: 3.5,
        ..DatasetParams::default()
    };
    let data = load(&fixture("tiny-100k"), &params).unwrap();
    check(&data, 0);
    assert_eq!([data.train.len(), data.valid.len(), data.test.len()], [753, 0, 251]);
}

const MOVIES: &str = "3::Alpha (1990)::Drama\n20::Beta::Comedy|Drama\n100::Gamma (x) (2001) (V)::\n";
const USERS: &str = "7::M::1::0::00000\n10::F::56::20::11111-2222\n";

#[test]
fn leave_last_out_goes_by_each_users_own_order() {
    let ratings = "7::3::5::10\n7::20::4::20\n7::100::3::30\n10::3::2::40\n10::20::1::50\n";
    let dir = folder(&[("movies.dat", MOVIES), ("users.dat", USERS), ("ratings.dat", ratings)]);
    let params = DatasetParams { split: Split::LeaveLastOut, min_history: 0, ..DatasetParams::default() };
    let data = load(dir.path(), &params).unwrap();
    check(&data, 0);
    // User 7 has three ratings; user 10 has two, both for training though they are later.
    assert_eq!(data.interactions.period, [0, 1, 2, 0, 0]);
    assert_eq!((data.train.sample, data.valid.sample, data.test.sample), (vec![0, 3, 4], vec![1], vec![2]));
    let params = DatasetParams { split: Split::LeaveLastOut, ..DatasetParams::default() };
    let data = load(&fixture("tiny-1m"), &params).unwrap();
    check(&data, 5);
    assert_eq!([data.valid.len(), data.test.len()], [40, 40]);
    assert!(!data.interactions.period.is_sorted());
}

#[test]
fn ties_in_time_go_by_number_of_user_and_item() {
    let ratings = "10::100::1::5\r\n7::20::2::5\r\n7::3::3.5::5\r\n10::20::4::4\r\n";
    let dir = folder(&[("movies.dat", MOVIES), ("users.dat", USERS), ("ratings.dat", ratings)]);
    let params = DatasetParams { min_history: 0, ..DatasetParams::default() };
    let data = load(dir.path(), &params).unwrap();
    assert_eq!((data.interactions.user, data.interactions.item), (vec![1, 0, 0, 1], vec![1, 0, 1, 2]));
    assert_eq!(data.interactions.rating, [4.0, 3.5, 2.0, 1.0]);
    assert_eq!(data.items.year, [Some(1990), None, Some(2001)]);
    assert_eq!(data.items.genre, ["Drama", "Comedy", ""]);
    assert_eq!(
        (data.users.age, data.users.job),
        (vec!["under 18".into(), "above 56".into()], vec!["other".into(), "writer".into()])
    );
}

const ITEM_HEADER: &str = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n";
const USER_HEADER: &str = "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n";

#[test]
fn atomic_files_are_read_by_column_name() {
    let dir = folder(&[
        (
            "x.item",
            "release_year:token\tgenre:token_seq\textra:float\titem_id:token\tmovie_title:token_seq\n1995\tDrama War\t0\ta\tHeat\nunkonwn\tunknown\t0\tb\tunknown\n",
        ),
        ("x.user", &format!("{USER_HEADER}u2\t30\tM\t12\tz\nu1\t1\tF\tnone\tz\n")),
        (
            "x.inter",
            "timestamp:float\trating:float\tuser_id:token\titem_id:token\n978300760.0\t4.5\tu2\ta\n5\t1\tu1\tb\n",
        ),
    ]);
    let data = load(dir.path(), &DatasetParams { min_history: 0, ..DatasetParams::default() }).unwrap();
    assert_eq!(
        (data.items.title, data.items.year),
        (vec!["Heat (1995)".into(), "unknown".to_owned()], vec![Some(1995), None])
    );
    assert_eq!(data.items.genres, [vec!["Drama".to_owned(), "War".into()], vec![]]);
    assert_eq!(
        (data.users.user_id, data.users.job),
        (vec!["u1".into(), "u2".to_owned()], vec!["none".into(), "programmer".to_owned()])
    );
    assert_eq!((data.interactions.timestamp, data.interactions.rating), (vec![5, 978_300_760], vec![1.0, 4.5]));
}

/// Message for a folder of these files, its path as `DIR`.
fn refusal(files: &[(&str, &str)], params: &DatasetParams) -> String {
    let dir = folder(files);
    let error = load(dir.path(), params).expect_err("a refusal").to_string();
    error.replace(&dir.path().display().to_string(), "DIR")
}

#[test]
fn refusals_name_the_place_and_the_way_out() {
    const RATINGS: &str = "7::3::5::10\n10::20::4::20\n";
    let with = |name: &str, text: &str| {
        let good = [("movies.dat", MOVIES), ("users.dat", USERS), ("ratings.dat", RATINGS)];
        refusal(&good.map(|(n, t)| (n, if n == name { text } else { t })), &DatasetParams::default())
    };
    let flags = "0|".repeat(18);
    let item_100k = |flag: &str| format!("1|Alpha (1990)|01-Jan-1990|||{flags}{flag}\n");
    let atomic = |inter: &str, item: &str| {
        let item = format!("{ITEM_HEADER}{item}");
        let user = format!("{USER_HEADER}7\t30\tM\tnone\tz\n");
        refusal(&[("a.inter", inter), ("a.item", &item), ("a.user", &user)], &DatasetParams::default())
    };
    let inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n";
    let messages = [
        with("ratings.dat", "7::3::5::10\n7::20::4\n"),
        with("ratings.dat", "7::3::5::10\n\n7::20::4::20\n"),
        with("ratings.dat", "7::3::5.5::10\n"),
        with("ratings.dat", "7::3::NaN::10\n"),
        with("ratings.dat", "7::3::5::yesterday\n"),
        with("ratings.dat", "7::3::5::10.5\n"),
        with("ratings.dat", "7::4::5::10\n"),
        with("ratings.dat", "7::3::5::10\n8::3::5::10\n"),
        with("ratings.dat", "7::3::5::10\n10::3::5::11\n7::3::4::99\n"),
        with("ratings.dat", RATINGS),
        with("movies.dat", "3::Alpha (1990)::Drama\n3::Beta (1991)::Drama\n"),
        with("movies.dat", "3::Alpha::Omega (1990)::Drama\n"),
        with("movies.dat", "3:: ::Drama\n"),
        with("movies.dat", "::Alpha (1990)::Drama\n"),
        with("users.dat", "7::X::1::0::00000\n"),
        with("users.dat", "7::M::young::0::00000\n"),
        with("users.dat", "7::M::1::21::00000\n"),
        refusal(&[("u.data", ""), ("u.item", &item_100k("2")), ("u.user", "")], &DatasetParams::default()),
        refusal(&[("u.data", ""), ("u.item", "1|Alpha\n"), ("u.user", "")], &DatasetParams::default()),
        refusal(
            &[("u.data", "1 1 1 1\n"), ("u.item", &item_100k("1")), ("u.user", "1|24|M|none|z\n")],
            &DatasetParams::default(),
        ),
        atomic(inter, "3\tAlpha\t1990\n"),
        atomic("user_id:token\titem_id:token\trating:float\n7\t3\t5\n", "3\tAlpha\t1990\tDrama\n"),
        atomic(&format!("{inter}7\t3\t5\t10\t11\n"), "3\tAlpha\t1990\tDrama\n"),
        refusal(
            &[("a.inter", inter), ("b.inter", inter)],
            &DatasetParams { format: DatasetFormat::RecBole, ..DatasetParams::default() },
        ),
        refusal(&[], &DatasetParams::default()),
        refusal(&[("u.data", ""), ("ratings.dat", "")], &DatasetParams::default()),
        refusal(&[("ratings.dat", ""), ("movies.dat", "")], &DatasetParams::default()),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    DIR/ratings.dat:2: expected UserID::MovieID::Rating::Timestamp, found "7::20::4"; correct the line, or fetch the data set again
    DIR/ratings.dat:2: expected UserID::MovieID::Rating::Timestamp, found ""; correct the line, or fetch the data set again
    DIR/ratings.dat:1: expected a rating above 0 and up to 5 stars, found "5.5"; correct the line, or fetch the data set again
    DIR/ratings.dat:1: expected a rating above 0 and up to 5 stars, found "NaN"; correct the line, or fetch the data set again
    DIR/ratings.dat:1: expected a timestamp in seconds since 1970, found "yesterday"; correct the line, or fetch the data set again
    DIR/ratings.dat:1: expected a timestamp in seconds since 1970, found "10.5"; correct the line, or fetch the data set again
    DIR/ratings.dat:1: item "4" is not in DIR/movies.dat; add it there, or remove the rating
    DIR/ratings.dat:2: user "8" is not in DIR/users.dat; add it there, or remove the rating
    DIR/ratings.dat:3: a rating of item "3" by user "7" is already on line 1; remove one of the two
    none of the 2 ratings has 5 earlier ratings of its user; lower `min_history`, or give a larger data set
    DIR/movies.dat:2: item "3" is already on line 1; remove one of the two
    DIR/movies.dat:1: expected MovieID::Title::Genre|Genre, found "3::Alpha::Omega (1990)::Drama"; correct the line, or fetch the data set again
    DIR/movies.dat:1: expected a title, found "3:: ::Drama"; correct the line, or fetch the data set again
    DIR/movies.dat:1: expected a MovieID, found "::Alpha (1990)::Drama"; correct the line, or fetch the data set again
    DIR/users.dat:1: expected gender F or M, found "X"; correct the line, or fetch the data set again
    DIR/users.dat:1: expected an age in years, at most 130, found "young"; correct the line, or fetch the data set again
    DIR/users.dat:1: expected an occupation code from 0 to 20, found "21"; correct the line, or fetch the data set again
    DIR/u.item:1: expected genre flag 0 or 1, found "2"; correct the line, or fetch the data set again
    DIR/u.item:1: expected movie id|title|release date|video release date|address|19 genre flags, found "1|Alpha"; correct the line, or fetch the data set again
    DIR/u.data:1: expected user id, item id, rating and timestamp, separated by tabs, found "1 1 1 1"; correct the line, or fetch the data set again
    DIR/a.item:2: expected 4 fields separated by tabs (item_id, movie_title, release_year, class), found "3\tAlpha\t1990"; correct the line, or fetch the data set again
    DIR/a.inter:1: no column "timestamp" (found user_id, item_id, rating); add it to the header and to every line, or fetch the data set again
    DIR/a.inter:2: expected 4 fields separated by tabs (user_id, item_id, rating, timestamp), found "7\t3\t5\t10\t11"; correct the line, or fetch the data set again
    DIR: expected exactly one *.item file, found 0; keep the files of one data set in the folder
    DIR: no known data set here; expected ratings.dat, movies.dat and users.dat (movielens-1m), u.data, u.item and u.user (movielens-100k), one each of *.inter, *.item and *.user (recbole), BX-Book-Ratings.csv, BX-Books.csv and BX-Users.csv (bookcrossing), or Movies_and_TV.json and meta_Movies_and_TV.json (amazon); point `data` at the folder that holds these files themselves, or say by a `mapping` what its files are
    DIR: files of several layouts (movielens-1m, movielens-100k); set `format` to the one to read
    DIR/users.dat: No such file or directory (os error 2); check that the file is there and readable
    "#);
}

#[test]
fn fractions_must_leave_training_samples() {
    let params = DatasetParams { valid_fraction: 0.5, test_fraction: 0.5, ..DatasetParams::default() };
    let error = load(&fixture("tiny-1m"), &params).unwrap_err().to_string();
    assert_eq!(error, "valid_fraction 0.5 and test_fraction 0.5 leave no training samples; make their sum less than 1");
}

#[test]
fn text_that_is_not_utf_8_is_placed() {
    let dir = folder(&[("a.inter", ""), ("a.user", "")]);
    fs::write(dir.path().join("a.item"), [ITEM_HEADER.as_bytes(), b"1\tCaf\xe9\t1990\tDrama\n"].concat()).unwrap();
    let error = load(dir.path(), &DatasetParams::default()).unwrap_err().to_string();
    assert!(
        error.ends_with(
            "a.item:2: expected UTF-8 text, found \"byte 0xe9\"; correct the line, or fetch the data set again"
        ),
        "{error}"
    );
}
