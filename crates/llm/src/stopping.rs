//! Stop texts: found while an answer grows, across the borders of tokens, and cut from it.
//!
//! A token can end in the middle of a character, and a decoder may treat the first token of a text in its own way, so
//! texts of single tokens cannot be put together: some tokens before the new ones are always decoded with them.

use crate::{LlmError, tokenizer::TextTokenizer};

/// Looks for stop texts in an answer's text as it grows. The cost of a token does not depend on the answer's length.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopSearch {
    /// End of the text of all tokens before `known`: as much as a stop text can still begin in.
    tail: String,
    /// Tokens from here to `known` are decoded along with new ones.
    context: usize,
    /// Tokens before this one are in `tail`. Their text ends where a character does.
    known: usize,
}

impl StopSearch {
    /// Whether a stop text is complete with the last of an answer's tokens. To be asked after every token.
    pub(crate) fn found(
        &mut self,
        tokens: &[u32],
        stops: &[String],
        tokenizer: &TextTokenizer,
    ) -> Result<bool, LlmError> {
        let Some(longest) = stops.iter().map(String::len).max() else { return Ok(false) };
        let known = tokenizer.decode(&tokens[self.context..self.known])?;
        let all = tokenizer.decode(&tokens[self.context..])?;
        let new = all.get(known.len()..).unwrap_or_default();
        let text = format!("{}{new}", self.tail);
        if !new.is_empty() && !new.ends_with(char::REPLACEMENT_CHARACTER) {
            (self.context, self.known) = (self.known, tokens.len());
            let mut start = text.len().saturating_sub(longest - 1);
            while !text.is_char_boundary(start) {
                start -= 1;
            }
            self.tail = text[start..].to_owned();
        }
        Ok(stops.iter().any(|stop| text.contains(stop.as_str())))
    }
}

/// The text before the first stop text in it.
pub(crate) fn cut(mut text: String, stops: &[String]) -> String {
    if let Some(at) = stops.iter().filter_map(|stop| text.find(stop.as_str())).min() {
        text.truncate(at);
    }
    text
}
