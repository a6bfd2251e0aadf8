//! Every family and both kinds of files against transformers, on tiny random models; and every wrong file an error that
//! names the file and the tensor or key.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_core::rng::row_rng;
use rallrec_llm::{
    Done, GenerateRequest, LanguageModel, LlmError, Message, ModelText, Pooling, Sampling, SamplingDefaults,
    config::{ModelConfig, RopeScaling},
};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Largest difference of a hidden state or logit to transformers'; they are up to about 20.
const TOLERANCE: f32 = 1e-3;
/// Model files and whose reference they have.
const MODELS: [(&str, &str); 12] = [
    ("llama2", "llama2"),
    ("llama2.gguf", "llama2"),
    ("llama31", "llama31"),
    ("llama31.gguf", "llama31"),
    ("mistral", "mistral"),
    ("qwen2", "qwen2"),
    ("qwen2.gguf", "qwen2"),
    ("r1", "qwen2"),
    ("qwen3", "qwen3"),
    ("qwen3.gguf", "qwen3"),
    ("smollm2", "smollm2"),
    ("kquants.gguf", "kquants"),
];

/// The fixtures' folder, unpacked once a test program.
fn fixtures() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    let unpack = || {
        let folder = tempfile::tempdir().unwrap();
        let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families.zip");
        zip::ZipArchive::new(fs::File::open(archive).unwrap()).unwrap().extract(folder.path()).unwrap();
        // An R1 distill is a Qwen 2 with another tokenizer.
        for file in ["config.json", "model.safetensors"] {
            fs::copy(folder.path().join("qwen2").join(file), folder.path().join("r1").join(file)).unwrap();
        }
        folder
    };
    FOLDER.get_or_init(unpack).path()
}

fn load(path: &Path) -> Result<LanguageModel, String> {
    LanguageModel::load(path, &rallrec_llm::pick_device("cpu").unwrap(), rallrec_llm::Precision::Auto)
        .map_err(|error| error.to_string())
}

fn model(name: &str) -> LanguageModel {
    load(&fixtures().join(name)).unwrap()
}

struct Reference(Vec<u8>);

