//! Requests and answers as JSON: OpenAI's fields, and where servers differ, all of the ways that are known.

use crate::{
    answers::Likely,
    batch::Usage,
    error::Fault,
    server::{Answer, Pooling, Prompt, Sampling},
};
use serde_json::{Map, Value, json};

/// Likely tokens asked for: what OpenAI, vLLM and SGLang give at most without other settings.
const TOP: u32 = 20;

/// A prompt's interface, and the body's beginning.
fn begin(model: &str, prompt: &Prompt) -> (&'static str, Map<String, Value>) {
    let (path, key, value) = match prompt {
        Prompt::Text(text) => ("/completions", "prompt", json!(text)),
        Prompt::Chat(turns) => {
            let turns = turns.iter().map(|t| json!({ "role": t.role, "content": t.content })).collect::<Vec<_>>();
            ("/chat/completions", "messages", json!(turns))
        }
    };
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert(key.into(), value);
    (path, body)
}

/// A number as people wrote it: 0.7, not the 0.699999988 that a 32-bit float becomes.
fn decimal(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// The request for one sample.
pub(crate) fn sample(model: &str, prompt: &Prompt, sampling: &Sampling, seed: u64) -> (&'static str, Value) {
    let (path, mut body) = begin(model, prompt);
    let mut set = |key: &str, value: Value| body.insert(key.to_owned(), value);
    set("max_tokens", sampling.max_new_tokens.into());
    set("temperature", decimal(sampling.temperature));
    set("top_p", decimal(sampling.top_p));
    set("seed", seed.into());
    if !sampling.stop_texts.is_empty() {
        set("stop", json!(sampling.stop_texts));
    }
    // Not in OpenAI's own interface, so they are sent only where they do something.
    if let Some(top_k) = sampling.top_k {
        set("top_k", top_k.into());
    }
    if let Some(min_p) = sampling.min_p {
        set("min_p", decimal(min_p));
    }
    if let Some(penalty) = sampling.repetition_penalty {
        set("repetition_penalty", decimal(penalty)); // vLLM, SGLang
        set("repeat_penalty", decimal(penalty)); // llama.cpp
    }
    (path, body.into())
}

/// The request for the log-probabilities of the next token.
pub(crate) fn next_token(model: &str, prompt: &Prompt) -> (&'static str, Value) {
    let (path, mut body) = begin(model, prompt);
    body.insert("max_tokens".into(), 1.into());
    // The most probable token is taken, so that a model that might end here at once still tells what it thinks.
    body.insert("temperature".into(), 0.into());
    match prompt {
        Prompt::Text(_) => _ = body.insert("logprobs".into(), TOP.into()),
        Prompt::Chat(_) => {
            body.insert("logprobs".into(), true.into());
            body.insert("top_logprobs".into(), TOP.into());
        }
    }
    (path, body.into())
}

/// The request for the log-probability of one answer: the prompt with the answer behind it, told back token by token.
pub(crate) fn echo(model: &str, text: &str, answer: &str) -> (&'static str, Value) {
    let body = json!({
        "model": model, "prompt": format!("{text}{answer}"),
        "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": true,
    });
    ("/completions", body)
}

/// The request for an embedding.
pub(crate) fn embedding(model: &str, text: &str) -> (&'static str, Value) {
    ("/embeddings", json!({ "model": model, "input": text, "encoding_format": "float" }))
}

/// Tokens that a request cost.
pub(crate) fn usage(body: &Value) -> Usage {
    let usage = &body["usage"];
    let count = |value: &Value| value.as_u64().unwrap_or(0);
    Usage {
        tokens_read: count(&usage["prompt_tokens"]),
        tokens_cached: count(&usage["prompt_tokens_details"]["cached_tokens"]),
        tokens_written: count(&usage["completion_tokens"]),
        ..Usage::default()
    }
}

fn lacks(what: &str) -> Fault {
    Fault::Permanent(format!("its answer has no {what}; it does not speak OpenAI's interface as expected"))
}

/// The answer, unless a filter has withheld it: what stands there then is not the model's.
fn choice(body: &Value) -> Result<&Value, Fault> {
    let choice = body["choices"].get(0).ok_or_else(|| lacks("choices[0]"))?;
    if choice["finish_reason"] == "content_filter" {
        return Err(Fault::Row("the server's content filter withheld the answer".into()));
    }
    Ok(choice)
}

/// A sampled answer.
pub(crate) fn read_sample(body: &Value, seconds: f32) -> Result<Answer, Fault> {
    let choice = choice(body)?;
    // A chat answer of nothing is null in some servers.
    let text = match choice.get("text").or_else(|| choice["message"].get("content")) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) => String::new(),
        _ => return Err(lacks("text")),
    };
    Ok(Answer { text, tokens: usage(body).tokens_written as u32, seconds, finished: choice["finish_reason"] == "stop" })
}

