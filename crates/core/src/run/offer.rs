//! What a worker is told about a task that is handed out.

use super::RunState;
use crate::{
    ids::TaskId,
    task::{InputShard, TaskInput, TaskOffer},
};

impl RunState {
    /// The offer of a running task, complete with the keys of its inputs' shards; `None` when it is not running.
    pub fn offer(&self, task: TaskId) -> Option<TaskOffer> {
        let attempt = self.running(task)?.attempt;
        let planned = &self.plan.stages[task.stage as usize];
        let rows = self.sharded(task.stage)?.shards.range(task.shard);
        let row_wise = planned.drive().is_some();
        let inputs = planned.needs.iter().map(|need| {
            let source = self.sharded(need.stage)?;
            let wanted = self.input_shards(row_wise, need, rows)?;
            let shards = wanted.map(|shard| InputShard {
                key: source.tasks[shard as usize].key.clone(),
                rows: source.shards.range(shard),
            });
            Some(TaskInput {
                port: need.port.clone(),
                stage: self.plan.stages[need.stage as usize].name.clone(),
                table: need.table.clone(),
                mode: need.mode,
                shards: shards.collect(),
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