impl Reference {
    fn of(name: &str) -> Self {
        Self(fs::read(fixtures().join(format!("{name}.reference"))).unwrap())
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
        vec![self.tokens("0.ids"), self.tokens("1.ids")]
    }
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn go_on(_: Done) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn hidden_states_and_logits_are_those_of_transformers() {
    for (name, reference) in MODELS {
        let (model, reference) = (model(name), Reference::of(reference));
        for (case, prompt) in reference.prompts().into_iter().enumerate() {
            let trace = model.trace(&prompt, usize::MAX).unwrap();
            let (hidden, logits) =
                (reference.floats(&format!("{case}.hidden")), reference.floats(&format!("{case}.logits")));
            let (width, vocabulary) = (model.config().hidden, model.config().vocabulary);
            for (i, position) in reference.tokens(&format!("{case}.positions")).into_iter().enumerate() {
                let got = &trace[position as usize];
                let wrong = distance(&got.hidden, &hidden[i * width..(i + 1) * width])
                    .max(distance(&got.logits, &logits[i * vocabulary..(i + 1) * vocabulary]));
                assert!(wrong < TOLERANCE, "{name}, prompt {case}, position {position}: {wrong:e}");
            }
            // The cache, in chunks that fall on and between its pages, changes nothing, and nor does the batch.
            for chunk in [1, 7, 32] {
                assert!(model.trace(&prompt, chunk).unwrap() == trace, "{name}, prompt {case}, chunks of {chunk}");
            }
        }
        let prompts = [reference.prompts(), vec![reference.prompts()[0][..61].to_vec()]].concat();
        let packed = model.embed(&prompts, Pooling::Last, 4096, &mut go_on).unwrap();
        for (prompt, row) in prompts.iter().zip(packed) {
            let last = model.trace(prompt, usize::MAX).unwrap().pop().unwrap();
            assert_eq!(row.unwrap(), last.hidden, "{name}, packed");
        }
    }
}

#[test]
fn greedy_answers_are_those_of_transformers() {
    let sampling = Sampling { temperature: 0.0, max_new_tokens: 128, ..Sampling::default() };
    for (name, reference) in MODELS {
        let (model, reference) = (model(name), Reference::of(reference));
        let requests = reference.prompts().into_iter();
        let requests = requests.map(|prompt| GenerateRequest { prompt, samples: vec![row_rng(0, "test", 0, 0)] });
        let answers = model.generate(requests.collect(), &sampling, 2, &mut go_on).unwrap();
        for (case, answers) in answers.into_iter().enumerate() {
            let expected = reference.tokens(&format!("{case}.greedy"));
            assert_eq!(expected.len(), 128);
            assert_eq!(answers.unwrap()[0].tokens, expected, "{name}, prompt {case}");
        }
    }
}

#[derive(Deserialize)]
struct Texts {
    texts: Vec<Text>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
    decoded: String,
    decoded_all: String,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    prompt: String,
}

fn texts() -> BTreeMap<String, Texts> {
    serde_json::from_slice(&fs::read(fixtures().join("texts.json")).unwrap()).unwrap()
}

#[test]
fn token_ids_and_chat_prompts_are_those_of_transformers() {
    let texts = texts();
    for (name, expected) in
        MODELS.iter().filter_map(|(name, _)| Some((*name, texts.get(name.strip_suffix(".gguf").unwrap_or(name))?)))
    {
        let model = model(name);
        let tokenizer = model.tokenizer();
        assert!(expected.texts.len() >= 100 && expected.chats.len() == 8);
        for Text { text, ids, decoded, decoded_all } in &expected.texts {
            assert_eq!(&model.encode_plain(text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(&tokenizer.decode(ids).unwrap(), decoded, "{name}: {text:?}");
            assert_eq!(&tokenizer.decode_with_control_tokens(ids).unwrap(), decoded_all, "{name}: {text:?}");
        }
        for chat in &expected.chats {
            let prompt = model.chat(&chat.messages, chat.add_generation_prompt).unwrap();
            assert_eq!(prompt, chat.prompt, "{name}: {:?}", chat.messages);
        }
    }
}

#[test]
fn tokens_that_begin_and_end_texts_are_known() {
    let cases: [(&str, Option<&str>, bool, &[&str]); 8] = [
        ("llama2", Some("<s>"), true, &["</s>"]),
        ("llama2.gguf", Some("<s>"), true, &["</s>"]),
        ("llama31", Some("<|begin_of_text|>"), true, &["<|eot_id|>", "<|end_of_text|>"]),
        ("llama31.gguf", Some("<|begin_of_text|>"), true, &["<|eot_id|>", "<|end_of_text|>"]),
        ("qwen2", None, false, &["<|im_end|>", "<|endoftext|>"]),
        ("qwen2.gguf", None, false, &["<|im_end|>", "<|endoftext|>"]),
        ("r1", Some("<｜begin▁of▁sentence｜>"), true, &["<｜end▁of▁sentence｜>", "<|im_end|>"]),
        ("smollm2", Some("<|im_start|>"), false, &["<|im_end|>"]),
    ];
    for (name, begin, added, ends) in cases {
        let model = model(name);
        let tokenizer = model.tokenizer();
        let text = |id: u32| tokenizer.token_text(id).unwrap();
        assert_eq!(tokenizer.begin().map(text).as_deref(), begin, "{name}");
        // The end tokens of `config.json` are ids; of `r1` they are those of another tokenizer.
        let found: Vec<String> = tokenizer.ends().iter().map(|&id| text(id)).collect();
        assert!(if name == "r1" { found[0] == ends[0] } else { found == ends }, "{name}: {found:?}");
        let plain = model.encode_plain("Yes").unwrap();
        let whole = model.encode("Yes").unwrap();
        assert_eq!(whole[usize::from(added)..], plain, "{name}");
        assert_eq!(whole.len() - plain.len(), usize::from(added), "{name}");
        // A chat prompt has its beginning token already.
        let chat = model.encode(&model.chat(&[Message::new("user", "Hi")], true).unwrap()).unwrap();
        assert_eq!(chat.iter().filter(|&&id| added && Some(id) == tokenizer.begin()).count(), usize::from(added));
    }
    assert_eq!(model("r1").tokenizer().without_control_tokens("<think>a<｜User｜>b</think>"), "ab");
}

#[test]
fn configurations_are_read_alike_from_both_kinds_of_files() {
    let configs = |name: &str| -> (ModelConfig, ModelConfig) {
        (model(name).config().clone(), model(&format!("{name}.gguf")).config().clone())
    };
    for name in ["llama2", "qwen2", "qwen3"] {
        let (folder, gguf) = configs(name);
        assert_eq!(folder, gguf);
        assert_eq!((folder.qkv_bias, folder.qk_norm), (name == "qwen2", name == "qwen3"));
    }
    let (folder, gguf) = configs("llama31");
    let RopeScaling::Llama3 { original_context: 64, .. } = folder.rope else { panic!("{:?}", folder.rope) };
    assert!(distance(&folder.rope_frequencies(), &gguf.rope_frequencies()) < 1e-7);
    assert_eq!(model("mistral").config().sliding_window, Some(24));
    assert_eq!(
        model("qwen2").sampling_defaults(),
        SamplingDefaults { temperature: Some(0.7), top_p: Some(0.8), top_k: Some(20) }
    );
    assert_eq!(model("mistral").sampling_defaults(), SamplingDefaults::default());
}

/// As transformers reads it: null is none, what is not there is 4096, and Qwen 2 looks only where it is switched on.
#[test]
fn a_sliding_window_is_in_force_where_transformers_says_so() {
    type Case = (&'static str, &'static [(&'static str, &'static str)], Option<usize>);
    const ON: (&str, &str) = ("\"use_sliding_window\": false", "\"use_sliding_window\": true");
    const LAYERS: (&str, &str) = ("\"layer_types\"", "\"other_types\"");
    let cases: [Case; 9] = [
        ("mistral", &[("\"sliding_window\": 24", "\"sliding_window\": null")], None),
        ("mistral", &[("\"sliding_window\": 24", "\"sliding_window\": 1")], Some(1)),
        ("mistral", &[("\"sliding_window\": 24", "\"sliding_window\": 512")], None),
        ("mistral", &[("\"sliding_window\": 24", "\"no_window\": 24")], None),
        ("mistral", &[("\"sliding_window\": 24", "\"no_window\": 24"), ("512", "5000")], Some(4096)),
        ("qwen2", &[("\"sliding_window\": null", "\"sliding_window\": 0")], None),
        ("qwen2", &[("\"sliding_window\": null", "\"sliding_window\": 9"), ON, LAYERS, (": 28", ": 0")], Some(9)),
        ("qwen2", &[("\"sliding_window\": null", "\"sliding_window\": 9"), ON, LAYERS], None),
        ("llama2", &[("{", "{\"sliding_window\": 0,")], None),
    ];
    for (name, edits, window) in cases {
        let folder = copy(name);
        edits.iter().for_each(|(old, new)| edit(folder.path().join("config.json"), old, new));
        let model = load(folder.path()).unwrap();
        assert_eq!(model.config().sliding_window, window, "{name}: {edits:?}");
        let prompt: Vec<u32> = (0..40).collect();
        assert!(model.trace(&prompt, 16).unwrap().iter().all(|p| p.logits.iter().all(|x| x.is_finite())), "{name}");
    }
    let folder = copy("qwen2");
    for (old, new) in [("\"sliding_window\": null", "\"sliding_window\": 0"), ON, LAYERS, (": 28", ": 0")] {
        edit(folder.path().join("config.json"), old, new);
    }
    let message = load(folder.path()).err().unwrap();
    assert!(message.contains("config.json") && message.contains("a sliding window of 0 tokens"), "{message}");
}

#[test]
fn a_longer_context_changes_nothing_within_the_shorter_one() {
    let folder = copy("qwen2");
    edit(folder.path().join("config.json"), "\"max_position_embeddings\": 512", "\"max_position_embeddings\": 1048576");
    let long = load(folder.path()).unwrap();
    assert_eq!(long.config().context, 1 << 20);
    let prompt = &Reference::of("qwen2").prompts()[0];
    assert!(long.trace(prompt, 64).unwrap() == model("qwen2").trace(prompt, 64).unwrap());
}

/// What a model's files say about text, without its weights: as with them.
#[test]
fn tokens_and_chat_prompts_need_no_weights() {
    let texts = texts();
    for (name, expected) in
        MODELS.iter().filter_map(|(name, _)| Some((*name, texts.get(name.strip_suffix(".gguf").unwrap_or(name))?)))
    {
        let path = fixtures().join(name);
        let folder = tempfile::tempdir().unwrap();
        let files = if path.is_dir() { fs::read_dir(&path).unwrap().collect() } else { Vec::new() };
        let words = files.into_iter().map(|file| file.unwrap().path()).filter(|file| {
            // The weights of `r1` are of another model, and so is what its `config.json` says.
            let weights = file.to_str().unwrap().contains("safetensors");
            !(weights || name == "r1" && file.ends_with("config.json"))
        });
        for file in words {
            fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        let text = ModelText::open(if path.is_dir() { folder.path() } else { &path }).unwrap();
        assert_eq!(text.context, (name != "r1").then(|| model(name).config().context), "{name}");
        for Text { text: written, ids, .. } in &expected.texts {
            assert_eq!(&text.tokenizer.encode_plain(written).unwrap(), ids, "{name}: {written:?}");
        }
        let template = text.template.unwrap();
        for chat in &expected.chats {
            assert_eq!(template.render(&chat.messages, chat.add_generation_prompt).unwrap(), chat.prompt, "{name}");
        }
    }
    assert!(matches!(ModelText::open(Path::new("nowhere")), Err(LlmError::Read { .. })));
    let empty = tempfile::tempdir().unwrap();
    let message = ModelText::open(empty.path()).err().unwrap().to_string();
    assert!(message.contains("tokenizer.json: it is missing"), "{message}");
}

/// A copy of a fixture folder that may be damaged.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixtures().join(name)).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    folder
}

/// A change to a folder.
type Damage = fn(&Path);

/// Replaces a text in a file.
fn edit(path: PathBuf, old: &str, new: &str) {
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(old), "no {old} in {text}");
    fs::write(path, text.replacen(old, new, 1)).unwrap();
}

/// Changes bytes of `model.safetensors` that are found by what they are.
fn edit_header(folder: &Path, old: &str, new: &str) {
    assert_eq!(old.len(), new.len(), "the header keeps its length");
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(old.len()).position(|window| window == old.as_bytes()).unwrap();
    bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
    fs::write(path, bytes).unwrap();
}

/// What is done to a folder, and what the error must name.
const DAMAGES: [(&str, Damage, &[&str]); 28] = [
    (
        "llama2",
        |f| cut(&f.join("model-00002-of-00004.safetensors")),
        &["model-00002-of-00004.safetensors", "tensor model.", "cut short"],
    ),
    (
        "qwen2",
        |f| fs::write(f.join("model.safetensors"), [1, 2, 3]).unwrap(),
        &["model.safetensors", "header", "cut short"],
    ),
    (
        "qwen2",
        |f| fs::write(f.join("model.safetensors"), [2, 0, 0, 0, 0, 0, 0, 0, b'{', b'{', 0]).unwrap(),
        &["model.safetensors", "header is malformed"],
    ),
    (
        "qwen2",
        |f| edit_header(f, "layers.1.mlp.up_proj", "layers.1.mlp.up_pr0j"),
        &["model.safetensors", "tensor model.layers.1.mlp.up_pr0j.weight is not part"],
    ),
    (
        "qwen2",
        |f| edit(f.join("config.json"), "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        &["model.safetensors", "tensor model.layers.2.", "missing"],
    ),
    (
        "qwen2",
        |f| edit(f.join("config.json"), "\"intermediate_size\": 64", "\"intermediate_size\": 32"),
        &["model.safetensors", "mlp.", "shape [64, 64]", "wants [32, 64]"],
    ),
    (
        "qwen2",
        |f| edit_header(f, "\"F16\"", "\"I16\""),
        &["model.safetensors", "tensor model.", "type I16 is not supported"],
    ),
    (
        "qwen2",
        |f| edit_header(f, "[64,64]", "[65,64]"),
        &["model.safetensors", "tensor model.", "shape [65, 64] does not take"],
    ),
    ("qwen2", not_a_number, &["model.safetensors", "tensor model.", "NaN or infinite"]),
    (
        "qwen2",
        |f| edit(f.join("config.json"), "\"model_type\": \"qwen2\"", "\"model_type\": \"qwen2_moe\""),
        &["config.json", "model_type \"qwen2_moe\" is not supported"],
    ),
    ("qwen2", |f| edit(f.join("config.json"), "\"silu\"", "\"gelu\""), &["config.json", "hidden_act", "gelu"]),
    (
        "qwen2",
        |f| edit(f.join("config.json"), "\"rope_type\": \"default\"", "\"rope_type\": \"yarn\""),
        &["config.json", "rope_parameters", "\"yarn\" is not supported"],
    ),
    (
        "qwen2",
        |f| edit(f.join("config.json"), "\"hidden_size\": 64", "\"hidden_size\": \"big\""),
        &["config.json", "hidden_size", "not a count"],
    ),
    (
        "qwen2",
        |f| {
            edit(
                f.join("config.json"),
                "\"max_position_embeddings\": 512",
                "\"max_position_embeddings\": 1000000000000",
            )
        },
        &["config.json", "a context of 1000000000000 tokens is more than"],
    ),
    (
        "llama2",
        |f| {
            edit(f.join("config.json"), "\"max_position_embeddings\": 512", "\"max_position_embeddings\": 2097152");
            edit(f.join("config.json"), "\"head_dim\": 32", "\"head_dim\": 16777216");
        },
        &["config.json", "2097152 positions of heads 16777216 wide"],
    ),
    (
        "mistral",
        |f| edit(f.join("config.json"), "\"sliding_window\": 24", "\"sliding_window\": 0"),
        &["config.json", "a sliding window of 0 tokens"],
    ),
    (
        "qwen2",
        |f| edit(f.join("config.json"), "\"vocab_size\"", "\"vocab\""),
        &["config.json", "vocab_size is missing"],
    ),
    (
        "qwen2",
        |f| edit(f.join("config.json"), "{", "{\"quantization_config\": {\"quant_method\": \"gptq\"},"),
        &["config.json", "quantization_config", "gptq"],
    ),
    (
        "llama2",
        |f| edit(f.join("config.json"), "\"mlp_bias\": false", "\"mlp_bias\": true"),
        &["config.json", "mlp_bias"],
    ),
    (
        "qwen2",
        |f| fs::write(f.join("config.json"), "{\"model_type\": ").unwrap(),
        &["config.json", "not a JSON object"],
    ),
    ("qwen2", |f| fs::remove_file(f.join("config.json")).unwrap(), &["config.json", "is missing"]),
    (
        "qwen2",
        |f| fs::write(f.join("generation_config.json"), "{\"eos_token_id\": \"x\"}").unwrap(),
        &["generation_config.json", "eos_token_id"],
    ),
    ("qwen2", |f| fs::write(f.join("tokenizer.json"), "{}").unwrap(), &["tokenizer.json", "not a tokenizer"]),
    ("qwen2", |f| fs::remove_file(f.join("tokenizer.json")).unwrap(), &["tokenizer.json", "is missing"]),
    (
        "qwen2",
        |f| edit(f.join("tokenizer_config.json"), "\"eos_token\": \"<|im_end|>\"", "\"eos_token\": \"<|the_end|>\""),
        &["tokenizer_config.json", "eos_token", "<|the_end|>"],
    ),
    (
        "qwen2",
        |f| fs::rename(f.join("model.safetensors"), f.join("pytorch_model.bin")).unwrap(),
        &["pytorch_model.bin", "save_pretrained"],
    ),
    (
        "llama2",
        |f| fs::remove_file(f.join("model-00003-of-00004.safetensors")).unwrap(),
        &["model-00003-of-00004.safetensors"],
    ),
    (
        "llama2",
        |f| edit(f.join("model.safetensors.index.json"), "\"model-00001", "\"../model-00001"),
        &["index.json", "not a file of the folder"],
    ),
];

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
}

/// Puts a NaN into the last value of the file.
fn not_a_number(folder: &Path) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0x01, 0x7C]);
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_wrong_with_a_folder_is_named() {
    for (number, (name, damage, expected)) in DAMAGES.into_iter().enumerate() {
        let folder = copy(name);
        damage(folder.path());
        let message = load(folder.path()).err().unwrap_or_else(|| panic!("case {number} was accepted: {expected:?}"));
        for part in expected {
            assert!(message.contains(part), "case {number}: no {part:?} in {message}");
        }
    }
    // Without a template all but chats work.
    let folder = copy("qwen2");
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    let model = load(folder.path()).unwrap();
    let message = model.chat(&[Message::new("user", "Hi")], true).unwrap_err().to_string();
    assert!(message.contains("the model has none"), "{message}");
}

