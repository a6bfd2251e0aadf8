//! One request, sent until it is answered, refused, or out of retries.
//!
//! What is told of a failure is the server's own message, cut short, and never the key: not the request's headers, and
//! not an answer that repeats them.

use crate::{
    error::Fault,
    gate::{Gate, wait},
};
use rallrec_core::models::RemoteModel;
use rand_chacha::{ChaCha8Rng, rand_core::Rng};
use serde_json::Value;
use std::{fmt, sync::atomic::AtomicBool, time::Duration};
use ureq::http::HeaderMap;

/// Largest answer that is read: embeddings of every token of a long text have tens of megabytes.
const MAX_ANSWER_BYTES: u64 = 256 << 20;
/// Most of a server's message that is passed on, in characters.
const MESSAGE_CHARS: usize = 300;
/// Time to find the server and connect.
const CONNECT: Duration = Duration::from_secs(10);

/// A server's key. It is sent in one header and shown nowhere.
#[derive(Clone)]
pub struct ServerKey(String);

impl ServerKey {
    /// A key, as the environment has it. Space around it is taken off, so that a line break in a file of secrets does
    /// no harm.
    ///
    /// # Errors
    /// When it is empty or can't stand in a header; the message does not hold it.
    pub fn new(key: &str) -> Result<Self, &'static str> {
        let key = key.trim();
        if key.is_empty() {
            return Err("is empty");
        }
        if !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("holds something that is not a letter, digit or sign of ASCII");
        }
        Ok(Self(key.to_owned()))
    }
}

impl fmt::Debug for ServerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerKey(…)")
    }
}

/// Waits between retries, where the server does not say: the first, doubled each time up to the longest, and of that a
/// random part between half and all.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first wait.
    pub first: Duration,
    /// The longest; a server that asks for more ends the retries.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), longest: Duration::from_secs(60) }
    }
}

impl Backoff {
    fn wait(&self, retry: u32, jitter: &mut ChaCha8Rng) -> Duration {
        let full = self.first.saturating_mul(1 << retry.min(20)).min(self.longest);
        full.mul_f64(0.5 + 0.5 * f64::from(jitter.next_u32()) / f64::from(u32::MAX))
    }
}

/// An answer, and how often it had to be asked for.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) body: Value,
    pub(crate) retries: u32,
    /// Seconds of the try that was answered.
    pub(crate) seconds: f32,
}

/// A connection to a server.
#[derive(Debug)]
pub(crate) struct Transport {
    agent: ureq::Agent,
    url: String,
    key: Option<ServerKey>,
    key_name: String,
    retries: u32,
    backoff: Backoff,
    gate: Gate,
}

impl Transport {
    pub(crate) fn new(settings: &RemoteModel, key: Option<ServerKey>, backoff: Backoff) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_global(Some(Duration::from_secs(u64::from(settings.timeout_s))))
            .http_status_as_error(false)
            // A redirect would turn the request into another one.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Of all of a worker's requests none should have to connect anew.
            .max_idle_connections(settings.concurrency as usize)
            .max_idle_connections_per_host(settings.concurrency as usize)
            .user_agent(concat!("rallrec/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self {
            agent,
            url: settings.url.trim_end_matches('/').to_owned(),
            key,
            key_name: settings.api_key_env.clone(),
            retries: settings.retries,
            backoff,
            gate: Gate::new(settings.concurrency, settings.requests_per_minute),
        }
    }

    /// Posts until there is an answer.
    pub(crate) fn post(
        &self,
        path: &str,
        body: &Value,
        jitter: &mut ChaCha8Rng,
        stop: &AtomicBool,
    ) -> Result<Reply, Fault> {
        let mut retry = 0;
        loop {
            let answered = {
                let _permit = self.gate.enter(stop).ok_or(Fault::Stopped)?;
                self.once(path, body)
            };
            let (what, asked) = match answered {
                Ok((body, seconds)) => return Ok(Reply { body, retries: retry, seconds }),
                Err(Fault::Passing { what, wait }) => (what, wait),
                Err(fault) => return Err(fault),
            };
            let too_long = asked.is_some_and(|asked| asked > self.backoff.longest.max(Duration::from_secs(60)));
            if retry == self.retries || too_long {
                let what = match asked.filter(|_| too_long) {
                    Some(asked) => format!("{what}; it asks to wait {} s", asked.as_secs()),
                    None => what,
                };
                return Err(Fault::Exhausted { what, tries: retry + 1 });
            }
            tracing::debug!(url = self.url, path, retry, what, "a request is sent again");
            let backoff = self.backoff.wait(retry, jitter);
            if let Some(asked) = asked {
                // What the server asks of one request, it means for all of them.
                self.gate.pause(asked);
            }
            if !wait(asked.unwrap_or(backoff), stop) {
                return Err(Fault::Stopped);
            }
            retry += 1;
        }
    }

