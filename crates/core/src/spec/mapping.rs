//! What a `mapping:` means beyond its types: columns that must be named, files that must be told apart, and what a data
//! set without times cannot be split by. The files themselves are not looked at here.

use super::{
    diagnostics::{Span, list, shown},
    node::{Content, Entry, Node},
    values::{Reader, get, is_name, name_help},
};
use crate::{
    mapping::{
        BOOK_FIELDS, FileFormat, ITEM_COLUMNS, ItemsTable, Layout, Mapping, RatingsTable, USER_COLUMNS, UsersTable,
    },
    params::{DatasetFormat, DatasetParams, Split},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// A table as it stands in the file.
struct Place<'a> {
    name: &'a str,
    span: Span,
    entries: &'a [Entry],
}

impl<'a> Place<'a> {
    /// The table `name` below `entries`, or all that is known of it: where what should hold it stands.
    fn below(entries: &'a [Entry], name: &'a str, path: &'a str, otherwise: Span) -> Self {
        let entry = entries.iter().find(|e| &*e.key == name);
        let inner = match entry.map(|e| &e.value.content) {
            Some(Content::Map(inner)) => inner.as_slice(),
            _ => &[],
        };
        Self { name: path, span: entry.map_or(otherwise, |e| e.key_span), entries: inner }
    }

    fn of(&self, key: &str) -> Span {
        get(self.entries, key).map_or(self.span, |node| node.span)
    }
}

/// Names of further texts of items in the mappings of all stages: what templates of any stage may hold. Which data set
/// a stage's items come from is known only later; a template with a name of another set fails when the stage runs.
pub(super) fn item_fields(stages: Option<&Node>) -> Vec<String> {
    fn below<'n>(node: Option<&'n Node>, path: &[&str]) -> &'n [Entry] {
        match (node.map(|n| &n.content), path.split_first()) {
            (Some(Content::Map(entries)), None) => entries,
            (Some(Content::Map(entries)), Some((key, rest))) => below(get(entries, key).map(|n| &**n), rest),
            _ => &[],
        }
    }
    let fields = |stage: &Entry| {
        let fields = below(Some(&*stage.value), &["with", "mapping", "items", "fields"]);
        let format = get(below(Some(&*stage.value), &["with"]), "format").map(|node| &node.content);
        let books = matches!(format, Some(Content::Scalar { text, .. }) if text == DatasetFormat::BookCrossing.word());
        let books = if books { BOOK_FIELDS.as_slice() } else { &[] };
        fields
            .iter()
            .map(|field| field.key.to_string())
            .chain(books.iter().map(|b| (*b).to_owned()))
            .collect::<Vec<_>>()
    };
    let names: BTreeSet<String> = below(stages, &[]).iter().flat_map(fields).collect();
    names.into_iter().collect()
}

/// Checks what a `dataset` stage says about its files, and its core filter.
pub(super) fn check(reader: &mut Reader, params: &DatasetParams, stage: Span, with: &[Entry]) {
    bounds(reader, params, stage, with);
    let at = Place::below(with, "mapping", "mapping", stage);
    match (&params.mapping, params.format) {
        (None, DatasetFormat::Mapped) => {
            let help = Some("say below `mapping:` which files and columns hold the ratings".to_owned());
            let span = get(with, "format").map_or(stage, |node| node.span);
            reader.out.error(span, "`format: mapped` needs a `mapping`", help);
        }
        (None, DatasetFormat::BookCrossing) if by_time(params.split) => {
            let message =
                format!("`split: {}` needs the time of each rating, and BookCrossing has none", params.split.word());
            let help = "for the paper's split: `split: shuffled_users`, `valid_fraction: 0`, `min_history: 4`, `like_above: 4`";
            let key = if get(with, "split").is_some() { "split" } else { "format" };
            reader.out.error(get(with, key).map_or(stage, |node| node.span), message, Some(help.to_owned()));
        }
        (None, _) => {}
        (Some(mapping), DatasetFormat::Auto | DatasetFormat::Mapped) => tables(reader, params, mapping, &at),
        (Some(_), format) => {
            let message = format!("`format: {}` knows its files, and a `mapping` describes others", format.word());
            let help = Some("remove one of the two".to_owned());
            reader.out.error(get(with, "format").map_or(stage, |node| node.span), message, help);
        }
    }
}