#[test]
fn what_is_wrong_with_a_gguf_file_is_named() {
    let cases = [
        ("qwen3", "qwen3", "gemma", "general.architecture \"gemma\" is not supported"),
        ("qwen3", "tokenizer.ggml.pre", "tokenizer.ggml.prx", "splitting \"default\" is not supported"),
        ("qwen3", "gpt2", "bert", "tokenizer.ggml.model \"bert\" is not supported"),
        ("qwen3", "blk.1.attn_q_norm", "blk.1.attn_q_nxrm", "tensor blk.1.attn_q_nxrm.weight is not part"),
        ("qwen3", "blk.0.ffn_up.weight", "blk.2.ffn_up.weight", "tensor blk.2.ffn_up.weight is not part"),
        ("qwen3", "context_length", "context_lengxx", "metadata qwen3.context_length is missing"),
        ("qwen3", "token_type", "token_typx", "tokenizer.ggml.token_type is not a list as long as"),
        ("qwen3", "output_norm.weight", "rope_freqs.weight\0", "is not part"),
        ("kquants", "linear", "dynamo", "rope scaling \"dynamo\" is not supported"),
        ("llama2", "tokenizer.ggml.scores", "tokenizer.ggml.scorxx", "tokenizer.ggml.scores is not a list"),
    ];
    for (name, old, new, expected) in cases {
        let mut bytes = fs::read(fixtures().join(format!("{name}.gguf"))).unwrap();
        assert_eq!(old.len(), new.len(), "the file keeps its offsets");
        let places: Vec<usize> =
            (0..bytes.len() - old.len()).filter(|&at| &bytes[at..at + old.len()] == old.as_bytes()).collect();
        assert!(!places.is_empty(), "no {old}");
        places.into_iter().for_each(|at| bytes[at..at + new.len()].copy_from_slice(new.as_bytes()));
        refused(&bytes, expected);
    }
    // The last tensor of the file is the last norm.
    let mut bytes = fs::read(fixtures().join("kquants.gguf")).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    refused(&bytes, "tensor output_norm.weight has values that are NaN or infinite");
}

