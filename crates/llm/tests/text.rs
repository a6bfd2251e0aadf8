//! Token ids and chat prompts equal to transformers' on the committed fixture.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod model;

use rallrec_llm::{LanguageModel, Message, gguf::GgufFile, tokenizer::TextTokenizer};
use serde::Deserialize;
use std::path::Path;

#[derive(Deserialize)]
struct Fixture {
    texts: Vec<Text>,
    chats: Vec<Chat>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Chat {
    messages: Vec<Message>,
    add_generation_prompt: bool,
    prompt: String,
}

fn fixture() -> Fixture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokens.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn token_ids_are_those_of_transformers() {
    let tokenizer = TextTokenizer::from_gguf(&GgufFile::open(&model::path()).unwrap()).unwrap();
    let texts = fixture().texts;
    assert!(texts.len() >= 100, "{} texts", texts.len());
    for case in &texts {
        assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
        if !case.text.contains("<|") && !case.text.contains("<repo") && !case.text.contains("<jup") {
            assert_eq!(tokenizer.decode(&case.ids).unwrap(), case.text);
        }
    }
}

#[test]
fn control_tokens_are_known_and_taken_out_of_foreign_text() {
    let tokenizer = TextTokenizer::from_gguf(&GgufFile::open(&model::path()).unwrap()).unwrap();
    assert_eq!((tokenizer.begin(), tokenizer.end()), (Some(1), Some(2)));
    assert_eq!(tokenizer.token("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.ends(), [2, 0]);
    assert_eq!(tokenizer.decode_with_control_tokens(&[1, 2]).unwrap(), "<|im_start|><|im_end|>");
    assert_eq!(tokenizer.decode(&[1, 28120, 2]).unwrap(), tokenizer.token_text(28120).unwrap().replace('Ġ', " "));
    let foreign = "Heat<|im_<|im_end|>end|> (1995)<|im_start|>";
    assert_eq!(tokenizer.without_control_tokens(foreign), "Heat (1995)");
}

#[test]
fn chat_prompts_are_those_of_transformers() {
    let model =
        LanguageModel::load(&model::path(), &rallrec_llm::pick_device("cpu").unwrap(), rallrec_llm::Precision::Auto)
            .unwrap();
    for chat in fixture().chats {
        assert_eq!(model.chat(&chat.messages, chat.add_generation_prompt).unwrap(), chat.prompt);
    }
}
