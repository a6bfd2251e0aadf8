//! The client against a server that misbehaves on demand: a real one, over loopback, written here.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::{models::RemoteModel, rng::row_rng};
use rallrec_provider::{
    Answer, Ask, Backoff, Batch, Done, Pooling, Prompt, ProviderError, Sampling, Server, ServerKey, Turn,
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    ops::ControlFlow,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// A request as it came.
#[derive(Clone, Debug)]
struct Seen {
    path: String,
    key: Option<String>,
    body: Value,
    at: Instant,
}

/// What a reply is made of.
#[derive(Clone, Debug)]
enum Reply {
    /// Status, further headers, body.
    Now(u16, &'static str, String),
    /// A body that ends before its length.
    Cut,
    /// No reply until the fake is dropped.
    Never,
}

/// A server whose replies are `script(number of the request, request)`.
struct Fake {
    address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// Connections that were made.
    connections: Arc<AtomicUsize>,
    /// Most connections that were being answered at once.
    peak: Arc<Mutex<(u32, u32)>>,
    over: Arc<(Mutex<bool>, Condvar)>,
    stopped: Arc<AtomicBool>,
}

impl Fake {
    fn start(script: impl Fn(usize, &Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let fake = Self {
            address: listener.local_addr().unwrap().to_string(),
            seen: Arc::default(),
            connections: Arc::default(),
            peak: Arc::default(),
            over: Arc::default(),
            stopped: Arc::default(),
        };
        let (seen, peak, over, stopped) =
            (fake.seen.clone(), fake.peak.clone(), fake.over.clone(), fake.stopped.clone());
        let connections = fake.connections.clone();
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                connections.fetch_add(1, Ordering::Relaxed);
                let (seen, peak, over, script) = (seen.clone(), peak.clone(), over.clone(), script.clone());
                std::thread::spawn(move || {
                    let stream = stream.unwrap();
                    // A client that goes away in mid-answer is part of the tests.
                    let _ = answer(&stream, &*script, &seen, &peak, &over);
                });
            }
        });
        fake
    }

    fn settings(&self) -> RemoteModel {
        RemoteModel { url: format!("http://{}/v1", self.address), model: "m".into(), ..RemoteModel::default() }
    }

    fn server(&self, change: impl FnOnce(&mut RemoteModel)) -> Arc<Server> {
        let mut settings = self.settings();
        change(&mut settings);
        Server::new(settings, Some(ServerKey::new("sk-very-secret\n").unwrap()), brief())
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        *self.over.0.lock().unwrap() = true;
        self.over.1.notify_all();
        drop(TcpStream::connect(&self.address));
    }
}

fn answer(
    mut stream: &TcpStream,
    script: &(dyn Fn(usize, &Seen) -> Reply + Send + Sync),
    seen: &Mutex<Vec<Seen>>,
    peak: &Mutex<(u32, u32)>,
    over: &(Mutex<bool>, Condvar),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let (mut path, mut key, mut length) = (String::new(), None, 0);
        for line in reader.by_ref().lines() {
            let line = line?;
            if let Some(rest) = line.strip_prefix("POST ") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            } else if let Some((name, value)) = line.split_once(": ") {
                match name.to_lowercase().as_str() {
                    "authorization" => key = Some(value.to_owned()),
                    "content-length" => length = value.parse().unwrap(),
                    _ => {}
                }
            } else if line.is_empty() {
                break;
            }
        }
        if path.is_empty() {
            return Ok(());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let request = Seen { path, key, body: serde_json::from_slice(&body).unwrap(), at: Instant::now() };
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(request.clone());
            seen.len() - 1
        };
        {
            let mut peak = peak.lock().unwrap();
            peak.0 += 1;
            peak.1 = peak.1.max(peak.0);
        }
        let reply = script(number, &request);
        peak.lock().unwrap().0 -= 1;
        match reply {
            Reply::Now(status, headers, body) => {
                write!(stream, "HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())?
            }
            Reply::Cut => {
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{{\"choices\": [")?;
                return stream.shutdown(std::net::Shutdown::Both);
            }
            Reply::Never => {
                let mut ended = over.0.lock().unwrap();
                while !*ended {
                    ended = over.1.wait(ended).unwrap();
                }
                return Ok(());
            }
        }
    }
}

