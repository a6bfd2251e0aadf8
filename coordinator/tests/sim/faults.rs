//! What can go wrong, how often it does in a seed, and how often it did.

use rallrec_core::rng::row_rng;
use rand_chacha::rand_core::Rng;

/// Everything that can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    WordDropped,
    WordDelayed,
    WordDoubled,
    WordReordered,
    ReportLost,
    ReportDelayed,
    ReportDoubled,
    ReportReordered,
    OfferLost,
    OfferDoubled,
    ReplyLost,
    QueueWiped,
    QueueAway,
    PutFailed,
    PutFailedButDone,
    PutLandsLater,
    ReadFailed,
    StoreSlow,
    StoreAway,
    CoordinatorKilled,
    CoordinatorKilledAtCall,
    CoordinatorFrozen,
    CoordinatorCut,
    ClockJumped,
    WorkerKilled,
    WorkerKilledAtCall,
    WorkerFrozen,
    WorkerCut,
    WorkerSlow,
    WorkerDrained,
    TaskFailed,
    TaskOutgrown,
    RunCancelled,
    WorkerCrawls,
}

use Fault::*;

/// Every fault, with how often it happens where a seed has it: in a million opportunities of those that calls and words
/// give, else as a weight among those that strike from time to time.
const TABLE: [(Fault, u32); 34] = [
    (WordDropped, 150_000),
    (WordDelayed, 200_000),
    (WordDoubled, 100_000),
    (WordReordered, 0),
    (ReportLost, 30_000),
    (ReportDelayed, 200_000),
    (ReportDoubled, 100_000),
    (ReportReordered, 0),
    (OfferLost, 30_000),
    (OfferDoubled, 50_000),
    (ReplyLost, 20_000),
    (QueueWiped, 2),
    (QueueAway, 2),
    (PutFailed, 50_000),
    (PutFailedButDone, 50_000),
    (PutLandsLater, 30_000),
    (ReadFailed, 30_000),
    (StoreSlow, 50_000),
    (StoreAway, 1),
    (CoordinatorKilled, 4),
    (CoordinatorKilledAtCall, 4_000),
    (CoordinatorFrozen, 4),
    (CoordinatorCut, 3),
    (ClockJumped, 3),
    (WorkerKilled, 4),
    (WorkerKilledAtCall, 4_000),
    (WorkerFrozen, 3),
    (WorkerCut, 3),
    (WorkerSlow, 100_000),
    (WorkerDrained, 2),
    (TaskFailed, 50_000),
    (TaskOutgrown, 30_000),
    (RunCancelled, 100_000),
    (WorkerCrawls, 3),
];

/// Faults that strike a whole node or service from time to time.
pub(crate) const STRIKES: [Fault; 12] = [
    QueueWiped,
    QueueAway,
    StoreAway,
    CoordinatorKilled,
    CoordinatorFrozen,
    CoordinatorCut,
    ClockJumped,
    WorkerKilled,
    WorkerFrozen,
    WorkerCut,
    WorkerDrained,
    WorkerCrawls,
];

/// How many kinds there are.
pub(crate) const KINDS: usize = TABLE.len();

/// How often each fault happens in one seed. Most seeds have some faults and not others: what one hides, another shows.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    rates: [u32; KINDS],
    /// From the first moment on one worker takes very long for every shard, and the plan is wide.
    pub(crate) one_crawls: bool,
}

impl Profile {
    /// The faults of a seed.
    pub(crate) fn of(seed: u64) -> Self {
        let mut dice = row_rng(seed, "profile", 0, 0);
        let share = 1 + dice.next_u32() % 4;
        let rates = TABLE.map(|(_, rate)| if dice.next_u32() % 4 < share { rate } else { 0 });
        Self { rates, one_crawls: false }
    }

    /// No faults at all.
    pub(crate) fn quiet() -> Self {
        Self { rates: [0; KINDS], one_crawls: false }
    }

    /// No faults but one worker that takes very long.
    pub(crate) fn one_crawls() -> Self {
        Self { one_crawls: true, ..Self::quiet() }
    }

    /// In a million opportunities, or a weight.
    pub(crate) fn rate(&self, fault: Fault) -> u32 {
        self.rates[fault as usize]
    }
}

/// How often each fault happened.
#[derive(Clone, Debug)]
pub(crate) struct Counts([u64; KINDS]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; KINDS])
    }
}

impl Counts {
    pub(crate) fn count(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(all, more)| *all += more);
    }

    pub(crate) fn each(&self) -> impl Iterator<Item = (Fault, u64)> + '_ {
        TABLE.iter().map(|(fault, _)| (*fault, self.0[*fault as usize]))
    }
}
