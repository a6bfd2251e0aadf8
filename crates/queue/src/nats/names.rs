//! What a cluster's streams, subjects and consumers are called.

use crate::{OfferName, QueueError};
use rallrec_core::{
    ids::{Attempt, RunId, TaskId, WorkerId},
    lane::Lane,
};

/// Names of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    cluster: String,
}

impl Names {
    pub(crate) fn new(cluster: &str) -> Result<Self, QueueError> {
        if is_token(cluster) {
            return Ok(Self { cluster: cluster.to_owned() });
        }
        Err(QueueError::Refused(format!("\"{cluster}\" can't name a cluster: use letters, digits, `-` and `_`")))
    }

    pub(crate) fn offers_stream(&self) -> String {
        format!("RALLREC_{}_OFFERS", self.cluster)
    }

    pub(crate) fn reports_stream(&self) -> String {
        format!("RALLREC_{}_REPORTS", self.cluster)
    }

    pub(crate) fn offers(&self) -> String {
        format!("rallrec.{}.offer.>", self.cluster)
    }

    /// What a lane needs comes first: so no lane's filter overlaps one that an earlier version, which knew no needs, has
    /// left on the server.
    pub(crate) fn offers_of_lane(&self, lane: &Lane) -> String {
        format!("rallrec.{}.offer.{}.{}.{}.>", self.cluster, lane.room(), lane.pool, model(lane))
    }

    pub(crate) fn offers_of_run(&self, run: &RunId) -> String {
        format!("rallrec.{}.offer.*.*.*.{run}.>", self.cluster)
    }

    pub(crate) fn offer(&self, lane: &Lane, run: &RunId, name: OfferName) -> String {
        let OfferName { task: TaskId { stage, shard }, attempt } = name;
        let (room, pool, model) = (lane.room(), &lane.pool, model(lane));
        format!("rallrec.{}.offer.{room}.{pool}.{model}.{run}.{stage}.{shard}.{attempt}", self.cluster)
    }

    /// The offer that a subject of [`Self::offer`] or [`Self::log`] is of.
    pub(crate) fn offer_name(subject: &str) -> Option<OfferName> {
        let mut numbers = subject.rsplit('.').map_while(|token| token.parse::<u32>().ok());
        let (attempt, shard, stage) = (numbers.next()?, numbers.next()?, numbers.next()?);
        Some(OfferName { task: TaskId { stage, shard }, attempt: Attempt(attempt) })
    }

    pub(crate) fn reports(&self) -> String {
        format!("rallrec.{}.report.*", self.cluster)
    }

    pub(crate) fn report(&self, run: &RunId) -> String {
        format!("rallrec.{}.report.{run}", self.cluster)
    }

    /// The run that a subject of [`Self::report`] is about.
    pub(crate) fn reported_run(subject: &str) -> RunId {
        RunId(subject.rsplit('.').next().unwrap_or_default().to_owned())
    }

    pub(crate) fn consumer(lane: &Lane) -> String {
        format!("{}_{}_{}", lane.pool, model(lane), lane.room())
    }

    /// What workers say of themselves; with `None` of all of them.
    pub(crate) fn beat(&self, worker: Option<&WorkerId>) -> String {
        format!("rallrec.{}.beat.{}", self.cluster, worker.map_or("*", |w| &w.0))
    }

    /// What the leader tells a worker.
    pub(crate) fn order(&self, worker: &WorkerId) -> String {
        format!("rallrec.{}.order.{worker}", self.cluster)
    }

    /// The leader's sign of life.
    pub(crate) fn leader(&self) -> String {
        format!("rallrec.{}.leader", self.cluster)
    }

    /// An attempt's log lines as they are written; with `None` those of all attempts of the run.
    pub(crate) fn log(&self, run: &RunId, name: Option<OfferName>) -> String {
        match name {
            Some(OfferName { task: TaskId { stage, shard }, attempt }) => {
                format!("rallrec.{}.log.{run}.{stage}.{shard}.{attempt}", self.cluster)
            }
            None => format!("rallrec.{}.log.{run}.>", self.cluster),
        }
    }
}

fn model(lane: &Lane) -> &str {
    lane.model.as_deref().unwrap_or("any")
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::lane::Room;

    #[test]
    fn an_offer_is_known_by_its_subject() {
        let names = Names::new("main").unwrap();
        let lane = Lane {
            pool: "gpu".into(),
            model: Some("ab12".into()),
            least: Room { gpu_gib: 16, host_gib: 2 },
            wanted: Room { gpu_gib: 20, host_gib: 2 },
        };
        let name = OfferName { task: TaskId { stage: 3, shard: 70 }, attempt: Attempt(2) };
        let subject = names.offer(&lane, &RunId("20261123-1".into()), name);
        assert_eq!(subject, "rallrec.main.offer.m2g16-m2g20.gpu.ab12.20261123-1.3.70.2");
        assert_eq!(Names::offer_name(&subject), Some(name));
        assert_eq!(Names::offer_name("rallrec.main.offer.x"), None);
    }

    #[test]
    fn a_cluster_s_name_is_one_token() {
        for bad in ["", "a.b", "a b", "*", ">"] {
            assert!(Names::new(bad).is_err(), "{bad}");
        }
    }
}
