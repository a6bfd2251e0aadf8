//! A user's own files by a mapping, as it stands in a pipeline: formats, filters, splits, bad rows, and every refusal.

use rallrec_core::{
    params::{DatasetParams, StageParams},
    spec::compile,
};
use rallrec_recsys::dataset::{Dataset, DatasetError, load, load_with};
use std::{fs, sync::Arc};

/// The parameters of a `dataset` stage, from what stands below its `with:`.
fn params(with: &str) -> DatasetParams {
    let indented: String = with.lines().map(|line| format!("      {line}\n")).collect();
    let text = format!(
        "rallrec: 1\nname: t\ndata: {{d: {{source: \"file:d\"}}}}\nstages:\n  s:\n    kind: dataset\n    data: d\n    with:\n{indented}"
    );
    match compile("t.yaml", &text, &[]).expect("a right pipeline").stages.remove(0).params {
        StageParams::Dataset(params) => params,
        other => panic!("{other:?}"),
    }
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).expect("a small file");
    }
    dir
}

fn read(files: &[(&str, &[u8])], with: &str) -> Dataset {
    load(folder(files).path(), &params(with)).expect("right files")
}

/// The set, and the messages of the rows that were left out.
fn read_all(files: &[(&str, &[u8])], with: &str) -> (Result<Dataset, DatasetError>, Vec<String>) {
    let dir = folder(files);
    let mut bad = Vec::new();
    let set = load_with(dir.path(), &params(with), &mut |error| {
        bad.push(error.to_string().replace(&dir.path().display().to_string(), "DIR"));
        true
    });
    (set, bad)
}

fn refusal(files: &[(&str, &[u8])], with: &str) -> String {
    let dir = folder(files);
    let error = load(dir.path(), &params(with)).expect_err("a refusal").to_string();
    error.replace(&dir.path().display().to_string(), "DIR")
}

const PLAIN: &str = "min_history: 0
mapping:
  ratings: {file: r.csv, user: user, item: item, rating: stars, time: when}";

#[test]
fn ratings_alone_are_a_data_set() {
    let csv = b"\xef\xbb\xbfstars,when,item,user\n4,20,b,u2\n2.5,10,a,u1\n\n3,15,b,u1\n";
    let data = read(&[("r.csv", csv)], PLAIN);
    assert_eq!(
        (data.users.user_id, data.items.item_id),
        (vec!["u1".to_owned(), "u2".into()], vec!["a".to_owned(), "b".into()])
    );
    assert_eq!(data.items.title, ["a", "b"]);
    assert_eq!((data.interactions.user, data.interactions.item), (vec![0, 0, 1], vec![0, 1, 1]));
    assert_eq!((data.interactions.rating, data.interactions.timestamp), (vec![2.5, 3.0, 4.0], vec![10, 15, 20]));
    assert_eq!(data.verb, "watched");
}

#[test]
fn every_format_gives_the_same_set() {
    let csv = "user;item;stars;when\n1;10;4;2001-09-09\n1;9;2;2001-09-10T00:00:05Z\n2;10;5;2001-09-09 12:00\n";
    let tsv = "1\t10\t4\t1000000000\n";
    assert!(tsv.len() > 1);
    let by_csv = read(
        &[("r.txt", csv.as_bytes())],
        "min_history: 0
mapping:
  ratings: {file: r.txt, format: csv, separator: ';', user: user, item: item, rating: stars, time: when, time_format: iso}",
    );
    assert_eq!(by_csv.interactions.timestamp, [999_993_600, 1_000_036_800, 1_000_080_005]);
    // Identifiers that are all numbers are in the order of numbers.
    assert_eq!(by_csv.items.item_id, ["9", "10"]);
    let tsv = "1\t10\t4\t999993600\n1\t9\t2\t1000080005\n2\t10\t5\t1000036800\n";
    let by_tsv = read(
        &[("r.tsv", tsv.as_bytes())],
        "min_history: 0
mapping:
  ratings: {file: r.tsv, quote: '', columns: [u, i, r, t], user: u, item: i, rating: r, time: t}",
    );
    assert_eq!(by_csv, by_tsv);
    let json = r#"{"who": 1, "what": {"x": 1}, "isbn": "10", "stars": 4.0, "ms": 999993600000}
{"who": 1, "isbn": 9, "stars": "2", "ms": 1000080005999}

{"who": "2", "isbn": "10", "stars": 5, "ms": "1000036800000"}"#;
    let by_json = read(
        &[("r.jsonl", json.as_bytes())],
        "min_history: 0
mapping:
  ratings: {file: r.jsonl, user: who, item: isbn, rating: stars, time: ms, time_format: ms}",
    );
    assert_eq!(by_csv, by_json);
}

