//! How many requests are in flight, and how soon the next may begin: one gate for all of a worker's tasks.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Longest wait without a look at the flag that stops it.
const LOOK: Duration = Duration::from_millis(50);

/// Bounds requests in flight and requests a minute, and holds everybody back when the server asks for a pause.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
    /// Least time between two beginnings.
    spacing: Duration,
}

#[derive(Debug)]
struct State {
    free: u32,
    /// When the next may begin.
    next: Instant,
}

/// A request in flight; its place is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Permit<'a>(&'a Gate);

impl Gate {
    pub(crate) fn new(concurrency: u32, requests_per_minute: u32) -> Self {
        let spacing = match requests_per_minute {
            0 => Duration::ZERO,
            n => Duration::from_secs(60) / n,
        };
        let state = State { free: concurrency.max(1), next: Instant::now() };
        Self { state: Mutex::new(state), changed: Condvar::new(), spacing }
    }

    /// Waits for a place and for the moment; `None` when told to stop meanwhile.
    pub(crate) fn enter(&self, stop: &AtomicBool) -> Option<Permit<'_>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            let now = Instant::now();
            let wait = if state.free == 0 { LOOK } else { state.next.saturating_duration_since(now).min(LOOK) };
            if wait.is_zero() {
                state.free -= 1;
                state.next = now + self.spacing;
                return Some(Permit(self));
            }
            state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lets nobody begin for a while.
    pub(crate) fn pause(&self, wait: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.next = state.next.max(Instant::now() + wait);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).free += 1;
        self.0.changed.notify_one();
    }
}

/// Waits; `false` when told to stop meanwhile.
pub(crate) fn wait(duration: Duration, stop: &AtomicBool) -> bool {
    let end = Instant::now() + duration;
    loop {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return true,
            left => std::thread::sleep(left.min(LOOK)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_gate_opens_when_somebody_leaves() {
        let (gate, stop) = (Gate::new(2, 0), AtomicBool::new(false));
        let first = gate.enter(&stop).unwrap();
        let _second = gate.enter(&stop).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.enter(&stop).is_some());
            drop(first);
            assert!(waiting.join().unwrap());
        });
        stop.store(true, Ordering::Relaxed);
        assert!(gate.enter(&stop).is_none(), "a stop is heard");
    }

    #[test]
    fn beginnings_are_spaced_and_paused() {
        let (gate, stop) = (Gate::new(9, 6000), AtomicBool::new(false));
        let began = Instant::now();
        for _ in 0..5 {
            drop(gate.enter(&stop).unwrap());
        }
        assert!(began.elapsed() >= Duration::from_millis(40), "{:?}", began.elapsed());
        gate.pause(Duration::from_millis(60));
        let began = Instant::now();
        drop(gate.enter(&stop).unwrap());
        assert!(began.elapsed() >= Duration::from_millis(55), "{:?}", began.elapsed());
    }
}
