//! What a failure of an object store says, in one line: code and message of a server's answer and nothing else of it,
//! as an answer may repeat a token; or the first of the failure's causes, without addresses.

use object_store::Error;

/// What of a server's own words is passed on, in characters.
const WORDS: usize = 300;

/// What a failure says in the end.
pub(crate) fn words(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    let mut text = String::new();
    loop {
        let all = cause.to_string();
        if let Some(code) = element(&all, "Code") {
            text = element(&all, "Message").map_or_else(|| code.to_owned(), |message| format!("{code}: {message}"));
            break;
        }
        match cause.source() {
            Some(source) => cause = source,
            None => {
                text.push_str(&all);
                break;
            }
        }
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.trim_end_matches([':', ' ']).chars().take(WORDS).collect()
}

/// The text of an XML element without others in it.
fn element<'t>(xml: &'t str, name: &str) -> Option<&'t str> {
    let rest = &xml[xml.find(&format!("<{name}>"))? + name.len() + 2..];
    rest.find('<').map(|end| &rest[..end])
}