#[test]
fn parquet_gives_the_same_set() {
    use arrow_array::{
        ArrayRef, Float64Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMillisecondArray,
    };
    let write = |columns: Vec<(&str, ArrayRef)>| {
        let batch = RecordBatch::try_from_iter(columns).unwrap();
        let mut bytes = Vec::new();
        let mut writer = parquet::arrow::ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    };
    let ratings = write(vec![
        ("u", Arc::new(Int64Array::from(vec![1, 1, 2]))),
        ("i", Arc::new(StringArray::from(vec!["10", "9", "10"]))),
        ("s", Arc::new(Float64Array::from(vec![Some(4.0), None, Some(2.5)]))),
        ("t", Arc::new(TimestampMillisecondArray::from(vec![5_000, 6_000, 7_500]))),
        ("other", Arc::new(Int64Array::from(vec![0, 0, 0]))),
    ]);
    let genres =
        ListArray::from_iter_primitive::<arrow_array::types::Int32Type, _, _>([Some([Some(7), Some(8)]), None]);
    let items = write(vec![
        ("i", Arc::new(StringArray::from(vec!["10", "9"]))),
        ("name", Arc::new(StringArray::from(vec!["Ten", "Nine"]))),
        ("kinds", Arc::new(genres)),
    ]);
    let with = "min_history: 0
mapping:
  ratings: {file: r.parquet, user: u, item: i, rating: s, time: t, time_format: iso}
  items: {file: i.parquet, id: i, title: name, genres: kinds}";
    let (set, bad) = read_all(&[("r.parquet", &ratings), ("i.parquet", &items)], with);
    assert_eq!(
        bad,
        [
            "DIR/r.parquet:2: column \"s\": expected a value, found \"\"; correct the value, or allow bad rows by `max_bad_rows`"
        ]
    );
    let set = set.unwrap();
    assert_eq!((set.interactions.timestamp, set.interactions.rating), (vec![5, 7], vec![4.0, 2.5]));
    assert_eq!(
        (set.items.title, set.items.genres),
        (vec!["Nine".to_owned(), "Ten".into()], vec![vec![], vec!["7".to_owned(), "8".into()]])
    );
    let missing =
        refusal(&[("r.parquet", &ratings), ("i.parquet", &items)], &with.replace("title: name", "title: names"));
    assert!(missing.starts_with("DIR/i.parquet:1: no column \"names\" (found i, name, kinds)"), "{missing}");
    let broken = refusal(&[("r.parquet", &ratings), ("i.parquet", &items[..items.len() - 9])], with);
    assert!(broken.starts_with("DIR/i.parquet: Parquet error"), "{broken}");
}

const BOOKS: &str = "min_history: 0
like_above: 4
split: shuffled_ratings
mapping:
  verb: read
  ratings: {file: r.csv, user: u, item: i, rating: s}
  items:
    file: books.csv
    separator: ';'
    escape: '\\'
    encoding: cp1252
    missing: ['NULL']
    id: ISBN
    title: Title
    genres: Genres
    genre_separator: ','
    year: Year
    fields: {author: Author, publisher: Publisher}
  users:
    file: users.jsonl
    id: id
    gender: sex
    age: age
    job: work
    fields: {country: land}";

#[test]
fn texts_of_items_and_users_are_those_of_their_columns() {
    let books = b"ISBN;Title;Genres;Year;Author;Publisher\n\
        \"1\";\"The \\\"O\\\" ; book\";\" Crime, Drama,,\";2001;\"Andr\xe9\";\"\x93Q\x94\"\n\
        \"2\";Two;NULL;0;NULL;\n";
    let users = br#"{"id": "a", "sex": "F", "age": 34, "work": "cook", "land": ["Chile", "Peru"]}
{"id": "b", "sex": "diverse", "age": "unknown"}"#;
    let data = read(&[("r.csv", b"u,i,s\na,1,5\nb,2,0\n"), ("books.csv", books), ("users.jsonl", users)], BOOKS);
    assert_eq!((data.verb.as_str(), data.like_above), ("read", 4.0));
    assert_eq!(data.items.title, ["The \"O\" ; book", "Two"]);
    assert_eq!(data.items.genres, [vec!["Crime".to_owned(), "Drama".into()], vec![]]);
    assert_eq!((data.items.genre[0].as_str(), data.items.year), ("Crime", vec![Some(2001), None]));
    let further = |name: &str, texts: [&str; 2]| (name.to_owned(), texts.map(String::from).to_vec());
    assert_eq!(data.items.further, [further("author", ["André", ""]), further("publisher", ["“Q”", ""])]);
    assert_eq!(
        (data.users.gender, data.users.age),
        (vec!["female".into(), "diverse".to_owned()], vec!["25-34".into(), "unknown".to_owned()])
    );
    assert_eq!(data.users.job, ["cook", ""]);
    assert_eq!(data.users.further, [further("country", ["Chile, Peru", ""])]);
}

