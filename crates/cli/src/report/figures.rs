//! The paper's figures with a run's values, as numbers and as SVG.

use super::{collect::RunFacts, paper::PaperSet, tables::TableOf};
use crate::{
    failure::Failure,
    plot::{Dot, plot},
};
use rallrec_core::kind::StageKind;
use rallrec_recsys::response::{by_length, moving_accuracy};
use serde::Serialize;
use serde_json::{Value, json};
use std::{fs, path::Path};

/// Groups of Figure 2.
const LENGTH_GROUPS: usize = 5;
/// Points of Figure 3.
const WINDOWS: usize = 120;

/// A figure, or why there is none.
#[derive(Clone, Serialize)]
pub(super) struct Figure {
    /// `figure_2`.
    pub(super) id: &'static str,
    pub(super) title: String,
    /// What is to be seen, or why nothing is.
    pub(super) caption: String,
    /// What is drawn.
    pub(super) values: Value,
    #[serde(skip)]
    pub(super) svg: Option<String>,
}

impl Figure {
    fn none(id: &'static str, title: &str, why: &str) -> Self {
        Self { id, title: title.to_owned(), caption: why.to_owned(), values: Value::Null, svg: None }
    }
}

/// Figures 2, 3, 8 and 9 and the numbers of Table 7 of a run.
///
/// # Errors
/// When one cannot be drawn.
pub(super) fn of(run: &RunFacts, tables: &[TableOf]) -> Result<Vec<Figure>, Failure> {
    Ok(vec![lengths(run)?, variances(run)?, strategies(tables)?, seconds(run)?])
}

const NO_RESPONSES: &str = "Left out: the run has no stage of kind `reason` that is done.";

fn lengths(run: &RunFacts) -> Result<Figure, Failure> {
    let title = "Figure 2. Accuracy by length of the response";
    let Some(found) = &run.responses else { return Ok(Figure::none("figure_2", title, NO_RESPONSES)) };
    let mut responses = Vec::new();
    for (row, label) in found.label.iter().enumerate() {
        for (tokens, p) in found.tokens[row].iter().zip(&found.p[row]).filter(|(_, p)| !p.is_nan()) {
            responses.push((u32::try_from(*tokens).unwrap_or(0), (*p > 0.5) == (*label == 1)));
        }
    }
    let groups = by_length(&responses, LENGTH_GROUPS);
    let dots: Vec<Dot> = (1..)
        .zip(&groups)
        .map(|(number, g)| Dot {
            // Groups of equal lengths are still groups.
            at: json!(format!("{number}: {} to {}", g.shortest, g.longest)),
            series: String::new(),
            value: g.accuracy,
            interval: None,
        })
        .collect();
    let values: Vec<Value> = groups
        .iter()
        .map(
            |g| json!({"shortest": g.shortest, "longest": g.longest, "responses": g.responses, "accuracy": g.accuracy}),
        )
        .collect();
    Ok(Figure {
        id: "figure_2",
        title: title.to_owned(),
        caption: format!(
            "Responses of `{}`, sorted by length and cut into {} equal groups: the share of right answers in each.",
            found.stage,
            groups.len()
        ),
        svg: plot("group: tokens", "accuracy", &dots)?,
        values: Value::Array(values),
    })
}

fn variances(run: &RunFacts) -> Result<Figure, Failure> {
    let title = "Figure 3. Accuracy by variance of a prompt's predictions";
    let Some(found) = &run.responses else { return Ok(Figure::none("figure_3", title, NO_RESPONSES)) };
    let mut samples = Vec::new();
    for (p, label) in found.p.iter().zip(&found.label) {
        let p: Vec<f64> = p.iter().filter(|p| !p.is_nan()).map(|p| f64::from(*p)).collect();
        if p.is_empty() {
            continue;
        }
        let mean = p.iter().sum::<f64>() / p.len() as f64;
        let variance = p.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / p.len() as f64;
        samples.push((variance, (mean > 0.5) == (*label == 1)));
    }
    let asked = run.data.as_ref().and_then(|data| data.paper).unwrap_or(PaperSet::MovieLens).window();
    // Of few samples a tenth, so that there is something to see.
    let window = asked.min((samples.len() / 10).max(1));
    let points = moving_accuracy(&samples, window, WINDOWS);
    let dots: Vec<Dot> = (0..points.len())
        .map(|i| Dot { at: json!(i), series: String::new(), value: points[i].1, interval: None })
        .collect();
    let smaller = if window < asked {
        format!(" (the paper's windows hold {asked}; there are too few samples)")
    } else {
        String::new()
    };
    Ok(Figure {
        id: "figure_3",
        title: title.to_owned(),
        caption: format!(
            "{} samples of `{}` sorted by the variance of their traces' predictions, from left to right: accuracy of the mean in \
             moving windows of {window}{smaller}.",
            samples.len(),
            found.stage
        ),
        svg: plot("window, by rising variance", "accuracy", &dots)?,
        values: json!({"window": window, "points": points.iter().map(|(v, a)| json!({"variance": v, "accuracy": a})).collect::<Vec<_>>()}),
    })
}

