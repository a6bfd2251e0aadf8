//! [`TaskOffer`] on the wire.

use crate::{
    WireError,
    convert::{kind_in, mode_in, mode_out, model_in, model_out, rows_in, rows_out, source_in, source_out, text_in},
    v1,
};
use bytes::Bytes;
use prost::Message;
use rallrec_core::{
    ids::{Attempt, RunId, StageName, TaskId},
    key::{Key, KeyFields},
    task::{InputShards, TaskInput, TaskOffer},
};

/// The offer's bytes; the same for equal offers.
pub fn encode_offer(offer: &TaskOffer) -> Bytes {
    let message = v1::TaskOffer {
        run: offer.run.0.clone(),
        stage_index: offer.task.stage,
        shard_index: offer.task.shard,
        attempt: offer.attempt.0,
        key: offer.key.0.clone(),
        stage: offer.stage.0.clone(),
        kind: offer.kind.info().name.to_string(),
        params_json: offer.params.to_string(),
        seed: offer.seed,
        model: offer.model.as_ref().map(model_out),
        data: offer.data.as_ref().map(source_out),
        max_bad_rows: offer.max_bad_rows,
        rows: offer.rows.map(rows_out),
        inputs: offer.inputs.iter().map(input_out).collect(),
        fields: offer.fields.0.clone(),
    };
    message.encode_to_vec().into()
}

/// Reads [`encode_offer`]'s bytes.
///
/// # Errors
/// When they are not an offer that this version understands.
pub fn decode_offer(bytes: &[u8]) -> Result<TaskOffer, WireError> {
    let message = v1::TaskOffer::decode(bytes)?;
    Ok(TaskOffer {
        run: RunId(text_in("run", message.run)?),
        task: TaskId { stage: message.stage_index, shard: message.shard_index },
        attempt: Attempt(message.attempt),
        key: Key(text_in("key", message.key)?),
        stage: StageName(text_in("stage", message.stage)?),
        kind: kind_in(message.kind)?,
        params: serde_json::from_str(&message.params_json).map_err(WireError::Params)?,
        seed: message.seed,
        model: message.model.map(model_in).transpose()?,
        data: message.data.map(source_in),
        max_bad_rows: message.max_bad_rows,
        rows: message.rows.map(rows_in).transpose()?,
        inputs: message.inputs.into_iter().map(input_in).collect::<Result<_, _>>()?,
        fields: KeyFields(message.fields),
    })
}

fn input_out(input: &TaskInput) -> v1::TaskInput {
    let shards = match &input.shards {
        InputShards::One(key) => v1::task_input::Shards::One(key.0.clone()),
        InputShards::Cut { row_key, rows, step } => {
            let cut = v1::CutShards { row_key: row_key.0.clone(), rows: Some(rows_out(*rows)), step: *step };
            v1::task_input::Shards::Cut(cut)
        }
    };
    v1::TaskInput {
        port: input.port.clone(),
        stage: input.stage.0.clone(),
        table: input.table.clone(),
        mode: mode_out(input.mode).into(),
        shards: Some(shards),
    }
}