#[test]
fn bad_rows_are_told_with_their_place_and_left_out() {
    let csv = "user,item,stars,when\nu1,a,4,10\nu1,b,many,11\n\nu1,c,3\nu2,a,5,yesterday\n,a,1,12\nu3,a,NaN,1\nu1,a,2,13\nu2,b,1,14\n";
    let (set, bad) = read_all(&[("r.csv", csv.as_bytes())], PLAIN);
    insta::assert_snapshot!(bad.join("\n"), @r#"
    DIR/r.csv:3: column "stars": expected a number, found "many"; correct the value, or allow bad rows by `max_bad_rows`
    DIR/r.csv:5: expected 4 values (user, item, stars, when), found "u1,c,3"; correct the line, or fetch the data set again
    DIR/r.csv:6: column "when": expected whole seconds since 1970, found "yesterday"; correct the value, or allow bad rows by `max_bad_rows`
    DIR/r.csv:7: column "user": expected a value, found ""; correct the value, or allow bad rows by `max_bad_rows`
    DIR/r.csv:8: column "stars": expected a number, found "NaN"; correct the value, or allow bad rows by `max_bad_rows`
    DIR/r.csv:9: a rating of item "a" by user "u1" is already on line 2; remove one of the two
    "#);
    let set = set.unwrap();
    // Nothing is left of users and items that only bad rows name.
    assert_eq!(
        (set.users.user_id, set.items.item_id),
        (vec!["u1".to_owned(), "u2".into()], vec!["a".to_owned(), "b".into()])
    );
    assert_eq!(set.interactions.rating, [4.0, 1.0]);
    // A strict reading ends at the first of them.
    assert_eq!(refusal(&[("r.csv", csv.as_bytes())], PLAIN), bad[0]);
}

#[test]
fn lines_are_those_of_the_file() {
    for end in ["\n", "\r\n"] {
        let csv = "user,item,stars,when\n\n\nu1,a,x,1\nu1,\"b\nb\",1,1\nu1,c,x,1\n\nu1,\"d\n\nd\",x,1\n\n\nu1,e,x,1\n";
        let (_, bad) = read_all(&[("r.csv", csv.replace('\n', end).as_bytes())], PLAIN);
        let lines: Vec<_> = bad.iter().map(|m| m.split(':').nth(1).unwrap().to_owned()).collect();
        assert_eq!(lines, ["4", "7", "9", "14"], "{end:?}");
    }
}

#[test]
fn bad_rows_of_items_and_users_are_told_too() {
    let books = b"ISBN;Title;Genres;Year;Author;Publisher\n1;One;;2001;;\n2;;;2001;;\n1;Again;;2001;;\n3;Three;;two;;\n4;Four\n";
    let users =
        b"{\"id\": \"a\", \"age\": 200}\n{\"id\": \"b\", \"sex\": {}}\nnothing\n{\"age\": 20}\n{\"id\": \"c\"}\n";
    let ratings = b"u,i,s\na,1,5\nc,1,5\nc,3,1\n";
    let (set, bad) = read_all(&[("r.csv", ratings), ("books.csv", books), ("users.jsonl", users)], BOOKS);
    insta::assert_snapshot!(bad.join("\n"), @r#"
    DIR/books.csv:3: column "Title": expected a value, found ""; correct the value, or allow bad rows by `max_bad_rows`
    DIR/books.csv:5: column "Year": expected a year, or 0 for none, found "two"; correct the value, or allow bad rows by `max_bad_rows`
    DIR/books.csv:6: expected 6 values (ISBN, Title, Genres, Year, Author, Publisher), found "4;Four"; correct the line, or fetch the data set again
    DIR/books.csv:4: item "1" is already on line 2; remove one of the two
    DIR/users.jsonl:1: column "age": expected an age in years, at most 130, found "200"; correct the value, or allow bad rows by `max_bad_rows`
    DIR/users.jsonl:2: column "sex": expected a text, a number, or a list of them, found "{}"; correct the value, or allow bad rows by `max_bad_rows`
    DIR/users.jsonl:3: expected one JSON object (expected ident at line 1 column 2), found "nothing"; correct the line, or fetch the data set again
    DIR/users.jsonl:4: column "id": expected a value, found ""; correct the value, or allow bad rows by `max_bad_rows`
    DIR/r.csv:2: user "a" is not in DIR/users.jsonl; add it there, or remove the rating
    DIR/r.csv:4: item "3" is not in DIR/books.csv; add it there, or remove the rating
    "#);
    let set = set.unwrap();
    assert_eq!(
        (set.users.user_id, set.items.title, set.interactions.rating),
        (vec!["c".to_owned()], vec!["One".to_owned()], vec![5.0])
    );
}

#[test]
fn bad_rows_of_the_known_layouts_are_left_out_too() {
    let movies = b"3::Alpha (1990)::Drama\n20::\n";
    let users = b"7::M::1::0::00000\n8::X::1::0::0\n";
    let ratings = b"7::3::5::10\n7::20::5::11\n8::3::5::12\n7::3::4::13\n7::3\n";
    let dir = folder(&[("movies.dat", movies), ("users.dat", users), ("ratings.dat", ratings)]);
    let mut bad = Vec::new();
    let strict = DatasetParams { min_history: 0, ..DatasetParams::default() };
    let set = load_with(dir.path(), &strict, &mut |error| {
        bad.push(error.bad_row());
        bad.len() <= 6
    });
    assert_eq!(bad, [2, 2, 2, 3, 5, 4].map(Some));
    assert_eq!(set.unwrap().interactions.timestamp, [10]);
}

#[test]
fn files_that_cannot_be_read_at_all_are_refused() {
    let open = format!("user,item,stars,when\nu1,\"a,4,10\n{}", "u1,b,3,11\n".repeat(2000));
    let messages = [
        refusal(&[], PLAIN),
        refusal(&[("r.csv", b"user,item,rating,when\n")], PLAIN),
        refusal(&[("r.csv", b"")], PLAIN),
        refusal(&[("r.csv", b"user,item,stars,when\n")], PLAIN),
        refusal(&[("r.csv", b"user,item,stars,when\nu\xff,b,3,4\n")], PLAIN),
        refusal(&[("r.csv", open.as_bytes())], PLAIN),
        refusal(&[("r.csv", b"user,item,stars,when\nu1,b,3,4\n")], &format!("min_item_ratings: 2\n{PLAIN}")),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r#"
    DIR/r.csv: No such file or directory (os error 2); check that the file is there and readable
    DIR/r.csv:1: no column "stars" (found user, item, rating, when); name another below `mapping`, or give the file's own by `columns`
    DIR/r.csv:1: no column "user" (found ); name another below `mapping`, or give the file's own by `columns`
    none of the 0 ratings has 0 earlier ratings of its user; lower `min_history`, or give a larger data set
    DIR/r.csv:2: column "user": expected UTF-8 text (or set `encoding`), found "u�"; correct the value, or allow bad rows by `max_bad_rows`
    DIR/r.csv:2: a quoted value goes on for 2002 lines, so a quote is missing, or it is none; correct the line, or set `quote` ("" for none) and `escape`
    the core filter leaves none of the 1 ratings; lower `min_user_ratings` or `min_item_ratings`, or raise `max_user_ratings` or `max_item_ratings`
    "#);
}

/// Ratings as CSV: (user, item) pairs, later ones at later times.
fn pairs(pairs: &[(u32, u32)]) -> Vec<u8> {
    let rows = pairs.iter().enumerate().map(|(at, (user, item))| format!("{user},{item},{},{at}\n", 1 + at % 5));
    ["user,item,stars,when\n".to_owned()].into_iter().chain(rows).collect::<String>().into_bytes()
}

/// Users 1..=n, each with every item 1..=m.
fn grid(users: u32, items: u32) -> Vec<(u32, u32)> {
    (1..=items).flat_map(|item| (1..=users).map(move |user| (user, item))).collect()
}

#[test]
fn the_core_filter_runs_to_its_fixed_point() {
    // 3 x 3 ratings hold one another; user 4 has two, one of them on item 4, which then has one; item 5 has too many.
    let mut ratings = grid(3, 3);
    ratings.extend([(4, 1), (4, 4), (5, 4)]);
    ratings.extend((10..20).map(|user| (user, 5)));
    let filter = |with: &str| {
        let data = read(&[("r.csv", &pairs(&ratings))], &format!("{with}\n{PLAIN}"));
        (data.users.user_id, data.items.item_id, data.interactions.user.len())
    };
    let ids = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>();
    assert_eq!(
        filter("min_user_ratings: 2\nmin_item_ratings: 2\nmax_item_ratings: 9"),
        (ids(&[1, 2, 3]), ids(&[1, 2, 3]), 9)
    );
    // Item 5 is the most rated one; then 1 has four, and of 2 and 3, which have three, the smaller stays.
    let (users, items, count) = filter("top_items: 3");
    assert_eq!((users.len(), items, count), (14, ids(&[1, 2, 5]), 4 + 3 + 10));
    assert_eq!(filter("max_user_ratings: 2\nmin_user_ratings: 2"), (ids(&[4]), ids(&[1, 4]), 2));
    // Without a filter, everything stays.
    assert_eq!(filter("like_above: 3").2, ratings.len());
}

fn sizes(data: &Dataset) -> [usize; 3] {
    [data.train.len(), data.valid.len(), data.test.len()]
}

#[test]
fn shuffled_users_give_one_sample_each() {
    let files: &[(&str, &[u8])] = &[("r.csv", &pairs(&grid(20, 6)))];
    let with = |seed: u32| {
        format!("split: shuffled_users\nsplit_seed: {seed}\nvalid_fraction: 0.25\ntest_fraction: 0.25\n{PLAIN}")
            .replace("min_history: 0", "min_history: 5")
    };
    let data = read(files, &with(1));
    assert_eq!(sizes(&data), [10, 5, 5]);
    assert!([&data.train, &data.valid, &data.test].iter().all(|s| s.history_len.iter().all(|len| *len == 5)));
    // With times, the last rating is the target; all others are training.
    assert!(data.test.item.iter().all(|item| *item == 5));
    assert_eq!(data.interactions.period.iter().filter(|p| **p == 0).count(), 120 - 10);
    assert_eq!(data, read(files, &with(1)));
    assert_ne!(data.test.user, read(files, &with(2)).test.user);
}

#[test]
fn ratings_without_times_are_shuffled_by_the_seed() {
    let files: &[(&str, &[u8])] = &[("r.csv", &pairs(&grid(30, 8)))];
    let untimed = PLAIN.replace(", time: when", "").replace("min_history: 0", "min_history: 4");
    let data = read(files, &format!("split: shuffled_users\nvalid_fraction: 0\n{untimed}"));
    assert_eq!(sizes(&data), [27, 0, 3]);
    // Targets differ, and a timestamp is a place in the user's order.
    assert!(data.train.item.iter().collect::<std::collections::BTreeSet<_>>().len() > 3);
    assert!(data.train.timestamp.iter().all(|t| *t == 7));
    let mut reversed = grid(30, 8);
    reversed.reverse();
    // Stars go by place in `pairs`, so only who rated what when is compared.
    let again = read(&[("r.csv", &pairs(&reversed))], &format!("split: shuffled_users\nvalid_fraction: 0\n{untimed}"));
    assert_eq!((again.interactions.item, again.test.user), (data.interactions.item, data.test.user));
}

#[test]
fn shuffled_ratings_keep_later_parts_out_of_training_histories() {
    let data = read(
        &[("r.csv", &pairs(&grid(25, 8)))],
        &format!("split: shuffled_ratings\nvalid_fraction: 0.2\ntest_fraction: 0.2\n{PLAIN}"),
    );
    assert_eq!(sizes(&data), [120, 40, 40]);
    assert!(data.interactions.period.is_sorted());
    for (part, samples) in (0..).zip([&data.train, &data.valid, &data.test]) {
        for i in 0..samples.len() {
            let own: Vec<usize> = (0..200).filter(|row| data.interactions.user[*row] == samples.user[i]).collect();
            let (history, target) = own.split_at(samples.history_len[i] as usize);
            assert!(history.iter().all(|row| data.interactions.period[*row] <= part));
            assert_eq!(data.interactions.item[target[0]], samples.item[i]);
        }
    }
}