    /// One try.
    fn once(&self, path: &str, body: &Value) -> Result<(Value, f32), Fault> {
        let passing = |what: String| Fault::Passing { what, wait: None };
        let began = std::time::Instant::now();
        let mut request = self.agent.post(format!("{}{path}", self.url)).content_type("application/json");
        if let Some(ServerKey(key)) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.send(body.to_string().as_bytes()).map_err(|error| match error {
            ureq::Error::BadUri(what) => Fault::Permanent(format!("its address is wrong: {what}")),
            error => passing(self.clean(&error.to_string())),
        })?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        if let Some(wait) = spent(&headers) {
            self.gate.pause(wait.min(self.backoff.longest));
        }
        let text = response.into_body().with_config().limit(MAX_ANSWER_BYTES).read_to_vec();
        let text = text.map_err(|error| passing(self.clean(&format!("the answer was cut off: {error}"))))?;
        let text = String::from_utf8_lossy(&text);
        if (200..300).contains(&status) {
            let body: Value = serde_json::from_str(&text)
                .map_err(|_| passing(self.clean(&format!("the answer is not JSON: {text}"))))?;
            // Some servers and proxies answer 200 with an error in it.
            if body.get("error").is_none_or(Value::is_null) {
                return Ok((body, began.elapsed().as_secs_f32()));
            }
        }
        Err(self.fault(path, status, &headers, &text))
    }

    /// What an answer that is an error means.
    fn fault(&self, path: &str, status: u16, headers: &HeaderMap, text: &str) -> Fault {
        let (code, message) = told(text);
        let message = self.clean(&message);
        let what = if message.is_empty() { format!("status {status}") } else { format!("status {status}: {message}") };
        let key = if self.key_name.is_empty() {
            "name the variable that holds its key by `api_key_env`".to_owned()
        } else {
            format!("look at the key in {}", self.key_name)
        };
        let missing_embeddings = path.ends_with("/embeddings")
            && (matches!(status, 404 | 405 | 501) || (status == 500 && message.to_lowercase().contains("embedding")));
        if missing_embeddings {
            return Fault::Permanent(format!(
                "{what}; it offers no embeddings: start it with them (llama.cpp: --embedding), or embed with another model"
            ));
        }
        match status {
            401 | 403 => Fault::Permanent(format!("{what}; {key}")),
            429 if code == "insufficient_quota" => Fault::Permanent(what),
            // Of one prompt, whatever status a server gives it, in an answer that looks good too.
            _ if withheld(&code) => Fault::Row(format!("the server's content filter withholds the prompt: {message}")),
            200..=299 if too_long(&code, &message) => refused_prompt(&message),
            408 | 409 | 429 | 200..=299 | 500.. => Fault::Passing { what, wait: asked(headers) },
            404 => Fault::Permanent(format!("{what}; look at `url` (it ends with /v1) and `model`")),
            _ if too_long(&code, &message) => refused_prompt(&message),
            _ => Fault::Permanent(what),
        }
    }

    /// A text for people: one line, cut short, without the key.
    fn clean(&self, text: &str) -> String {
        let text = match &self.key {
            Some(ServerKey(key)) => text.replace(key.as_str(), "…"),
            None => text.to_owned(),
        };
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(MESSAGE_CHARS) {
            Some((at, _)) => format!("{}…", &line[..at]),
            None => line,
        }
    }
}

