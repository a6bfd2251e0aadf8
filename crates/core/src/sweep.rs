//! Sweeps: the same pipeline for many values of its parameters.
//!
//! What to try is under `sweep:` in the pipeline file and is read by [`crate::spec`]. Here is the arithmetic: which points
//! there are, and which of them go on. It knows nothing of plans and runs; [`crate::plan::Plan::join`] makes one plan of
//! the points' plans, in which they share whatever is the same.

use crate::rng::row_rng;
use rand_chacha::rand_core::Rng;
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;

/// Most points of a sweep.
pub const MAX_POINTS: usize = 10_000;

/// What a sweep tries, and what it looks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// Points written out; each is combined with every point of the grid.
    pub list: Vec<Point>,
    /// Axes of the grid, each with its values.
    pub grid: Vec<(String, Vec<Value>)>,
    /// Values that are drawn.
    pub random: Option<Random>,
    /// Axes that only count where another parameter has some value.
    pub when: Vec<When>,
    /// Which point is best.
    pub best: Option<Best>,
    /// Early stopping.
    pub halving: Option<Halving>,
}

/// Values that are drawn: each draw is combined with every point of list and grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Random {
    /// How often is drawn.
    pub draws: u32,
    /// Seed of the draws.
    pub seed: u64,
    /// From what.
    pub axes: Vec<(String, Draw)>,
}

/// What a value is drawn from.
#[derive(Clone, Debug, PartialEq)]
pub enum Draw {
    /// One of these, all equally likely.
    OneOf(Vec<Value>),
    /// A number between two, both within reach.
    Between {
        /// Smallest.
        from: f64,
        /// Largest.
        to: f64,
        /// Whether the logarithm is drawn evenly, and not the number.
        log: bool,
        /// Whether it is a whole number.
        whole: bool,
    },
}

/// An axis that counts only where another parameter has one of some values; elsewhere it stays as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct When {
    /// The axis.
    pub axis: String,
    /// The other parameter.
    pub other: String,
    /// The other's value where the sweep does not set it.
    pub otherwise: Value,
    /// Values of the other with which the axis counts.
    pub among: Vec<Value>,
}

/// Which point is best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Best {
    /// An `evaluate` stage.
    pub stage: String,
    /// The system that it evaluates.
    pub system: String,
    /// `auc`, `accuracy` (more is better) or `logloss` (less is).
    pub metric: String,
    /// Whether only the best point runs what `stage` does not need: chosen on validation, tested once.
    pub then_whole: bool,
}

impl Best {
    /// Whether `a` is better than `b`.
    pub fn prefers(&self, a: f64, b: f64) -> bool {
        if self.metric == "logloss" { a < b } else { a > b }
    }
}

/// Successive halving (arXiv 1502.07943): all points with a small budget, the best of them with a larger one, and so on.
#[derive(Clone, Debug, PartialEq)]
pub struct Halving {
    /// The parameter that is the budget.
    pub param: String,
    /// Its values, one a rung.
    pub values: Vec<Value>,
    /// Share of a rung's points that reaches the next, at least one.
    pub keep: f64,
}

impl Halving {
    /// How many of a rung's points go on.
    pub fn kept(&self, points: usize) -> usize {
        ((points as f64 * self.keep).ceil() as usize).clamp(1, points.max(1))
    }
}

/// Values of some parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point(pub Vec<(String, Value)>);

impl Point {
    /// The value of a parameter, if the point sets it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// The point with one more value.
    #[must_use]
    pub fn with(&self, name: &str, value: &Value) -> Self {
        let mut values = self.0.clone();
        values.push((name.to_owned(), value.clone()));
        Self(values)
    }

