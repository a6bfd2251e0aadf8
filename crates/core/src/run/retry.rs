//! What follows a failed attempt.

use super::{Next, task::History};
use crate::{
    ids::{TaskId, TimeMs},
    key::Key,
    plan::Retry,
    rng::row_rng,
    task::FailureClass,
};
use rand_chacha::rand_core::Rng;
use std::collections::BTreeSet;

/// Longest wait between two attempts: 5 minutes.
pub const MAX_BACKOFF_MS: u64 = 300_000;

/// Losses of its worker after which a task is taken to be the cause, and fails.
pub const MAX_LOSSES: u32 = 3;

/// Attempts at one task that may end because the store did not answer: with the longest waits between them, about a day.
/// After that somebody should look.
pub const MAX_OUTAGES: u32 = 400;

/// What follows an attempt that ended in `class`, given what came before it.
pub(super) fn next(
    retry: &Retry,
    key: &Key,
    history: &History,
    class: FailureClass,
    cancelling: bool,
    now: TimeMs,
) -> Next {
    match class {
        FailureClass::Permanent => Next::GiveUp,
        // A worker that stops because the run does is no sign of a bad task.
        FailureClass::Lost if cancelling => Next::Replace { counts: false },
        FailureClass::Lost if history.losses + 1 >= MAX_LOSSES => Next::GiveUp,
        FailureClass::Lost => Next::Replace { counts: true },
        FailureClass::Unavailable => {
            let outages = history.outages + 1;
            if outages >= MAX_OUTAGES {
                return Next::GiveUp;
            }
            Next::Retry { not_before: TimeMs(now.0.saturating_add(backoff_ms(retry, key, history.attempts, outages))) }
        }
        FailureClass::Transient | FailureClass::Resource => {
            let failures = history.failures + 1;
            if failures >= retry.max_attempts {
                return Next::GiveUp;
            }
            Next::Retry { not_before: TimeMs(now.0.saturating_add(backoff_ms(retry, key, history.attempts, failures))) }
        }
    }
}

/// Those whose wait is over: the time has come, or it is further away than any wait is long, because a clock told it that
/// was ahead of this one, or this one was put back.
pub(super) fn due(waiting: &BTreeSet<(TimeMs, TaskId)>, now: TimeMs) -> impl Iterator<Item = &(TimeMs, TaskId)> {
    let (soon, never) = not_due(now);
    waiting.range(..soon).chain(waiting.range(never..))
}

/// When the next of those that still wait is due.
pub(super) fn next_due(waiting: &BTreeSet<(TimeMs, TaskId)>, now: TimeMs) -> Option<TimeMs> {
    let (soon, never) = not_due(now);
    waiting.range(soon..never).next().map(|(at, _)| *at)
}

/// Ends of the waits that are not over.
fn not_due(now: TimeMs) -> ((TimeMs, TaskId), (TimeMs, TaskId)) {
    let from = |at: u64| (TimeMs(at), TaskId { stage: 0, shard: 0 });
    (from(now.0.saturating_add(1)), from(now.0.saturating_add(MAX_BACKOFF_MS + 1)))
}

/// Capped exponential wait with jitter: between half of the nominal wait and all of it, drawn from (key, attempt) so
/// that tasks that failed together do not come back together.
fn backoff_ms(retry: &Retry, key: &Key, attempt: u32, failures: u32) -> u64 {
    let doublings = failures.saturating_sub(1).min(32);
    let nominal = retry.backoff_ms.saturating_mul(1 << doublings).min(MAX_BACKOFF_MS);
    let draw = row_rng(0, &format!("retry {key}"), u64::from(attempt), 0).next_u64();
    let half = nominal / 2;
    half + draw % (nominal - half + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_is_capped_and_jittered() {
        let retry = Retry { max_attempts: 100, backoff_ms: 1000 };
        let wait = |key: &str, n| backoff_ms(&retry, &Key(key.into()), n, n);
        for n in 1..40 {
            let nominal = (1000u64 << (n - 1).min(20)).min(MAX_BACKOFF_MS);
            assert!((nominal / 2..=nominal).contains(&wait("a", n)), "attempt {n}: {}", wait("a", n));
        }
        assert_eq!(wait("a", 3), wait("a", 3));
        assert_ne!(wait("a", 9), wait("b", 9));
        assert_eq!(backoff_ms(&Retry { max_attempts: 1, backoff_ms: 0 }, &Key("a".into()), 1, 1), 0);
    }

    #[test]
    fn a_wait_is_never_longer_than_the_longest() {
        let longest = 1000 + MAX_BACKOFF_MS;
        let waiting = [0, 1000, 1001, longest, longest + 1, u64::MAX];
        let waiting = waiting.map(|at| (TimeMs(at), TaskId { stage: 1, shard: 2 })).into();
        let due: Vec<u64> = due(&waiting, TimeMs(1000)).map(|(at, _)| at.0).collect();
        assert_eq!(due, [0, 1000, longest + 1, u64::MAX]);
    }

    #[test]
    fn classes_decide() {
        let retry = Retry { max_attempts: 2, backoff_ms: 0 };
        let go = |class, failures, losses, cancelling| {
            next(
                &retry,
                &Key("k".into()),
                &History { attempts: 5, failures, losses, outages: failures + 10, doubled: false },
                class,
                cancelling,
                TimeMs(7),
            )
        };
        assert_eq!(go(FailureClass::Permanent, 0, 0, false), Next::GiveUp);
        assert_eq!(go(FailureClass::Transient, 0, 2, false), Next::Retry { not_before: TimeMs(7) });
        assert_eq!(go(FailureClass::Transient, 1, 0, false), Next::GiveUp);
        assert_eq!(go(FailureClass::Unavailable, 1, 2, false), Next::Retry { not_before: TimeMs(7) });
        assert_eq!(go(FailureClass::Unavailable, MAX_OUTAGES, 0, false), Next::GiveUp);
        assert_eq!(go(FailureClass::Lost, 1, 1, false), Next::Replace { counts: true });
        assert_eq!(go(FailureClass::Lost, 0, 2, false), Next::GiveUp);
        assert_eq!(go(FailureClass::Lost, 0, 2, true), Next::Replace { counts: false });
    }
}
