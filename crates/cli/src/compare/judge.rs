//! Holds a run against its baseline: which samples, which segments, and the answers to all that the gate asks. The
//! statistics are `rallrec_recsys::compare`'s.

use super::{
    baseline::Baseline,
    segments::{Segmented, Unfit},
};
use crate::failure::Failure;
use crate::predictions::{Predictions, RunTables, Shared, System, shared};
use rallrec_core::{
    ids::StageName,
    plan::PlannedStage,
    spec::gate::{self, By, Check, Gate, Measure, Segments, Unit},
};
use rallrec_recsys::compare::{
    Answer, Difference, Paired, Question, Verdict, answers, bound_confidence, fewest_resamples,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A gate with the file that it is from, for messages.
pub(super) struct GateFile {
    /// Its name, as the user gave it.
    pub(super) name: String,
    /// Its text.
    pub(super) text: String,
    /// What it says.
    pub(super) gate: Gate,
}

/// The result, as `--format json` prints it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Comparison {
    /// What follows from all checks.
    pub(super) verdict: Verdict,
    /// The pipeline of the run.
    pub(super) pipeline: String,
    /// The run that was compared.
    pub(super) run: String,
    /// The run that it was compared with.
    pub(super) baseline: String,
    /// One less the probability of any false alarm.
    pub(super) confidence: f64,
    /// Confidence of each bound of a difference: together they hold with `confidence`.
    pub(super) bound_confidence: f64,
    /// Probability with which a worsening by what is detectable is found.
    pub(super) power: f64,
    /// Resamplings.
    pub(super) resamples: u32,
    /// What was drawn.
    pub(super) unit: Unit,
    /// The systems that were compared.
    pub(super) systems: Vec<Compared>,
    /// Every check, in the order of the gate.
    pub(super) checks: Vec<Checked>,
}

/// A system, and on what it was compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Compared {
    /// Its name.
    pub(super) system: String,
    /// Samples that both have.
    pub(super) samples: usize,
    /// Those of them without a prediction in the baseline.
    pub(super) missing_in_baseline: usize,
    /// Those of them without a prediction in the run.
    pub(super) missing_in_run: usize,
    /// Samples that only the baseline has.
    pub(super) only_in_baseline: usize,
    /// Samples that only the run has.
    pub(super) only_in_run: usize,
    /// Samples of one number, but of another user, item or label.
    pub(super) different: usize,
    /// Whether the key is the baseline's: nothing that predictions depend on has changed.
    pub(super) unchanged: bool,
}

/// One check with its answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Checked {
    /// The system.
    pub(super) system: String,
    /// What was measured.
    pub(super) metric: Measure,
    /// Of which users; `None` for all.
    pub(super) segment: Option<String>,
    /// Samples that were compared.
    pub(super) samples: usize,
    /// Units that were drawn from.
    pub(super) drawn: usize,
    /// Worsening that is tolerated.
    pub(super) tolerated: f64,
    /// Worsening that must be found.
    pub(super) detect: f64,
    /// How the metric differs; `None` where it was not asked, since the segment is too small.
    #[serde(flatten)]
    pub(super) difference: Option<Difference>,
    /// The answer, likewise.
    #[serde(flatten)]
    pub(super) answer: Option<Answer>,
}

/// A system's predictions side by side, for samples that both have.
struct Side {
    user: Vec<i32>,
    label: Vec<i8>,
    old: Vec<Option<f32>>,
    new: Vec<Option<f32>>,
}

/// Compares a run with a baseline.
///
/// # Errors
/// [`Failure::Pipeline`] for a gate that does not fit the run, [`Failure::Invalid`] for what cannot be compared.
pub(super) async fn judge(tables: &RunTables<'_>, baseline: &Baseline, file: &GateFile) -> Result<Comparison, Failure> {
    let gate = &file.gate;
    let (mut sides, mut systems) = (BTreeMap::new(), Vec::new());
    for check in &gate.checks {
        if sides.contains_key(&check.system) {
            continue;
        }
        let (stage, old) = named(tables, baseline, file, check)?;
        let (side, compared) = side(&check.system, old, &tables.system(stage).await?, gate)?;
        sides.insert(check.system.clone(), side);
        systems.push(compared);
    }
    let mut inquiry = Inquiry::default();
    for check in &gate.checks {
        let Some(side) = sides.get(&check.system) else { continue };
        let mut answerable = false;
        for (segment, rows) in subsets(tables, file, check, side).await? {
            answerable |= inquiry.add(check, side, segment, &rows, gate.unit)?;
        }
        inquiry.silent |= !answerable;
    }
    let verdict = inquiry.answer(gate)?;
    Ok(Comparison {
        verdict,
        pipeline: tables.plan.pipeline.clone(),
        run: tables.run.to_string(),
        baseline: baseline.run.clone(),
        confidence: gate.confidence,
        bound_confidence: bound_confidence(inquiry.asked.len(), gate.confidence),
        power: gate.power,
        resamples: gate.resamples,
        unit: gate.unit,
        systems,
        checks: inquiry.checks,
    })
}

