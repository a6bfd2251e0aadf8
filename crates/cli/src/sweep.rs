//! `sweep`: a pipeline for many values of its parameters.
//!
//! The points of a round are one run of one joined plan, so what they share is one task, a point that fails takes no other
//! with it, and a sweep that was interrupted goes on as any run does. A round is a rung of successive halving; without it
//! there is one. Nothing is kept but what runs keep: started again, every point is found in the store.

mod table;

use crate::{
    args::SweepArgs,
    clock,
    console::{Console, counted, thousands},
    failure::Failure,
    load::{self, Absent, Pinned, Text},
    report,
    run::{self, Driven, How, Place},
};
use rallrec_coordinator::RunEnd;
use rallrec_core::{
    kind::StageKind,
    plan::{Joined, Plan},
    run::TaskError,
    spec::Pipeline,
    sweep::{Point, Sweep},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Instant,
};
use table::{Found, Tried};

/// Points whose mistakes or failures are told.
const TOLD: usize = 5;

/// Runs a pipeline's sweep.
///
/// # Errors
/// Before anything runs, when the pipeline has no sweep or a point is refused; [`Failure::Stage`] at the end, when points
/// have failed.
pub async fn sweep(place: &Place, args: &SweepArgs, console: &Console) -> Result<(), Failure> {
    let began = Instant::now();
    let device = rallrec_llm::pick_device(&args.device).map_err(|e| Failure::Unreachable(e.to_string()))?;
    let base = load::pipeline(&args.pipeline.pipeline, &args.pipeline.set, console)?;
    let Some(sweep) = &base.sweep else {
        return Err(Failure::Invalid(format!(
            "{}: the pipeline has no `sweep:`; docs/sweeps.md shows what it can say",
            args.pipeline.pipeline.display()
        )));
    };
    let mut trial = Trial {
        place,
        args,
        console,
        how: How { device, slots: args.slots, new: false, json: args.json },
        name: &base.name,
        text: Text::read(&args.pipeline.pipeline)?,
        set: load::overrides(&args.pipeline.set)?,
        pinned: HashMap::new(),
        computed: 0,
        reused: 0,
    };
    let points = sweep.points();
    trial.check(sweep, &points)?;
    if args.list {
        list(&points, args.json, console);
        return Ok(());
    }
    let rounds = trial.rounds(sweep, points).await?;
    let found = Found::new(&base.name, sweep, rounds);
    let folder = args.output.clone().unwrap_or_else(|| place.home.root().join("sweeps").join(&base.name));
    found.write(&folder)?;
    console.print(&if args.json { found.event().to_string() } else { found.markdown() });
    let time = clock::duration(began.elapsed().as_secs_f64());
    let (computed, reused) = (thousands(trial.computed), thousands(trial.reused));
    console.note(&format!("sweep of {} done in {time}: {computed} tasks computed, {reused} reused", base.name));
    console.note(&format!("table: {}", folder.display()));
    if sweep.best.as_ref().is_some_and(|best| best.then_whole)
        && let Some(best) = found.best()
    {
        trial.whole(best).await?;
    }
    found.failures().map_or(Ok(()), |told| Err(Failure::Stage(told)))
}

fn list(points: &[Point], json: bool, console: &Console) {
    for (number, point) in (1..).zip(points) {
        let values = json!({ "point": number, "values": point });
        console.print(&if json { values.to_string() } else { format!("{number}: {point}") });
    }
}

/// A sweep under way.
struct Trial<'a> {
    place: &'a Place,
    args: &'a SweepArgs,
    console: &'a Console,
    how: How,
    name: &'a str,
    text: Text,
    /// The `--set` of the command line.
    set: Vec<(String, String)>,
    /// What models and data sets turned out to be, by what a pipeline declares.
    pinned: HashMap<String, Pinned>,
    computed: u64,
    reused: u64,
}

