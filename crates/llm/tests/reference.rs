//! Hidden states, logits, embeddings and greedy answers against transformers in 32 bits, and against ourselves in
//! other batches, on the real model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod model;

use rallrec_core::rng::row_rng;
use rallrec_llm::{
    Done, Finish, GenerateRequest, Generation, LanguageModel, LlmError, Pooling, Precision, Sampling, model::Position,
};
use safetensors::SafeTensors;
use std::{ops::ControlFlow, path::Path, sync::OnceLock};

/// Largest difference of a logit to transformers', in logits of magnitude up to 40.
const TOLERANCE: f32 = 1e-3;
const CASES: usize = 4;

/// The model, loaded once a test program.
fn load() -> &'static LanguageModel {
    static MODEL: OnceLock<LanguageModel> = OnceLock::new();
    MODEL.get_or_init(|| {
        LanguageModel::load(&model::path(), &rallrec_llm::pick_device("cpu").unwrap(), Precision::Auto).unwrap()
    })
}

struct Reference(Vec<u8>);

impl Reference {
    fn read() -> Self {
        Self(std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference.safetensors")).unwrap())
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let tensors = SafeTensors::deserialize(&self.0).unwrap();
        tensors.tensor(name).unwrap().data().chunks_exact(4).map(|word| word.try_into().unwrap()).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    fn tokens(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }

    fn prompts(&self) -> Vec<Vec<u32>> {
        (0..CASES).map(|case| self.tokens(&format!("{case}.ids"))).collect()
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn go_on(_: Done) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn greedy(max_new_tokens: usize) -> Sampling {
    Sampling { temperature: 0.0, max_new_tokens, ..Sampling::default() }
}

#[test]
fn hidden_states_and_logits_are_those_of_transformers() {
    let (model, reference) = (load(), Reference::read());
    let fixed = reference.tokens("fixed");
    let mut worst = (0.0_f32, 0.0_f32);
    for (case, prompt) in reference.prompts().into_iter().enumerate() {
        let trace = model.trace(&prompt, usize::MAX).unwrap();
        let get = |name: &str| reference.floats(&format!("{case}.{name}"));
        let (hidden, top, others) = (get("hidden"), get("top_logits"), get("fixed_logits"));
        let top_tokens = reference.tokens(&format!("{case}.top_tokens"));
        for (i, position) in reference.tokens(&format!("{case}.positions")).into_iter().enumerate() {
            let Position { hidden: state, logits } = &trace[position as usize];
            let pick = |tokens: &[u32]| tokens.iter().map(|&token| logits[token as usize]).collect::<Vec<_>>();
            let at = 16 * i..16 * (i + 1);
            let wrong = distance(&pick(&top_tokens[at.clone()]), &top[at]);
            worst.0 = worst.0.max(wrong).max(distance(&pick(&fixed), &others[fixed.len() * i..fixed.len() * (i + 1)]));
            worst.1 = worst.1.max(distance(state, &hidden[state.len() * i..state.len() * (i + 1)]));
        }
    }
    assert!(worst.0 < TOLERANCE, "logits differ by {:e}, hidden states by {:e}", worst.0, worst.1);
    assert!(worst.1 < TOLERANCE, "hidden states differ by {:e}", worst.1);
}

#[test]
fn cached_keys_and_values_change_nothing() {
    let (model, reference) = (load(), Reference::read());
    let prompt = &reference.prompts()[2];
    let whole = model.trace(prompt, usize::MAX).unwrap();
    for chunk in [1, 7, 33] {
        for (a, b) in model.trace(prompt, chunk).unwrap().iter().zip(&whole) {
            assert!(distance(&a.logits, &b.logits) < 1e-4);
            assert_eq!(a, b, "on the CPU the cache is exact to the bit");
        }
    }
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    let (model, reference) = (load(), Reference::read());
    let requests = reference.prompts().into_iter();
    let requests = requests.map(|prompt| GenerateRequest { prompt, samples: vec![row_rng(0, "test", 0, 0)] }).collect();
    let answers = model.generate(requests, &greedy(128), 3, &mut go_on).unwrap();
    for (case, answers) in answers.into_iter().enumerate() {
        let answer = &answers.unwrap()[0];
        assert_eq!(answer.tokens, reference.tokens(&format!("{case}.greedy")));
        assert_eq!(answer.finish, Finish::Length);
    }
}

/// The reference's prompts and some that share a beginning of more than a page with one of them.
fn related_prompts(reference: &Reference) -> Vec<Vec<u32>> {
    let mut prompts = reference.prompts();
    let base = prompts[2].clone();
    prompts.extend((40..46).map(|length| [&base[..length], &[500 + length as u32; 3]].concat()));
    prompts
}

#[test]
fn embeddings_are_those_of_transformers_and_not_of_the_batch() {
    let (model, reference) = (load(), Reference::read());
    let prompts = related_prompts(&reference);
    let embed = |prompts: &[Vec<u32>], tokens| -> Vec<Vec<f32>> {
        let rows = model.embed(prompts, Pooling::Mean, tokens, &mut go_on).unwrap();
        rows.into_iter().map(Result::unwrap).collect()
    };
    let together = embed(&prompts, 4096);
    for (case, embedding) in together.iter().take(CASES).enumerate() {
        assert!(distance(embedding, &reference.floats(&format!("{case}.mean"))) < TOLERANCE);
    }
    assert_eq!(embed(&prompts, 60), together, "another batch budget");
    // These share a beginning, which is computed once.
    assert_eq!(embed(&prompts[4..], 4096), together[4..]);
    for (prompt, expected) in prompts.iter().zip(&together) {
        assert_eq!(&embed(std::slice::from_ref(prompt), 1)[0], expected, "alone");
    }
    let last = model.embed(&prompts[..2], Pooling::Last, 4096, &mut go_on).unwrap();
    let hidden = reference.floats("1.hidden");
    assert!(distance(last[1].as_ref().unwrap(), &hidden[hidden.len() - model.hidden_size()..]) < TOLERANCE);
}

#[test]
fn scores_are_the_logits_of_the_last_position() {
    let (model, reference) = (load(), Reference::read());
    let (prompts, fixed) = (related_prompts(&reference), reference.tokens("fixed"));
    let score = |prompts: &[Vec<u32>], tokens| -> Vec<Vec<f32>> {
        let rows = model.score(prompts, &fixed, tokens, &mut go_on).unwrap();
        rows.into_iter().map(Result::unwrap).collect()
    };
    let together = score(&prompts, 2048);
    for (case, scores) in together.iter().take(CASES).enumerate() {
        let logits = reference.floats(&format!("{case}.fixed_logits"));
        assert!(distance(scores, &logits[logits.len() - fixed.len()..]) < TOLERANCE);
    }
    let reversed: Vec<_> = prompts.iter().rev().cloned().collect();
    assert!(score(&reversed, 100).iter().rev().eq(&together), "another order and budget");
    assert_eq!(score(&prompts[4..], 2048), together[4..]);
}

#[test]
fn a_wrong_prompt_is_an_error_of_its_row() {
    let model = load();
    let prompts = vec![vec![504, 3575], vec![], vec![5; 9000], vec![49152], vec![504]];
    let rows = model.score(&prompts, &[1], 1000, &mut go_on).unwrap();
    let messages: Vec<_> = rows.iter().map(|row| row.as_ref().err().map(ToString::to_string)).collect();
    assert!(messages[0].is_none() && messages[4].is_none());
    assert!(messages[1].as_ref().unwrap().contains("prompt 1: it has no tokens"));
    assert!(messages[2].as_ref().unwrap().contains("9000 tokens are more than the model's context of 8192"));
    assert!(messages[3].as_ref().unwrap().contains("token 49152 is not in the vocabulary"));
    let requests = prompts
        .iter()
        .map(|prompt| GenerateRequest { prompt: prompt.clone(), samples: vec![row_rng(0, "test", 0, 0)] });
    let rows = model.generate(requests.collect(), &greedy(1), 8, &mut go_on).unwrap();
    assert_eq!(rows.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, false, false, true]);
    let stopped = model.embed(&prompts, Pooling::Last, 1, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(LlmError::Cancelled)));
}

#[test]
fn a_sample_depends_on_its_generator_and_not_on_the_batch() {
    let (model, reference) = (load(), Reference::read());
    let prompts = [
        reference.prompts()[1].clone(),
        reference.prompts()[2].clone(),
        [&reference.prompts()[2][..50], &[900; 5]].concat(),
    ];
    let sampling = Sampling {
        temperature: 0.8,
        top_p: 0.9,
        max_new_tokens: 24,
        stop_tokens: vec![2],
        stop_texts: vec![".".into()],
        ..Sampling::default()
    };
    let generate = |batch_size: usize, rows: std::ops::Range<usize>| {
        let requests = rows.map(|row| GenerateRequest {
            prompt: prompts[row].clone(),
            samples: (0..3).map(|sample| row_rng(42, "test.generate", row as u64, sample)).collect(),
        });
        let rows = model.generate(requests.collect(), &sampling, batch_size, &mut go_on).unwrap();
        let texts = |row: Result<Vec<Generation>, LlmError>| -> Vec<(String, Vec<u32>, Vec<f32>, Finish)> {
            row.unwrap()
                .into_iter()
                .map(|answer| (answer.text, answer.tokens, answer.log_probabilities, answer.finish))
                .collect()
        };
        rows.into_iter().map(texts).collect::<Vec<_>>()
    };
    let one = generate(1, 0..3);
    assert_eq!(generate(4, 0..3), one);
    assert_eq!(generate(32, 0..3), one);
    // Alone, without the beginning that it shares with the next row.
    assert_eq!(generate(2, 1..2)[0], one[1]);
}