/// The stage of a check's system in the run, and what the baseline has of it.
fn named<'a>(
    tables: &'a RunTables<'_>,
    baseline: &'a Baseline,
    file: &GateFile,
    check: &Check,
) -> Result<(&'a PlannedStage, &'a System), Failure> {
    let unknown = |whose: String, known: Vec<String>| {
        let message = format!("{whose} has no system `{}`", check.system);
        let help = format!("systems are stages that predict: {}", known.join(", "));
        let told = gate::finding(&file.name, &file.text, check.system_at, message, Some(help));
        Failure::Pipeline(told.to_string())
    };
    let stages = tables.systems();
    let stage =
        stages.iter().find(|s| s.name == StageName(check.system.clone())).copied().ok_or_else(|| {
            unknown(format!("run {}", tables.run), stages.iter().map(|s| s.name.to_string()).collect())
        })?;
    let old = baseline.systems.get(&check.system).ok_or_else(|| {
        unknown(format!("the baseline (run {})", baseline.run), baseline.systems.keys().cloned().collect())
    })?;
    Ok((stage, old))
}

fn wrong(system: &str, what: &str) -> Failure {
    Failure::Invalid(format!("system `{system}`: {what}"))
}

/// The samples that both have, or why they cannot be compared.
fn side(name: &str, old: &System, new: &System, gate: &Gate) -> Result<(Side, Compared), Failure> {
    let (before, now) = (&old.predictions, &new.predictions);
    let found = shared(before, now).map_err(|e| wrong(name, &e))?;
    if !gate.on_common_samples {
        same_samples(name, old, new, &found)?;
    }
    if found.rows.is_empty() {
        return Err(wrong(name, "run and baseline have no sample in common"));
    }
    let side = Side::of(before, now, &found.rows);
    let compared = Compared {
        system: name.to_owned(),
        samples: found.rows.len(),
        missing_in_baseline: side.old.iter().filter(|p| p.is_none()).count(),
        missing_in_run: side.new.iter().filter(|p| p.is_none()).count(),
        only_in_baseline: found.only_old,
        only_in_run: found.only_new,
        different: found.other,
        unchanged: old.key == new.key,
    };
    let missing = side.old.iter().zip(&side.new).filter(|(old, new)| old.is_none() || new.is_none()).count();
    if missing as f64 > gate.max_missing * compared.samples as f64 {
        return Err(wrong(
            name,
            &format!(
                "{missing} of {} samples have no prediction ({} in the run, {} in the baseline), and the gate's \
                 `max_missing` is {}; `rallrec logs` tells why rows failed",
                compared.samples, compared.missing_in_run, compared.missing_in_baseline, gate.max_missing
            ),
        ));
    }
    Ok((side, compared))
}

fn same_samples(name: &str, old: &System, new: &System, found: &Shared) -> Result<(), Failure> {
    let way = "compare runs of the same test set, keep a new baseline, or say `on_common_samples: true` in the gate";
    if old.data != new.data {
        let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
        return Err(wrong(
            name,
            &format!("the data set is {} in the run and {} in the baseline; {way}", short(&new.data), short(&old.data)),
        ));
    }
    let Some(first) = found.first else { return Ok(()) };
    Err(wrong(
        name,
        &format!(
            "the samples are not the same: {} are only in the run, {} only in the baseline, {} have another user, item \
             or label; the first is sample {first}; {way}",
            found.only_new, found.only_old, found.other
        ),
    ))
}

