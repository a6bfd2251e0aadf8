//! The batch engine on a tiny model: what it must give does not depend on the weights.
//!
//! Results are compared with those of calls that have one prompt and one sample each, to the bit: whatever the batch
//! size, the order, the memory, or what prompts share.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod tiny;

use rallrec_core::rng::row_rng;
use rallrec_llm::{
    Done, Finish, GenerateRequest, Generation, LanguageModel, LlmError, Pooling, Precision, Sampling, Slots,
    TokenBudget,
};
use std::{ops::ControlFlow, sync::OnceLock};

/// Bytes of a page: 32 positions, two layers, keys and values of width 32, in 32 bits.
const PAGE_BYTES: u64 = 32 * 2 * 2 * 32 * 4;

fn model() -> &'static LanguageModel {
    static MODEL: OnceLock<LanguageModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), tiny::gguf()).unwrap();
        LanguageModel::load(file.path(), &rallrec_llm::pick_device("cpu").unwrap(), Precision::F32).unwrap()
    })
}

fn go_on(_: Done) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A text of so many tokens: it repeats itself only by chance.
fn words(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 7919) >> 7) % 250).collect()
}

/// Prompts of a data set in small: one beginning for all, one for each of two groups, and some that share nothing.
fn prompts() -> Vec<Vec<u32>> {
    let (system, groups) = (words(1, 70), [words(2, 40), words(3, 64)]);
    let mut prompts: Vec<Vec<u32>> =
        (0..9).map(|i| [&system[..], &groups[i % 2], &words(10 + i as u32, 5 + 11 * i)].concat()).collect();
    prompts.push([&system[..], &groups[0], &words(10, 5)].concat());
    prompts.push(system[..64].to_vec());
    prompts.push(words(30, 200));
    prompts.push(words(31, 3));
    prompts
}

fn sampling() -> Sampling {
    Sampling {
        temperature: 0.9,
        top_p: 0.95,
        max_new_tokens: 50,
        stop_tokens: vec![tiny::END, tiny::BAD, 7],
        stop_texts: vec!["the".into(), "z".into()],
        ..Sampling::default()
    }
}

/// Each row's samples have their generators by row, not by place in the call.
fn requests(prompts: &[Vec<u32>], rows: &[usize], samples: u64) -> Vec<GenerateRequest> {
    let generators = |row: usize| (0..samples).map(move |sample| row_rng(5, "test.engine", row as u64, sample));
    rows.iter()
        .map(|&row| GenerateRequest { prompt: prompts[row].clone(), samples: generators(row).collect() })
        .collect()
}

/// What must not change: all but the seconds.
fn fixed(rows: Vec<Result<Vec<Generation>, LlmError>>) -> Vec<Vec<Generation>> {
    let row = |row: Result<Vec<Generation>, LlmError>| -> Vec<Generation> {
        row.unwrap().into_iter().map(|answer| Generation { seconds: 0.0, ..answer }).collect()
    };
    rows.into_iter().map(row).collect()
}

#[test]
fn a_text_depends_on_its_prompt_and_generator_alone() {
    let prompts = prompts();
    let generate = |rows: &[usize], slots: Slots| {
        let requests = requests(&prompts, rows, 3);
        fixed(model().generate(requests, &sampling(), slots, &mut go_on).unwrap())
    };
    let rows: Vec<usize> = (0..prompts.len()).collect();
    let alone: Vec<_> = rows.iter().map(|&row| generate(&[row], Slots::from(1)).remove(0)).collect();
    let finishes: std::collections::HashSet<_> =
        alone.iter().flatten().map(|answer| format!("{:?}", answer.finish)).collect();
    assert_eq!(finishes.len(), 3, "stop tokens, stop texts and lengths are all among {finishes:?}");
    let reversed: Vec<usize> = rows.iter().rev().copied().collect();
    for samples in [1, 4, 100] {
        for kv_bytes in [None, Some(0), Some(9 * PAGE_BYTES), Some(30 * PAGE_BYTES)] {
            let slots = Slots { samples, kv_bytes };
            assert_eq!(generate(&rows, slots), alone, "{slots:?}");
            assert!(generate(&reversed, slots).iter().rev().eq(&alone), "{slots:?}, reversed");
        }
    }
    // As two workers would have it.
    let (some, others): (Vec<usize>, Vec<usize>) = rows.iter().partition(|&&row| row % 3 == 0);
    for (shard, slots) in [(some, Slots::from(8)), (others, Slots::from(3))] {
        let expected: Vec<_> = shard.iter().map(|&row| alone[row].clone()).collect();
        assert_eq!(generate(&shard, slots), expected);
    }
}