/// The likely next tokens. Two layouts are known: a list of objects, and a mapping from text to log-probability.
pub(crate) fn read_likely(body: &Value) -> Result<Vec<Likely>, Fault> {
    let given = &choice(body)?["logprobs"];
    if given.is_null() {
        return Err(lacks(
            "log-probabilities, which `score` needs: let the server give them, or score with another model (choices[0].logprobs)",
        ));
    }
    let first = given["content"].get(0).map(|token| &token["top_logprobs"]);
    let likely: Vec<Likely> = match first.or_else(|| given["top_logprobs"].get(0)) {
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|token| Some((token["token"].as_str()?.to_owned(), token["logprob"].as_f64()?)))
            .collect(),
        Some(Value::Object(map)) => map.iter().filter_map(|(t, p)| Some((t.clone(), p.as_f64()?))).collect(),
        _ => Vec::new(),
    };
    if likely.is_empty() {
        return Err(Fault::Row("the model ends its answer before it begins, so there is no token to score".into()));
    }
    Ok(likely)
}

/// The log-probability of the last token of an echoed prompt, which must be one of the answers.
pub(crate) fn read_echo(body: &Value, answers: &[String; 2]) -> Result<f32, Fault> {
    let told = &choice(body)?["logprobs"];
    let (tokens, log_p) = (told["tokens"].as_array(), told["token_logprobs"].as_array());
    let written = usage(body).tokens_written as usize;
    let last = tokens.and_then(|t| Some((t, t.len().checked_sub(written + 1)?)));
    let found = last.and_then(|(tokens, at)| Some((tokens[at].as_str()?, log_p?.get(at)?.as_f64()?)));
    match found {
        Some((token, log_p)) if answers.iter().any(|a| a == token) => Ok(log_p as f32),
        _ => Err(Fault::Row("the server does not tell the log-probabilities of a prompt's tokens".into())),
    }
}

