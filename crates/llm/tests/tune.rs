//! Tuning against PEFT on tiny random Llamas (`fixtures/make_tune.py`), and against itself: in other batches, with
//! other memory, interrupted and continued.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod model;
mod tiny;

use rallrec_llm::{
    Adapter, AdapterSettings, LanguageModel, LlmError, Precision, StepRecord, Target, TuneHooks, TuneProgress,
    TuneSample, TuneSettings, Tuned,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

const MODELS: [&str; 2] = ["mha", "gqa"];
const ANSWERS: [u32; 2] = [11, 12];
/// Gradients of a matrix may differ by this part of the largest of them.
const GRADIENT_TOLERANCE: f32 = 1e-4;
const LOGIT_TOLERANCE: f32 = 1e-4;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(name: &str) -> LanguageModel {
    let device = rallrec_llm::pick_device("cpu").unwrap();
    LanguageModel::load(&fixture(&format!("tune_{name}.gguf")), &device, Precision::F32).unwrap()
}

struct Reference(Vec<u8>);

impl Reference {
    fn read(name: &str) -> Self {
        Self(std::fs::read(fixture(&format!("tune_{name}.safetensors"))).unwrap())
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn words<T>(&self, name: &str, word: fn([u8; 4]) -> T) -> Vec<T> {
        self.tensors().tensor(name).unwrap().data().chunks_exact(4).map(|b| word(b.try_into().unwrap())).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name, f32::from_le_bytes)
    }

    fn samples(&self) -> Vec<TuneSample> {
        let answers = self.words("answers", u32::from_le_bytes);
        let sample = |(i, answer)| TuneSample {
            id: 100 + i as u64,
            tokens: self.words(&format!("prompt.{i}"), u32::from_le_bytes),
            answer,
        };
        answers.into_iter().enumerate().map(sample).collect()
    }

    /// The adapter whose tensors' names begin with `prefix`.
    fn adapter(&self, prefix: &str, rank: usize, alpha: f64) -> Adapter {
        let tensors = self.tensors();
        let ours = tensors
            .tensors()
            .into_iter()
            .filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor)));
        let weights = safetensors::serialize(ours.collect::<Vec<_>>(), None).unwrap();
        let config = format!(r#"{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {alpha}, "lora_dropout": 0.0}}"#);
        Adapter::from_files(&config, &weights).unwrap()
    }
}

fn near(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference <= tolerance * largest, "{what}: differs by {difference:e}, and the largest is {largest:e}");
}

/// Saves its state after some parts, and then stops if it is told to.
#[derive(Default)]
struct Hooks {
    scores: Vec<f64>,
    validated: usize,
    stop_after_part: Option<usize>,
    /// Times that progress was told.
    heard: usize,
    parts: usize,
    state: Option<Vec<u8>>,
}

impl TuneHooks for Hooks {
    fn progress(&mut self, _: TuneProgress) -> ControlFlow<()> {
        self.heard += 1;
        ControlFlow::Continue(())
    }

    fn validate(&mut self, _: &LanguageModel) -> ControlFlow<(), Option<f64>> {
        self.validated += 1;
        ControlFlow::Continue(self.scores.get(self.validated - 1).copied())
    }

    fn wants_state(&mut self) -> bool {
        self.parts += 1;
        self.stop_after_part == Some(self.parts)
    }

    fn save(&mut self, state: Vec<u8>) -> ControlFlow<()> {
        self.state = Some(state);
        ControlFlow::Break(())
    }
}

fn settings() -> TuneSettings {
    TuneSettings {
        adapter: AdapterSettings { rank: 4, alpha: 8.0, dropout: 0.0, targets: vec![Target::Query, Target::Value] },
        learning_rate: 2e-3,
        warmup_steps: 5,
        weight_decay: 0.01,
        clip: 1.0,
        epochs: 50,
        batch_size: 6,
        eval_steps: 0,
        patience: 0,
        seed: 7,
        micro_tokens: 4096,
        memory_bytes: usize::MAX,
    }
}