#[test]
fn embeddings_and_scores_do_not_depend_on_what_is_shared_or_on_memory() {
    let prompts = prompts();
    let values = |rows: Vec<Result<Vec<f32>, LlmError>>| rows.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    for pooling in [Pooling::Mean, Pooling::Last] {
        let embed = |prompts: &[Vec<u32>], budget: TokenBudget| {
            values(model().embed(prompts, pooling, budget, &mut go_on).unwrap())
        };
        let alone: Vec<_> =
            prompts.iter().map(|prompt| embed(std::slice::from_ref(prompt), 4096.into()).remove(0)).collect();
        for tokens in [1, 100, 4096] {
            for memory_bytes in [None, Some(0), Some(3 * PAGE_BYTES), Some(12 * PAGE_BYTES)] {
                let budget = TokenBudget { tokens, memory_bytes };
                assert_eq!(embed(&prompts, budget), alone, "{pooling:?}, {budget:?}");
            }
        }
    }
    let score = |prompts: &[Vec<u32>], budget: TokenBudget| {
        values(model().score(prompts, &[5, 200], budget, &mut go_on).unwrap())
    };
    let alone: Vec<_> =
        prompts.iter().map(|prompt| score(std::slice::from_ref(prompt), 4096.into()).remove(0)).collect();
    for memory_bytes in [None, Some(0)] {
        assert_eq!(score(&prompts, TokenBudget { tokens: 300, memory_bytes }), alone);
    }
}

#[test]
fn each_beginning_is_computed_once() {
    let prompts = prompts();
    let all: u64 = prompts.iter().map(|prompt| prompt.len() as u64).sum();
    // Whole pages before the last token: of the beginning of all 11, and of the two groups of 6 and 4.
    let shared = 32 * 10 + 32 * 9 + 32 * 5 + 32 * 3 + 32 * 3;
    let heard = std::cell::Cell::new(Done::default());
    let mut hear = |done: Done| {
        heard.set(done);
        ControlFlow::Continue(())
    };
    model().score(&prompts, &[1], 4096, &mut hear).unwrap();
    let last = heard.get();
    assert_eq!((last.rows, last.prompt_tokens, last.answer_tokens), (prompts.len(), all, 0));
    assert_eq!((last.tokens, last.shared_tokens), (all - shared, shared));
    let rows: Vec<usize> = (0..prompts.len()).collect();
    let answers = model().generate(requests(&prompts, &rows, 2), &sampling(), 5, &mut hear).unwrap();
    let last = heard.get();
    let written: usize = fixed(answers).iter().flatten().map(|answer| answer.tokens.len()).sum();
    assert_eq!((last.prompt_tokens, last.shared_tokens, last.answer_tokens), (all, shared, written as u64));
    assert_eq!(last.tokens, all - shared + written as u64);
}

