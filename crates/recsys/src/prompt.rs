//! The words that language models read (METHOD sections 2, 8 and 11).
//!
//! Templates come from the pipeline; what fills them comes from data and is never interpreted: braces in a title
//! stay braces. Chat templates and token limits belong to the language model.

use rallrec_core::{
    params::Hint,
    template::{self, Piece},
};

/// Why a template cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A placeholder that nothing fills.
    #[error("template has the unknown placeholder {{{name}}}; known are {known} (write {{{{ for a brace)")]
    UnknownPlaceholder {
        /// Its name.
        name: String,
        /// The placeholders that are filled.
        known: String,
    },
    /// A brace without its partner.
    #[error(
        "template has an unmatched brace at byte {at} ({near:?}); close the placeholder, or write {{{{ or }}}} for a brace"
    )]
    UnmatchedBrace {
        /// Byte position.
        at: usize,
        /// The text there.
        near: String,
    },
}

/// A parsed template over a fixed list of placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// Position in the list of placeholders.
    Field(usize),
}

impl Template {
    fn parse(text: &str, known: &[&str]) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        for piece in template::pieces(text) {
            parts.push(match piece {
                Piece::Text(literal) => Part::Text(literal.into()),
                Piece::Placeholder(name) => match known.iter().position(|k| *k == name) {
                    Some(field) => Part::Field(field),
                    None => {
                        let known: Vec<_> = known.iter().map(|k| format!("{{{k}}}")).collect();
                        return Err(TemplateError::UnknownPlaceholder { name: name.into(), known: known.join(", ") });
                    }
                },
                Piece::UnmatchedBrace(at) => {
                    return Err(TemplateError::UnmatchedBrace { at, near: text[at..].chars().take(20).collect() });
                }
            });
        }
        Ok(Self { parts })
    }

    fn fill(&self, values: &[&str]) -> String {
        let parts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.as_str(),
            Part::Field(field) => values[*field],
        });
        // An empty field at either end (a set without user fields) leaves no blank there.
        parts.collect::<String>().trim().into()
    }
}

/// What fills a prompt.
#[derive(Clone, Copy, Debug)]
pub struct PromptFields<'a> {
    /// Sentence of user fields: [`user_sentence`].
    pub user: &'a str,
    /// What users do with items: `watched`, `read`.
    pub verb: &'a str,
    /// Rated entries: [`history_text`].
    pub history: &'a str,
    /// Stars that a like must exceed.
    pub like_above: f64,
    /// The target's title.
    pub target: &'a str,
}

/// A CTR prompt with the placeholders `{user}`, `{verb}`, `{history}`, `{like_above}` and `{target}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTemplate(Template);

impl PromptTemplate {
    /// Reads a template. `{{` and `}}` stand for braces.
    ///
    /// # Errors
    /// When a placeholder is unknown or a brace has no partner.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Template::parse(text, &["user", "verb", "history", "like_above", "target"]).map(Self)
    }

    /// The prompt, without blanks round it.
    pub fn fill(&self, fields: &PromptFields<'_>) -> String {
        let like_above = fields.like_above.to_string();
        self.0.fill(&[fields.user, fields.verb, fields.history, &like_above, fields.target])
    }
}

/// Placeholders for what every item has.
const ITEM_FIELDS: [&str; 3] = ["title", "genre", "year"];

/// A sentence about an item with the placeholders `{title}`, `{genre}` and `{year}`, and one for each further text of
/// the data set: the request of `describe` and the title text of `embed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemTemplate(Template);

impl ItemTemplate {
    /// Reads a template. `{{` and `}}` stand for braces.
    ///
    /// # Errors
    /// When a placeholder is unknown or a brace has no partner.
    pub fn parse(text: &str, further: &[&str]) -> Result<Self, TemplateError> {
        Template::parse(text, &[&ITEM_FIELDS, further].concat()).map(Self)
    }