#[test]
fn first_gradients_are_those_of_peft() {
    for name in MODELS {
        let (model, reference) = (load(name), Reference::read(name));
        let samples = reference.samples();
        for (prefix, rank, alpha) in [("", 4, 8.0), ("all.", 3, 6.0)] {
            let adapter = reference.adapter(&format!("{prefix}init."), rank, alpha);
            let expected = reference.adapter(&format!("{prefix}grad."), rank, alpha);
            for memory_bytes in [0, usize::MAX] {
                let (losses, gradients) = model.adapter_gradients(&adapter, &samples, memory_bytes).unwrap();
                let losses: Vec<f32> = losses.iter().map(|loss| *loss as f32).collect();
                near(&losses, &reference.floats(&format!("{prefix}first_losses")), 1e-5, "losses");
                for (matrix, found, expected) in expected
                    .matrices()
                    .map(|(matrix, range)| (matrix, &gradients[range.clone()], &expected.values()[range]))
                {
                    near(found, expected, GRADIENT_TOLERANCE, &format!("{name}, {prefix}{matrix}"));
                }
            }
        }
    }
}

/// Every family: the loss is that of the model as it answers, and the gradient points where the loss falls as fast as it
/// says.
#[test]
fn gradients_of_every_family_are_those_of_the_loss() {
    let folder = tempfile::tempdir().unwrap();
    let archive = std::fs::File::open(fixture("families.zip")).unwrap();
    zip::ZipArchive::new(archive).unwrap().extract(folder.path()).unwrap();
    let device = rallrec_llm::pick_device("cpu").unwrap();
    for (name, reference) in [
        ("llama2", "llama2"),
        ("llama31", "llama31"),
        ("mistral", "mistral"),
        ("qwen2", "qwen2"),
        ("qwen3", "qwen3"),
        ("smollm2", "smollm2"),
        ("kquants.gguf", "kquants"),
    ] {
        let model = LanguageModel::load(&folder.path().join(name), &device, Precision::Auto).unwrap();
        let reference = Reference(std::fs::read(folder.path().join(format!("{reference}.reference"))).unwrap());
        let sample =
            |id| TuneSample { id, tokens: reference.words(&format!("{id}.ids"), u32::from_le_bytes), answer: 5 };
        let samples = [sample(0), sample(1)];
        let targets = Target::ALL.to_vec();
        let size = AdapterSettings { rank: 2, alpha: 4.0, dropout: 0.0, targets };
        let start = Adapter::new(model.config(), size, 3, None).unwrap();
        let moved = |from: &Adapter, by: &dyn Fn(usize) -> f32| {
            from.with_values(from.values().iter().enumerate().map(|(i, value)| value + by(i)).collect()).unwrap()
        };
        // B is not 0 either.
        let adapter = moved(&start, &|i| 0.05 * ((i * 7919 % 1009) as f32 / 504.5 - 1.0));
        let (losses, gradients) = model.adapter_gradients(&adapter, &samples, usize::MAX).unwrap();
        let tuned = model.with_adapter(&adapter).unwrap();
        for (sample, loss) in samples.iter().zip(&losses) {
            let answered = tuned.trace(&sample.tokens, usize::MAX).unwrap().pop().unwrap();
            let sum: f64 = answered.logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            let expected = sum.ln() - f64::from(answered.logits[5]);
            assert!((loss - expected).abs() < 2e-3 * expected, "{name}: {loss} and {expected}");
        }
        let norm = gradients.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let mean = |step: f64| {
            let there = moved(&adapter, &|i| (step * f64::from(gradients[i]) / norm) as f32);
            let (losses, _) = model.adapter_gradients(&there, &samples, 0).unwrap();
            losses.iter().sum::<f64>() / losses.len() as f64
        };
        let slope = (mean(2e-3) - mean(-2e-3)) / 4e-3;
        assert!((slope / norm - 1.0).abs() < 0.01, "{name}: the slope is {slope}, and the gradient's norm {norm}");
    }
}