/// A GGUF file of these bytes is refused with this message.
fn refused(bytes: &[u8], expected: &str) {
    let file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    fs::write(file.path(), bytes).unwrap();
    let message = load(file.path()).err().unwrap_or_else(|| panic!("accepted: {expected}"));
    assert!(message.contains(expected) && message.contains(".gguf"), "{message}");
}

#[test]
fn a_model_file_cut_anywhere_is_refused() {
    for name in ["qwen3.gguf", "qwen2/model.safetensors"] {
        let bytes = fs::read(fixtures().join(name)).unwrap();
        let folder = copy("qwen2");
        let gguf = name.ends_with(".gguf");
        let path = folder.path().join(if gguf { "cut.gguf" } else { "model.safetensors" });
        for length in (0..bytes.len()).step_by(1009).chain([bytes.len() - 1]) {
            fs::write(&path, &bytes[..length]).unwrap();
            let message = load(if gguf { &path } else { folder.path() }).err();
            let message = message.unwrap_or_else(|| panic!("{name} cut to {length} bytes was accepted"));
            assert!(message.contains(path.to_str().unwrap()), "{message}");
            assert!(message.contains("cut short") || message.contains("cut or damaged"), "{length}: {message}");
        }
    }
}

#[test]
fn damage_to_what_describes_a_model_never_panics() {
    let folder = copy("qwen2");
    let whole: Vec<(PathBuf, Vec<u8>)> = ["config.json", "model.safetensors", "tokenizer_config.json", "cut.gguf"]
        .into_iter()
        .map(|name| {
            let from = if name == "cut.gguf" { fixtures().join("qwen2.gguf") } else { folder.path().join(name) };
            (folder.path().join(name), fs::read(from).unwrap())
        })
        .collect();
    for (path, bytes) in whole {
        let described = bytes.len().min(if path.ends_with("cut.gguf") { 16_000 } else { 2_600 });
        let mut accepted = 0;
        for at in (0..described).step_by(if path.ends_with("cut.gguf") { 37 } else { 11 }) {
            let mut damaged = bytes.clone();
            damaged[at] = [0x00, 0xFF, bytes[at] ^ 0x80, bytes[at] ^ 1, b'"', b'9'][at % 6];
            fs::write(&path, damaged).unwrap();
            let target = if path.ends_with("cut.gguf") { &path } else { folder.path() };
            if let Err(message) = load(target) {
                assert!(message.contains(folder.path().to_str().unwrap()) || message.contains("template"), "{message}");
            } else {
                accepted += 1;
            }
        }
        assert!(accepted < described, "no damage to {path:?} was found");
        fs::write(&path, bytes).unwrap();
    }
}
