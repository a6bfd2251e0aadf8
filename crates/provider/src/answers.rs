//! From a list of likely tokens to the log-probabilities of two answers.
//!
//! Servers tell only the most probable tokens, 5 to 20 of them. An answer that is not on the list is at most as probable
//! as the last one that is, so that bound is put in its place. What it can be wrong by follows from it: with the other
//! answer's probability `a` and the bound `b`, the probability of the listed answer among the two lies between
//! `a / (a + b)` and 1. Where that is more than [`MAX_ERROR`] apart, and where neither answer is listed, the list says
//! nothing: a wide guess must not pass for an answer. The caller then has another way for some servers, and else no
//! result for the row.

/// Most that a probability may be wrong by for want of an answer's log-probability.
pub(crate) const MAX_ERROR: f64 = 0.01;

/// A token's text and its natural log-probability.
pub(crate) type Likely = (String, f64);

/// Log-probabilities of the two answers, and whether one is a bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Found {
    pub(crate) log_p: [f32; 2],
    pub(crate) bounded: bool,
}

/// Finds both answers among the likely tokens, whose order does not matter.
///
/// # Errors
/// Why the row has no result.
pub(crate) fn find(likely: &[Likely], answers: &[String; 2]) -> Result<Found, String> {
    // Two tokens can have the same text; the more probable one is what the model would write.
    let of = |answer: &String| likely.iter().filter(|(t, _)| t == answer).map(|(_, p)| *p).reduce(f64::max);
    let last = likely.iter().map(|(_, p)| *p).fold(f64::INFINITY, f64::min);
    let [yes, no] = answers.each_ref().map(of);
    match (yes, no) {
        (Some(yes), Some(no)) => Ok(Found { log_p: [yes as f32, no as f32], bounded: false }),
        (None, None) => Err(format!(
            "neither {:?} nor {:?} is among the {} most probable tokens; ask for answers that the model gives (with.yes, with.no: one token each)",
            answers[0],
            answers[1],
            likely.len()
        )),
        (Some(listed), None) | (None, Some(listed)) => {
            let error = 1.0 / (1.0 + (listed - last).exp());
            let missing = if yes.is_none() { &answers[0] } else { &answers[1] };
            if error > MAX_ERROR {
                return Err(format!(
                    "{missing:?} is not among the {} most probable tokens, so the probability is only known to {error:.2}; let the server tell more of them",
                    likely.len()
                ));
            }
            Ok(Found { log_p: [yes.unwrap_or(last) as f32, no.unwrap_or(last) as f32], bounded: true })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers() -> [String; 2] {
        ["Yes".to_owned(), "No".to_owned()]
    }

    fn likely(list: &[(&str, f64)]) -> Vec<Likely> {
        list.iter().map(|(t, p)| ((*t).to_owned(), p.ln())).collect()
    }

    #[test]
    fn both_answers_are_found_by_their_exact_text() {
        let list = likely(&[(" Yes", 0.4), ("No", 0.3), ("Yes", 0.2), ("yes", 0.05), ("Yes", 0.01)]);
        let found = find(&list, &answers()).unwrap();
        assert_eq!(found, Found { log_p: [0.2_f64.ln() as f32, 0.3_f64.ln() as f32], bounded: false });
    }

    #[test]
    fn a_missing_answer_is_bounded_by_the_last_of_the_list() {
        let found = find(&likely(&[("Yes", 0.9), ("Maybe", 0.001)]), &answers()).unwrap();
        assert!(found.bounded);
        let [yes, no] = found.log_p.map(f64::from);
        let p = 1.0 / (1.0 + (no - yes).exp());
        assert!((p - 0.9 / 0.901).abs() < 1e-6, "the least that it can be");
        let found = find(&likely(&[("Maybe", 0.004), ("No", 0.5)]), &answers()).unwrap();
        assert!(found.log_p[0] < found.log_p[1] && found.bounded);
    }

    #[test]
    fn a_bound_that_says_too_little_is_no_answer() {
        let error = find(&likely(&[("Yes", 0.5), ("Maybe", 0.2)]), &answers()).unwrap_err();
        assert!(error.contains("\"No\" is not among the 2 most probable tokens") && error.contains("0.29"), "{error}");
        let error = find(&likely(&[("Well", 0.9)]), &answers()).unwrap_err();
        assert!(error.contains("neither \"Yes\" nor \"No\""), "{error}");
        // Listed last itself, the other answer may be just as probable.
        assert!(find(&likely(&[("Well", 0.9), ("Yes", 0.05)]), &answers()).is_err());
        assert!(find(&[], &answers()).is_err());
    }
}