impl Side {
    fn of(old: &Predictions, new: &Predictions, rows: &[(usize, usize)]) -> Self {
        let there = |p: Option<f32>| p.filter(|p| !p.is_nan());
        Self {
            user: rows.iter().map(|(_, n)| new.user[*n]).collect(),
            label: rows.iter().map(|(_, n)| new.label[*n]).collect(),
            old: rows.iter().map(|(o, _)| there(old.p[*o])).collect(),
            new: rows.iter().map(|(_, n)| there(new.p[*n])).collect(),
        }
    }

    fn paired(&self, rows: &[usize], unit: Unit) -> Result<Paired, rallrec_recsys::metrics::MetricsError> {
        let labels: Vec<i8> = rows.iter().map(|r| self.label[*r]).collect();
        let users: Vec<i32> = rows.iter().map(|r| self.user[*r]).collect();
        let [old, new] = [&self.old, &self.new].map(|p| rows.iter().map(|r| p[*r]).collect::<Vec<_>>());
        Paired::new(&labels, &old, &new, (unit == Unit::Users).then_some(&users[..]))
    }
}

/// The rows that a check is about: all, or those of each segment.
async fn subsets(
    tables: &RunTables<'_>,
    file: &GateFile,
    check: &Check,
    side: &Side,
) -> Result<Vec<(Option<String>, Vec<usize>)>, Failure> {
    let Some(segments) = &check.segments else { return Ok(vec![(None, (0..side.label.len()).collect())]) };
    let segmented = segmented(tables, file, check, segments).await?;
    let mut rows = vec![Vec::new(); segmented.names.len()];
    for (row, user) in side.user.iter().enumerate() {
        if let Some(segment) = segmented.of(*user) {
            rows[segment].push(row);
        }
    }
    let found = segmented.names.into_iter().zip(rows);
    // A value that no tested user has is no segment of the test; of an edge one wants to know that nobody is there.
    let there = |rows: &Vec<usize>| !rows.is_empty() || matches!(segments.by, By::History(_));
    Ok(found.filter(|(_, rows)| there(rows)).map(|(name, rows)| (Some(name), rows)).collect())
}

async fn segmented(
    tables: &RunTables<'_>,
    file: &GateFile,
    check: &Check,
    segments: &Segments,
) -> Result<Segmented, Failure> {
    let stages = tables.systems();
    let stage = stages.iter().find(|s| s.name.0 == check.system);
    let stage = stage.ok_or_else(|| anyhow::anyhow!("system `{}` was there before", check.system))?;
    match Segmented::read(tables, tables.dataset(stage)?, &segments.by).await {
        Ok(segmented) => Ok(segmented),
        Err(Unfit::Failed(failure)) => Err(failure),
        Err(Unfit::Column(known)) => {
            let message = "the data set's `users` have no such column of texts".to_owned();
            let help = format!("`history`, or one of {}", known.join(", "));
            let told = gate::finding(&file.name, &file.text, segments.by_at, message, Some(help));
            Err(Failure::Pipeline(told.to_string()))
        }
    }
}

/// All that is asked, and what it is asked of.
#[derive(Default)]
struct Inquiry {
    checks: Vec<Checked>,
    /// Positions in `checks` and `paired` of what is to be answered.
    asked: Vec<(usize, usize)>,
    paired: Vec<Paired>,
    /// Where in `paired` a system and segment stand: every metric of them is measured on the same draws.
    places: BTreeMap<(String, Option<String>), usize>,
    /// Whether the segments of some entry of the gate are all too small.
    silent: bool,
}

impl Inquiry {
    /// Adds a check; whether it is asked.
    fn add(
        &mut self,
        check: &Check,
        side: &Side,
        segment: Option<String>,
        rows: &[usize],
        unit: Unit,
    ) -> Result<bool, Failure> {
        let place = (check.system.clone(), segment.clone());
        let at = match self.places.get(&place) {
            Some(at) => *at,
            None => {
                self.paired.push(side.paired(rows, unit).map_err(|e| wrong(&check.system, &e.to_string()))?);
                self.places.insert(place, self.paired.len() - 1);
                self.paired.len() - 1
            }
        };
        let paired = &self.paired[at];
        let asked = check.segments.as_ref().is_none_or(|s| paired.samples() as u64 >= s.min_samples.max(1));
        if asked {
            self.asked.push((self.checks.len(), at));
        }
        self.checks.push(Checked {
            system: check.system.clone(),
            metric: check.measure,
            segment,
            samples: paired.samples(),
            drawn: paired.drawn(),
            tolerated: check.tolerated,
            detect: check.detect,
            difference: None,
            answer: None,
        });
        Ok(asked)
    }