    /// The sentence, without blanks round it. An item without genre, year or a further text has `unknown` there; `further`
    /// is in the order in which [`Self::parse`] had the names.
    pub fn fill(&self, title: &str, genre: &str, year: Option<i32>, further: &[&str]) -> String {
        fn known(text: &str) -> &str {
            if text.is_empty() { "unknown" } else { text }
        }
        let year = year.map_or(String::new(), |year| year.to_string());
        let values: Vec<&str> = [genre, &year].into_iter().chain(further.iter().copied()).map(known).collect();
        self.0.fill(&[&[title], values.as_slice()].concat())
    }
}

/// `The user is female. The user's age is 25-34. The user's job is writer. The user's country is chile.`, without the
/// sentences of empty fields; empty when all are. Further texts come by name: `home_town` is read as home town.
pub fn user_sentence(gender: &str, age: &str, job: &str, further: &[(&str, &str)]) -> String {
    let named = |name: &str| format!("The user's {}", name.replace(['_', '-'], " "));
    let own =
        [("The user is".to_owned(), gender), ("The user's age is".into(), age), ("The user's job is".into(), job)];
    let parts = own.into_iter().chain(further.iter().map(|(name, value)| (format!("{} is", named(name)), *value)));
    let sentences = parts.filter(|(_, value)| !value.is_empty()).map(|(words, value)| format!("{words} {value}."));
    sentences.collect::<Vec<_>>().join(" ")
}

/// `Toy Story (1995) (4 stars), Heat (1995) (3.5 stars)`, in the order given; `nothing yet` for an empty history.
pub fn history_text<'a>(entries: impl IntoIterator<Item = (&'a str, f32)>) -> String {
    let entries: Vec<_> = entries.into_iter().map(|(title, stars)| format!("{title} ({stars} stars)")).collect();
    if entries.is_empty() { "nothing yet".into() } else { entries.join(", ") }
}

/// A description as it is stored: quotes removed, line breaks and runs of blanks made one blank (METHOD section 2).
/// Apostrophes within words stay.
pub fn clean_description(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    let mut before = ' ';
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let within_word = before.is_alphanumeric() && characters.peek().is_some_and(|next| next.is_alphanumeric());
        match c {
            '"' | '“' | '”' | '„' | '«' | '»' | '`' => {}
            '\'' | '‘' | '’' if !within_word => {}
            c if c.is_whitespace() || c.is_control() => {
                if !cleaned.is_empty() && !cleaned.ends_with(' ') {
                    cleaned.push(' ');
                }
            }
            c => cleaned.push(c),
        }
        before = c;
    }
    cleaned.truncate(cleaned.trim_end().len());
    cleaned
}

/// The sentence that tells a reasoning model what the tuned model predicts (eq. 9), or `None` for [`Hint::None`].
///
/// `Yes` above 0.5, `No` otherwise. Graded: `is` where p is further than 0.2 from 0.5, `may be` further than 0.1,
/// else `might be`.
pub fn hint_sentence(hint: Hint, p: f64) -> Option<String> {
    let distance = (p - 0.5).abs();
    let verb = match hint {
        Hint::None => return None,
        Hint::Might => "might be",
        Hint::Graded if distance > 0.2 => "is",
        Hint::Graded if distance > 0.1 => "may be",
        Hint::Graded => "might be",
    };
    let answer = if p > 0.5 { "Yes" } else { "No" };
    Some(format!("Another one think the answer {verb} {answer}."))
}