impl Trial<'_> {
    /// Refuses a sweep of which any point is wrong, before anything is run.
    fn check(&self, sweep: &Sweep, points: &[Point]) -> Result<(), Failure> {
        let mut told = BTreeSet::new();
        for budget in budgets(sweep) {
            for (number, point) in (1..).zip(points) {
                let point = with_budget(point, budget);
                if let Err(failure) = self.compile(&point) {
                    told.insert((number, format!("point {number} ({point}):\n{failure}")));
                }
            }
        }
        if told.is_empty() {
            return Ok(());
        }
        let mut lines: Vec<String> = told.iter().take(TOLD).map(|(_, text)| text.clone()).collect();
        if told.len() > TOLD {
            lines.push(format!("and {} more points", told.len() - TOLD));
        }
        Err(Failure::Pipeline(lines.join("\n")))
    }

    /// A point's values come behind those of `--set`, and so count more.
    fn compile(&self, point: &Point) -> Result<Pipeline, Failure> {
        self.text.compile(&[self.set.clone(), point.overrides()].concat())
    }

    /// Every round's points with what came of them.
    async fn rounds(&mut self, sweep: &Sweep, points: Vec<Point>) -> Result<Vec<Vec<Tried>>, Failure> {
        let mut alive: Vec<(usize, Point)> = (1..).zip(points).collect();
        let mut rounds = Vec::new();
        for budget in budgets(sweep) {
            let points: Vec<(usize, Point)> =
                alive.iter().map(|(number, point)| (*number, with_budget(point, budget))).collect();
            let at_once = self.args.max_parallel.map_or(points.len(), |n| n as usize).max(1);
            let mut tried = Vec::with_capacity(points.len());
            for some in points.chunks(at_once) {
                tried.extend(self.at_once(sweep, some).await?);
            }
            if let (Some(halving), Some(best)) = (&sweep.halving, &sweep.best) {
                let going: Vec<usize> = table::ranked(best, &tried).take(halving.kept(tried.len())).collect();
                alive.retain(|(number, _)| going.contains(number));
            }
            rounds.push(tried);
        }
        Ok(rounds)
    }

    /// Runs some points as one plan.
    async fn at_once(&mut self, sweep: &Sweep, points: &[(usize, Point)]) -> Result<Vec<Tried>, Failure> {
        let only = sweep.best.as_ref().filter(|best| best.then_whole);
        let mut plans = Vec::with_capacity(points.len());
        let mut places = BTreeMap::new();
        for (number, point) in points {
            let (plan, pinned) = self.plan(point)?;
            let plan = only.and_then(|best| plan.up_to(&best.stage)).unwrap_or(plan);
            places.extend(pinned.places);
            plans.push((*number, plan));
        }
        let joined = Plan::join(self.name, &plans);
        self.console.note(&format!("{}:", counted(points.len() as u64, "point")));
        let driven = run::drive(self.place, joined.plan.clone(), places, &self.how, self.console).await?;
        self.computed += driven.computed;
        self.reused += driven.reused;
        let errors = match &driven.end {
            RunEnd::Done => &[][..],
            RunEnd::Failed { errors } => errors,
            RunEnd::Cancelled | RunEnd::Fenced => return Err(driven.stopped()),
        };
        let mut tried = Vec::with_capacity(points.len());
        for ((number, point), stages) in points.iter().zip(&joined.stages) {
            tried.push(outcome(&driven, &joined, (*number, point), stages, errors).await?);
        }
        Ok(tried)
    }

    fn plan(&mut self, point: &Point) -> Result<(Plan, Pinned), Failure> {
        let pipeline = self.compile(point)?;
        let declared = format!("{:?} {:?}", pipeline.models, pipeline.data);
        let pinned = match self.pinned.get(&declared) {
            Some(pinned) => pinned.clone(),
            None => {
                let absent = if self.args.offline { Absent::Refuse } else { Absent::Pull };
                let (file, place) = (&self.args.pipeline.pipeline, self.place);
                let pinned = load::pin_shown(&pipeline, file, &place.home, &place.sources, absent, self.console)?;
                self.pinned.insert(declared, pinned.clone());
                pinned
            }
        };
        let plan = Plan::new(&pipeline, &pinned.pins).map_err(|e| Failure::Invalid(e.to_string()))?;
        Ok((plan, pinned))
    }

    /// Runs the whole pipeline with one point's values, and shows what came of it.
    async fn whole(&mut self, best: &Tried) -> Result<(), Failure> {
        self.console.note(&format!("the whole pipeline with point {}, {}", best.number, best.point));
        let (plan, pinned) = self.plan(&best.point)?;
        let driven = run::drive(self.place, plan, pinned.places, &self.how, self.console).await?;
        match &driven.end {
            RunEnd::Done => {
                run::show_result(&driven, self.args.json, self.console).await?;
                self.console.note(&format!("run {} done: {}", driven.run, driven.counts()));
                Ok(())
            }
            RunEnd::Failed { errors } => Err(Failure::Stage(run::failed_tasks(&driven.run, &driven.plan, errors))),
            RunEnd::Cancelled | RunEnd::Fenced => Err(driven.stopped()),
        }
    }
}

/// The parameter that is a round's budget, and its value; rounds without successive halving have none.
type Budget<'s> = Option<(&'s str, &'s Value)>;

fn with_budget(point: &Point, budget: Budget<'_>) -> Point {
    budget.map_or_else(|| point.clone(), |(name, value)| point.with(name, value))
}

/// The budget of each round.
fn budgets(sweep: &Sweep) -> Vec<Budget<'_>> {
    match &sweep.halving {
        Some(halving) => halving.values.iter().map(|value| Some((halving.param.as_str(), value))).collect(),
        None => vec![None],
    }
}

/// What came of a point whose stages stand at these places of the run's plan.
async fn outcome(
    driven: &Driven,
    joined: &Joined,
    (number, point): (usize, &Point),
    stages: &[u32],
    errors: &[TaskError],
) -> Result<Tried, Failure> {
    let mut metrics = Vec::new();
    for stage in stages.iter().filter_map(|at| joined.plan.stages.get(*at as usize)) {
        if stage.kind == StageKind::Evaluate {
            let rows = report::metrics_of(&driven.store, stage).await?.into_iter();
            metrics.extend(rows.map(|row| report::MetricRow { stage: stage.name.in_file().to_string(), ..row }));
        }
    }
    let failed = errors.iter().find(|error| stages.contains(&error.task.stage));
    let failure = failed.map(|error| format!("{}: {}", error.stage, error.message));
    Ok(Tried { number, point: point.clone(), metrics, failure })
}
