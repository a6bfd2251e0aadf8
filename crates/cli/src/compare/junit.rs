//! A comparison as JUnit XML, which CI systems show: a test case for each check, or one that says why there are none.

use super::{
    judge::{Checked, Comparison},
    show::{headline, sentence, word},
};
use rallrec_recsys::compare::Verdict;
use std::fmt::Write;

/// The document of a comparison.
pub(super) fn document(comparison: &Comparison) -> String {
    let count = |verdict: Option<Verdict>| {
        comparison.checks.iter().filter(|c| c.answer.as_ref().map(|a| a.verdict) == verdict).count()
    };
    let mut cases = String::new();
    for check in &comparison.checks {
        cases.push_str(&case(check));
    }
    let counts = [comparison.checks.len(), count(Some(Verdict::Regression)), count(Some(Verdict::TooFew)), count(None)];
    suite(&comparison.pipeline, counts, &cases, &headline(comparison))
}

/// The document of a comparison that could not be made.
pub(super) fn failed(why: &str) -> String {
    let case = format!(
        "    <testcase classname=\"rallrec compare\" name=\"comparison\">\n      <error message=\"{}\"/>\n    </testcase>\n",
        escaped(why)
    );
    suite("compare", [1, 0, 1, 0], &case, why)
}

fn suite(name: &str, [tests, failures, errors, skipped]: [usize; 4], cases: &str, out: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"rallrec compare {}\" tests=\"{tests}\" \
         failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\">\n{cases}    <system-out>{}</system-out>\n  \
         </testsuite>\n</testsuites>\n",
        escaped(name),
        escaped(out)
    )
}

fn case(check: &Checked) -> String {
    let name = check.segment.as_ref().map_or_else(|| check.metric.to_string(), |s| format!("{}, {s}", check.metric));
    let told = escaped(&sentence(check));
    let mut case = format!("    <testcase classname=\"{}\" name=\"{}\">\n", escaped(&check.system), escaped(&name));
    let verdict = check.answer.as_ref().map(|a| a.verdict);
    // Writing to a string cannot fail.
    let _ = match verdict {
        Some(Verdict::Pass) => writeln!(case, "      <system-out>{told}</system-out>"),
        Some(Verdict::Regression) => writeln!(case, "      <failure type=\"regression\" message=\"{told}\"/>"),
        Some(Verdict::TooFew) => writeln!(case, "      <error type=\"too few\" message=\"{told}\"/>"),
        None => writeln!(case, "      <skipped message=\"{}: fewer samples than min_samples\"/>", word(None)),
    };
    case.push_str("    </testcase>\n");
    case
}

/// Text for XML: its five special characters as entities, and no control characters, which it cannot hold.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{super::show::tests::comparison, *};

    #[test]
    fn the_document_is_one_that_ci_systems_read() {
        insta::assert_snapshot!("junit", document(&comparison()));
        insta::assert_snapshot!("junit_failed", failed("gate.yaml:1:1: error: \"x\" < 'y' & z\n\u{1b}[0m"));
    }
}