/// A reasoning prompt: the CTR prompt, and after a blank the hint. A sample without a tuned prediction (`None` or not
/// finite) gets no hint.
pub fn reasoning_prompt(prompt: &str, hint: Hint, p_tuned: Option<f64>) -> String {
    match p_tuned.filter(|p| p.is_finite()).and_then(|p| hint_sentence(hint, p)) {
        Some(sentence) => format!("{prompt} {sentence}"),
        None => prompt.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rallrec_core::params::{DescribeParams, EmbedParams, RetrieveParams};

    #[test]
    fn the_default_templates_are_filled() {
        let template = PromptTemplate::parse(&RetrieveParams::default().template).unwrap();
        let user = user_sentence("female", "25-34", "writer", &[]);
        let history = history_text([("Toy Story (1995)", 4.0), ("The {target} {{Brace}", 3.5)]);
        let prompt = template.fill(&PromptFields {
            user: &user,
            verb: "watched",
            history: &history,
            like_above: 3.0,
            target: "{user}",
        });
        insta::assert_snapshot!(prompt, @"The user is female. The user's age is 25-34. The user's job is writer. The user watched the following items in the past and rated them: Toy Story (1995) (4 stars), The {target} {{Brace} (3.5 stars). A like means a rating of more than 3 stars. Based on this, decide whether the user will like the item ***{user}***. Answer only Yes or No.");
        let bare = template.fill(&PromptFields {
            user: "",
            verb: "read",
            history: &history_text([]),
            like_above: 4.5,
            target: "X",
        });
        assert!(
            bare.starts_with("The user read the following items in the past and rated them: nothing yet."),
            "{bare}"
        );
        assert!(bare.contains("more than 4.5 stars"), "{bare}");
        assert!(ItemTemplate::parse(&DescribeParams::default().template, &[]).is_ok());
        let title = ItemTemplate::parse(&EmbedParams::default().title_template, &[]).unwrap();
        assert_eq!(
            title.fill("Heat (1995)", "Crime", Some(1995), &[]),
            "The movie is titled Heat (1995) and its genre is Crime."
        );
        assert_eq!(
            ItemTemplate::parse("{{{title}}} {genre} {year}", &[]).unwrap().fill("X", "", None, &[]),
            "{X} unknown unknown"
        );
    }

    #[test]
    fn wrong_templates_are_refused() {
        let error = |text| PromptTemplate::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("{user} {traget}"),
            "template has the unknown placeholder {traget}; known are {user}, {verb}, {history}, {like_above}, {target} (write {{ for a brace)"
        );
        assert_eq!(
            error("a {user"),
            "template has an unmatched brace at byte 2 (\"{user\"); close the placeholder, or write {{ or }} for a brace"
        );
        assert!(matches!(PromptTemplate::parse("a } b"), Err(TemplateError::UnmatchedBrace { at: 2, .. })));
        assert!(matches!(PromptTemplate::parse("{user {verb}"), Err(TemplateError::UnmatchedBrace { at: 0, .. })));
        assert!(matches!(ItemTemplate::parse("{}", &[]), Err(TemplateError::UnknownPlaceholder { .. })));
    }

    #[test]
    fn empty_user_fields_are_left_out() {
        assert_eq!(user_sentence("", "under 18", "", &[]), "The user's age is under 18.");
        assert_eq!(user_sentence("", "", "", &[("country", "")]), "");
        assert_eq!(
            user_sentence("", "18-24", "", &[("country", "chile"), ("home_town", "Arica")]),
            "The user's age is 18-24. The user's country is chile. The user's home town is Arica."
        );
    }

    #[test]
    fn descriptions_lose_quotes_and_line_breaks() {
        let text = "\n \"Toy Story\" is Pixar’s  'first'\r\n\tfilm;\nthe children's “favourite”.\u{a0}\n";
        assert_eq!(clean_description(text), "Toy Story is Pixar’s first film; the children's favourite.");
        assert_eq!(clean_description(" \"\" \n"), "");
    }

    #[test]
    fn hints_follow_confidence() {
        let graded = |p| hint_sentence(Hint::Graded, p).unwrap();
        assert_eq!(graded(0.95), "Another one think the answer is Yes.");
        assert_eq!(graded(0.65), "Another one think the answer may be Yes.");
        assert_eq!(graded(0.55), "Another one think the answer might be Yes.");
        assert_eq!(graded(0.5), "Another one think the answer might be No.");
        assert_eq!(graded(0.375), "Another one think the answer may be No.");
        assert_eq!(graded(0.25), "Another one think the answer is No.");
        assert_eq!(hint_sentence(Hint::Might, 0.99).unwrap(), "Another one think the answer might be Yes.");
        assert_eq!(reasoning_prompt("Q?", Hint::None, Some(0.9)), "Q?");
        assert_eq!(reasoning_prompt("Q?", Hint::Graded, None), "Q?");
        assert_eq!(reasoning_prompt("Q?", Hint::Graded, Some(f64::NAN)), "Q?");
        assert_eq!(reasoning_prompt("Q?", Hint::Graded, Some(0.1)), "Q? Another one think the answer is No.");
    }
}
