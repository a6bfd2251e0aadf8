//! A folder of wrong pipelines, each with the message that its author gets to read, approved by eye.
//!
//! `INSTA_UPDATE=always cargo test -p rallrec-core --test broken` writes the messages anew; read the difference.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::spec::compile;
use std::{fs, path::PathBuf};

fn files() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/broken");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    files.sort();
    files
}

/// `# --set NAME=VALUE` lines at the head of a file stand for the command line.
fn overrides(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.strip_prefix("# --set ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[test]
fn every_broken_pipeline_gets_its_approved_message() {
    let files = files();
    assert!(files.len() >= 65, "only {} broken pipelines are left", files.len());
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let message = match compile(&name, &text, &overrides(&text)) {
            Err(found) => found.to_string(),
            Ok(pipeline) => {
                assert!(name.contains("warning"), "{name} is not broken");
                pipeline.warnings.to_string()
            }
        };
        let mut settings = insta::Settings::clone_current();
        settings.set_snapshot_path("broken");
        settings.set_prepend_module_to_snapshot(false);
        settings.set_omit_expression(true);
        settings.bind(|| insta::assert_snapshot!(name.trim_end_matches(".yaml"), message));
    }
}