#[test]
fn fifty_steps_lose_what_they_lose_in_peft() {
    for name in MODELS {
        let (model, reference) = (load(name), Reference::read(name));
        let initial = reference.adapter("init.", 4, 8.0);
        let tuned = model.tune_from(initial, &reference.samples(), &settings(), None, &mut Hooks::default()).unwrap();
        let losses: Vec<f32> = tuned.history.iter().map(|record| record.loss as f32).collect();
        let expected = reference.floats("curve");
        assert_eq!(losses.len(), expected.len());
        for (step, (found, expected)) in losses.iter().zip(&expected).enumerate() {
            assert!((found / expected - 1.0).abs() < 0.01, "{name}, step {step}: {found} and {expected}");
        }
        assert!(losses[49] < 0.8 * losses[0], "{losses:?}");
    }
}

/// The logits of the two answers after every prompt.
fn answer_logits(model: &LanguageModel, samples: &[TuneSample], batch_tokens: usize) -> Vec<f32> {
    let prompts: Vec<Vec<u32>> = samples.iter().map(|sample| sample.tokens.clone()).collect();
    let rows = model.score(&prompts, &ANSWERS, batch_tokens, &mut |_| ControlFlow::Continue(())).unwrap();
    rows.into_iter().flat_map(Result::unwrap).collect()
}

#[test]
fn adapters_of_peft_score_here_as_there() {
    for name in MODELS {
        let (model, reference) = (load(name), Reference::read(name));
        let adapter = Adapter::read(&fixture(&format!("tune_{name}_adapter"))).unwrap();
        assert_eq!(adapter.settings().targets, Target::ALL);
        assert!(adapter.values() == reference.adapter("all.init.", 3, 6.0).values());
        let (samples, tuned) = (reference.samples(), model.with_adapter(&adapter).unwrap());
        let logits = answer_logits(&tuned, &samples, 4096);
        near(&logits, &reference.floats("all.logits"), LOGIT_TOLERANCE, name);
        assert_eq!(answer_logits(&tuned, &samples, 40), logits, "another batch");
        assert_ne!(answer_logits(&model, &samples, 4096), logits, "the model itself is not changed");
    }
}

/// `make_tune.py --check` scored the adapter of this fixture, which was trained here, in PEFT.
#[test]
fn adapters_of_ours_score_in_peft_as_here() {
    let (model, reference) = (load("gqa"), Reference::read("gqa"));
    let folder = fixture("tune_gqa_ours");
    let adapter = Adapter::read(&folder).unwrap();
    let peft = std::fs::read(folder.join("peft_logits.safetensors")).unwrap();
    let logits = answer_logits(&model.with_adapter(&adapter).unwrap(), &reference.samples(), 4096);
    near(&logits, &Reference(peft).floats("logits"), LOGIT_TOLERANCE, "logits");
    let (config, weights) = adapter.to_files().unwrap();
    assert_eq!(config, std::fs::read_to_string(folder.join("adapter_config.json")).unwrap());
    assert_eq!(weights, std::fs::read(folder.join("adapter_model.safetensors")).unwrap());
}

fn dropped_out() -> TuneSettings {
    let adapter = AdapterSettings { rank: 4, alpha: 8.0, dropout: 0.2, targets: Target::ALL.to_vec() };
    TuneSettings { adapter, epochs: 3, batch_size: 4, warmup_steps: 1, eval_steps: 2, ..settings() }
}

fn tune(model: &LanguageModel, samples: &[TuneSample], settings: &TuneSettings, hooks: &mut Hooks) -> Tuned {
    model.tune(samples, settings, Some("digest"), None, hooks).unwrap()
}

#[test]
fn memory_and_batches_change_nothing() {
    let (model, samples) = (load("gqa"), Reference::read("gqa").samples());
    let whole = tune(&model, &samples, &dropped_out(), &mut Hooks::default());
    assert_eq!(whole.history.len(), 6);
    for (micro_tokens, memory_bytes) in [(1, 0), (1, usize::MAX), (170, 0), (170, 400_000)] {
        let other = TuneSettings { micro_tokens, memory_bytes, ..dropped_out() };
        let tuned = tune(&model, &samples, &other, &mut Hooks::default());
        assert_eq!(tuned.history, whole.history, "{micro_tokens}, {memory_bytes}");
        assert!(tuned == whole, "{micro_tokens}, {memory_bytes}");
    }
    let other = TuneSettings { seed: 8, ..dropped_out() };
    assert!(tune(&model, &samples, &other, &mut Hooks::default()).adapter != whole.adapter);
    if let Some(folder) = std::env::var_os("RALLREC_KEEP_ADAPTER") {
        let (config, weights) = whole.adapter.to_files().unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(Path::new(&folder).join("adapter_config.json"), config).unwrap();
        std::fs::write(Path::new(&folder).join("adapter_model.safetensors"), weights).unwrap();
    }
}

