//! Builds a tokenizer from the vocabulary in a GGUF file's metadata.
//!
//! Two kinds: byte-level byte-pair encoding with the way of splitting text that the file names, and SentencePiece
//! pairs with scores. A splitting of another name is refused: near enough would give other token ids here and there.

use crate::{LlmError, gguf::GgufFile, tokenizer::Marks};
use std::collections::HashMap;
use tokenizers::{
    AddedToken, SplitDelimiterBehavior, Tokenizer,
    decoders::{byte_fallback::ByteFallback, fuse::Fuse, sequence::Sequence as Decoders, strip::Strip},
    models::bpe::{BPE, Vocab},
    normalizers::{NFC, Prepend, Replace, utils::Sequence as Normalizers},
    pre_tokenizers::{
        PreTokenizerWrapper,
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

/// Kinds of tokens in `tokenizer.ggml.token_type`.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
/// SentencePiece's sign of a space.
const SPACE: &str = "\u{2581}";

/// A way of splitting text into words.
struct Splitting {
    /// As GGUF files name it.
    name: &'static str,
    words: Words,
    /// A word that is a token as it stands is not merged from its parts.
    whole_words: bool,
    /// Text is brought into composed form first.
    composed: bool,
    /// Whether texts begin with the beginning token where the file does not say.
    add_begin: bool,
}

enum Words {
    /// GPT-2's words.
    Gpt2,
    /// Digits one by one, then GPT-2's words.
    DigitsThenGpt2,
    /// The matches of a regular expression and what lies between them.
    Matches(&'static str),
}

/// Words of Llama 3, with up to three digits together.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words of Qwen 2, with every digit by itself.
const QWEN2_WORDS: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const SPLITTINGS: [Splitting; 6] = [
    Splitting { name: "gpt-2", words: Words::Gpt2, whole_words: false, composed: false, add_begin: false },
    Splitting { name: "smollm", words: Words::DigitsThenGpt2, whole_words: false, composed: false, add_begin: false },
    LLAMA3,
    Splitting { name: "llama3", ..LLAMA3 },
    QWEN2,
    Splitting { name: "deepseek-r1-qwen", ..QWEN2 },
];
const LLAMA3: Splitting = Splitting {
    name: "llama-bpe",
    words: Words::Matches(LLAMA3_WORDS),
    whole_words: true,
    composed: false,
    add_begin: true,
};
const QWEN2: Splitting = Splitting {
    name: "qwen2",
    words: Words::Matches(QWEN2_WORDS),
    whole_words: false,
    composed: true,
    add_begin: false,
};

/// The tokenizer, and which of its tokens begin and end texts.
pub(crate) fn from_gguf(file: &GgufFile) -> Result<(Tokenizer, Marks), LlmError> {
    let missing = |key: &str| file.error(format!("metadata {key} is missing"));
    let kind = file.text("tokenizer.ggml.model")?.ok_or_else(|| missing("tokenizer.ggml.model"))?;
    let tokens = file.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokenizer.ggml.tokens"))?;
    let kinds = kinds(file, tokens.len())?;
    let (mut tokenizer, add_begin) = match kind {
        "gpt2" => byte_level(file, &tokens)?,
        "llama" => (sentence_pieces(file, &tokens, &kinds)?, true),
        _ => {
            return Err(
                file.error(format!("metadata tokenizer.ggml.model {kind:?} is not supported; gpt2 and llama are"))
            );
        }
    };
    // Special ones are left out of decoded text, user-defined ones only taken whole.
    let added = tokens.iter().zip(&kinds).filter(|(text, _)| !text.is_empty());
    let added = added.filter_map(|(text, kind)| match *kind {
        UNKNOWN | CONTROL => Some(AddedToken::from(String::from(*text), true).normalized(false)),
        USER_DEFINED => Some(AddedToken::from(String::from(*text), false).normalized(false)),
        _ => None,
    });
    tokenizer.add_tokens(added).map_err(|error| file.error(format!("control tokens: {error}")))?;
    let add_begin = file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_begin);
    let marks = Marks { begin: token_id(file, "bos", tokens.len())?, ends: ends(file, &tokens, &kinds)?, add_begin };
    Ok((tokenizer, marks))
}

fn kinds(file: &GgufFile, count: usize) -> Result<Vec<i64>, LlmError> {
    let key = "tokenizer.ggml.token_type";
    let kinds = file.numbers(key)?.filter(|kinds| kinds.len() == count);
    let kinds = kinds
        .ok_or_else(|| file.error(format!("metadata {key} is not a list as long as the vocabulary of {count}")))?;
    Ok(kinds.into_iter().map(|kind| kind as i64).collect())
}

fn token_id(file: &GgufFile, name: &str, count: usize) -> Result<Option<u32>, LlmError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = file.count(&key)? else { return Ok(None) };
    let id = u32::try_from(id).ok().filter(|&id| (id as usize) < count);
    id.map(Some).ok_or_else(|| file.error(format!("metadata {key} is not a token of the vocabulary")))
}

/// Names of control tokens that end a text, a turn or a message; makers list them as ends, but files point to few.
const END_NAMES: [&str; 6] =
    ["<|eot_id|>", "<|im_end|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<｜end▁of▁sentence｜>"];

/// The end of the text, of the turn, of the message as the file points to them, then control tokens with such names.
fn ends(file: &GgufFile, tokens: &[&str], kinds: &[i64]) -> Result<Vec<u32>, LlmError> {
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(token_id(file, name, tokens.len())?);
    }
    let named = (0_u32..).zip(tokens.iter().zip(kinds));
    let named = named.filter(|(_, (text, kind))| **kind == CONTROL && END_NAMES.contains(text));
    ends.extend(named.map(|(id, _)| id));
    Ok(ends)
}

