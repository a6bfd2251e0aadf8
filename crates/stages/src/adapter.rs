//! Low-rank adapters as tables: one row a file of PEFT's format.

use crate::{
    Columns, InputReader, Model, OutputWriter, StageContext, StageError,
    columns::{Table, TableBuilder},
    language::{self, Language},
};
use rallrec_llm::{
    Adapter,
    adapter::{CONFIG_FILE, WEIGHTS_FILE},
};
use std::sync::Arc;

/// Writes the table `adapter`.
pub(crate) fn write_adapter(adapter: &Adapter, output: &mut dyn OutputWriter) -> Result<(), StageError> {
    let (config, weights) = adapter.to_files()?;
    let table = TableBuilder::default()
        .text("file", "Name of the file, as PEFT reads it.", vec![CONFIG_FILE.into(), WEIGHTS_FILE.into()])
        .binary("content", "Its bytes.", &[config.as_bytes(), &weights]);
    output.write("adapter", table.finish()?)
}

/// The task's model, with the adapter of the input `adapter` where there is one.
pub(crate) fn model(context: &StageContext<'_>, inputs: &dyn InputReader) -> Result<Language, StageError> {
    let model = language::model(context)?;
    if !inputs.has("adapter") {
        return Ok(model);
    }
    let (Language::Local(model), Some(Model::Local(source))) = (model, &context.model) else {
        let what = "input adapter: a model behind a server takes none; let the server load it and name that model";
        return Err(StageError::Invalid(what.into()));
    };
    let batch = inputs.table("adapter", Columns::Only(&["file", "content"]))?;
    let table = Table::new("adapter", &batch);
    let files: Vec<(&str, &[u8])> = table.text("file")?.into_iter().zip(table.binary("content")?).collect();
    let file = |name: &str| {
        let found = files.iter().find(|(file, _)| *file == name).map(|(_, content)| *content);
        found.ok_or_else(|| StageError::Invalid(format!("input adapter: it has no file {name}; make it with `tune`")))
    };
    let adapter = Adapter::from_files(&String::from_utf8_lossy(file(CONFIG_FILE)?), file(WEIGHTS_FILE)?)?;
    let digest = source.digest.as_str();
    if let Some(base) = adapter.base().filter(|&base| base != digest) {
        let short = |digest: &str| digest.get(..12).unwrap_or(digest).to_owned();
        return Err(StageError::Invalid(format!(
            "input adapter: it was tuned on the model {}, and this stage's `model` is {}; use the same model in both",
            short(base),
            short(digest)
        )));
    }
    Ok(Language::Local(Arc::new(model.with_adapter(&adapter)?)))
}
