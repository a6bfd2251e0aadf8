//! Time, injected: the system's in earnest, a jumping one in simulations.

use futures::{FutureExt, future::BoxFuture};
use rallrec_core::ids::TimeMs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tells the time and waits.
pub trait Clock: Send + Sync {
    /// The time now.
    fn now(&self) -> TimeMs;
    /// Ends when [`Self::now`] is `at` or later.
    fn wait_until(&self, at: TimeMs) -> BoxFuture<'static, ()>;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    fn read() -> TimeMs {
        // A clock before 1970 reads 0: times only order retries, nothing breaks.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

impl Clock for SystemClock {
    fn now(&self) -> TimeMs {
        Self::read()
    }

    fn wait_until(&self, at: TimeMs) -> BoxFuture<'static, ()> {
        async move {
            // Waits run on a clock of their own, so look again until the system's agrees.
            while let Some(left @ 1..) = at.0.checked_sub(Self::read().0) {
                tokio::time::sleep(Duration::from_millis(left)).await;
            }
        }
        .boxed()
    }
}
