//! One seed's world: its time, its dice, its nodes, and the trace of what happens in it.

use crate::faults::{Counts, Fault, Profile};
use futures::{FutureExt, future::BoxFuture};
use rallrec_coordinator::Clock;
use rallrec_core::{ids::TimeMs, rng::row_rng};
use rand_chacha::{ChaCha8Rng, rand_core::Rng};
use std::{
    fmt,
    future::pending,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// When the simulated world began: some day.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Calls of one seed after which something turns in circles.
const MAX_CALLS: u64 = 3_000_000;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The fence: a record of a journal is put over another's.
    JournalOverwrites,
    /// The fence: a conflict is taken for success.
    JournalIgnoresConflict,
    /// Create-if-absent: a manifest is put over another's.
    ManifestOverwrites,
    /// The replay: whoever takes over forgets what the last record says.
    ReplayForgetsTheLast,
    /// The replay: whoever takes over passes over a record in the middle.
    ReplaySkipsOne,
}

/// One seed's world.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) profile: Profile,
    pub(crate) mutant: Option<Mutant>,
    began: Instant,
    dice: Mutex<ChaCha8Rng>,
    storm: AtomicBool,
    calls: AtomicU64,
    counts: Mutex<Counts>,
    trace: Mutex<Trace>,
    store_away_until: Mutex<Instant>,
    violations: Mutex<Vec<String>>,
}

struct Trace {
    hasher: DefaultHasher,
    /// Kept only when asked for.
    lines: Option<Vec<String>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(seed: u64, profile: Profile, mutant: Option<Mutant>, traced: bool) -> Arc<Self> {
        Arc::new(Self {
            seed,
            profile,
            mutant,
            began: Instant::now(),
            dice: Mutex::new(row_rng(seed, "world", 0, 0)),
            storm: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            counts: Mutex::default(),
            trace: Mutex::new(Trace { hasher: DefaultHasher::new(), lines: traced.then(Vec::new) }),
            store_away_until: Mutex::new(Instant::now()),
            violations: Mutex::default(),
        })
    }

    /// Milliseconds since it began.
    pub(crate) fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// From `low` to `high`, both included.
    pub(crate) fn between(&self, low: u64, high: u64) -> u64 {
        low + lock(&self.dice).next_u64() % (high - low + 1)
    }

    /// Faults happen from now on, or no longer.
    pub(crate) fn set_storm(&self, storm: bool) {
        self.storm.store(storm, Ordering::Relaxed);
        self.tell(format_args!("storm {storm}"));
    }

    pub(crate) fn is_stormy(&self) -> bool {
        self.storm.load(Ordering::Relaxed)
    }

    /// Whether this opportunity goes wrong.
    pub(crate) fn fires(&self, fault: Fault) -> bool {
        let rate = self.profile.rate(fault);
        let fires = rate > 0 && self.is_stormy() && self.between(0, 999_999) < u64::from(rate);
        if fires {
            self.count(fault);
        }
        fires
    }

    /// A fault happened.
    pub(crate) fn count(&self, fault: Fault) {
        lock(&self.counts).count(fault);
        self.tell(format_args!("fault {fault:?}"));
    }

    pub(crate) fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    /// Puts a line into the trace.
    pub(crate) fn tell(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9} {what}", self.now_ms());
        let mut trace = lock(&self.trace);
        line.hash(&mut trace.hasher);
        if let Some(lines) = &mut trace.lines {
            lines.push(line);
        }
    }

    /// The trace's hash, and its lines where they are kept.
    pub(crate) fn trace(&self) -> (u64, Vec<String>) {
        let trace = lock(&self.trace);
        (trace.hasher.finish(), trace.lines.clone().unwrap_or_default())
    }

    /// A promise was broken.
    pub(crate) fn violate(&self, what: String) {
        self.tell(format_args!("BROKEN PROMISE: {what}"));
        lock(&self.violations).push(what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    /// The object store answers nobody for a while.
    pub(crate) fn take_store_away(&self, time: Duration) {
        *lock(&self.store_away_until) = Instant::now() + time;
    }

    pub(crate) fn is_store_away(&self) -> bool {
        *lock(&self.store_away_until) > Instant::now()
    }

    fn count_call(&self) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(calls < MAX_CALLS, "seed {}: {MAX_CALLS} calls and no end", self.seed);
    }
}