fn strategies(tables: &[TableOf]) -> Result<Figure, Failure> {
    let title = "Figure 8. Strategies of retrieval";
    let Some(table) = tables.iter().find(|table| table.id == "figure_8") else {
        return Ok(Figure::none("figure_8", title, "Left out: the run has none of the stages `retrieval-…`."));
    };
    let dot = |system: &super::tables::System| {
        let interval = system.auc.low.zip(system.auc.high);
        Some(Dot { at: json!(system.label), series: String::new(), value: system.auc.value?, interval })
    };
    let dots: Vec<Dot> = table.systems.iter().filter_map(dot).collect();
    Ok(Figure {
        id: "figure_8",
        title: title.to_owned(),
        caption:
            "AUC with its interval by what picks the history that a prompt shows; the answers are of one tuned model."
                .to_owned(),
        svg: plot("strategy", "AUC", &dots)?,
        values: json!(table.systems),
    })
}

/// Seconds an answer of the general model (`score`) and a response of the reasoning one.
fn seconds(run: &RunFacts) -> Result<Figure, Failure> {
    let title = "Figure 9. Seconds a response";
    let Some(found) = &run.responses else { return Ok(Figure::none("figure_9", title, NO_RESPONSES)) };
    let all: Vec<f64> = found.seconds.iter().flatten().filter(|s| s.is_finite()).map(|s| f64::from(*s)).collect();
    let general: Vec<_> = run.stages.iter().filter(|s| s.kind == StageKind::Score && s.done > 0).collect();
    let answers: i64 = general
        .iter()
        .filter_map(|stage| run.metrics.iter().find(|row| row.system == stage.name).map(|row| row.samples))
        .sum();
    let evaluated = |name: &str| run.metrics.iter().any(|row| row.system == name);
    let spent: f64 = general.iter().filter(|s| evaluated(&s.name)).map(|s| s.seconds + s.saved_seconds).sum();
    let reasoning = if all.is_empty() { None } else { Some(all.iter().sum::<f64>() / all.len() as f64) };
    let general = (answers > 0).then(|| spent / answers as f64);
    let dot = |name: &str, value: f64| Dot { at: json!(name), series: String::new(), value, interval: None };
    let dots: Vec<Dot> = [("general model", general), ("reasoning model", reasoning)]
        .into_iter()
        .filter_map(|(name, value)| Some(dot(name, value?)))
        .collect();
    Ok(Figure {
        id: "figure_9",
        title: title.to_owned(),
        caption: format!(
            "Mean seconds of one answer: the general model's stages of kind `score`, by what their tasks took, and a response of `{}`, \
             by its own clock while others were decoded with it.",
            found.stage
        ),
        svg: plot("model", "seconds", &dots)?,
        values: json!({"general": general, "reasoning": reasoning}),
    })
}

/// Figures 6 and 7 from the folder that `rallrec sweep` wrote.
///
/// # Errors
/// [`Failure::Unreachable`] when it cannot be read, [`Failure::Invalid`] when it is no sweep's.
pub(super) fn of_sweep(folder: &Path) -> Result<Vec<Figure>, Failure> {
    let path = folder.join("points.json");
    let text = fs::read_to_string(&path).map_err(|e| {
        Failure::Unreachable(format!("{}: {e}; give --sweep the folder that `rallrec sweep` wrote", path.display()))
    })?;
    let sweep: Value = serde_json::from_str(&text).map_err(|e| {
        Failure::Invalid(format!("{}:{}:{}: no sweep's points: {e}", path.display(), e.line(), e.column()))
    })?;
    let rounds = sweep["rounds"].as_array().and_then(|rounds| rounds.last()).and_then(Value::as_array);
    let points =
        rounds.ok_or_else(|| Failure::Invalid(format!("{}: it has no `rounds`; sweep again", path.display())))?;
    let mut figures = Vec::new();
    for (id, number, axis) in [("figure_6", 6, "alpha"), ("figure_7", 7, "eps")] {
        let dots = sweep_dots(points, axis);
        let title = format!("Figure {number}. AUC of the merge by {axis}");
        figures.push(match plot(axis, "AUC", &dots)? {
            Some(svg) => Figure {
                id,
                title,
                caption: format!(
                    "{} points of the sweep of `{}`; each line has the other values in common.",
                    dots.len(),
                    sweep["pipeline"].as_str().unwrap_or_default()
                ),
                values: Value::Array(points.clone()),
                svg: Some(svg),
            },
            None => Figure::none(id, &title, &format!("Left out: the sweep has fewer than two values of {axis}.")),
        });
    }
    Ok(figures)
}

/// The AUC of the merged predictions of each point.
fn sweep_dots(points: &[Value], axis: &str) -> Vec<Dot> {
    let dot = |point: &Value| {
        let values = point["values"].as_object()?;
        let rows = point["metrics"].as_array()?;
        let of = |system: &str| rows.iter().find(|row| row["system"] == system && row["metric"] == "auc");
        let row = of("rallrec-plus").or_else(|| of("merge"))?;
        let others = values.iter().filter(|(name, _)| *name != axis).map(|(name, value)| format!("{name}={value}"));
        Some(Dot {
            at: values.get(axis)?.clone(),
            series: others.collect::<Vec<_>>().join(" "),
            value: row["value"].as_f64()?,
            interval: row["low"].as_f64().zip(row["high"].as_f64()),
        })
    };
    points.iter().filter_map(dot).collect()
}
