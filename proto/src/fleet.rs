//! Beats and orders on the wire.

use crate::{WireError, convert::text_in, v1};
use bytes::Bytes;
use prost::Message;
use rallrec_core::{
    fleet::{AtWork, AttemptName, Beat},
    ids::{Attempt, RunId, TaskId, WorkerId},
    lane::{Lane, Room},
    task::Progress,
};

/// A worker's word on itself.
#[derive(Clone, Debug, PartialEq)]
pub struct BeatMessage {
    /// The word.
    pub beat: Beat,
    /// Whether it is its last.
    pub leaving: bool,
}

/// What the leader tells a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Lanes to ask, the first first.
    pub lanes: Vec<Lane>,
    /// Whether to take no further task.
    pub drain: bool,
    /// Who says so.
    pub leader: String,
    /// Attempts that help nobody any more.
    pub stop: Vec<AttemptName>,
}

/// The leader's sign of life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaderBeat {
    /// Its term; a later one rules.
    pub term: u64,
    /// Its name.
    pub leader: String,
    /// Address of its gRPC interface.
    pub address: String,
}

/// The beat's bytes.
pub fn encode_beat(message: &BeatMessage) -> Bytes {
    let beat = &message.beat;
    let at_work = beat.at_work.iter().map(|at| v1::AtWork {
        run: at.run.0.clone(),
        stage_index: at.task.stage,
        shard_index: at.task.shard,
        attempt: at.attempt.0,
        progress: Some(v1::Progress {
            done: at.progress.done,
            total: at.progress.total,
            tokens: at.progress.tokens,
            loss: at.progress.loss,
        }),
    });
    let message = v1::Beat {
        worker: beat.worker.0.clone(),
        host: beat.host.clone(),
        pool: beat.pool.clone(),
        slots: beat.slots,
        memory_mb: beat.memory_mb,
        gpu_memory_mb: beat.gpu_memory_mb,
        models: beat.models.iter().cloned().collect(),
        draining: beat.draining,
        at_work: at_work.collect(),
        program: beat.program.clone(),
        leaving: message.leaving,
    };
    message.encode_to_vec().into()
}

/// Reads [`encode_beat`]'s bytes.
///
/// # Errors
/// When they are not a beat.
pub fn decode_beat(bytes: &[u8]) -> Result<BeatMessage, WireError> {
    let message = v1::Beat::decode(bytes)?;
    let at_work = message.at_work.into_iter().map(|at| {
        let progress = at.progress.unwrap_or_default();
        Ok(AtWork {
            run: RunId(text_in("at_work.run", at.run)?),
            task: TaskId { stage: at.stage_index, shard: at.shard_index },
            attempt: Attempt(at.attempt),
            progress: Progress {
                done: progress.done,
                total: progress.total,
                tokens: progress.tokens,
                loss: progress.loss,
            },
        })
    });
    Ok(BeatMessage {
        beat: Beat {
            at_work: at_work.collect::<Result<_, WireError>>()?,
            worker: WorkerId(text_in("worker", message.worker)?),
            host: message.host,
            pool: text_in("pool", message.pool)?,
            slots: message.slots,
            memory_mb: message.memory_mb,
            gpu_memory_mb: message.gpu_memory_mb,
            models: message.models.into_iter().collect(),
            draining: message.draining,
            program: message.program,
        },
        leaving: message.leaving,
    })
}

/// The order's bytes.
pub fn encode_order(order: &Order) -> Bytes {
    let room = |room: Room| Some(v1::Room { gpu_gib: room.gpu_gib, host_gib: room.host_gib });
    let lanes = order.lanes.iter().map(|lane| v1::Lane {
        pool: lane.pool.clone(),
        model: lane.model.clone(),
        least: room(lane.least),
        wanted: room(lane.wanted),
    });
    let stop = order.stop.iter().map(|name| v1::AttemptName {
        run: name.run.0.clone(),
        stage_index: name.task.stage,
        shard_index: name.task.shard,
        attempt: name.attempt.0,
    });
    let (lanes, stop) = (lanes.collect(), stop.collect());
    v1::Order { lanes, drain: order.drain, leader: order.leader.clone(), stop }.encode_to_vec().into()
}

/// Reads [`encode_order`]'s bytes.
///
/// # Errors
/// When they are not an order.
pub fn decode_order(bytes: &[u8]) -> Result<Order, WireError> {
    let message = v1::Order::decode(bytes)?;
    let room = |room: Option<v1::Room>| {
        let room = room.unwrap_or_default();
        Room { gpu_gib: room.gpu_gib, host_gib: room.host_gib }
    };
    let lanes = message.lanes.into_iter().map(|lane| {
        Ok(Lane {
            pool: text_in("lanes.pool", lane.pool)?,
            model: lane.model,
            least: room(lane.least),
            wanted: room(lane.wanted),
        })
    });
    let stop = message.stop.into_iter().map(|name| {
        Ok(AttemptName {
            run: RunId(text_in("stop.run", name.run)?),
            task: TaskId { stage: name.stage_index, shard: name.shard_index },
            attempt: Attempt(name.attempt),
        })
    });
    Ok(Order {
        lanes: lanes.collect::<Result<_, WireError>>()?,
        drain: message.drain,
        leader: message.leader,
        stop: stop.collect::<Result<_, WireError>>()?,
    })
}

/// The sign's bytes.
pub fn encode_leader(beat: &LeaderBeat) -> Bytes {
    let LeaderBeat { term, leader, address } = beat.clone();
    v1::LeaderBeat { term, leader, address }.encode_to_vec().into()
}

/// Reads [`encode_leader`]'s bytes.
///
/// # Errors
/// When they are not a leader's sign of life.
pub fn decode_leader(bytes: &[u8]) -> Result<LeaderBeat, WireError> {
    let v1::LeaderBeat { term, leader, address } = v1::LeaderBeat::decode(bytes)?;
    Ok(LeaderBeat { term, leader: text_in("leader", leader)?, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back() {
        let at_work = AtWork {
            run: RunId("r".into()),
            task: TaskId { stage: 2, shard: 9 },
            attempt: Attempt(3),
            progress: Progress { done: 1, total: 4, tokens: 70, loss: Some(0.5) },
        };
        let beat = Beat {
            worker: WorkerId("w".into()),
            host: "h".into(),
            pool: "gpu".into(),
            slots: 2,
            memory_mb: 1024,
            gpu_memory_mb: Some(80_000),
            models: ["ab".to_owned()].into(),
            draining: true,
            at_work: vec![at_work],
            program: "rallrec 0".into(),
        };
        let message = BeatMessage { beat, leaving: true };
        assert_eq!(decode_beat(&encode_beat(&message)).unwrap(), message);
        let (least, wanted) = (Room { gpu_gib: 0, host_gib: 2 }, Room { gpu_gib: 18, host_gib: 2 });
        let lane = |model: Option<&str>| Lane { pool: "gpu".into(), model: model.map(Into::into), least, wanted };
        let stop = vec![message.beat.at_work[0].name()];
        let order = Order { lanes: vec![lane(Some("ab")), lane(None)], drain: true, leader: "c1".into(), stop };
        assert_eq!(decode_order(&encode_order(&order)).unwrap(), order);
        let leader = LeaderBeat { term: 4, leader: "c1".into(), address: "http://127.0.0.1:7070".into() };
        assert_eq!(decode_leader(&encode_leader(&leader)).unwrap(), leader);
    }

    #[test]
    fn words_without_a_name_are_refused() {
        assert!(decode_beat(&[]).is_err());
        assert!(decode_leader(&[]).is_err());
    }
}