/// A process on a machine: it can be killed, frozen, cut off, and its clock can jump.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) world: Arc<World>,
    dies_at_call: Fault,
    life: Mutex<Life>,
    died: Notify,
}

struct Life {
    dead: bool,
    frozen_until: Instant,
    cut_until: Instant,
    crawls_until: Instant,
    clock_ahead_ms: i64,
    /// Until when it could not be heard, for whatever reason; `None`: it always could.
    mute_until: Option<Instant>,
}

impl Node {
    pub(crate) fn new(world: &Arc<World>, name: String, dies_at_call: Fault) -> Arc<Self> {
        let now = Instant::now();
        let life = Life {
            dead: false,
            frozen_until: now,
            cut_until: now,
            crawls_until: now,
            clock_ahead_ms: 0,
            mute_until: None,
        };
        world.tell(format_args!("{name} starts"));
        Arc::new(Self { name, world: Arc::clone(world), dies_at_call, life: Mutex::new(life), died: Notify::new() })
    }

    /// Every call to the outside begins and ends here: waits while it is frozen; a dead one gets no further.
    pub(crate) async fn call(&self) {
        self.world.count_call();
        self.gate().await;
        if self.world.fires(self.dies_at_call) {
            self.kill();
            pending::<()>().await;
        }
    }

    /// Waits while it is frozen; a dead one gets no further.
    pub(crate) async fn gate(&self) {
        loop {
            let (dead, frozen_until) = {
                let life = lock(&self.life);
                (life.dead, life.frozen_until)
            };
            if dead {
                pending::<()>().await;
            }
            if frozen_until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(frozen_until).await;
        }
    }

    pub(crate) fn kill(&self) {
        self.world.tell(format_args!("{} dies", self.name));
        lock(&self.life).dead = true;
        self.died.notify_one();
    }

    /// Ends when it is dead. Heard by one only.
    pub(crate) async fn died(&self) {
        self.died.notified().await;
    }

    pub(crate) fn freeze(&self, time: Duration) {
        self.world.tell(format_args!("{} is frozen for {time:?}", self.name));
        let mut life = lock(&self.life);
        life.frozen_until = Instant::now() + time;
        life.mute_until = life.mute_until.max(Some(life.frozen_until));
    }

    pub(crate) fn cut(&self, time: Duration) {
        self.world.tell(format_args!("{} is cut off for {time:?}", self.name));
        let mut life = lock(&self.life);
        life.cut_until = Instant::now() + time;
        life.mute_until = life.mute_until.max(Some(life.cut_until));
    }

    /// Whatever it begins takes far longer, for a while.
    pub(crate) fn crawl(&self, time: Duration) {
        self.world.tell(format_args!("{} crawls for {time:?}", self.name));
        lock(&self.life).crawls_until = Instant::now() + time;
    }

    pub(crate) fn is_crawling(&self) -> bool {
        lock(&self.life).crawls_until > Instant::now()
    }

    pub(crate) fn is_cut(&self) -> bool {
        lock(&self.life).cut_until > Instant::now()
    }

    /// Whether it could be heard all of this time.
    pub(crate) fn was_audible_for(&self, time: Duration) -> bool {
        let life = lock(&self.life);
        !life.dead && life.mute_until.is_none_or(|until| Instant::now().saturating_duration_since(until) >= time)
    }

    pub(crate) fn jump(&self, ms: i64) {
        self.world.tell(format_args!("the clock of {} jumps by {ms} ms", self.name));
        lock(&self.life).clock_ahead_ms += ms;
    }

    pub(crate) fn clock_ms(&self) -> u64 {
        (EPOCH_MS + self.world.now_ms()).saturating_add_signed(lock(&self.life).clock_ahead_ms)
    }
}

/// A node's clock.
pub(crate) struct NodeClock(pub(crate) Arc<Node>);

impl Clock for NodeClock {
    fn now(&self) -> TimeMs {
        TimeMs(self.0.clock_ms())
    }

    fn wait(&self, ms: u64) -> BoxFuture<'static, ()> {
        let node = Arc::clone(&self.0);
        async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            node.gate().await;
        }
        .boxed()
    }
}
