//! A metric over the values of one axis, as SVG. Points that have all other values in common are one line. Its colours are
//! of middling lightness on no ground, so that it can be read on a light page and on a dark one.

use crate::failure::Failure;
use plotters::prelude::*;
use serde_json::Value;

const SIZE: (u32, u32) = (760, 440);
/// Width of the names of the lines, beside the plot.
const LEGEND: i32 = 170;
/// Text, axes and grid.
const INK: RGBColor = RGBColor(128, 128, 128);
/// One a line, told apart with common kinds of colour blindness too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 122, 204),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(140, 120, 40),
    RGBColor(110, 90, 200),
];
/// A larger axis is drawn by its logarithm.
const LOG_FROM: f64 = 50.0;

/// One point of a sweep.
#[derive(Clone, Debug)]
pub(crate) struct Dot {
    /// Its value on the axis.
    pub(crate) at: Value,
    /// Its other values, in words.
    pub(crate) series: String,
    /// The metric.
    pub(crate) value: f64,
    /// The metric's interval.
    pub(crate) interval: Option<(f64, f64)>,
}

/// Where values of an axis stand.
enum Scale {
    Linear,
    Log,
    /// Texts, or `true` and `false`, one after the other.
    Words(Vec<String>),
}

impl Scale {
    fn of(dots: &[Dot]) -> Self {
        let numbers: Option<Vec<f64>> = dots.iter().map(|dot| dot.at.as_f64()).collect();
        let Some(numbers) = numbers else {
            let mut words: Vec<String> = Vec::new();
            for word in dots.iter().map(|dot| word(&dot.at)) {
                if !words.contains(&word) {
                    words.push(word);
                }
            }
            return Self::Words(words);
        };
        let (low, high) = ends(numbers);
        if low > 0.0 && high / low >= LOG_FROM { Self::Log } else { Self::Linear }
    }

    fn place(&self, value: &Value) -> f64 {
        match self {
            Self::Linear => value.as_f64().unwrap_or_default(),
            Self::Log => value.as_f64().map_or(0.0, f64::log10),
            Self::Words(words) => words.iter().position(|w| *w == word(value)).unwrap_or_default() as f64,
        }
    }

    fn label(&self, place: f64) -> String {
        match self {
            Self::Linear => format!("{}", (place * 1e9).round() / 1e9),
            Self::Log => format!("{:.1e}", 10f64.powf(place)),
            Self::Words(words) => {
                let near = place.round();
                if (place - near).abs() > 1e-6 || near < 0.0 {
                    return String::new();
                }
                words.get(near as usize).cloned().unwrap_or_default()
            }
        }
    }
}

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn ends(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    values.into_iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// A little room on both sides.
fn roomy((low, high): (f64, f64)) -> std::ops::Range<f64> {
    let room = if high > low { (high - low) * 0.06 } else { 0.5 };
    low - room..high + room
}

/// The plot; `None` where the axis has fewer than two values.
pub(crate) fn plot(axis: &str, metric: &str, dots: &[Dot]) -> Result<Option<String>, Failure> {
    let scale = Scale::of(dots);
    let (first, last) = ends(dots.iter().map(|dot| scale.place(&dot.at)));
    if first >= last {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&mut svg, axis, metric, dots, &scale).map_err(|e| Failure::Other(anyhow::anyhow!("plot of {axis}: {e}")))?;
    Ok(Some(svg))
}

fn draw(
    svg: &mut String,
    axis: &str,
    metric: &str,
    dots: &[Dot],
    scale: &Scale,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let across = roomy(ends(dots.iter().map(|dot| scale.place(&dot.at))));
    let up = roomy(ends(dots.iter().flat_map(|dot| {
        let (low, high) = dot.interval.unwrap_or((dot.value, dot.value));
        [low, high]
    })));
    let text = |size: i32| ("sans-serif", size).into_font().color(&INK);
    let mut series: Vec<&str> = Vec::new();
    for dot in dots {
        if !series.contains(&dot.series.as_str()) {
            series.push(&dot.series);
        }
    }
    let told = (2..=COLOURS.len()).contains(&series.len());
    let mut chart = ChartBuilder::on(&area)
        .margin(14)
        .margin_right(if told { LEGEND } else { 14 })
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(across, up)?;
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(INK.mix(0.25))
        .light_line_style(TRANSPARENT)
        .label_style(text(13))
        .axis_desc_style(text(14))
        .x_desc(axis)
        .y_desc(metric)
        .x_labels(match scale {
            Scale::Words(words) => words.len(),
            Scale::Linear | Scale::Log => 6,
        })
        .x_label_formatter(&|place| scale.label(*place))
        .draw()?;
    for (name, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let mut line: Vec<&Dot> = dots.iter().filter(|dot| dot.series == **name).collect();
        line.sort_by(|a, b| scale.place(&a.at).total_cmp(&scale.place(&b.at)));
        let places: Vec<(f64, f64)> = line.iter().map(|dot| (scale.place(&dot.at), dot.value)).collect();
        // Words have nothing between them.
        if !matches!(scale, Scale::Words(_)) || series.len() > 1 {
            chart.draw_series([PathElement::new(places.clone(), colour.stroke_width(2))])?;
        }
        // Of several lines they would hide each other.
        if series.len() == 1 {
            chart.draw_series(line.iter().filter_map(|dot| {
                let (low, high) = dot.interval?;
                let at = scale.place(&dot.at);
                Some(PathElement::new([(at, low), (at, high)], colour.mix(0.5).stroke_width(2)))
            }))?;
        }
        chart.draw_series(places.iter().map(|place| Circle::new(*place, 3, colour.filled())))?;
    }
    if told {
        for ((name, colour), row) in series.iter().zip(&COLOURS).zip(0..) {
            let (left, line) = (SIZE.0 as i32 - LEGEND + 8, 28 + 20 * row);
            area.draw(&PathElement::new([(left, line), (left + 16, line)], colour.stroke_width(2)))?;
            area.draw(&Text::new((*name).to_owned(), (left + 22, line - 6), text(12)))?;
        }
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dot(at: Value, series: &str, value: f64) -> Dot {
        Dot { at, series: series.to_owned(), value, interval: Some((value - 0.01, value + 0.01)) }
    }

    #[test]
    fn a_plot_has_a_line_for_each_series_and_a_dot_for_each_point() {
        let dots = [
            dot(json!(1e-6), "alpha=0.1", 0.6),
            dot(json!(1e-2), "alpha=0.1", 0.7),
            dot(json!(1e-6), "alpha=0.2", 0.5),
            dot(json!(1e-2), "alpha=0.2", 0.6),
        ];
        let svg = plot("eps", "auc of merge", &dots).unwrap().unwrap();
        assert_eq!(svg.matches("<circle").count(), 4);
        for text in ["alpha=0.1", "alpha=0.2", "eps", "auc of merge", "1.0e-4"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }

    #[test]
    fn words_stand_in_their_order() {
        let dots = [dot(json!("mean"), "", 0.6), dot(json!("last"), "", 0.7)];
        let svg = plot("pooling", "auc of score", &dots).unwrap().unwrap();
        assert!(svg.find("mean").unwrap() < svg.find("last").unwrap(), "{svg}");
        assert!(plot("pooling", "auc", &dots[..1]).unwrap().is_none(), "one value is no plot");
    }
}