/// With the real model: in products as narrow as the fixtures' one row is summed as many are in any case.
#[test]
fn samples_of_one_token_change_nothing_either() {
    let device = rallrec_llm::pick_device("cpu").unwrap();
    let model = LanguageModel::load(&model::path(), &device, Precision::Auto).unwrap();
    let tokens = |i: u32| (0..1 + i % 2).map(|j| 900 + 7 * i + j).collect();
    let samples: Vec<TuneSample> = (0..3).map(|i| TuneSample { id: i.into(), tokens: tokens(i), answer: 11 }).collect();
    // In the second step B is not 0 any more.
    let settings = TuneSettings { epochs: 2, warmup_steps: 0, ..dropped_out() };
    let together = tune(&model, &samples, &settings, &mut Hooks::default());
    let alone = tune(&model, &samples, &TuneSettings { micro_tokens: 1, ..settings }, &mut Hooks::default());
    assert_eq!(alone.history, together.history);
    assert!(alone == together);
    let tuned = model.with_adapter(&together.adapter).unwrap();
    let logits = answer_logits(&tuned, &samples, 4096);
    assert_eq!(answer_logits(&tuned, &samples[..1], 4096), logits[..2]);
}

#[test]
fn a_training_that_is_interrupted_ends_with_the_same_bytes() {
    let (model, samples) = (load("gqa"), Reference::read("gqa").samples());
    let settings = TuneSettings { micro_tokens: 100, ..dropped_out() };
    let scores = || vec![0.5, 0.7, 0.6];
    let mut hooks = Hooks { scores: scores(), ..Hooks::default() };
    let whole = tune(&model, &samples, &settings, &mut hooks);
    assert_eq!((whole.step, hooks.validated), (4, 3), "the best validation's adapter is kept");
    for stop in 1..hooks.parts {
        let mut first = Hooks { scores: scores(), stop_after_part: Some(stop), ..Hooks::default() };
        let stopped = model.tune(&samples, &settings, Some("digest"), None, &mut first);
        assert!(matches!(stopped, Err(LlmError::Cancelled)));
        let state = first.state.unwrap();
        let mut rest = Hooks { scores: scores(), validated: first.validated, ..Hooks::default() };
        // On a machine with less memory.
        let other = TuneSettings { micro_tokens: 1, memory_bytes: 0, ..settings.clone() };
        let resumed = model.tune(&samples, &other, Some("digest"), Some(&state), &mut rest).unwrap();
        assert_eq!(resumed.history, whole.history, "part {stop}");
        assert!(resumed.adapter.to_files().unwrap() == whole.adapter.to_files().unwrap(), "part {stop}");
        assert_eq!(resumed.step, whole.step, "part {stop}");
    }
}

#[test]
fn it_stops_early_and_keeps_the_best() {
    let (model, samples) = (load("gqa"), Reference::read("gqa").samples());
    let settings = TuneSettings { epochs: 10, patience: 2, eval_steps: 3, ..dropped_out() };
    let mut hooks = Hooks { scores: vec![0.5, 0.8, 0.6, 0.8, 0.9], ..Hooks::default() };
    let tuned = tune(&model, &samples, &settings, &mut hooks);
    assert_eq!((tuned.step, tuned.history.len()), (6, 12));
    let validations: Vec<(u64, f64)> =
        tuned.history.iter().filter_map(|r: &StepRecord| Some((r.step, r.validation?))).collect();
    assert_eq!(validations, [(3, 0.5), (6, 0.8), (9, 0.6), (12, 0.8)]);
    let shorter = TuneSettings { epochs: 10, patience: 0, eval_steps: 0, ..dropped_out() };
    assert_eq!(tune(&model, &samples, &shorter, &mut Hooks::default()).history.len(), 20);
}

