//! The metrics as a Markdown table whose columns also line up in a terminal.
//!
//! Only the table of one run: the paper's numbers and comparisons of systems are not in it.

use crate::metrics::{Metric, SystemMetrics};

/// Markdown lines: a heading, and one row a system, in the order given.
///
/// A value stands with its interval, `0.7184 [0.7101, 0.7263]`; what is not defined is `n/a`.
pub fn report_lines(title: &str, systems: &[(String, SystemMetrics)]) -> Vec<String> {
    let header = ["System", "AUC", "Log loss", "Accuracy", "Samples", "Missing"].map(String::from);
    let rows = systems.iter().map(|(name, m)| {
        let name = name.replace('|', "\\|");
        [name, cell(&m.auc), cell(&m.log_loss), cell(&m.accuracy), m.samples.to_string(), m.missing.to_string()]
    });
    let table: Vec<[String; 6]> = std::iter::once(header).chain(rows).collect();
    let widths: [usize; 6] =
        std::array::from_fn(|column| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut lines = vec![format!("# {title}"), String::new()];
    for (i, row) in table.iter().enumerate() {
        lines.push(line(std::array::from_fn(|column| pad(&row[column], widths[column], column))));
        if i == 0 {
            lines.push(line(std::array::from_fn(|column| rule(widths[column], column))));
        }
    }
    lines
}

fn cell(metric: &Metric) -> String {
    match (metric.value, metric.low, metric.high) {
        (None, ..) => "n/a".into(),
        (Some(value), Some(low), Some(high)) => format!("{value:.4} [{low:.4}, {high:.4}]"),
        (Some(value), ..) => format!("{value:.4}"),
    }
}

/// Names to the left, numbers to the right.
fn pad(text: &str, width: usize, column: usize) -> String {
    if column == 0 { format!("{text:<width$}") } else { format!("{text:>width$}") }
}

fn rule(width: usize, column: usize) -> String {
    if column == 0 { "-".repeat(width) } else { format!("{}:", "-".repeat(width.saturating_sub(1))) }
}

fn line(cells: [String; 6]) -> String {
    format!("| {} |", cells.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up() {
        let with = |value: f64| Metric { value: Some(value), low: Some(value - 0.01), high: Some(value + 0.01) };
        let tuned = SystemMetrics {
            auc: with(0.7184),
            log_loss: with(0.5912),
            accuracy: with(0.6631),
            samples: 10_000,
            missing: 3,
        };
        let single = Metric { value: Some(1.0), ..Metric::default() };
        let odd = SystemMetrics { auc: Metric::default(), log_loss: single, accuracy: single, samples: 1, missing: 0 };
        let lines = report_lines("RALLRec+", &[("score".into(), tuned), ("façade|x".into(), odd)]);
        insta::assert_snapshot!(lines.join("\n"), @r"
        # RALLRec+

        | System    |                     AUC |                Log loss |                Accuracy | Samples | Missing |
        | --------- | ----------------------: | ----------------------: | ----------------------: | ------: | ------: |
        | score     | 0.7184 [0.7084, 0.7284] | 0.5912 [0.5812, 0.6012] | 0.6631 [0.6531, 0.6731] |   10000 |       3 |
        | façade\|x |                     n/a |                  1.0000 |                  1.0000 |       1 |       0 |
        ");
    }
}
