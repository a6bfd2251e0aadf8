//! Time, injected: the system's in earnest, a jumping one in simulations.

use futures::{FutureExt, future::BoxFuture};
use rallrec_core::ids::TimeMs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tells the time and waits.
pub trait Clock: Send + Sync {
    /// The time now. It may be set, forward and back.
    fn now(&self) -> TimeMs;
    /// Ends after so many milliseconds, whatever the time then is.
    fn wait(&self, ms: u64) -> BoxFuture<'static, ()>;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> TimeMs {
        // A clock before 1970 reads 0: times only order retries, nothing breaks.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        TimeMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn wait(&self, ms: u64) -> BoxFuture<'static, ()> {
        tokio::time::sleep(Duration::from_millis(ms)).boxed()
    }
}