#[test]
fn a_score_that_is_no_number_counts_as_none() {
    let (model, samples) = (load("gqa"), Reference::read("gqa").samples());
    let settings = TuneSettings { epochs: 10, patience: 1, eval_steps: 3, ..dropped_out() };
    let mut hooks = Hooks { scores: vec![f64::NAN, 0.5, f64::INFINITY, 0.7, 0.6], ..Hooks::default() };
    let tuned = tune(&model, &samples, &settings, &mut hooks);
    let validations: Vec<Option<f64>> = tuned.history.iter().skip(2).step_by(3).map(|r| r.validation).collect();
    assert_eq!(validations, [None, Some(0.5), None, Some(0.7), Some(0.6)]);
    assert_eq!((tuned.step, tuned.history.len()), (12, 15));
}

/// One of the samples has the token whose hidden state overflows; it is the longest, and so the first.
#[test]
fn a_loss_that_is_no_number_ends_a_training_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny::gguf()).unwrap();
    let device = rallrec_llm::pick_device("cpu").unwrap();
    let model = LanguageModel::load(file.path(), &device, Precision::F32).unwrap();
    let sample = |id: u64| TuneSample { id, tokens: (0..10 + id as u32).collect(), answer: 3 };
    let mut samples: Vec<TuneSample> = (0..4).map(sample).collect();
    samples[3].tokens[5] = tiny::BAD;
    let settings = TuneSettings { batch_size: 4, micro_tokens: 1, ..dropped_out() };
    let mut hooks = Hooks::default();
    let error = model.tune(&samples, &settings, None, None, &mut hooks).unwrap_err();
    assert!(matches!(error, LlmError::Diverged { step: 1, .. }), "{error}");
    assert_eq!(hooks.heard, 1, "nothing was computed after it");
    // A learning rate that no adapter survives, in the last step: there is no loss after it.
    let settings = TuneSettings { learning_rate: 1e300, batch_size: 4, epochs: 1, warmup_steps: 0, ..dropped_out() };
    let error = model.tune(&samples[..3], &settings, None, None, &mut Hooks::default()).unwrap_err();
    assert!(matches!(error, LlmError::Diverged { step: 1, .. }), "{error}");
}

#[test]
fn gradients_are_those_without_dropout() {
    let (model, reference) = (load("gqa"), Reference::read("gqa"));
    let (samples, adapter) = (reference.samples(), reference.adapter("init.", 4, 8.0));
    let (config, weights) = adapter.to_files().unwrap();
    let config = config.replace("\"lora_dropout\": 0.0", "\"lora_dropout\": 0.5");
    let dropped = Adapter::from_files(&config, &weights).unwrap();
    assert_eq!(dropped.settings().dropout, 0.5);
    let gradients = |adapter: &Adapter| model.adapter_gradients(adapter, &samples, 0).unwrap();
    assert!(gradients(&dropped) == gradients(&adapter));
    let refused = |samples: &[TuneSample]| model.adapter_gradients(&adapter, samples, 0).unwrap_err().to_string();
    assert_eq!(refused(&[]), "there is no sample to tune on");
    let empty = TuneSample { tokens: Vec::new(), ..samples[0].clone() };
    assert_eq!(refused(&[samples[0].clone(), empty]), "prompt 1: it has no tokens");
}