/// An embedding. A server that does not pool gives one vector a token, which are pooled here.
pub(crate) fn read_embedding(body: &Value, pooling: Pooling) -> Result<Vec<f32>, Fault> {
    let embedding =
        body["data"].get(0).and_then(|d| d["embedding"].as_array()).ok_or_else(|| lacks("data[0].embedding"))?;
    let vector = |value: &Value| -> Option<Vec<f64>> { value.as_array()?.iter().map(Value::as_f64).collect() };
    let numbers = lacks("numbers in data[0].embedding");
    let pooled = match embedding.first() {
        None => return Err(lacks("numbers in data[0].embedding")),
        Some(Value::Array(_)) => {
            let tokens: Vec<Vec<f64>> = embedding.iter().map(vector).collect::<Option<_>>().ok_or(numbers)?;
            match (pooling, tokens.split_last()) {
                (Pooling::Last, Some((last, _))) => last.clone(),
                (Pooling::Mean, Some((last, rest))) if rest.iter().all(|t| t.len() == last.len()) => {
                    (0..last.len()).map(|i| tokens.iter().map(|t| t[i]).sum::<f64>() / tokens.len() as f64).collect()
                }
                _ => return Err(lacks("vectors of one length in data[0].embedding")),
            }
        }
        Some(_) => embedding.iter().map(Value::as_f64).collect::<Option<_>>().ok_or(numbers)?,
    };
    Ok(pooled.into_iter().map(|v| v as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Turn;

    #[test]
    fn requests_hold_only_what_every_server_knows_unless_it_is_used() {
        let plain = Sampling { temperature: 0.7, top_p: 0.9, max_new_tokens: 8, ..Sampling::default() };
        let (path, body) = sample("m", &Prompt::Text("p".into()), &plain, 7);
        assert_eq!(path, "/completions");
        assert_eq!(
            body,
            json!({ "model": "m", "prompt": "p", "max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "seed": 7 })
        );
        let all = Sampling {
            top_k: Some(5),
            min_p: Some(0.1),
            repetition_penalty: Some(1.2),
            stop_texts: vec!["x".into()],
            ..plain
        };
        let chat = Prompt::Chat(vec![Turn { role: "user".into(), content: "hi".into() }]);
        let (path, body) = sample("m", &chat, &all, 7);
        assert_eq!(path, "/chat/completions");
        assert_eq!(body["messages"], json!([{ "role": "user", "content": "hi" }]));
        assert_eq!((&body["top_k"], &body["min_p"], &body["stop"]), (&json!(5), &json!(0.1), &json!(["x"])));
        assert_eq!((&body["repetition_penalty"], &body["repeat_penalty"]), (&json!(1.2), &json!(1.2)));
    }

    #[test]
    fn likely_tokens_are_read_in_both_layouts() {
        let chat = json!({ "choices": [{ "logprobs": { "content": [{ "top_logprobs": [{ "token": "Yes", "logprob": -1.0 }] }] } }] });
        let text = json!({ "choices": [{ "logprobs": { "top_logprobs": [{ "Yes": -1.0 }] } }] });
        for body in [chat, text] {
            assert_eq!(read_likely(&body).unwrap(), [("Yes".to_owned(), -1.0)]);
        }
        let ended = json!({ "choices": [{ "logprobs": { "content": [] } }] });
        assert!(matches!(read_likely(&ended), Err(Fault::Row(_))));
        let none = json!({ "choices": [{ "logprobs": null }] });
        assert!(matches!(read_likely(&none), Err(Fault::Permanent(what)) if what.contains("log-probabilities")));
    }

    #[test]
    fn an_echoed_answer_is_the_last_token_of_the_prompt() {
        let answers = ["Yes".to_owned(), "No".to_owned()];
        let told = |written: u32| {
            json!({
                "choices": [{ "logprobs": { "tokens": ["a", "\n", "Yes", ","], "token_logprobs": [null, -1.0, -2.5, -0.1] } }],
                "usage": { "completion_tokens": written }
            })
        };
        assert_eq!(read_echo(&told(1), &answers), Ok(-2.5));
        // Counted wrong, the token there is no answer: better none than a wrong one.
        for written in [0, 2, 3, 9] {
            assert!(matches!(read_echo(&told(written), &answers), Err(Fault::Row(_))), "{written}");
        }
        assert!(matches!(read_echo(&json!({ "choices": [{}] }), &answers), Err(Fault::Row(_))));
    }

    #[test]
    fn embeddings_of_tokens_are_pooled() {
        let tokens = json!({ "data": [{ "embedding": [[1.0, 2.0], [3.0, 6.0]] }] });
        assert_eq!(read_embedding(&tokens, Pooling::Mean).unwrap(), [2.0, 4.0]);
        assert_eq!(read_embedding(&tokens, Pooling::Last).unwrap(), [3.0, 6.0]);
        let pooled = json!({ "data": [{ "embedding": [1.0, 2.0] }] });
        assert_eq!(read_embedding(&pooled, Pooling::Last).unwrap(), [1.0, 2.0]);
        for wrong in [
            json!({}),
            json!({ "data": [] }),
            json!({ "data": [{ "embedding": ["x"] }] }),
            json!({ "data": [{ "embedding": [[1.0], [1.0, 2.0]] }] }),
        ] {
            assert!(matches!(read_embedding(&wrong, Pooling::Mean), Err(Fault::Permanent(_))), "{wrong}");
        }
    }
}