fn by_time(split: Split) -> bool {
    matches!(split, Split::Time | Split::LeaveLastOut)
}

fn bounds(reader: &mut Reader, p: &DatasetParams, stage: Span, with: &[Entry]) {
    for (what, least, most) in
        [("user", p.min_user_ratings, p.max_user_ratings), ("item", p.min_item_ratings, p.max_item_ratings)]
    {
        if most > 0 && least > most {
            let span = get(with, &format!("max_{what}_ratings")).map_or(stage, |node| node.span);
            let message = format!("no {what} has at least {least} and at most {most} ratings");
            reader.out.error(span, message, Some(format!("raise `max_{what}_ratings`, or lower `min_{what}_ratings`")));
        }
    }
}

fn tables(reader: &mut Reader, params: &DatasetParams, mapping: &Mapping, at: &Place<'_>) {
    let below = |name, path| Place::below(at.entries, name, path, at.span);
    let place = below("ratings", "mapping.ratings");
    ratings(reader, params.split, &mapping.ratings, &place);
    if let Some(table) = &mapping.items {
        items(reader, table, &below("items", "mapping.items"));
    }
    if let Some(table) = &mapping.users {
        users(reader, table, &below("users", "mapping.users"));
    }
    if mapping.verb.trim().is_empty() {
        let help = Some("write what users do with items, for example `verb: read`".to_owned());
        reader.out.error(at.of("verb"), "`mapping.verb` must not be empty", help);
    }
}

fn ratings(reader: &mut Reader, split: Split, table: &RatingsTable, place: &Place<'_>) {
    let columns = [("user", table.user.as_str()), ("item", &table.item), ("rating", &table.rating)];
    layout(reader, &table.layout(), &columns, &[("time", &table.time)], place);
    if table.time.is_empty() && by_time(split) {
        let message = format!("`split: {}` needs the time of each rating", split.word());
        let help = "name its column, `time: COLUMN`, or set `split: shuffled_users` or `split: shuffled_ratings`";
        reader.out.error(place.span, message, Some(help.to_owned()));
    }
}

fn items(reader: &mut Reader, table: &ItemsTable, place: &Place<'_>) {
    let optional = [("title", table.title.as_str()), ("genres", &table.genres), ("year", &table.year)];
    layout(reader, &table.layout(), &[("id", &table.id)], &optional, place);
    further(reader, &table.layout(), &table.fields, ITEM_COLUMNS, place);
}

fn users(reader: &mut Reader, table: &UsersTable, place: &Place<'_>) {
    let optional = [("gender", table.gender.as_str()), ("age", &table.age), ("job", &table.job), ("zip", &table.zip)];
    layout(reader, &table.layout(), &[("id", &table.id)], &optional, place);
    further(reader, &table.layout(), &table.fields, USER_COLUMNS, place);
}

/// Checks the file, how its rows are written, and the columns, each with the key that names it.
fn layout(
    reader: &mut Reader,
    layout: &Layout<'_>,
    required: &[(&str, &str)],
    optional: &[(&str, &str)],
    place: &Place<'_>,
) {
    for (key, _) in [("file", layout.file)].iter().chain(required).filter(|(_, value)| value.is_empty()) {
        let what = if *key == "file" { "FILE" } else { "COLUMN" };
        let message = format!("`{}` does not say its `{key}`", place.name);
        reader.out.error(place.of(key), message, Some(format!("add `{key}: {what}`")));
    }
    file(reader, layout, place);
    marks(reader, layout, place);
    for (key, column) in required.iter().chain(optional).filter(|(_, column)| !column.is_empty()) {
        column_is_named(reader, layout, column, place.of(key));
    }
}

