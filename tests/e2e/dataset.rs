//! Data of one's own through the real binary: a mapping, bad rows, and what is told of them.

use crate::support::{Home, files, is};
use std::{fmt::Write, fs, path::Path};

/// Ratings of twelve users, two rows of them bad, and a pipeline over them.
fn pipeline(folder: &Path, max_bad_rows: u32) -> String {
    let data = folder.join("mine");
    fs::create_dir_all(&data).unwrap();
    let mut ratings = "user;film;stars;when\n".to_owned();
    for at in 0..120 {
        let stars = if at == 7 || at == 90 { "many".to_owned() } else { (1 + at % 5).to_string() };
        writeln!(ratings, "u{};f{};{stars};2024-01-{:02}", at % 12, at / 12, 1 + at / 12).unwrap();
    }
    fs::write(data.join("ratings.csv"), ratings).unwrap();
    let films: String =
        (0..10).map(|at| format!("{{\"id\": \"f{at}\", \"name\": \"Film {at}\", \"by\": \"D{at}\"}}\n")).collect();
    fs::write(data.join("films.jsonl"), films).unwrap();
    let path = folder.join("mine.yaml");
    let text = format!(
        "rallrec: 1
name: mine
data: {{mine: {{source: \"file:mine\"}}}}
stages:
  dataset:
    kind: dataset
    data: mine
    max_bad_rows: {max_bad_rows}
    with:
      min_history: 2
      min_user_ratings: 5
      mapping:
        ratings: {{file: ratings.csv, separator: ';', user: user, item: film, rating: stars, time: when, time_format: iso}}
        items: {{file: films.jsonl, id: id, title: name, fields: {{director: by}}}}
"
    );
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn bad_rows_are_left_out_up_to_the_limit() {
    let home = Home::new();
    let strict = home.call(&["run", &pipeline(&home.path(), 0)]);
    let told = String::from_utf8_lossy(&strict.stderr).into_owned();
    assert_eq!(strict.status.code(), Some(1), "{told}");
    assert!(told.contains("ratings.csv:9: column \"stars\": expected a number, found \"many\""), "{told}");
    let again = home.run(&[&pipeline(&home.path(), 2)]);
    let done = again.iter().find(|event| is(event, "run_finished")).unwrap_or_else(|| panic!("{again:?}"));
    assert_eq!(done["outcome"], "done", "{done}");
    // Both stand in the manifest, with their places.
    let manifests = files(&home.path().join("store")).into_iter();
    let manifests = manifests.filter(|path| path.ends_with("manifest.json"));
    let texts: Vec<String> = manifests.map(|path| fs::read_to_string(path).unwrap()).collect();
    let kept = texts.iter().find(|text| text.contains("ratings.csv:9:")).unwrap_or_else(|| panic!("{texts:?}"));
    assert!(kept.contains("ratings.csv:92:"), "{kept}");
}