#[test]
fn a_bad_row_fails_alone() {
    let mut prompts = prompts();
    let good = prompts.len();
    prompts.push(vec![]);
    prompts.push(words(1, tiny::CONTEXT + 1));
    prompts.push(vec![3, 264]);
    // Its beginning is that of others; the token that overflows comes after it.
    prompts.push([&prompts[0][..80], &[tiny::BAD, 5, 6]].concat());
    let messages = ["it has no tokens", "more than the model's context of 512", "not in the vocabulary", "not finite"];
    let check = |errors: Vec<Option<String>>| {
        assert!(errors[..good].iter().all(Option::is_none), "{errors:?}");
        for ((row, error), message) in (good..).zip(&errors[good..]).zip(messages) {
            let error = error.as_ref().unwrap();
            assert!(error.starts_with(&format!("prompt {row}: ")) && error.contains(message), "{error}");
        }
    };
    fn errors<T>(rows: Vec<Result<T, LlmError>>) -> Vec<Option<String>> {
        rows.into_iter().map(|row| row.err().map(|error| error.to_string())).collect()
    }
    let rows: Vec<usize> = (0..prompts.len()).collect();
    let requests = requests(&prompts, &rows, 2);
    check(errors(model().generate(requests, &sampling(), 4, &mut go_on).unwrap()));
    check(errors(model().embed(&prompts, Pooling::Mean, 100, &mut go_on).unwrap()));
    check(errors(model().score(&prompts, &[1, 2], 100, &mut go_on).unwrap()));
}

fn one(prompt: Vec<u32>, sampling: &Sampling) -> Generation {
    let request = GenerateRequest { prompt, samples: vec![row_rng(3, "test.one", 0, 0)] };
    model().generate(vec![request], sampling, 1, &mut go_on).unwrap().remove(0).unwrap().remove(0)
}

#[test]
fn answers_end_for_the_reason_that_they_give() {
    let free = Sampling { max_new_tokens: 60, ..Sampling::default() };
    let whole = one(words(1, 20), &free);
    assert_eq!((whole.finish, whole.tokens.len(), whole.log_probabilities.len()), (Finish::Length, 60, 60));
    assert!(!whole.finish.is_natural() && whole.mean_log_probability() < 0.0);
    // The same draws, until a token that is among them.
    let stop = whole.tokens[30];
    let first = whole.tokens.iter().position(|&token| token == stop).unwrap();
    let stopped = one(words(1, 20), &Sampling { stop_tokens: vec![999, stop], ..free.clone() });
    assert_eq!((stopped.finish, &stopped.tokens[..]), (Finish::StopToken, &whole.tokens[..=first]));
    assert_eq!(stopped.text, model().tokenizer().decode(&whole.tokens[..first]).unwrap());
    let full = one(words(1, tiny::CONTEXT - 4), &free);
    assert_eq!((full.finish, full.tokens.len()), (Finish::Context, 5));
    assert_eq!(one(words(1, tiny::CONTEXT), &free).tokens.len(), 1);
}

#[test]
fn a_stop_text_is_found_across_tokens_and_cut() {
    let free = Sampling { max_new_tokens: 60, temperature: 0.7, ..Sampling::default() };
    let whole = one(words(8, 20), &free);
    let pieces: Vec<String> = whole.tokens.iter().map(|&token| model().tokenizer().decode(&[token]).unwrap()).collect();
    // Pieces of 3 and more tokens from everywhere in the text.
    let mut tried = 0;
    for start in 0..whole.tokens.len() - 5 {
        let stop = pieces[start..start + 5].concat();
        if stop.contains(char::REPLACEMENT_CHARACTER) || stop.chars().count() < 3 {
            continue;
        }
        // Without its first and last letter, so that it begins and ends within the tokens where they have several.
        let stop = stop[stop.chars().next().unwrap().len_utf8()..].to_owned();
        let stopped =
            one(words(8, 20), &Sampling { stop_texts: vec!["\u{1}none".into(), stop.clone()], ..free.clone() });
        let at = whole.text.find(&stop).unwrap();
        assert_eq!((stopped.finish, stopped.text.as_str()), (Finish::StopText, &whole.text[..at]), "{stop:?}");
        assert_eq!(stopped.tokens, whole.tokens[..stopped.tokens.len()]);
        assert!(stopped.tokens.len() <= start + 5);
        tried += 1;
    }
    assert!(tried > 0, "{pieces:?}");
}