    /// Answers all questions together, since they share one probability of a false alarm. The worst of them counts; an
    /// entry that nobody could be asked about is one that could not be told.
    fn answer(&mut self, gate: &Gate) -> Result<Verdict, Failure> {
        let (n, fewest) = (self.asked.len(), fewest_resamples(self.asked.len(), gate.confidence));
        if u64::from(gate.resamples) < fewest {
            return Err(Failure::Invalid(format!(
                "{n} questions at a confidence of {} need at least `resamples: {fewest}` in the gate, which has {}",
                gate.confidence, gate.resamples
            )));
        }
        let bounds = bound_confidence(n, gate.confidence);
        let of: BTreeSet<usize> = self.asked.iter().map(|(_, at)| *at).collect();
        let drawn: BTreeMap<_, _> =
            of.into_iter().map(|at| (at, self.paired[at].resample(gate.resamples, gate.seed))).collect();
        let questions = self.asked.iter().map(|(place, at)| {
            let check = &self.checks[*place];
            let difference = drawn[at].difference(check.metric, check.tolerated, bounds);
            Question { difference, tolerated: check.tolerated, detect: check.detect }
        });
        let questions: Vec<Question> = questions.collect();
        let answers = answers(&questions, gate.confidence, gate.power);
        let mut worst = if self.silent { Verdict::TooFew } else { Verdict::Pass };
        for ((place, _), (question, answer)) in self.asked.iter().zip(questions.into_iter().zip(answers)) {
            worst = worst.max(answer.verdict);
            (self.checks[*place].difference, self.checks[*place].answer) = (Some(question.difference), Some(answer));
        }
        Ok(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::key::Key;

    fn system(data: &str, first: i64, p: &[Option<f32>]) -> System {
        let rows = p.len();
        System {
            key: Key("k".into()),
            data: data.into(),
            predictions: Predictions {
                sample: (first..).take(rows).collect(),
                user: vec![1; rows],
                item: vec![2; rows],
                label: vec![1; rows],
                p: p.to_vec(),
            },
        }
    }

    fn gate(more: &str) -> Gate {
        let text = format!("rallrec-gate: 1\nmetrics: [{{system: s, metric: auc, max_drop: 0.1}}]\n{more}");
        gate::read("g", &text).unwrap()
    }

    fn refused(old: &System, new: &System, more: &str) -> String {
        match side("s", old, new, &gate(more)) {
            Err(failure @ Failure::Invalid(_)) => failure.to_string(),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("it is compared"),
        }
    }

    #[test]
    fn what_cannot_be_compared_is_told() {
        let whole = system("d", 0, &[Some(0.5); 4]);
        let holes = system("d", 0, &[Some(0.5), None, Some(0.2), Some(f32::NAN)]);
        let told = refused(&whole, &holes, "max_missing: 0.4");
        assert!(told.contains("2 of 4 samples have no prediction (2 in the run, 0 in the baseline)"), "{told}");
        let (_, compared) = side("s", &whole, &holes, &gate("max_missing: 0.5")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!((compared.samples, compared.missing_in_run, compared.unchanged), (4, 2, true));
        let told = refused(&system("e", 0, &[Some(0.5); 4]), &whole, "");
        assert!(told.contains("the data set is d in the run and e in the baseline"), "{told}");
        let told = refused(&system("d", 1, &[Some(0.5); 4]), &whole, "");
        assert!(told.contains("1 are only in the run, 1 only in the baseline, 0 have another"), "{told}");
        let common = side("s", &system("e", 1, &[Some(0.5); 4]), &whole, &gate("on_common_samples: true"));
        assert_eq!(common.map(|(side, _)| side.label.len()).unwrap_or_else(|e| panic!("{e}")), 3);
        let told = refused(&system("d", 9, &[Some(0.5)]), &whole, "on_common_samples: true");
        assert!(told.contains("no sample in common"), "{told}");
    }
}
