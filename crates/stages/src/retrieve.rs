//! `retrieve`: picks each sample's history and writes its prompt (METHOD sections 7 and 8).

use crate::{
    Columns, InputReader, OutputWriter, Stage, StageContext, StageError, columns::Table, predictions::SampleColumns,
};
use arrow_array::RecordBatch;
use rallrec_core::{mapping::USER_COLUMNS, params::RetrieveParams, task::Progress};
use rallrec_recsys::{
    history::UserHistories,
    prompt::{PromptFields, PromptTemplate, history_text, user_sentence},
    retrieval::{IndexVectors, Indexes, pick},
};

/// Prompts between two looks at the cancel flag.
const PROMPTS_A_BLOCK: usize = 512;

impl Stage for RetrieveParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let template = PromptTemplate::parse(&self.template).map_err(invalid("with.template"))?;
        let sources = Sources::read(inputs)?;
        let batch = inputs.table("samples", Columns::Only(&SampleColumns::and("history_len")))?;
        let samples = Table::new("samples", &batch);
        let rows = samples.rows();
        let columns = SampleColumns::read(&samples)?;
        let writer = sources.writer(self, &template)?;
        let mut prompts = Prompts::default();
        for (row, &history_len) in samples.i32("history_len")?.iter().enumerate() {
            if row.is_multiple_of(PROMPTS_A_BLOCK) {
                context.cancel.check()?;
                context.progress.report(Progress { done: row as u64, total: rows as u64, ..Progress::default() });
            }
            let at = context.rows.map_or(0, |r| r.start) + row as u64;
            let written = writer.prompt(columns.user[row], columns.item[row], history_len, &mut prompts);
            written.map_err(|e| StageError::Invalid(format!("sample row {at}: {e}")))?;
        }
        context.progress.report(Progress { done: rows as u64, total: rows as u64, ..Progress::default() });
        let table = columns
            .begin()
            .text("prompt", "What the model is asked, before its chat template.", prompts.text)
            .i32_lists("history", "Items of the history as listed.", prompts.history)
            .f32_lists("stars", "Their ratings.", prompts.stars)
            .f32_lists("similarity", "Their dot products with the target; 0 without an index.", prompts.similarity);
        output.write("prompts", table.finish()?)
    }
}

fn invalid<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> StageError {
    move |e| StageError::Invalid(format!("{what}: {e}"))
}

/// The whole tables that every shard reads.
struct Sources {
    items: RecordBatch,
    users: RecordBatch,
    histories: UserHistories,
    index: Option<RecordBatch>,
    other_index: Option<RecordBatch>,
}

impl Sources {
    fn read(inputs: &dyn InputReader) -> Result<Self, StageError> {
        let items = inputs.table("items", Columns::Only(&["title"]))?;
        let users = inputs.table("users", Columns::All)?;
        let interactions = inputs.table("interactions", Columns::Only(&["user", "item", "rating"]))?;
        let table = Table::new("interactions", &interactions);
        let histories =
            UserHistories::new(table.i32("user")?, table.i32("item")?, table.f32("rating")?, users.num_rows())
                .map_err(invalid("input interactions"))?;
        let index = |port| {
            let there = inputs.has(port);
            there.then(|| inputs.table(port, Columns::Only(&["vector"]))).transpose()
        };
        let (index, other_index) = (index("index")?, index("other_index")?);
        Ok(Self { items, users, histories, index, other_index })
    }

    fn writer<'a>(
        &'a self,
        params: &'a RetrieveParams,
        template: &'a PromptTemplate,
    ) -> Result<PromptWriter<'a>, StageError> {
        let items = Table::new("items", &self.items);
        let users = Table::new("users", &self.users);
        let indexes = Indexes {
            index: vectors("index", self.index.as_ref())?,
            other: vectors("other_index", self.other_index.as_ref())?,
        };
        let (gender, age, job) = (users.text("gender")?, users.text("age")?, users.text("job")?);
        let further = users.further(USER_COLUMNS)?;
        let sentence = |u: usize| {
            let further: Vec<_> = further.iter().map(|(name, texts)| (*name, texts[u])).collect();
            user_sentence(gender[u], age[u], job[u], &further)
        };
        let like_above = items.metadata("rallrec.like_above")?;
        Ok(PromptWriter {
            params,
            template,
            indexes,
            histories: &self.histories,
            titles: items.text("title")?,
            verb: items.metadata("rallrec.verb")?,
            like_above: like_above.parse().map_err(invalid("input items: like_above"))?,
            user_sentences: (0..users.rows()).map(sentence).collect(),
        })
    }
}

/// The vectors of an index, if there is one.
fn vectors<'a>(port: &'a str, batch: Option<&'a RecordBatch>) -> Result<Option<IndexVectors<'a>>, StageError> {
    let Some(batch) = batch else { return Ok(None) };
    let (values, dim) = Table::new(port, batch).vectors("vector")?;
    let vectors = IndexVectors::new(values, dim);
    Ok(Some(vectors.map_err(|e| StageError::Invalid(format!("input {port}: {e}")))?))
}

#[derive(Default)]
struct Prompts {
    text: Vec<String>,
    history: Vec<Vec<i32>>,
    stars: Vec<Vec<f32>>,
    similarity: Vec<Vec<f32>>,
}

struct PromptWriter<'a> {
    params: &'a RetrieveParams,
    template: &'a PromptTemplate,
    indexes: Indexes<'a>,
    histories: &'a UserHistories,
    titles: Vec<&'a str>,
    verb: &'a str,
    like_above: f64,
    user_sentences: Vec<String>,
}

impl PromptWriter<'_> {
    fn prompt(&self, user: i32, target: i32, history_len: i32, out: &mut Prompts) -> Result<(), String> {
        let history = self.histories.of(user, history_len).map_err(|e| e.to_string())?;
        let picked = pick(history.items, target, &self.indexes, self.params).map_err(|e| e.to_string())?;
        let items: Vec<i32> = picked.iter().map(|p| history.items[p.position]).collect();
        let stars: Vec<f32> = picked.iter().map(|p| history.stars[p.position]).collect();
        let titles = items.iter().map(|i| self.title(*i)).collect::<Result<Vec<_>, _>>()?;
        let text = self.template.fill(&PromptFields {
            user: self.user_sentences.get(user as usize).map_or("", String::as_str),
            verb: self.verb,
            history: &history_text(titles.into_iter().zip(stars.iter().copied())),
            like_above: self.like_above,
            target: self.title(target)?,
        });
        out.text.push(text);
        out.similarity.push(picked.iter().map(|p| p.similarity).collect());
        out.history.push(items);
        out.stars.push(stars);
        Ok(())
    }

    fn title(&self, item: i32) -> Result<&str, String> {
        let found = usize::try_from(item).ok().and_then(|i| self.titles.get(i).copied());
        found.ok_or_else(|| {
            format!("item {item} is not a row of items; feed items and samples from the same dataset stage")
        })
    }
}
