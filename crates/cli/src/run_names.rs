//! What a user may call a run: its id, a prefix that only it has, or `last`.

use crate::failure::Failure;
use rallrec_core::ids::RunId;

/// The run that `word` means, out of `runs`, oldest first.
///
/// # Errors
/// [`Failure::Invalid`] when none or several fit.
pub fn resolve(runs: &[RunId], word: &str) -> Result<RunId, Failure> {
    let Some(last) = runs.last() else {
        return Err(Failure::Invalid(
            "there are no runs in this store yet; begin one with: rallrec run PIPELINE".into(),
        ));
    };
    if word == "last" {
        return Ok(last.clone());
    }
    if let Some(exact) = runs.iter().find(|r| r.0 == word) {
        return Ok(exact.clone());
    }
    let fits: Vec<&RunId> = runs.iter().filter(|r| r.0.starts_with(word)).collect();
    match fits.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Failure::Invalid(format!(
            "no run is called `{word}`; the latest is {last}, `rallrec runs` lists them all"
        ))),
        [first, .., latest] => {
            let n = fits.len();
            Err(Failure::Invalid(format!("`{word}` fits {n} runs, {first} to {latest}; give more of the id")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(ids: &[&str]) -> Vec<RunId> {
        ids.iter().map(|id| RunId((*id).into())).collect()
    }

    #[test]
    fn ids_prefixes_and_last() {
        let all = runs(&["20261122-1", "20261123-1", "20261123-12"]);
        for (word, id) in [("last", "20261123-12"), ("20261123-1", "20261123-1"), ("20261122", "20261122-1")] {
            assert_eq!(resolve(&all, word).unwrap().0, id);
        }
    }

    #[test]
    fn what_fits_several_or_none_is_refused_with_a_way_out() {
        let all = runs(&["20261122-1", "20261123-1", "20261123-12"]);
        let text = |word| match resolve(&all, word) {
            Err(failure) => (failure.exit_code(), failure.to_string()),
            Ok(run) => panic!("{run}"),
        };
        assert_eq!(
            text("20261123"),
            (2, "`20261123` fits 2 runs, 20261123-1 to 20261123-12; give more of the id".into())
        );
        assert!(text("x").1.contains("the latest is 20261123-12"));
        assert_eq!(resolve(&[], "last").unwrap_err().exit_code(), 2);
    }
}