#[test]
fn a_repetition_penalty_counts_the_prompt_and_the_answer() {
    // Far stronger than any logit: no token of the prompt or the answer comes again.
    let sampling = Sampling { repetition_penalty: 1e9, temperature: 0.01, max_new_tokens: 100, ..Sampling::default() };
    // Negative logits are multiplied: only positive ones win, and all of the prompt's are near 0.
    let prompt: Vec<u32> = (0..30).collect();
    let answer = one(prompt.clone(), &Sampling { max_new_tokens: 20, ..sampling });
    let mut seen: std::collections::HashSet<u32> = prompt.into_iter().collect();
    assert!(answer.tokens.iter().all(|&token| seen.insert(token)), "{:?}", answer.tokens);
}

#[test]
fn impossible_settings_are_refused_by_name() {
    let refused = |sampling: Sampling| {
        let error = model().generate(vec![], &sampling, 1, &mut go_on).unwrap_err();
        assert!(matches!(error, LlmError::Argument(_)));
        error.to_string()
    };
    let good = Sampling::default;
    assert!(refused(Sampling { temperature: f32::NAN, ..good() }).starts_with("temperature is NaN"));
    assert!(refused(Sampling { top_p: 0.0, ..good() }).starts_with("top_p is 0"));
    assert!(refused(Sampling { min_p: 1.5, ..good() }).starts_with("min_p is 1.5"));
    assert!(refused(Sampling { repetition_penalty: 0.0, ..good() }).starts_with("repetition_penalty is 0"));
    assert!(refused(Sampling { max_new_tokens: 0, ..good() }).starts_with("max_new_tokens is 0"));
    assert!(refused(Sampling { stop_texts: vec![String::new()], ..good() }).starts_with("a stop text is empty"));
    assert!(model().generate(vec![], &good(), 0, &mut go_on).unwrap_err().to_string().starts_with("batch_size is 0"));
}

/// The tiny model's weights that make a token overflow do not fit into half precision.
#[test]
fn a_weight_that_the_precision_cannot_hold_is_refused_by_its_tensor() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny::gguf()).unwrap();
    let load = |precision| LanguageModel::load(file.path(), &rallrec_llm::pick_device("cpu").unwrap(), precision);
    let message = load(Precision::F16).err().unwrap().to_string();
    assert!(message.contains(".ffn_up.weight has weights too large for f16"), "{message}");
    assert!(message.contains(file.path().to_str().unwrap()), "{message}");
    assert!([Precision::Auto, Precision::F32, Precision::Bf16, Precision::Int8].into_iter().all(|p| load(p).is_ok()));
}

#[test]
fn no_prompts_and_no_samples_are_no_error() {
    assert!(model().generate(vec![], &sampling(), 4, &mut go_on).unwrap().is_empty());
    assert!(model().embed(&[], Pooling::Mean, 100, &mut go_on).unwrap().is_empty());
    assert!(model().score(&[], &[1], 100, &mut go_on).unwrap().is_empty());
    assert!(model().score(&[words(1, 5)], &[], 100, &mut go_on).unwrap()[0].as_ref().unwrap().is_empty());
    let prompts = prompts();
    let mut asked = requests(&prompts, &[0, 1, 2], 1);
    asked[1].samples.clear();
    let answers: Vec<usize> =
        fixed(model().generate(asked, &sampling(), 4, &mut go_on).unwrap()).iter().map(Vec::len).collect();
    assert_eq!(answers, [1, 0, 1]);
}

#[test]
fn a_job_can_be_stopped() {
    let prompts = prompts();
    let rows: Vec<usize> = (0..prompts.len()).collect();
    let mut left = 3;
    let mut stop = |_: Done| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stopped = model().generate(requests(&prompts, &rows, 2), &sampling(), 4, &mut stop);
    assert!(matches!(stopped, Err(LlmError::Cancelled)));
}