/// Waits so short that a test does not notice them.
fn brief() -> Backoff {
    Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(20) }
}

fn ok(text: &str) -> Reply {
    let body = json!({
        "choices": [{ "text": text, "message": { "content": text }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 7, "completion_tokens": 2, "prompt_tokens_details": { "cached_tokens": 3 } }
    });
    Reply::Now(200, "", body.to_string())
}

fn error(status: u16, headers: &'static str, message: &str, code: &str) -> Reply {
    Reply::Now(status, headers, json!({ "error": { "message": message, "code": code } }).to_string())
}

fn ask(text: &str, samples: u64) -> Ask {
    let samples = (0..samples).map(|n| row_rng(1, "test", 0, n)).collect();
    Ask { prompt: Prompt::Text(text.into()), samples }
}

fn sampling() -> Sampling {
    Sampling { temperature: 0.8, top_p: 0.9, max_new_tokens: 4, ..Sampling::default() }
}

fn go(_: Done) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn generate(server: &Arc<Server>, asks: Vec<Ask>) -> Result<Batch<Vec<Answer>>, ProviderError> {
    server.generate(asks, &sampling(), row_rng(1, "jitter", 0, 0), &mut go)
}

fn refused<T: std::fmt::Debug>(result: Result<T, ProviderError>) -> String {
    match result {
        Err(error @ ProviderError::Refused { .. }) => error.to_string(),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

fn unavailable<T: std::fmt::Debug>(result: Result<T, ProviderError>) -> String {
    match result {
        Err(error @ ProviderError::Unavailable { .. }) => error.to_string(),
        other => panic!("expected a passing failure, got {other:?}"),
    }
}

#[test]
fn results_keep_the_callers_order_and_requests_are_sorted_by_prompt() {
    let fake = Fake::start(|_, seen| ok(seen.body["prompt"].as_str().unwrap()));
    let server = fake.server(|s| s.concurrency = 1);
    let batch = generate(&server, ["beta 2", "alpha", "beta 1", ""].map(|p| ask(p, 2)).into()).unwrap();
    let texts: Vec<_> = batch.rows[..3].iter().map(|r| r.as_ref().unwrap()[1].text.clone()).collect();
    assert_eq!(texts, ["beta 2", "alpha", "beta 1"]);
    assert_eq!(batch.rows[3], Err("it has no tokens".into()), "an empty prompt is not sent");
    let sent: Vec<_> = fake.seen().iter().map(|s| s.body["prompt"].as_str().unwrap().to_owned()).collect();
    assert_eq!(sent, ["alpha", "alpha", "beta 1", "beta 1", "beta 2", "beta 2"]);
    let seeds: Vec<_> = fake.seen().iter().map(|s| s.body["seed"].as_u64().unwrap()).collect();
    assert_ne!(seeds[0], seeds[1], "samples have seeds of their own");
    assert_eq!(seeds[..2], seeds[2..4], "a seed is its generator's, whatever else is asked");
    assert!(seeds.iter().all(|s| *s < 1 << 31));
    let usage = batch.usage;
    assert_eq!((usage.requests, usage.tokens_read, usage.tokens_cached, usage.tokens_written), (6, 42, 18, 12));
    let settings = RemoteModel { price_input: 2.0, price_output: 10.0, ..fake.settings() };
    assert!((usage.cost(&settings) - (42.0 * 2.0 + 12.0 * 10.0) / 1e6).abs() < 1e-12);
    assert!(
        fake.seen().iter().all(|s| s.key.as_deref() == Some("Bearer sk-very-secret") && s.path == "/v1/completions")
    );
}

#[test]
fn failures_in_passing_are_tried_again() {
    let fake = Fake::start(|number, _| match number {
        0 => error(500, "", "boom", ""),
        1 => error(503, "", "loading", ""),
        2 => Reply::Cut,
        3 => Reply::Now(200, "", "<html>a proxy</html>".into()),
        4 => error(200, "", "an error in a good answer", ""),
        _ => ok("fine"),
    });
    let batch = generate(&fake.server(|_| {}), vec![ask("p", 1)]).unwrap();
    assert_eq!(batch.rows[0].as_ref().unwrap()[0].text, "fine");
    assert_eq!((batch.usage.requests, batch.usage.retries), (1, 5));
}

#[test]
fn retries_end_and_the_last_failure_is_told() {
    let fake = Fake::start(|_, _| error(500, "", "boom", ""));
    let told = unavailable(generate(&fake.server(|s| s.retries = 2), vec![ask("p", 1)]));
    assert!(told.contains("status 500: boom (tried 3 times)"), "{told}");
    assert_eq!(fake.seen().len(), 3);
    let nobody =
        RemoteModel { url: "http://127.0.0.1:9/v1".into(), model: "m".into(), retries: 1, ..RemoteModel::default() };
    let told = unavailable(generate(&Server::new(nobody, None, brief()), vec![ask("p", 1)]));
    assert!(told.starts_with("http://127.0.0.1:9/v1 (model m): "), "{told}");
}

#[test]
fn a_server_that_says_when_to_come_back_is_heard() {
    let fake = Fake::start(|number, _| match number {
        0 => error(429, "Retry-After: 0.3\r\n", "slow down", "rate_limit_exceeded"),
        1 => Reply::Now(
            200,
            "x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-requests: 15ms\r\n",
            match ok("first") {
                Reply::Now(_, _, body) => body,
                _ => String::new(),
            },
        ),
        _ => ok("second"),
    });
    let server = fake.server(|s| s.concurrency = 1);
    generate(&server, vec![ask("a", 1), ask("b", 1)]).unwrap();
    let seen = fake.seen();
    let gap = |n: usize| seen[n].at - seen[n - 1].at;
    assert!(gap(1) >= Duration::from_millis(290), "Retry-After: {:?}", gap(1));
    assert!(gap(2) >= Duration::from_millis(14), "the allowance: {:?}", gap(2));

    let fake = Fake::start(|_, _| error(429, "Retry-After: 7200\r\n", "come tomorrow", ""));
    let told = unavailable(generate(&fake.server(|_| {}), vec![ask("a", 1)]));
    assert!(told.contains("come tomorrow; it asks to wait 7200 s"), "{told}");
    assert_eq!(fake.seen().len(), 1);
}

#[test]
fn refusals_are_not_tried_again_and_never_show_the_key() {
    for (status, code, wanted) in [
        (401, "invalid_api_key", "look at the key in LLM_KEY"),
        (403, "", "look at the key in LLM_KEY"),
        (404, "", "look at `url`"),
        (422, "", "status 422"),
        (429, "insufficient_quota", "status 429"),
    ] {
        let fake = Fake::start(move |_, seen| {
            error(status, "", &format!("no: {} {}", seen.key.clone().unwrap(), "x".repeat(5000)), code)
        });
        let server = fake.server(|s| s.api_key_env = "LLM_KEY".into());
        let told = refused(generate(&server, vec![ask("p", 1)]));
        assert!(told.contains(wanted) && told.contains("no: Bearer …"), "{status}: {told}");
        assert!(!told.contains("sk-very-secret") && told.len() < 600, "{told}");
        assert!(!format!("{server:?}").contains("sk-very-secret"));
        assert_eq!(fake.seen().len(), 1);
    }
}

#[test]
fn a_prompt_that_is_too_long_is_a_bad_row() {
    for status in [400, 200] {
        let fake = Fake::start(move |_, seen| match seen.body["prompt"].as_str() {
            Some("long") => {
                error(status, "", "This model's maximum context length is 8 tokens, however you requested 9", "")
            }
            _ => ok("fine"),
        });
        let batch = generate(&fake.server(|_| {}), vec![ask("long", 2), ask("short", 1)]).unwrap();
        assert!(batch.rows[0].as_ref().unwrap_err().contains("maximum context length is 8"));
        assert!(batch.rows[1].is_ok());
        assert_eq!(fake.seen().len(), 3, "status {status}: it is not sent again");
    }
}

#[test]
fn what_a_content_filter_withholds_is_a_bad_row() {
    let fake = Fake::start(|_, seen| match seen.body["prompt"].as_str() {
        Some("refused") => error(400, "", "The response was filtered", "content_filter"),
        Some("in a good answer") => error(200, "", "The response was filtered", "content_filter"),
        Some("withheld") => {
            let text = json!([{ "token": "Sorry", "logprob": -0.1 }, { "token": "Yes", "logprob": -0.2 }]);
            let body = json!({ "choices": [{
                "text": "", "finish_reason": "content_filter", "logprobs": { "content": [{ "top_logprobs": text }] },
            }] });
            Reply::Now(200, "", body.to_string())
        }
        _ => {
            let list = likely(&[("Yes", -0.5), ("No", -1.5)]);
            let body = json!({ "choices": [{
                "text": "fine", "finish_reason": "stop", "logprobs": { "content": [{ "top_logprobs": list }] },
            }] });
            Reply::Now(200, "", body.to_string())
        }
    });
    let texts = ["refused", "in a good answer", "withheld", "fine"];
    let generated = generate(&fake.server(|_| {}), texts.map(|t| ask(t, 1)).into()).unwrap();
    let prompts = texts.map(|t| Prompt::Text(t.into()));
    let answers = ["Yes".to_owned(), "No".to_owned()];
    let scored = fake.server(|_| {}).score(&prompts, answers, row_rng(1, "jitter", 0, 0), &mut go).unwrap();
    for ((text, generated), scored) in texts.iter().zip(&generated.rows).zip(&scored.rows).take(3) {
        for why in [generated.as_ref().unwrap_err(), scored.as_ref().unwrap_err()] {
            assert!(why.contains("content filter"), "{text}: {why}");
        }
    }
    assert_eq!(generated.rows[3].as_ref().unwrap()[0].text, "fine");
    assert_eq!(scored.rows[3], Ok([-0.5, -1.5]));
    assert_eq!(fake.seen().len(), 8, "none is sent again, or asked for as an echo");
}

#[test]
fn requests_that_take_too_long_are_given_up() {
    let fake = Fake::start(|number, _| if number == 0 { Reply::Never } else { ok("fine") });
    let began = Instant::now();
    let batch = generate(&fake.server(|s| s.timeout_s = 1), vec![ask("p", 1)]).unwrap();
    assert_eq!(batch.usage.retries, 1);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn a_cancelled_call_ends_although_the_server_says_nothing() {
    let fake = Fake::start(|_, _| Reply::Never);
    let server = fake.server(|_| {});
    let mut began = None;
    let result = server.generate(vec![ask("p", 1)], &sampling(), row_rng(1, "jitter", 0, 0), &mut |_| {
        // As soon as a request is out, nobody wants it any more.
        if fake.seen().is_empty() {
            return ControlFlow::Continue(());
        }
        began = Some(Instant::now());
        ControlFlow::Break(())
    });
    assert!(matches!(result, Err(ProviderError::Cancelled)));
    assert!(began.unwrap().elapsed() < Duration::from_secs(1));
}

#[test]
fn no_more_requests_are_in_flight_than_allowed() {
    let fake = Fake::start(|_, _| ok("fine"));
    let server = fake.server(|s| s.concurrency = 3);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| generate(&server, (0..40).map(|n| ask(&format!("p{n}"), 1)).collect()).unwrap());
        }
    });
    assert_eq!(fake.seen().len(), 80);
    assert!(fake.peak.lock().unwrap().1 <= 3, "{:?}", fake.peak);
}