#[test]
fn adapters_that_want_something_else_than_their_matrices_are_refused() {
    let (config, weights) = Adapter::read(&fixture("tune_gqa_adapter")).unwrap().to_files().unwrap();
    let read = |old: &str, new: &str| {
        assert!(config.contains(old), "no {old} in {config}");
        Adapter::from_files(&config.replace(old, new), &weights).map_err(|error| error.to_string())
    };
    for beginning in ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"] {
        let message =
            read("\"init_lora_weights\": true", &format!("\"init_lora_weights\": {beginning:?}")).unwrap_err();
        assert!(message.contains("init_lora_weights") && message.contains(beginning), "{message}");
    }
    assert!(read("\"init_lora_weights\": true", "\"init_lora_weights\": \"gaussian\"").is_ok());
    for (key, value) in [("use_dora", "true"), ("alora_invocation_tokens", "[1]"), ("layer_replication", "[[0, 2]]")] {
        let message = read("\"bias\"", &format!("\"{key}\": {value}, \"bias\"")).unwrap_err();
        assert!(message.contains(key), "{message}");
    }
    assert!(read("\"bias\"", "\"layer_replication\": null, \"alpha_pattern\": {}, \"bias\"").is_ok());
}

#[test]
fn an_adapter_of_another_model_is_refused_by_its_tensor() {
    let adapter = Adapter::read(&fixture("tune_mha_adapter")).unwrap();
    let message = load("gqa").with_adapter(&adapter).err().unwrap().to_string();
    assert_eq!(
        message,
        "adapter: base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight is [3, 64], but this model takes \
         [3, 32]: it was made for another model"
    );
    let (config, weights) = Adapter::read(&fixture("tune_gqa_adapter")).unwrap().to_files().unwrap();
    let cut = Adapter::from_files(&config, &weights[..weights.len() - 4]).unwrap_err().to_string();
    assert!(cut.contains("adapter_model.safetensors"), "{cut}");
    let other = config.replace("\"r\": 3", "\"r\": 5");
    let message = Adapter::from_files(&other, &weights).unwrap_err().to_string();
    assert!(
        message.contains("lora_A.weight is [3, 32]") && message.contains("r in adapter_config.json is 5"),
        "{message}"
    );
    let dora = config.replace("\"bias\"", "\"use_dora\": true, \"bias\"");
    let message = Adapter::from_files(&dora, &weights).unwrap_err().to_string();
    assert!(message.contains("use_dora"), "{message}");
    let missing = with_tensors(&weights, |name| !name.contains("layers.1.mlp.up_proj.lora_B"), 0.0);
    let message = Adapter::from_files(&config, &missing).unwrap_err().to_string();
    assert!(message.contains("layers.1.mlp.up_proj.lora_B.weight is missing"), "{message}");
    let broken = with_tensors(&weights, |_| true, f32::NAN);
    let message = Adapter::from_files(&config, &broken).unwrap_err().to_string();
    assert!(message.contains("lora_A.weight has NaN at position 0"), "{message}");
    let one_layer = with_tensors(&weights, |name| name.contains("layers.0"), 0.0);
    let adapter = Adapter::from_files(&config, &one_layer).unwrap();
    let message = load("gqa").with_adapter(&adapter).err().unwrap().to_string();
    assert!(message.contains("it has 1 layers, but this model has 2"), "{message}");
}

/// The tensors whose names are wanted, `add` added to each one's first number.
fn with_tensors(weights: &[u8], wanted: impl Fn(&str) -> bool, add: f32) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(weights).unwrap();
    let kept: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, tensor)| {
            let mut data = tensor.data().to_vec();
            let first = f32::from_le_bytes(data[..4].try_into().unwrap()) + add;
            data[..4].copy_from_slice(&first.to_le_bytes());
            (name, tensor.shape().to_vec(), data)
        })
        .collect();
    let view = |(name, shape, data)| (name, TensorView::new(Dtype::F32, shape, data).unwrap());
    safetensors::serialize(kept.iter().map(|(name, shape, data)| view((name, shape.clone(), data))), None).unwrap()
}

