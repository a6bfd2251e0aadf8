//! What can go wrong with a server, by what the caller should do.

/// A failure of the whole call. What is wrong with one prompt is its row's result instead.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The server will not do it, however often it is asked: wrong key, unknown model, no such interface.
    #[error("{server}: {what}")]
    Refused {
        /// The server's address.
        server: String,
        /// Its own words, cut short, and what to do.
        what: String,
    },
    /// It failed in passing, and still did after every retry. Try the task again later.
    #[error("{server}: {what} (tried {tries} times)")]
    Unavailable {
        /// The server's address.
        server: String,
        /// The last failure.
        what: String,
        /// Requests sent.
        tries: u32,
    },
    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// Why one request has no answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The prompt is at fault: its row fails.
    Row(String),
    /// Nothing else will go better: the task fails.
    Permanent(String),
    /// May go better in a while.
    Passing {
        /// What happened.
        what: String,
        /// How long the server asks to wait.
        wait: Option<std::time::Duration>,
    },
    /// Retries are used up.
    Exhausted {
        /// The last failure.
        what: String,
        /// Requests sent.
        tries: u32,
    },
    /// Nobody waits for it any more.
    Stopped,
}
