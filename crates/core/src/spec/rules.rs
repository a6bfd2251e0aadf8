//! What a kind's parameters and inputs mean together: the checks that no single type or range can make.

use super::{
    diagnostics::{Span, list, shown},
    mapping,
    node::{Content, Entry},
    stage::Reference,
    values::Reader,
};
use crate::{
    params::{CtrModel, CtrParams, DatasetParams, Hint, IndexVariant, PromptVariant, Selection, StageParams},
    template::{self, Piece},
};

/// Where a parameter stands, or the stage's name when it was left out.
struct Places<'a> {
    stage: Span,
    with: &'a [Entry],
}

impl Places<'_> {
    fn of(&self, name: &str) -> Span {
        self.with.iter().find(|e| &*e.key == name).map_or(self.stage, |e| e.value.span)
    }
}

/// Checks the parameters among themselves. `item_fields` are further texts of items in the file's data sets.
pub(super) fn check(reader: &mut Reader, params: &StageParams, stage: Span, with: &[Entry], item_fields: &[String]) {
    let item: Vec<&str> =
        ["title", "genre", "year"].into_iter().chain(item_fields.iter().map(String::as_str)).collect();
    let at = Places { stage, with };
    match params {
        StageParams::Dataset(p) => {
            fractions(reader, p, &at);
            mapping::check(reader, p, stage, with);
        }
        StageParams::Describe(p) => {
            placeholders(reader, &p.template, "template", &item, &["title"], &at);
        }
        StageParams::Embed(p) => {
            placeholders(reader, &p.title_template, "title_template", &item, &["title"], &at);
        }
        StageParams::Retrieve(p) => {
            let known = ["user", "verb", "history", "like_above", "target"];
            placeholders(reader, &p.template, "template", &known, &["history", "target"], &at);
            if p.selection != Selection::Score && p.variant != PromptVariant::Rerank {
                let message = "`selection` has no effect unless `variant` is `rerank`";
                reader.out.warning(at.of("selection"), message, Some("remove it".to_owned()));
            }
        }
        StageParams::Score(p) => answers(reader, &p.yes, &p.no, &at),
        StageParams::Tune(p) => {
            answers(reader, &p.yes, &p.no, &at);
            if p.targets.is_empty() {
                let help = Some("for example `targets: [q_proj, v_proj]`".to_owned());
                reader.out.error(at.of("targets"), "`targets` must name a projection", help);
            }
        }
        StageParams::Reason(p) => {
            answers(reader, &p.yes, &p.no, &at);
            for (name, text) in [("think_open", &p.think_open), ("think_close", &p.think_close)] {
                if text.trim().is_empty() {
                    let help = Some("write the text that marks the thinking, for example \"</think>\"".to_owned());
                    reader.out.error(at.of(name), format!("`{name}` must not be empty"), help);
                }
            }
            if p.temperature == 0.0 && p.samples > 1 {
                let message = format!("at temperature 0 the {} traces of a prompt are all the same", p.samples);
                reader.out.warning(
                    at.of("temperature"),
                    message,
                    Some("set `samples: 1`, or raise `temperature`".to_owned()),
                );
            }
        }
        StageParams::Ctr(p) => ctr(reader, p, &at),
        StageParams::Report(p) if p.title.contains('\n') => {
            let help = Some("write it on one line".to_owned());
            reader.out.error(at.of("title"), "`title` must be one line", help);
        }
        StageParams::LightGcn(_)
        | StageParams::Align(_)
        | StageParams::Index(_)
        | StageParams::Sample(_)
        | StageParams::Merge(_)
        | StageParams::Evaluate(_)
        | StageParams::Report(_)
        | StageParams::Rows(_)
        | StageParams::Wait(_) => {}
    }
}

fn fractions(reader: &mut Reader, p: &DatasetParams, at: &Places<'_>) {
    let sum = p.valid_fraction + p.test_fraction;
    if sum >= 1.0 {
        let place = if at.of("test_fraction") == at.stage { at.of("valid_fraction") } else { at.of("test_fraction") };
        let message = format!(
            "`valid_fraction` and `test_fraction` add up to {sum}, which leaves nothing to train on: they are {} and {}",
            p.valid_fraction, p.test_fraction
        );
        reader.out.error(
            place,
            message,
            Some("keep their sum below 1; both are 0.1 where the file does not say".to_owned()),
        );
    }
    if p.test_fraction == 0.0 {
        let help = Some("give the test a part of the samples, for example 0.1".to_owned());
        reader.out.error(at.of("test_fraction"), "`test_fraction` is 0: there would be nothing to evaluate on", help);
    }
}

/// Lists of layers, and parameters that belong to another model.
fn ctr(reader: &mut Reader, p: &CtrParams, at: &Places<'_>) {
    let own = [
        ("cin", CtrModel::XDeepFm),
        ("cross_layers", CtrModel::Dcn),
        ("attention_layers", CtrModel::AutoInt),
        ("heads", CtrModel::AutoInt),
        ("attention_dim", CtrModel::AutoInt),
    ];
    for (name, model) in own {
        if p.model != model && at.of(name) != at.stage {
            let message = format!("`{name}` has no effect on model `{}`", p.model.word());
            reader.out.warning(at.of(name), message, Some(format!("it belongs to `{}`; remove it", model.word())));
        }
    }
    for (name, layers, example) in [("hidden", &p.hidden, "[256, 128]"), ("cin", &p.cin, "[16, 16]")] {
        if layers.is_empty() || layers.len() > 16 {
            let message = format!("`{name}` must list 1 to 16 layers, not {}", layers.len());
            reader.out.error(at.of(name), message, Some(format!("for example `{name}: {example}`")));
        }
    }
}