#[test]
fn connections_are_kept_for_as_many_requests_as_are_allowed_at_once() {
    const AT_ONCE: usize = 16;
    let together = Arc::new(std::sync::Barrier::new(AT_ONCE));
    let fake = Fake::start(move |_, _| {
        together.wait();
        ok("fine")
    });
    let server = fake.server(|s| s.concurrency = AT_ONCE as u32);
    for _ in 0..3 {
        generate(&server, (0..AT_ONCE).map(|n| ask(&format!("p{n}"), 1)).collect()).unwrap();
    }
    assert_eq!(fake.seen().len(), 3 * AT_ONCE);
    assert_eq!(fake.connections.load(Ordering::Relaxed), AT_ONCE);
}

fn likely(list: &[(&str, f64)]) -> Value {
    list.iter().map(|(token, log_p)| json!({ "token": token, "logprob": log_p })).collect()
}

#[test]
fn scores_come_from_the_list_or_from_an_echo() {
    let fake = Fake::start(|_, seen| {
        let prompt = seen.body["prompt"].as_str().unwrap_or("chat");
        if seen.body["echo"] == json!(true) {
            let (answer, log_p) = if prompt.ends_with("Yes") { ("Yes", -9.0) } else { ("No", -8.0) };
            let body = json!({
                "choices": [{ "logprobs": { "tokens": ["q", answer, "x"], "token_logprobs": [null, log_p, -1.0] } }],
                "usage": { "prompt_tokens": 2, "completion_tokens": 1 }
            });
            return Reply::Now(200, "", body.to_string());
        }
        let list = match prompt {
            "listed" | "chat" => likely(&[("Yes", -0.5), ("No", -1.5)]),
            "bounded" => likely(&[("Yes", -0.01), ("Well", -9.0)]),
            _ => likely(&[("Well", -0.1)]),
        };
        let body = json!({
            "choices": [{ "logprobs": { "content": [{ "top_logprobs": list }] } }],
            "usage": { "prompt_tokens": 5, "completion_tokens": 1 }
        });
        Reply::Now(200, "", body.to_string())
    });
    let answers = || ["Yes".to_owned(), "No".to_owned()];
    let turn = Turn { role: "user".into(), content: "unlisted".into() };
    let mut prompts: Vec<Prompt> = ["listed", "bounded", "unlisted"].map(|p| Prompt::Text(p.into())).into();
    prompts.push(Prompt::Chat(vec![turn]));
    let score = |server: &Arc<Server>, prompts: &[Prompt]| {
        server.score(prompts, answers(), row_rng(1, "jitter", 0, 0), &mut go)
    };
    let batch = score(&fake.server(|_| {}), &prompts).unwrap();
    assert_eq!(batch.rows, [Ok([-0.5, -1.5]), Ok([-0.01, -9.0]), Ok([-9.0, -8.0]), Ok([-0.5, -1.5])]);
    assert_eq!((batch.usage.bounded, batch.usage.requests), (1, 6));
    assert_eq!(batch.prompt_tokens, [5, 5, 5, 5], "of the prompt, not of what was echoed");

    let fake = Fake::start(|_, seen| match seen.body["echo"] == json!(true) {
        true => error(400, "", "echo is not supported", ""),
        false => {
            let body =
                json!({ "choices": [{ "logprobs": { "content": [{ "top_logprobs": likely(&[("Well", -0.1)]) }] } }] });
            Reply::Now(200, "", body.to_string())
        }
    });
    let batch = score(&fake.server(|_| {}), &prompts[..1]).unwrap();
    assert!(batch.rows[0].as_ref().unwrap_err().contains("neither \"Yes\" nor \"No\""));

    let fake = Fake::start(|_, _| ok("Yes"));
    let told = refused(score(&fake.server(|_| {}), &prompts[..1]));
    assert!(told.contains("log-probabilities, which `score` needs"), "{told}");
}

#[test]
fn a_server_without_embeddings_is_told_apart() {
    for (status, message) in [
        (404, "Not Found"),
        (501, "This server does not support embeddings"),
        (500, "must be created with embedding=True"),
    ] {
        let fake = Fake::start(move |_, _| error(status, "", message, ""));
        let texts = ["a".to_owned()];
        let told = refused(fake.server(|_| {}).embed(&texts, Pooling::Mean, row_rng(1, "j", 0, 0), &mut go));
        assert!(told.contains("it offers no embeddings"), "{told}");
        assert_eq!(fake.seen().len(), 1);
    }
}

#[test]
fn keys_that_cannot_be_sent_are_refused_without_being_shown() {
    assert!(ServerKey::new(" \n").is_err());
    assert!(!ServerKey::new("sk\u{7}x").unwrap_err().contains("sk"));
    assert_eq!(format!("{:?}", ServerKey::new("sk-1").unwrap()), "ServerKey(…)");
}
