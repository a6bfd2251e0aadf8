//! A comparison in words: lines for a terminal, Markdown for a pull request.

use super::judge::{Checked, Compared, Comparison};
use crate::console::{columns, thousands};
use rallrec_core::spec::gate::Unit;
use rallrec_recsys::compare::Verdict;

const HEAD: [&str; 10] =
    ["SYSTEM", "METRIC", "SEGMENT", "SAMPLES", "BASELINE", "RUN", "CHANGE", "TOLERATED", "DETECTABLE", "VERDICT"];

/// A verdict in words.
pub(super) fn word(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        Some(Verdict::Pass) => "pass",
        Some(Verdict::TooFew) => "too few to tell",
        Some(Verdict::Regression) => "REGRESSION",
        None => "not asked",
    }
}

/// Lines for a terminal: the first is the head.
pub(super) fn lines(comparison: &Comparison) -> Vec<String> {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(comparison.checks.iter().map(cells));
    let mut lines = columns(&rows);
    lines.push(String::new());
    lines.extend(notes(comparison));
    lines.push(headline(comparison));
    lines
}

/// Markdown, to be posted where people look at a change.
pub(super) fn markdown(comparison: &Comparison) -> String {
    let mut lines = vec![format!("### {}", headline(comparison)), String::new()];
    lines.push(format!("| {} |", HEAD.map(|word| capital(&word.to_lowercase())).join(" | ")));
    lines.push("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |".into());
    for check in &comparison.checks {
        let mut cells: Vec<_> = cells(check).iter().map(|c| c.replace('|', "\\|")).collect();
        if check.answer.as_ref().is_some_and(|a| a.verdict == Verdict::Regression) {
            cells.iter_mut().filter(|cell| !cell.is_empty()).for_each(|cell| *cell = format!("**{cell}**"));
        }
        lines.push(format!("| {} |", cells.join(" | ")));
    }
    lines.push(String::new());
    lines.extend(notes(comparison).iter().map(|note| format!("- {note}")));
    lines.join("\n")
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// One sentence: what came out.
pub(super) fn headline(comparison: &Comparison) -> String {
    let told = match comparison.verdict {
        Verdict::Pass => "no regression",
        Verdict::TooFew => "too few samples to tell",
        Verdict::Regression => "REGRESSION",
    };
    format!("{}: {told} in run {} against run {}", comparison.pipeline, comparison.run, comparison.baseline)
}

/// What a check found, in one line.
pub(super) fn sentence(check: &Checked) -> String {
    let cells = cells(check);
    let place = check.segment.as_ref().map(|segment| format!(" ({segment})")).unwrap_or_default();
    format!(
        "{} {}{place}: {} to {}, a change of {}; tolerated {}, detectable {}; {} samples: {}",
        cells[0], cells[1], cells[4], cells[5], cells[6], cells[7], cells[8], cells[3], cells[9]
    )
}

fn cells(check: &Checked) -> Vec<String> {
    let value = |v: Option<f64>| v.map_or_else(|| "n/a".into(), |v| format!("{v:.4}"));
    let difference = check.difference.as_ref();
    vec![
        check.system.clone(),
        check.metric.to_string(),
        check.segment.clone().unwrap_or_default(),
        thousands(check.samples as u64),
        difference.map_or_else(String::new, |d| value(d.old)),
        difference.map_or_else(String::new, |d| value(d.new)),
        change(check),
        signed(check, check.tolerated),
        check.answer.as_ref().and_then(|a| a.detectable).map_or_else(String::new, |d| signed(check, d)),
        word(check.answer.as_ref().map(|a| a.verdict)).to_owned(),
    ]
}

/// New less old, with the bounds that it is above and below.
fn change(check: &Checked) -> String {
    let Some((difference, harm)) = check.difference.as_ref().and_then(|d| Some((d, d.harm?))) else {
        return String::new();
    };
    // Never `-0.0000`.
    let signed = |harm: f64| if check.metric.rises_when_better() { 0.0 - harm } else { harm + 0.0 };
    let bounds = difference.low.zip(difference.high).map(|(low, high)| {
        let (a, b) = (signed(low), signed(high));
        format!(" [{:+.4}, {:+.4}]", a.min(b), a.max(b))
    });
    format!("{:+.4}{}", signed(harm), bounds.unwrap_or_default())
}

/// A harm as a change of the metric.
fn signed(check: &Checked, harm: f64) -> String {
    format!("{}{harm:.4}", if check.metric.rises_when_better() { '-' } else { '+' })
}

fn percent(share: f64) -> String {
    let digits = format!("{:.2}", share * 100.0);
    format!("{} %", digits.trim_end_matches('0').trim_end_matches('.'))
}

fn notes(comparison: &Comparison) -> Vec<String> {
    let unit = match comparison.unit {
        Unit::Samples => "samples",
        Unit::Users => "users",
    };
    let mut notes = vec![format!(
        "paired bootstrap over {unit}, {} resamplings; a false alarm in any row has a probability of {} at most, so each \
         bound holds with {}; a worsening by what is detectable is found with a probability of {}",
        thousands(comparison.resamples.into()),
        percent(1.0 - comparison.confidence),
        percent(comparison.bound_confidence),
        percent(comparison.power)
    )];
    notes.extend(comparison.systems.iter().filter_map(note));
    notes
}

/// What is worth knowing about a system's samples.
fn note(system: &Compared) -> Option<String> {
    let mut told = Vec::new();
    if system.unchanged {
        told.push("unchanged: it has the baseline's key".to_owned());
    }
    if system.missing_in_run + system.missing_in_baseline > 0 {
        told.push(format!(
            "left out for want of a prediction: {} in the run, {} in the baseline",
            thousands(system.missing_in_run as u64),
            thousands(system.missing_in_baseline as u64)
        ));
    }
    if system.only_in_run + system.only_in_baseline + system.different > 0 {
        told.push(format!(
            "not common: {} samples only in the run, {} only in the baseline, {} with another user, item or label",
            thousands(system.only_in_run as u64),
            thousands(system.only_in_baseline as u64),
            thousands(system.different as u64)
        ));
    }
    (!told.is_empty()).then(|| format!("{}: {}", system.system, told.join("; ")))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rallrec_core::spec::gate::Measure;
    use rallrec_recsys::compare::{Answer, Difference};

    /// Two checks and one that was not asked.
    pub(crate) fn comparison() -> Comparison {
        let check = |metric, segment: Option<&str>, harm: f64, verdict| Checked {
            system: "score".into(),
            metric,
            segment: segment.map(str::to_owned),
            samples: 10_000,
            drawn: 10_000,
            tolerated: 0.005,
            detect: 0.02,
            difference: Some(Difference {
                old: Some(0.75),
                new: Some(if metric == Measure::LogLoss { 0.75 + harm } else { 0.75 - harm }),
                harm: Some(harm),
                low: Some(harm - 0.007),
                high: Some(harm + 0.007),
                standard_error: Some(0.003),
                p: 0.001,
            }),
            answer: Some(Answer { verdict, p_holm: 0.002, detectable: Some(0.0158) }),
        };
        let skipped = Checked {
            difference: None,
            answer: None,
            samples: 40,
            ..check(Measure::Auc, Some("gender <m|f> & \"x\""), 0.0, Verdict::Pass)
        };
        let compared = Compared {
            system: "score".into(),
            samples: 10_000,
            missing_in_baseline: 0,
            missing_in_run: 3,
            only_in_baseline: 0,
            only_in_run: 0,
            different: 0,
            unchanged: false,
        };
        Comparison {
            verdict: Verdict::Regression,
            pipeline: "nightly".into(),
            run: "20261123-2".into(),
            baseline: "20261101-1".into(),
            confidence: 0.99,
            bound_confidence: 0.995,
            power: 0.9,
            resamples: 2000,
            unit: Unit::Samples,
            systems: vec![compared],
            checks: vec![
                check(Measure::Auc, None, 0.0213, Verdict::Regression),
                check(Measure::LogLoss, None, 0.0, Verdict::Pass),
                skipped,
            ],
        }
    }

    #[test]
    fn a_comparison_reads_well() {
        insta::assert_snapshot!("lines", lines(&comparison()).join("\n"));
        insta::assert_snapshot!("markdown", markdown(&comparison()));
        insta::assert_snapshot!("json", serde_json::to_string_pretty(&comparison()).unwrap());
    }
}