fn answers(reader: &mut Reader, yes: &str, no: &str, at: &Places<'_>) {
    for (name, text) in [("yes", yes), ("no", no)] {
        if text.trim().is_empty() {
            let help =
                Some(format!("write a word, for example `{name}: \"{}\"`", if name == "yes" { "Yes" } else { "No" }));
            reader.out.error(at.of(name), format!("`{name}` must not be empty"), help);
        }
    }
    if yes == no {
        let place = if at.of("no") == at.stage { at.of("yes") } else { at.of("no") };
        let message = format!("`yes` and `no` are both \"{}\", so no answer could be told from the other", shown(yes));
        reader.out.error(place, message, Some("use two different words".to_owned()));
    }
}

/// Checks the placeholders of a template.
fn placeholders(reader: &mut Reader, template: &str, name: &str, known: &[&str], required: &[&str], at: &Places<'_>) {
    let mut found = Vec::new();
    for piece in template::pieces(template) {
        match piece {
            Piece::Text(_) => {}
            Piece::Placeholder(word) => {
                if !known.contains(&word) {
                    let help = reader.out.did_you_mean(word, known.iter().copied(), "it can hold");
                    reader.out.error(at.of(name), format!("`{name}` has no placeholder `{{{word}}}`"), help);
                }
                found.push(word);
            }
            Piece::UnmatchedBrace(byte) => {
                let near: String = template[byte..].chars().take(20).collect();
                let message = format!("`{name}` has a brace without its partner: `{near}`");
                let help = "close the placeholder, or write `{{` or `}}` for a brace";
                reader.out.error(at.of(name), message, Some(help.to_owned()));
                return;
            }
        }
    }
    for word in required.iter().filter(|w| !found.contains(w)) {
        let message = format!("`{name}` lacks `{{{word}}}`, so its texts would not depend on the {word}");
        reader.out.error(at.of(name), message, Some(format!("put `{{{word}}}` where it belongs")));
    }
}

/// Checks the inputs against the parameters that decide which of them count.
pub(super) fn inputs(reader: &mut Reader, params: &StageParams, stage: Span, with: &[Entry], needs: &[Reference]) {
    let at = Places { stage, with };
    let given = |port: &str| needs.iter().find(|r| r.port.name == port);
    match params {
        StageParams::Index(p) => {
            let (wanted, word): (&[&str], &str) = match p.variant {
                IndexVariant::Text => (&["text"], "text"),
                IndexVariant::Id => (&["collaborative"], "id"),
                IndexVariant::Concat => (&["text", "collaborative"], "concat"),
                IndexVariant::ConcatSsl => (&["text", "collaborative", "aligned"], "concat_ssl"),
            };
            for port in ["text", "collaborative", "aligned"] {
                match (wanted.contains(&port), given(port)) {
                    (true, None) => {
                        let message = format!("`variant: {word}` needs the input `{port}`");
                        let help = format!("add `{port}: STAGE` below `needs:`, or choose another `variant`");
                        reader.out.error(at.of("variant"), message, Some(help));
                    }
                    (false, Some(extra)) => {
                        let message = format!("`variant: {word}` does not use the input `{port}`");
                        let help = format!("remove it, or choose another `variant`; this one uses {}", list(wanted));
                        reader.out.error(extra.span, message, Some(help));
                    }
                    _ => {}
                }
            }
            if p.pca_dims > 0 && !wanted.contains(&"text") {
                let message = "`pca_dims` reduces text embeddings, and `variant: id` has none";
                reader.out.error(at.of("pca_dims"), message, Some("remove it, or choose another `variant`".to_owned()));
            }
        }
        StageParams::Retrieve(p) if p.variant != PromptVariant::Simple && given("index").is_none() => {
            let message = "every `variant` but `simple` looks for similar items and needs the input `index`";
            let help = "add `index: STAGE` below `needs:`, or set `variant: simple`".to_owned();
            reader.out.error(at.of("variant"), message, Some(help));
        }
        StageParams::Retrieve(p) => match (p.variant, given("other_index")) {
            (PromptVariant::Hybrid, None) => {
                let message =
                    "`variant: hybrid` takes half of its entries by a second index and needs the input `other_index`";
                let help =
                    "add `other_index: STAGE` below `needs:`, for example an index with `variant: id`".to_owned();
                reader.out.error(at.of("variant"), message, Some(help));
            }
            (PromptVariant::Hybrid, Some(_)) | (_, None) => {}
            (_, Some(extra)) => {
                let message = "only `variant: hybrid` uses the input `other_index`";
                reader.out.error(extra.span, message, Some("remove it, or set `variant: hybrid`".to_owned()));
            }
        },
        StageParams::Reason(p) => match (p.hint, given("predictions")) {
            (Hint::Graded | Hint::Might, None) => {
                let message = "a `hint` tells what the tuned model predicts and needs the input `predictions`";
                let help = "add `predictions: STAGE` below `needs:`, or set `hint: none`".to_owned();
                reader.out.error(at.of("hint"), message, Some(help));
            }
            (Hint::None, Some(extra)) => {
                let message = "with `hint: none` the input `predictions` is not used";
                reader.out.error(extra.span, message, Some("remove it, or choose another `hint`".to_owned()));
            }
            _ => {}
        },
        _ => {}
    }
}

/// The parameters as given, for [`Places`]; nothing when there are none.
pub(super) fn given_params(fields: &[Entry]) -> &[Entry] {
    match fields.iter().find(|e| &*e.key == "with").map(|e| &e.value.content) {
        Some(Content::Map(entries)) => entries,
        _ => &[],
    }
}