fn file(reader: &mut Reader, layout: &Layout<'_>, place: &Place<'_>) {
    if layout.file.is_empty() {
        return;
    }
    if !Path::new(layout.file).components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        let message = format!(
            "`{}.file` must lie in the data set's folder, and \"{}\" leaves it",
            place.name,
            shown(layout.file)
        );
        reader.out.error(place.of("file"), message, Some("write its name, or FOLDER/NAME".to_owned()));
    } else if layout.resolved().is_none() {
        let message = format!("the ending of \"{}\" does not tell how its rows are written", shown(layout.file));
        let help = "add `format:` with one of csv, jsonl, parquet".to_owned();
        reader.out.error(place.of("file"), message, Some(help));
    }
}

/// Checks the separator, the quote and the escape.
fn marks(reader: &mut Reader, layout: &Layout<'_>, place: &Place<'_>) {
    let marks = [("separator", layout.separator), ("quote", layout.quote), ("escape", layout.escape)];
    if layout.resolved().is_some_and(|format| format != FileFormat::Csv) {
        for key in ["separator", "quote", "escape", "encoding", "columns"] {
            if let Some(node) = get(place.entries, key) {
                let message = format!("`{}.{key}` has no effect: only `csv` files have one", place.name);
                reader.out.warning(node.span, message, Some("remove it".to_owned()));
            }
        }
        return;
    }
    for (key, mark) in marks {
        if mark.len() > 1 || mark.contains(['\n', '\r']) || !mark.is_ascii() {
            let message = format!("`{}.{key}` must be one ASCII character, not \"{}\"", place.name, shown(mark));
            let help = "for example \";\", or \"\\t\" for a tab".to_owned();
            reader.out.error(place.of(key), message, Some(help));
        }
    }
    for (i, (key, mark)) in marks.iter().enumerate() {
        if let Some((other, _)) = marks[..i].iter().find(|(_, other)| !mark.is_empty() && other == mark) {
            let message = format!("`{}.{key}` and `{other}` are both \"{}\"", place.name, shown(mark));
            reader.out.error(place.of(key), message, Some("use two different characters".to_owned()));
        }
    }
}

/// A column of a file without a header must be among those that the pipeline names.
fn column_is_named(reader: &mut Reader, layout: &Layout<'_>, column: &str, span: Span) {
    if !layout.columns.is_empty() && !layout.columns.iter().any(|c| c == column) {
        let message = format!("`columns` has no column \"{}\"", shown(column));
        let help = reader.out.did_you_mean(column, layout.columns.iter().map(String::as_str), "it names");
        reader.out.error(span, message, help);
    }
}

/// Checks the names of further texts, and their columns.
fn further(
    reader: &mut Reader,
    layout: &Layout<'_>,
    fields: &BTreeMap<String, String>,
    taken: &[&str],
    place: &Place<'_>,
) {
    let inner = Place::below(place.entries, "fields", "fields", place.span);
    for (name, column) in fields {
        let entry = inner.entries.iter().find(|e| *e.key == **name);
        let (key_span, span) = entry.map_or((inner.span, inner.span), |e| (e.key_span, e.value.span));
        if taken.contains(&name.as_str()) {
            let message = format!("the table has a column `{name}` of its own");
            reader.out.error(key_span, message, Some(format!("use another name; taken are {}", list(taken))));
        } else if !is_name(name) {
            let message = format!("\"{}\" can't name a text", shown(name));
            reader.out.error(key_span, message, Some(name_help(name)));
        }
        if column.is_empty() {
            let help = Some(format!("write `{}: COLUMN`", shown(name)));
            reader.out.error(span, format!("`{}.fields.{}` must name a column", place.name, shown(name)), help);
        } else {
            column_is_named(reader, layout, column, span);
        }
    }
}
