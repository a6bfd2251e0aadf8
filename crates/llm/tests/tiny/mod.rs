//! A model of two small blocks with random weights, as a GGUF file: what the engine is tested with where the weights
//! do not matter, some thousand times faster than the real model.
//!
//! Its tokenizer knows single bytes, a few merges and some control tokens. One of these, [`BAD`], is made to overflow:
//! a prompt that has it gives no finite number, in any row after it, and no other prompt is touched.

use rallrec_core::rng::row_rng;
use rand_chacha::rand_core::Rng;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// The token whose hidden state overflows.
pub(crate) const BAD: u32 = 261;
/// A control token: text does not show it.
pub(crate) const END: u32 = 260;
pub(crate) const CONTEXT: usize = 512;

const VOCABULARY: usize = 264;
const HIDDEN: usize = 64;
const FEED: usize = 96;
const LAYERS: usize = 2;
const WIDTH: usize = 32;
const HEADS: usize = 2;

/// The file.
pub(crate) fn gguf() -> Vec<u8> {
    let metadata = metadata();
    let tensors = tensors();
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        out.extend(text(key));
        out.extend(value);
    }
    let mut offset = 0_u64;
    for (name, shape, _) in &tensors {
        out.extend(text(name));
        out.extend((shape.len() as u32).to_le_bytes());
        // The contiguous dimension first.
        shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
        out.extend(0_u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (4 * shape.iter().product::<usize>()) as u64;
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for (_, _, values) in tensors {
        values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }
    out
}

fn metadata() -> Vec<(&'static str, Vec<u8>)> {
    let mut tokens: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
    tokens.sort();
    tokens.extend(["th", "he", "the", "Ġt", "<|end|>", "<|bad|>", "<|a|>", "<|b|>"].map(String::from));
    assert_eq!(tokens.len(), VOCABULARY);
    let types = (0..VOCABULARY as u32).map(|token| if token >= END { 3_i32 } else { 1 });
    let string = |value: &str| [&8_u32.to_le_bytes()[..], &text(value)].concat();
    let count = |value: usize| [4_u32.to_le_bytes(), (value as u32).to_le_bytes()].concat();
    let float = |value: f32| [6_u32.to_le_bytes(), value.to_le_bytes()].concat();
    let array = |kind: u32, values: Vec<Vec<u8>>| {
        let head = [9_u32.to_le_bytes(), kind.to_le_bytes()].concat();
        [head, (values.len() as u64).to_le_bytes().to_vec(), values.concat()].concat()
    };
    let merges = ["t h", "h e", "th e", "Ġ t"];
    vec![
        ("general.architecture", string("llama")),
        ("llama.embedding_length", count(HIDDEN)),
        ("llama.feed_forward_length", count(FEED)),
        ("llama.block_count", count(LAYERS)),
        ("llama.attention.head_count", count(HEADS)),
        ("llama.attention.head_count_kv", count(1)),
        ("llama.context_length", count(CONTEXT)),
        ("llama.rope.freq_base", float(10_000.0)),
        ("llama.attention.layer_norm_rms_epsilon", float(1e-5)),
        ("tokenizer.ggml.model", string("gpt2")),
        ("tokenizer.ggml.pre", string("smollm")),
        ("tokenizer.ggml.tokens", array(8, tokens.iter().map(|token| text(token)).collect())),
        ("tokenizer.ggml.merges", array(8, merges.iter().map(|merge| text(merge)).collect())),
        ("tokenizer.ggml.token_type", array(5, types.map(|kind| kind.to_le_bytes().to_vec()).collect())),
        ("tokenizer.ggml.eos_token_id", count(END as usize)),
    ]
}

fn tensors() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut rng = row_rng(1, "test.tiny", 0, 0);
    // Uniform with the standard deviation 1.
    let mut random = |count: usize, scale: f32| -> Vec<f32> {
        (0..count).map(|_| (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * 3.464 * scale).collect()
    };
    let mut embedding = random(VOCABULARY * HIDDEN, 1.0);
    // Only the bad token has something in the first dimension, and nothing writes to it.
    embedding.iter_mut().step_by(HIDDEN).for_each(|value| *value = 0.0);
    embedding[BAD as usize * HIDDEN] = 8.0;
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), vec![VOCABULARY, HIDDEN], embedding),
        ("output.weight".to_owned(), vec![VOCABULARY, HIDDEN], random(VOCABULARY * HIDDEN, 0.3)),
        ("output_norm.weight".to_owned(), vec![HIDDEN], vec![1.0; HIDDEN]),
    ];
    for block in 0..LAYERS {
        let mut add = |name: &str, shape: &[usize], values: Vec<f32>| {
            tensors.push((format!("blk.{block}.{name}.weight"), shape.to_vec(), values));
        };
        add("attn_norm", &[HIDDEN], vec![1.0; HIDDEN]);
        add("ffn_norm", &[HIDDEN], vec![1.0; HIDDEN]);
        add("attn_q", &[HEADS * WIDTH, HIDDEN], random(HEADS * WIDTH * HIDDEN, 0.2));
        add("attn_k", &[WIDTH, HIDDEN], random(WIDTH * HIDDEN, 0.2));
        add("attn_v", &[WIDTH, HIDDEN], random(WIDTH * HIDDEN, 0.2));
        let mut output = random(HIDDEN * HEADS * WIDTH, 0.2);
        output[..HEADS * WIDTH].fill(0.0);
        add("attn_output", &[HIDDEN, HEADS * WIDTH], output);
        let (mut gate, mut up) = (random(FEED * HIDDEN, 0.2), random(FEED * HIDDEN, 0.2));
        (gate[0], up[0]) = (1e3, 1e37);
        add("ffn_gate", &[FEED, HIDDEN], gate);
        add("ffn_up", &[FEED, HIDDEN], up);
        let mut down = random(HIDDEN * FEED, 0.2);
        down[..FEED].fill(0.0);
        add("ffn_down", &[HIDDEN, FEED], down);
    }
    tensors
}

/// A length and the bytes.
fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}