/// Byte-level pairs, and whether texts begin with the beginning token by default.
fn byte_level(file: &GgufFile, tokens: &[&str]) -> Result<(Tokenizer, bool), LlmError> {
    let name = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let splitting = SPLITTINGS.iter().find(|splitting| splitting.name == name).ok_or_else(|| {
        let known: Vec<_> = SPLITTINGS.iter().map(|splitting| splitting.name).collect();
        let known = known.join(", ");
        file.error(format!("metadata tokenizer.ggml.pre: splitting {name:?} is not supported; {known} are"))
    })?;
    let merges = file.texts("tokenizer.ggml.merges")?;
    let merges = merges.ok_or_else(|| file.error("metadata tokenizer.ggml.merges is missing"))?;
    let pair = |merge: &str| {
        let (left, right) = merge
            .split_once(' ')
            .ok_or_else(|| file.error(format!("metadata tokenizer.ggml.merges has {merge:?}, not two parts")))?;
        Ok((left.to_owned(), right.to_owned()))
    };
    let merges = merges.into_iter().map(pair).collect::<Result<Vec<_>, LlmError>>()?;
    let pairs = BPE::builder()
        .vocab_and_merges::<Vocab>(vocabulary(tokens), merges)
        .ignore_merges(splitting.whole_words)
        .build()
        .map_err(|error| file.error(format!("metadata tokenizer.ggml.merges: {error}")))?;
    let mut tokenizer = Tokenizer::new(pairs);
    let parts: Vec<PreTokenizerWrapper> = match splitting.words {
        Words::Gpt2 => vec![ByteLevel::new(false, true, true).into()],
        Words::DigitsThenGpt2 => vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()],
        Words::Matches(words) => {
            let pattern = SplitPattern::Regex(words.to_owned());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|error| file.error(format!("splitting {name:?}: {error}")))?;
            vec![split.into(), ByteLevel::new(false, true, false).into()]
        }
    };
    tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    if splitting.composed {
        tokenizer.with_normalizer(Some(NFC)).map_err(|error| file.error(format!("tokenizer: {error}")))?;
    }
    Ok((tokenizer, splitting.add_begin))
}

fn vocabulary(tokens: &[&str]) -> Vocab {
    (0_u32..).zip(tokens).map(|(id, token)| (String::from(*token), id)).collect()
}

/// SentencePiece's pairs: of all neighbours the pair is joined whose piece has the highest score.
fn sentence_pieces(file: &GgufFile, tokens: &[&str], kinds: &[i64]) -> Result<Tokenizer, LlmError> {
    let wrong = |error: tokenizers::Error| file.error(format!("tokenizer: {error}"));
    let key = "tokenizer.ggml.scores";
    let scores = file.numbers(key)?.filter(|scores| scores.len() == tokens.len());
    let scores = scores.ok_or_else(|| file.error(format!("metadata {key} is not a list as long as the vocabulary")))?;
    let merges = merges_of_pieces(tokens, kinds, &scores);
    let mut pairs =
        BPE::builder().vocab_and_merges::<Vocab>(vocabulary(tokens), merges).byte_fallback(true).fuse_unk(true);
    if let Some((unknown, _)) = tokens.iter().zip(kinds).find(|(_, kind)| **kind == UNKNOWN) {
        pairs = pairs.unk_token(String::from(*unknown));
    }
    let mut tokenizer = Tokenizer::new(pairs.build().map_err(wrong)?);
    let space_first = file.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = vec![Replace::new(" ", SPACE).map_err(wrong)?.into()];
    let mut decoders =
        vec![Replace::new(SPACE, " ").map_err(wrong)?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if space_first {
        normalizers.insert(0, Prepend::new(SPACE.to_owned()).into());
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers))).map_err(wrong)?;
    tokenizer.with_decoder(Some(Decoders::new(decoders)));
    Ok(tokenizer)
}

/// Every way to join two pieces into a third, the third with the highest score first.
fn merges_of_pieces(tokens: &[&str], kinds: &[i64], scores: &[f64]) -> Vec<(String, String)> {
    let joined = |kind: &i64| matches!(*kind, NORMAL | USER_DEFINED);
    let pieces = tokens.iter().zip(kinds).zip(scores).filter(|((_, kind), _)| joined(kind));
    let pieces: Vec<(&str, f64)> = pieces.map(|((text, _), score)| (*text, *score)).collect();
    let known: HashMap<&str, f64> = pieces.iter().copied().collect();
    let mut merges = Vec::new();
    for (piece, score) in pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if known.contains_key(left) && known.contains_key(right) {
                merges.push((score, left, right));
            }
        }
    }
    // Among the ways to make one piece the longest left part goes first; the sort is stable.
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.len().cmp(&a.1.len())));
    merges.into_iter().map(|(_, left, right)| (left.to_owned(), right.to_owned())).collect()
}
