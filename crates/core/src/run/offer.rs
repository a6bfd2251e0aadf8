//! What a worker is told about a task that is handed out.

use super::{RunState, Shards};
use crate::{
    ids::{Attempt, RowRange, TaskId},
    task::{InputShards, TaskInput, TaskOffer},
};

impl RunState {
    /// The offer of an attempt under way, complete with the keys of its inputs' shards; `None` when it is not under way.
    pub fn offer(&self, task: TaskId, attempt: Attempt) -> Option<TaskOffer> {
        self.attempt(task, attempt)?;
        let planned = &self.plan.stages[task.stage as usize];
        let rows = self.sharded(task.stage)?.shards.range(task.shard);
        let row_wise = planned.drive().is_some();
        let inputs = planned.needs.iter().map(|need| {
            let source = self.sharded(need.stage)?;
            let wanted = self.input_shards(row_wise, need, rows)?;
            let (first, last) = (wanted.start, wanted.last()?);
            let shards = match (source.shards, source.shards.range(first), source.shards.range(last)) {
                (Shards::Rows { step, .. }, Some(first), Some(last)) => {
                    let row_key = self.plan.stages[need.stage as usize].row_key.clone();
                    InputShards::Cut { row_key, rows: RowRange { start: first.start, end: last.end }, step }
                }
                _ => InputShards::One(source.tasks.first()?.key.clone()),
            };
            Some(TaskInput {
                port: need.port.clone(),
                stage: self.plan.stages[need.stage as usize].name.in_file(),
                table: need.table.clone(),
                mode: need.mode,
                shards,
            })
        });
        Some(TaskOffer {
            run: self.run.clone(),
            task,
            attempt,
            key: self.key(task)?.clone(),
            stage: planned.name.clone(),
            kind: planned.kind,
            params: planned.params.clone(),
            seed: planned.seed,
            model: planned.model.clone(),
            data: planned.data.clone(),
            max_bad_rows: planned.max_bad_rows,
            rows,
            inputs: inputs.collect::<Option<Vec<_>>>()?,
            fields: planned.fields.clone(),
        })
    }
}