#[test]
fn impossible_samples_and_states_are_refused() {
    let (model, samples) = (load("gqa"), Reference::read("gqa").samples());
    let refused = |samples: &[TuneSample], state: Option<&[u8]>| {
        model.tune(samples, &settings(), None, state, &mut Hooks::default()).unwrap_err().to_string()
    };
    assert_eq!(refused(&[], None), "there is no sample to tune on");
    let mut wrong = samples.clone();
    wrong[2].answer = 260;
    assert_eq!(refused(&wrong, None), "prompt 2: the answer token 260 is not in the vocabulary");
    wrong[1].tokens.clear();
    assert_eq!(refused(&wrong, None), "prompt 1: it has no tokens");
    assert!(refused(&samples, Some(b"nothing")).starts_with("saved state of a training: "));
    let impossible = [
        (TuneSettings { learning_rate: f64::NAN, ..settings() }, "learning_rate is NaN"),
        (TuneSettings { clip: -1.0, ..settings() }, "clip is -1"),
        (TuneSettings { batch_size: 0, ..settings() }, "tuning needs a batch size"),
    ];
    for (settings, expected) in impossible {
        let message = model.tune(&samples, &settings, None, None, &mut Hooks::default()).unwrap_err().to_string();
        assert!(message.starts_with(expected), "{message}");
    }
    // Of an adapter that is given, its own dropout counts.
    let (config, weights) = Reference::read("gqa").adapter("init.", 4, 8.0).to_files().unwrap();
    let config = config.replace("\"lora_dropout\": 0.0", "\"lora_dropout\": 1.0");
    let given = Adapter::from_files(&config, &weights).unwrap();
    let error = model.tune_from(given, &samples, &settings(), None, &mut Hooks::default()).unwrap_err();
    assert_eq!(error.to_string(), "the adapter's dropout is 1; it must be from 0 to below 1");
}

/// A state as it is saved, in the middle of the second step, and damaged in one place each.
#[test]
fn a_state_that_the_training_cannot_be_in_is_refused() {
    let (model, samples) = (load("gqa"), Reference::read("gqa").samples());
    let settings = TuneSettings { micro_tokens: 1, ..dropped_out() };
    let mut hooks = Hooks { stop_after_part: Some(5), ..Hooks::default() };
    let stopped = model.tune(&samples, &settings, None, None, &mut hooks);
    assert!(matches!(stopped, Err(LlmError::Cancelled)));
    let state = hooks.state.unwrap();
    let resume = |state: &[u8], settings: &TuneSettings| {
        model.tune(&samples, settings, None, Some(state), &mut Hooks::default()).map_err(|error| {
            assert!(matches!(error, LlmError::State(_)), "{error}");
            error.to_string()
        })
    };
    assert!(resume(&state, &settings).is_ok());
    let damages: [(&str, serde_json::Value, &str); 6] = [
        ("steps", 7.into(), "after step 7 of 6"),
        ("steps", 2.into(), "its history is of 1 steps"),
        ("history", serde_json::json!([]), "its history is of 0 steps"),
        ("done", 2.into(), "2 samples are done of a step of 2"),
        ("done", 3.into(), "3 samples are done of a step of 2"),
        ("validated", 2.into(), "was validated after step 2"),
    ];
    for (key, value, expected) in damages {
        let message = resume(&with_meta(&state, key, value), &settings).unwrap_err();
        assert!(message.contains(expected) && message.contains("another training"), "{key}: {message}");
    }
    // A shorter training; another adapter.
    let message = resume(&state, &TuneSettings { epochs: 1, batch_size: 6, ..settings.clone() }).unwrap_err();
    assert!(message.contains("1 samples are done of a step of 1"), "{message}");
    let smaller = AdapterSettings { rank: 3, ..dropped_out().adapter };
    let message = resume(&state, &TuneSettings { adapter: smaller, ..settings }).unwrap_err();
    assert!(message.contains("and this adapter has"), "{message}");
}

/// A saved state with another value in its JSON.
fn with_meta(state: &[u8], key: &str, value: serde_json::Value) -> Vec<u8> {
    let (_, header) = SafeTensors::read_metadata(state).unwrap();
    let mut metadata = header.metadata().clone().unwrap();
    let json = metadata.get_mut("rallrec.tuning").unwrap();
    let mut meta: serde_json::Value = serde_json::from_str(json).unwrap();
    assert!(meta.get(key).is_some(), "no {key} in {meta}");
    meta[key] = value;
    *json = meta.to_string();
    safetensors::serialize(SafeTensors::deserialize(state).unwrap().tensors(), Some(metadata)).unwrap()
}
