//! A report as one HTML page: its style and its plots are in it, it has no script and asks nobody for anything. Light or
//! dark as the reader's system is; tables scroll by themselves where the screen is narrow.

use super::{
    figures::Figure,
    text::{self, STAGE_HEADS},
    whole::{Report, RunReport},
};
use std::fmt::Write as _;

const STYLE: &str = include_str!("page.css");

pub(super) fn html(report: &Report) -> String {
    let names: Vec<&str> = report.runs.iter().map(|run| run.pipeline.as_str()).collect();
    let title = escaped(&format!("rallrec: {}", names.join(", ")));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Report</h1>\n"
    );
    for run in &report.runs {
        section(run, &mut page);
    }
    if !report.sweeps.is_empty() {
        page.push_str("<section>\n<h2>Sweeps</h2>\n");
        report.sweeps.iter().for_each(|f| figure(f, &mut page));
        page.push_str("</section>\n");
    }
    page.push_str(
        "<footer><p>Published values: RALLRec+, arXiv 2503.20430. Intervals: bootstrap over samples.</p></footer>\n</main>\n</body>\n</html>\n",
    );
    page
}

fn section(run: &RunReport, page: &mut String) {
    let _ =
        write!(page, "<section>\n<h2>{}</h2>\n<p class=\"run\">Run {}</p>\n", escaped(&run.pipeline), escaped(&run.id));
    if !run.notes.is_empty() {
        page.push_str("<div class=\"notes\">\n");
        run.notes.iter().for_each(|note| {
            let _ = writeln!(page, "<p>{}</p>", escaped(note));
        });
        page.push_str("</div>\n");
    }
    if let Some(data) = &run.data {
        let heads = ["", "Users", "Items", "Samples"];
        table("Table 1. The data set", &heads, &text::counts(run, &data.source), 1, page);
        let _ = writeln!(page, "<p class=\"below\">SHA-256 of its files: <code>{}</code></p>", escaped(&data.digest));
    }
    for of in &run.tables {
        let (heads, rows) = text::systems(of);
        table(&of.title, &heads, &rows, 1, page);
        let _ = writeln!(page, "<p class=\"below\">{}</p>", escaped(&text::below(of)));
    }
    if let Some(found) = &run.responses {
        let seconds = found.mean_seconds.map_or("-".to_owned(), |s| format!("{s:.2}"));
        let row = vec![found.stage.clone(), found.responses.to_string(), format!("{:.1}", found.mean_tokens), seconds];
        table("Table 7. Tokens a response", &["Stage", "Responses", "Mean tokens", "Mean seconds"], &[row], 1, page);
    }
    run.figures.iter().for_each(|f| figure(f, page));
    let rows: Vec<Vec<String>> = run.stages.iter().map(|stage| text::stage_cells(stage).to_vec()).collect();
    table("Stages: time and lineage", &STAGE_HEADS, &rows, 2, page);
    let _ = write!(page, "<p class=\"below\">{}</p>\n</section>\n", escaped(&text::time(run)));
}

/// A table; `words` columns from the left, and those of [`STAGE_HEADS`] that are no numbers, are set as text.
fn table(caption: &str, heads: &[&str], rows: &[Vec<String>], words: usize, page: &mut String) {
    let class = |column: usize| {
        let text = column < words || (heads == STAGE_HEADS && column > 5);
        if text { " class=\"word\"" } else { "" }
    };
    let _ = write!(
        page,
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{0}\">\n<table>\n<caption>{0}</caption>\n<thead><tr>",
        escaped(caption)
    );
    for (column, head) in heads.iter().enumerate() {
        let _ = write!(page, "<th scope=\"col\"{}>{}</th>", class(column), escaped(head));
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let cell = escaped(cell);
            let _ = if column == 0 {
                write!(page, "<th scope=\"row\" class=\"word\">{cell}</th>")
            } else {
                write!(page, "<td{}>{cell}</td>", class(column))
            };
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody>\n</table>\n</div>\n");
}

fn figure(figure: &Figure, page: &mut String) {
    let _ = write!(page, "<figure id=\"{}\">\n<h3>{}</h3>\n", figure.id, escaped(&figure.title));
    if let Some(svg) = &figure.svg {
        let _ = writeln!(page, "<div class=\"plot\">{}</div>", inline(svg, &figure.title));
    }
    let _ = write!(page, "<figcaption>{}</figcaption>\n</figure>\n", with_code(&figure.caption));
}

/// A plot for the inside of a page: it grows with its place, has a name, and its grey is the page's own text colour.
fn inline(svg: &str, name: &str) -> String {
    let body = svg.split_once('>').map_or(svg, |(_, body)| body);
    let head = svg.split_once('>').map_or("", |(head, _)| head);
    let view =
        head.split_once("viewBox=\"").and_then(|(_, rest)| rest.split_once('"')).map_or("0 0 760 440", |(v, _)| v);
    let body = body
        .replace("fill=\"#808080\"", "fill=\"currentColor\"")
        .replace("stroke=\"#808080\"", "stroke=\"currentColor\"");
    format!(
        "<svg viewBox=\"{view}\" role=\"img\" aria-label=\"{}\" xmlns=\"http://www.w3.org/2000/svg\">{body}",
        escaped(name)
    )
}

/// A sentence with its names in backticks set as code.
fn with_code(text: &str) -> String {
    let pieces = escaped(text);
    let set = pieces.split('`').enumerate();
    set.map(|(i, piece)| if i % 2 == 1 { format!("<code>{piece}</code>") } else { piece.to_owned() }).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
