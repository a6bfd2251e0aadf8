//! A reasoning trace's own prediction, read from its text (METHOD section 12 a).
//!
//! The prediction from logits (12 b) needs a language model and is not made here.

/// Characters at the end of an unfinished trace that may still hold an answer.
const TAIL_CHARS: usize = 20;

/// 1 for yes, 0 for no, 0.5 when the trace does not say.
///
/// The answer is looked for after the last `think_close`; without one, in the last 20 characters. Answers count
/// as whole words (no letter or digit beside them), in any case. When both occur, yes counts: "no" is also an
/// everyday word ("yes, there is no doubt"), "yes" is hardly anything but an answer.
///
/// An empty `think_close` means a model that does not think: the whole text is its answer.
pub fn parse_prediction(text: &str, think_close: &str, yes: &str, no: &str) -> f32 {
    let start = match text.rfind(think_close) {
        _ if think_close.is_empty() => 0,
        Some(at) => at + think_close.len(),
        None => text.char_indices().rev().take(TAIL_CHARS).last().map_or(0, |(at, _)| at),
    };
    if has_word(text, start, yes) {
        1.0
    } else if has_word(text, start, no) {
        0.0
    } else {
        0.5
    }
}

/// Whether `word` begins at or after byte `start` of `text`. The text before counts for the boundary, so a tail
/// that begins within "piano" holds no "no".
fn has_word(text: &str, start: usize, word: &str) -> bool {
    let mut letters = word.chars().flat_map(char::to_lowercase).peekable();
    if letters.peek().is_none() {
        return false;
    }
    let letters: Vec<char> = letters.collect();
    text[start..].char_indices().any(|(at, _)| {
        let at = start + at;
        let free_before = !text[..at].chars().next_back().is_some_and(char::is_alphanumeric);
        free_before && starts_with_word(&text[at..], &letters)
    })
}

fn starts_with_word(text: &str, letters: &[char]) -> bool {
    let mut matched = 0;
    for c in text.chars() {
        if matched == letters.len() {
            return !c.is_alphanumeric();
        }
        for lower in c.to_lowercase() {
            if letters.get(matched) != Some(&lower) {
                return false;
            }
            matched += 1;
        }
    }
    matched == letters.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_and_their_predictions() {
        let cases = [
            ("It is a western.</think>\n\nYes", 1.0),
            ("yes yes yes</think>No.", 0.0),
            ("Yes</think>Hm</think> **NO**", 0.0),
            ("</think>The answer is: yes!", 1.0),
            ("</think>I cannot know, nobody can.", 0.5),
            ("</think>Yesterday's piano", 0.5),
            ("</think>Yes, there is no doubt", 1.0),
            ("</think>No doubt: yes", 1.0),
            ("</think>", 0.5),
            ("", 0.5),
            // Without a closing tag only the last 20 characters count.
            ("yes, but then I went on for a good while", 0.5),
            ("so the answer must be no", 0.0),
            ("the answer: YES", 1.0),
            ("yes4567890123456789 ", 0.5),
            ("yes 567890123456789é", 1.0),
            (".yes 567890123456789é", 1.0),
            ("no. yes 567890123456", 1.0),
            ("no, the word before begins too early", 0.5),
            // The tail begins with the "no" of "piano".
            ("the piano 45678901234567", 0.5),
            ("pia no 45678901234567", 0.0),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_prediction(text, "</think>", "Yes", "No"), expected, "{text:?}");
        }
    }

    #[test]
    fn other_words_and_tags() {
        assert_eq!(parse_prediction("yes [done] ÄNDERN", "[done]", "ändern", "nein"), 1.0);
        assert_eq!(parse_prediction("yes [done] Nein", "[done]", "ändern", "nein"), 0.0);
        assert_eq!(parse_prediction("No, and then a long text of many words.", "", "Yes", "No"), 0.0);
        assert_eq!(parse_prediction("anything", "</think>", "", ""), 0.5);
    }
}