fn input_in(input: v1::TaskInput) -> Result<TaskInput, WireError> {
    let shards = match input.shards.ok_or(WireError::Missing { field: "inputs.shards" })? {
        v1::task_input::Shards::One(key) => InputShards::One(Key(text_in("inputs.shards.one", key)?)),
        v1::task_input::Shards::Cut(cut) => InputShards::Cut {
            row_key: Key(text_in("inputs.shards.cut.row_key", cut.row_key)?),
            rows: rows_in(cut.rows.ok_or(WireError::Missing { field: "inputs.shards.cut.rows" })?)?,
            step: cut.step,
        },
    };
    Ok(TaskInput {
        port: text_in("inputs.port", input.port)?,
        stage: StageName(text_in("inputs.stage", input.stage)?),
        table: text_in("inputs.table", input.table)?,
        mode: mode_in(input.mode)?,
        shards,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rallrec_core::{
        ids::RowRange,
        kind::{Mode, StageKind},
        models::{PinnedModel, Precision, RemoteModel},
        params::StageParams,
        plan::PinnedSource,
    };

    fn rows() -> impl Strategy<Value = Option<RowRange>> {
        proptest::option::of((any::<u32>(), any::<u64>()).prop_map(|(len, start)| {
            let start = start / 2;
            RowRange { start, end: start + u64::from(len) }
        }))
    }

    fn source() -> impl Strategy<Value = Option<PinnedSource>> {
        proptest::option::of((".*", ".*", ".*").prop_map(|(name, source, digest)| PinnedSource {
            name,
            source,
            digest,
        }))
    }

    fn model() -> impl Strategy<Value = Option<PinnedModel>> {
        let some = source().prop_filter_map("files", |files| files);
        let precision = prop_oneof![Just(Precision::Auto), Just(Precision::Bf16), Just(Precision::Int8)];
        let local = (some, precision).prop_map(|(files, precision)| PinnedModel::Local { files, precision });
        let remote =
            (".*", ".*", any::<u32>(), 0.0..1e6, source()).prop_map(|(name, url, retries, price, tokenizer)| {
                let remote = RemoteModel { url, retries, price_input: price, ..RemoteModel::default() };
                PinnedModel::Remote { name, remote, tokenizer }
            });
        proptest::option::of(prop_oneof![local, remote])
    }

    fn input() -> impl Strategy<Value = TaskInput> {
        let range = rows().prop_filter_map("rows", |rows| rows);
        let cut = (".+", range, 1..100u64);
        let shards = prop_oneof![
            ".+".prop_map(|key| InputShards::One(Key(key))),
            cut.prop_map(|(key, rows, step)| InputShards::Cut { row_key: Key(key), rows, step }),
        ];
        let mode = prop_oneof![Just(Mode::Drive), Just(Mode::Aligned), Just(Mode::Whole)];
        (".+", ".+", ".+", mode, shards).prop_map(|(port, stage, table, mode, shards)| TaskInput {
            port,
            stage: StageName(stage),
            table,
            mode,
            shards,
        })
    }

    fn offer() -> impl Strategy<Value = TaskOffer> {
        let who = (".+", any::<u32>(), any::<u32>(), any::<u32>(), ".+", ".+");
        let what = (prop::sample::select(StageKind::ALL), any::<u64>(), model(), source(), any::<u64>(), rows());
        let with = (proptest::collection::vec(input(), 0..4), proptest::collection::btree_map(".*", ".*", 0..4));
        (who, what, with).prop_map(|(who, what, (inputs, fields))| TaskOffer {
            run: RunId(who.0),
            task: TaskId { stage: who.1, shard: who.2 },
            attempt: Attempt(who.3),
            key: Key(who.4),
            stage: StageName(who.5),
            kind: what.0,
            params: StageParams::fields(what.0).into_iter().map(|f| (f.name.to_string(), f.default)).collect(),
            seed: what.1,
            model: what.2,
            data: what.3,
            max_bad_rows: what.4,
            rows: what.5,
            inputs,
            fields: KeyFields(fields),
        })
    }

    proptest! {
        #[test]
        fn an_offer_arrives_as_it_was_sent(offer in offer()) {
            let bytes = encode_offer(&offer);
            prop_assert_eq!(decode_offer(&bytes).unwrap(), offer);
        }

        #[test]
        fn damaged_bytes_are_an_error_and_no_panic(offer in offer(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = encode_offer(&offer).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = decode_offer(&bytes);
            let _ = decode_offer(&bytes[..at]);
        }
    }

    #[test]
    fn an_empty_message_names_what_it_lacks() {
        assert!(matches!(decode_offer(&[]), Err(WireError::Missing { field: "run" })));
    }
}