/// Code and message of an error: `{"error": {"message", "code"}}`, `{"error": "…"}`, `{"message"}`, `{"detail"}`, or the
/// text itself.
fn told(text: &str) -> (String, String) {
    let Ok(body) = serde_json::from_str::<Value>(text) else { return (String::new(), text.to_owned()) };
    let error = body.get("error").unwrap_or(&body);
    let word = |key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
    let code = word("code").or_else(|| word("type")).unwrap_or_default();
    let detail = || error.get("detail").map(|d| d.as_str().map_or_else(|| d.to_string(), str::to_owned));
    let plain = || error.as_str().map(str::to_owned);
    let message = word("message").or_else(plain).or_else(detail).unwrap_or_else(|| text.to_owned());
    (code, message)
}

/// Whether a refusal is a content filter's.
fn withheld(code: &str) -> bool {
    matches!(code, "content_filter" | "content_policy_violation")
}

fn refused_prompt(message: &str) -> Fault {
    Fault::Row(format!("the server refuses the prompt: {message}"))
}

/// Whether a refusal is about the prompt's length. Servers agree on no code for it.
fn too_long(code: &str, message: &str) -> bool {
    let message = message.to_lowercase();
    let length = ["context length", "context size", "context window", "maximum context", "model's context", "too long"];
    matches!(code, "context_length_exceeded" | "exceed_context_size_error" | "string_above_max_length")
        || length.iter().any(|words| message.contains(words))
}

/// How long a server asks to wait before the next try.
fn asked(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: &str| header(headers, name)?.parse::<f64>().ok().filter(|v| v.is_finite() && *v >= 0.0);
    let seconds = number("retry-after-ms").map(|ms| ms / 1000.0).or_else(|| number("retry-after"))?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// How long to hold back everything, when the server says that its allowance is used up.
fn spent(headers: &HeaderMap) -> Option<Duration> {
    let used_up = |what: &str| {
        let none = header(headers, &format!("x-ratelimit-remaining-{what}"))?.parse::<f64>().ok()? <= 0.0;
        none.then(|| duration(header(headers, &format!("x-ratelimit-reset-{what}"))?)).flatten()
    };
    used_up("requests").max(used_up("tokens"))
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// `6m0s`, `1.5s`, `120ms`, or seconds without a unit.
fn duration(text: &str) -> Option<Duration> {
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let scale = match unit {
            "ms" => 0.001,
            "s" | "" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * scale;
        rest = tail;
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::rng::row_rng;

    #[test]
    fn durations_of_rate_limit_headers_are_read() {
        let seconds = |text: &str| duration(text).map(|d| d.as_secs_f64());
        assert_eq!(seconds("6m0s"), Some(360.0));
        assert_eq!(seconds("120ms"), Some(0.12));
        assert_eq!(seconds("1h2m3.5s"), Some(3723.5));
        assert_eq!(seconds("7"), Some(7.0));
        assert_eq!((seconds("soon"), seconds("1d"), seconds("1e999")), (None, None, None));
    }

    #[test]
    fn waits_double_up_to_the_longest_with_jitter_from_the_generator() {
        let backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(1) };
        let waits = |seed| {
            let mut jitter = row_rng(seed, "test", 0, 0);
            (0..8).map(|retry| backoff.wait(retry, &mut jitter).as_millis() as u64).collect::<Vec<_>>()
        };
        for (retry, wait) in waits(1).into_iter().enumerate() {
            let full = (100 << retry).min(1000);
            assert!((full / 2..=full).contains(&wait), "retry {retry}: {wait} of {full}");
        }
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    fn messages_are_found_wherever_servers_put_them() {
        for (text, wanted) in [
            (r#"{"error": {"message": "no", "type": "t", "code": "c"}}"#, ("c", "no")),
            (r#"{"error": {"message": "no", "type": "t", "code": null}}"#, ("t", "no")),
            (r#"{"object": "error", "message": "no", "type": "t", "code": 400}"#, ("t", "no")),
            (r#"{"error": "no"}"#, ("", "no")),
            (r#"{"detail": "Not Found"}"#, ("", "Not Found")),
            ("<html>no</html>", ("", "<html>no</html>")),
        ] {
            let (code, message) = told(text);
            assert_eq!((code.as_str(), message.as_str()), wanted, "{text}");
        }
    }
}