    /// As `--set` has it: a text stands in quotes, so that `"1"` stays one.
    pub fn overrides(&self) -> Vec<(String, String)> {
        self.0.iter().map(|(name, value)| (name.clone(), value.to_string())).collect()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.0.iter().enumerate() {
            let gap = if i > 0 { ", " } else { "" };
            match value {
                Value::String(text) => write!(f, "{gap}{name}={text}")?,
                other => write!(f, "{gap}{name}={other}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for Point {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.iter().cloned().collect::<Map<String, Value>>().serialize(serializer)
    }
}

impl Sweep {
    /// How many points there are before repetitions are left out; more than [`MAX_POINTS`] are too many.
    pub fn count(&self) -> usize {
        let grid = self.grid.iter().map(|(_, values)| values.len());
        let draws = self.random.as_ref().map_or(1, |random| random.draws as usize);
        grid.fold(self.list.len().max(1).saturating_mul(draws), usize::saturating_mul)
    }

    /// Every point once: by entries of the list, then along the grid with its last axis fastest, then by draws.
    pub fn points(&self) -> Vec<Point> {
        let mut points = if self.list.is_empty() { vec![Point::default()] } else { self.list.clone() };
        for (name, values) in &self.grid {
            points = points.iter().flat_map(|point| values.iter().map(|value| point.with(name, value))).collect();
        }
        if let Some(random) = &self.random {
            // A draw is numbered over all points, so that no two points share one.
            let drawn = points.iter().flat_map(|point| (0..random.draws).map(move |_| point)).enumerate();
            points = drawn.map(|(at, point)| random.draw(at as u64, point)).collect();
        }
        let mut distinct: Vec<Point> = Vec::with_capacity(points.len());
        let mut seen = std::collections::HashSet::new();
        for point in points {
            let point = self.without_idle(point);
            if seen.insert(point.to_string()) {
                distinct.push(point);
            }
        }
        distinct
    }

    /// The point without the axes that do not count in it.
    fn without_idle(&self, mut point: Point) -> Point {
        for when in &self.when {
            let other = point.get(&when.other).unwrap_or(&when.otherwise);
            if !when.among.contains(other) {
                point.0.retain(|(name, _)| *name != when.axis);
            }
        }
        point
    }
}

impl Random {
    fn draw(&self, at: u64, point: &Point) -> Point {
        let mut point = point.clone();
        for (name, draw) in &self.axes {
            let mut rng = row_rng(self.seed, &format!("sweep.{name}"), at, 0);
            point = point.with(name, &draw.value(&mut rng));
        }
        point
    }
}

impl Draw {
    fn value(&self, rng: &mut impl Rng) -> Value {
        // 53 bits: every double in [0, 1) that is a multiple of 2^-53, all equally likely.
        let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        match self {
            Self::OneOf(values) => {
                let at = (unit * values.len() as f64) as usize;
                values.get(at).cloned().unwrap_or(Value::Null)
            }
            Self::Between { from, to, log, whole } => {
                let (low, high) = if *whole { (*from, to + 1.0) } else { (*from, *to) };
                let value = if *log { low * (high / low).powf(unit) } else { low + (high - low) * unit };
                // The power may round past an end.
                if *whole {
                    Value::from(value.clamp(*from, *to).floor() as i64)
                } else {
                    Value::from(digits(value, 6).clamp(*from, *to))
                }
            }
        }
    }
}

/// So many numbers from one to another, both included, evenly apart or in even ratios.
pub fn spaced(from: f64, to: f64, points: usize, log: bool) -> Vec<Value> {
    let last = points.saturating_sub(1).max(1) as f64;
    let at = |i: usize| {
        let share = i as f64 / last;
        if i == 0 || points == 1 {
            from
        } else if i + 1 == points {
            to
        } else if log {
            from * (to / from).powf(share)
        } else {
            from + (to - from) * share
        }
    };
    (0..points).map(|i| Value::from(digits(at(i), 12))).collect()
}

/// A number to so many digits: 0.1 + 2 x 0.1 is the 0.3 that people mean, and what is drawn can be written again.
fn digits(value: f64, digits: usize) -> f64 {
    format!("{value:.*e}", digits - 1).parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn grid(axes: &[(&str, Vec<Value>)]) -> Sweep {
        Sweep {
            list: vec![],
            grid: axes.iter().map(|(name, values)| ((*name).to_owned(), values.clone())).collect(),
            random: None,
            when: vec![],
            best: None,
            halving: None,
        }
    }

    fn shown(points: &[Point]) -> Vec<String> {
        points.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_grid_is_every_combination_with_the_last_axis_fastest() {
        let sweep = grid(&[("a", vec![json!(1), json!(2)]), ("b", vec![json!("x"), json!("y")])]);
        assert_eq!(shown(&sweep.points()), ["a=1, b=x", "a=1, b=y", "a=2, b=x", "a=2, b=y"]);
        assert_eq!(sweep.count(), 4);
    }

    #[test]
    fn entries_of_the_list_are_combined_with_the_grid() {
        let mut sweep = grid(&[("k", vec![json!(5), json!(30)])]);
        sweep.list = vec![Point(vec![("set".into(), json!("a"))]), Point(vec![("set".into(), json!("b"))])];
        assert_eq!(shown(&sweep.points()), ["set=a, k=5", "set=a, k=30", "set=b, k=5", "set=b, k=30"]);
    }

    #[test]
    fn an_axis_that_does_not_count_is_tried_once() {
        let mut sweep = grid(&[("merge", vec![json!("mean"), json!("cm")]), ("eps", vec![json!(0.1), json!(0.01)])]);
        let among = vec![json!("cm")];
        sweep.when = vec![When { axis: "eps".into(), other: "merge".into(), otherwise: Value::Null, among }];
        assert_eq!(shown(&sweep.points()), ["merge=mean", "merge=cm, eps=0.1", "merge=cm, eps=0.01"]);
    }

    #[test]
    fn spaced_numbers_are_those_that_people_write() {
        assert_eq!(spaced(0.1, 0.5, 5, false), [json!(0.1), json!(0.2), json!(0.3), json!(0.4), json!(0.5)]);
        assert_eq!(spaced(1e-6, 1e-2, 5, true), [json!(1e-6), json!(1e-5), json!(1e-4), json!(1e-3), json!(1e-2)]);
        assert_eq!(spaced(3.0, 7.0, 1, false), [json!(3.0)]);
    }

    #[test]
    fn texts_keep_their_type_on_the_command_line() {
        let point = Point(vec![("a".into(), json!("1")), ("b".into(), json!(0.5)), ("c".into(), json!(true))]);
        let written = [("a", "\"1\""), ("b", "0.5"), ("c", "true")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(point.overrides(), written);
    }

    #[test]
    fn some_always_go_on() {
        let halving = Halving { param: "epochs".into(), values: vec![], keep: 1.0 / 3.0 };
        assert_eq!([9, 4, 2, 1].map(|n| halving.kept(n)), [3, 2, 1, 1]);
    }

    proptest! {
        #[test]
        fn draws_stay_within_their_bounds_and_do_not_depend_on_anything_else(
            seed: u64, at in 0u64..1000, from in 0.001f64..10.0, ratio in 1.0f64..1000.0, log: bool, whole: bool,
        ) {
            let (from, to) = if whole { (from.ceil(), (from * ratio).ceil()) } else { (from, from * ratio) };
            let axes = vec![("x".to_owned(), Draw::Between { from, to, log, whole })];
            let random = Random { draws: 1, seed, axes };
            let point = random.draw(at, &Point::default());
            let value = point.get("x").and_then(Value::as_f64).unwrap();
            prop_assert!((from..=to).contains(&value), "{value} of {from} to {to}");
            prop_assert_eq!(whole, point.get("x").unwrap().is_i64());
            prop_assert_eq!(random.draw(at, &Point::default()), point);
        }
    }

    #[test]
    fn whole_draws_reach_both_ends_evenly() {
        let axes = vec![("k".to_owned(), Draw::Between { from: 1.0, to: 4.0, log: false, whole: true })];
        let random = Random { draws: 1, seed: 3, axes };
        let mut seen = [0u32; 4];
        for at in 0..4000 {
            let value = random.draw(at, &Point::default()).get("k").and_then(Value::as_i64).unwrap();
            seen[value as usize - 1] += 1;
        }
        assert!(seen.iter().all(|n| n.abs_diff(1000) < 150), "{seen:?}");
    }
}
