//! The paper's other sets, BookCrossing and Amazon, on small files in their formats: their rules, and what is read.

use rallrec_core::params::{DatasetParams, Split};
use rallrec_recsys::dataset::{Dataset, load};
use std::{fmt::Write, fs, path::Path};

fn sizes(data: &Dataset) -> [usize; 3] {
    [data.train.len(), data.valid.len(), data.test.len()]
}

/// The paper's setting for BookCrossing.
fn bookcrossing() -> DatasetParams {
    DatasetParams {
        split: Split::ShuffledUsers,
        valid_fraction: 0.0,
        min_history: 4,
        like_above: 4.0,
        ..DatasetParams::default()
    }
}

/// Twelve readers with all of twelve books hold one another in the core; the others have less, or more.
fn bookcrossing_files() -> tempfile::TempDir {
    let mut ratings = "\"User-ID\";\"ISBN\";\"Book-Rating\"\r\n".to_owned();
    let mut add = |user: u32, book: u32| {
        write!(ratings, "\"{user}\";\"{book:010}\";\"{}\"\r\n", (user + book) % 11).expect("memory");
    };
    (1..=12).for_each(|user| (1..=12).for_each(|book| add(user, book)));
    // Six and four ratings of kept books: not in the core, but the first stays in the set.
    (1..=6).for_each(|book| add(20, book));
    (1..=4).for_each(|book| add(21, book));
    // Too many ratings for the core, of which ten are of kept books: stays, too.
    (3..=12).chain(100..300).for_each(|book| add(22, book));
    // A book that enough readers of the core have, but of which nothing is known.
    (1..=12).for_each(|user| add(user, 99));
    let mut books =
        "\"ISBN\";\"Book-Title\";\"Book-Author\";\"Year-Of-Publication\";\"Publisher\";\"Image-URL-S\"\r\n".to_owned();
    for book in (1..=12).chain(100..300) {
        let year = if book == 2 { 0 } else { 1990 + book };
        write!(books, "\"{book:010}\";\"Book \\\"{book}\\\"; again\";\"Author\";\"{year}\";\"Caf\u{1}\";\"\"\r\n")
            .expect("memory");
    }
    let mut users = "\"User-ID\";\"Location\";\"Age\"\r\n".to_owned();
    users += "\"1\";\"timmins, ontario, canada\";\"34\"\r\n\"2\";\"x, n/a, n/a\";NULL\r\n\"3\";\"rome, , italy\";\"239\"\r\n";
    let dir = tempfile::tempdir().expect("a temporary folder");
    let cp1252 = |text: &str| text.bytes().map(|b| if b == 1 { 0xe9 } else { b }).collect::<Vec<_>>();
    for (name, text) in [("BX-Book-Ratings.csv", &ratings), ("BX-Books.csv", &books), ("BX-Users.csv", &users)] {
        fs::write(dir.path().join(name), cp1252(text)).expect("a small file");
    }
    dir
}

#[test]
fn bookcrossing_goes_by_the_papers_rule() {
    let dir = bookcrossing_files();
    let data = load(dir.path(), &bookcrossing()).unwrap();
    let ids = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>();
    assert_eq!(data.users.user_id, ids(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 20, 22]));
    assert_eq!((data.items.item.len(), data.interactions.user.len()), (12, 12 * 12 + 6 + 10));
    // One sample a user, nine tenths of them for training.
    assert_eq!(sizes(&data), [12, 0, 2]);
    let samples = || (0..12).map(|i| (data.train.user[i], data.train.history_len[i]));
    assert!(samples().all(|(user, len)| len
        == match data.users.user_id[user as usize].as_str() {
            "20" => 5,
            "22" => 9,
            _ => 11,
        }));
    assert_eq!(data.verb, "read");
    assert_eq!(
        (data.items.title[1].as_str(), data.items.year[1], data.items.year[2]),
        ("Book \"2\"; again", None, Some(1993))
    );
    let [author, publisher, isbn] = data.items.further.as_slice() else { panic!("{:?}", data.items.further) };
    assert_eq!((author.0.as_str(), publisher.1[0].as_str(), isbn.1[2].as_str()), ("author", "Café", "0000000003"));
    assert_eq!(data.users.further[0].0, "country");
    assert_eq!(data.users.further[0].1[..4], ["canada", "", "italy", ""]);
    assert_eq!(data.users.age[..4], ["25-34", "", "", ""]);
    // Zeros are ratings, and no likes; five of ten is one.
    assert!(data.interactions.rating.contains(&0.0));
    assert!((0..12).all(|i| (data.train.rating[i] >= 5.0) == (data.train.label[i] == 1)));
}

#[test]
fn bookcrossing_without_a_core_is_refused() {
    let dir = bookcrossing_files();
    fs::write(dir.path().join("BX-Book-Ratings.csv"), "User-ID;ISBN;Book-Rating\n1;0000000001;5\n").unwrap();
    let error = load(dir.path(), &bookcrossing()).unwrap_err().to_string();
    assert!(error.contains("by the paper's rule nothing is left of its 1 ratings"), "{error}");
}

#[test]
fn amazon_goes_by_the_papers_rule() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tiny-amazon");
    let data = load(&folder, &DatasetParams::default()).unwrap();
    // As amazon.py, which wrote the files, counts them.
    assert_eq!((data.users.user.len(), data.items.item.len(), data.interactions.user.len()), (50, 24, 724));
    assert_eq!(sizes(&data), [379, 47, 48]);
    assert_eq!((data.items.item_id[0].as_str(), data.items.title[0].as_str()), ("B000000000", "Film 0 & Co"));
    // The third has no title of its own; genres are the third level.
    assert_eq!((data.items.item_id[3].as_str(), data.items.title[3].as_str()), ("B000000003", "B000000003"));
    assert_eq!(data.items.genre[..4], ["Drama", "Comedy", "Art House & International", "Science Fiction"]);
    assert!(data.interactions.timestamp.iter().all(|t| *t < 1_600_000_000));
    assert!(data.users.gender.iter().all(String::is_empty) && data.users.further.is_empty());
    // Items that the rule keeps; 5,000 of them at most, so a smaller number is asked for here.
    let most = load(&folder, &DatasetParams { top_items: 10, ..DatasetParams::default() }).unwrap();
    assert_eq!(most.items.item.len(), 10);
}
