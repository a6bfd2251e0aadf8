//! What every layout gives: items, users and ratings with rows for identifiers, in the words of the prompts.

use super::{
    DatasetError,
    source::{Catalogue, Line, RawRating, Source, Tolerance},
};
use std::path::PathBuf;

/// An item's fields.
pub(super) struct Item {
    pub(super) title: String,
    pub(super) genres: Vec<String>,
    pub(super) year: Option<i32>,
    /// Texts of [`Raw::item_fields`].
    pub(super) further: Vec<String>,
}

/// A user's fields.
#[derive(Default)]
pub(super) struct User {
    pub(super) gender: String,
    pub(super) age: String,
    pub(super) job: String,
    pub(super) zip: String,
    /// Texts of [`Raw::user_fields`].
    pub(super) further: Vec<String>,
}

/// One rating, and the line that it stands on.
#[derive(Clone, Copy)]
pub(super) struct Rating {
    pub(super) user: i32,
    pub(super) item: i32,
    pub(super) rating: f32,
    pub(super) timestamp: i64,
    pub(super) line: u32,
}

/// A data set as its files tell it.
pub(super) struct Raw {
    pub(super) items: Catalogue<Item>,
    pub(super) users: Catalogue<User>,
    pub(super) ratings: Vec<Rating>,
    pub(super) ratings_file: PathBuf,
    /// Whether ratings have times. Without, their timestamps mean nothing.
    pub(super) timed: bool,
    /// Names of further texts of items.
    pub(super) item_fields: Vec<String>,
    /// Names of further texts of users.
    pub(super) user_fields: Vec<String>,
    /// What users do with items.
    pub(super) verb: String,
}

impl Raw {
    /// Reads the ratings of `source` after its first `skip` lines; films are watched.
    pub(super) fn new(
        items: Catalogue<Item>,
        users: Catalogue<User>,
        source: &Source,
        skip: usize,
        tolerance: &mut Tolerance<'_>,
        parse: impl for<'a> Fn(&Line<'a>) -> Result<RawRating<'a>, DatasetError>,
    ) -> Result<Self, DatasetError> {
        let mut ratings = Vec::with_capacity(source.line_estimate());
        for line in source.lines().skip(skip) {
            let read = parse(&line).and_then(|raw| {
                let user = users.row(raw.user, line.file, line.number)?;
                let item = items.row(raw.item, line.file, line.number)?;
                let number =
                    u32::try_from(line.number).map_err(|_| line.malformed("fewer than 2^32 lines", line.text))?;
                Ok(Rating { user, item, rating: raw.rating, timestamp: raw.timestamp, line: number })
            });
            ratings.extend(tolerance.keep(read)?);
        }
        let mut raw = Self {
            items,
            users,
            ratings,
            ratings_file: source.path.clone(),
            timed: true,
            item_fields: Vec::new(),
            user_fields: Vec::new(),
            verb: "watched".into(),
        };
        raw.single_pairs(tolerance)?;
        Ok(raw)
    }

    /// A (user, item) pair must come once; the later of two is a bad row.
    pub(super) fn single_pairs(&mut self, tolerance: &mut Tolerance<'_>) -> Result<(), DatasetError> {
        let mut pairs: Vec<_> = self.ratings.iter().map(|r| (r.user, r.item, r.line)).collect();
        pairs.sort_unstable();
        let twice = pairs.windows(2).filter(|w| (w[0].0, w[0].1) == (w[1].0, w[1].1));
        let mut twice: Vec<_> = twice.map(|w| (w[1].2, w[0].2, w[1].0, w[1].1)).collect();
        twice.sort_unstable();
        for &(line, first, user, item) in &twice {
            let (user, item) = (&self.users.entries[user as usize].id, &self.items.entries[item as usize].id);
            tolerance.keep::<()>(Err(DatasetError::Duplicate {
                file: self.ratings_file.clone(),
                line: line as usize,
                what: format!("a rating of item {item:?} by user {user:?}"),
                first: first as usize,
            }))?;
        }
        self.ratings.retain(|r| twice.binary_search_by_key(&r.line, |t| t.0).is_err());
        Ok(())
    }
}

/// Age buckets of MovieLens-1M (METHOD section 1): first age of each, and its name.
const AGES: [(u32, &str); 7] =
    [(0, "under 18"), (18, "18-24"), (25, "25-34"), (35, "35-44"), (45, "45-49"), (50, "50-55"), (56, "above 56")];

/// Bucket of an age in years. MovieLens-1M's codes are the first age of their bucket (1 for the youngest), so they
/// need no table of their own.
pub(super) fn age_bucket(text: &str, line: &Line<'_>) -> Result<String, DatasetError> {
    let age = text.parse::<u32>().ok().filter(|age| *age <= 130);
    let age = age.ok_or_else(|| line.malformed("an age in years, at most 130", text))?;
    Ok(age_bucket_of(age).into())
}

/// Bucket of an age in years.
pub(super) fn age_bucket_of(age: u32) -> &'static str {
    AGES.iter().rev().find(|(from, _)| age >= *from).map_or("", |(_, name)| name)
}

/// MovieLens-1M's occupations, by code.
const JOBS: [&str; 21] = [
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
];

/// Words of a MovieLens-1M occupation code.
pub(super) fn job_of_code(text: &str, line: &Line<'_>) -> Result<String, DatasetError> {
    let job = text.parse::<usize>().ok().and_then(|code| JOBS.get(code));
    let job = job.ok_or_else(|| line.malformed(format!("an occupation code from 0 to {}", JOBS.len() - 1), text))?;
    Ok((*job).into())
}

/// `F` or `M` in words.
pub(super) fn gender(text: &str, line: &Line<'_>) -> Result<String, DatasetError> {
    match text {
        "F" => Ok("female".into()),
        "M" => Ok("male".into()),
        _ => Err(line.malformed("gender F or M", text)),
    }
}

/// A title that is not empty, without blanks round it.
pub(super) fn title(text: &str, line: &Line<'_>) -> Result<String, DatasetError> {
    match text.trim() {
        "" => Err(line.malformed("a title", line.text)),
        title => Ok(title.into()),
    }
}

/// The last four digits in round brackets: `1995` of `The Land Before Time III (1995) (V)`.
pub(super) fn year_of_title(title: &str) -> Option<i32> {
    title.rsplit('(').find_map(|part| part.split_once(')').and_then(|(year, _)| four_digits(year)))
}

/// A year written as exactly four digits.
pub(super) fn four_digits(text: &str) -> Option<i32> {
    (text.len() == 4 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn years_are_the_last_four_digits_in_brackets() {
        assert_eq!(year_of_title("Toy Story (1995)"), Some(1995));
        assert_eq!(year_of_title("The Land Before Time III (1995) (V)"), Some(1995));
        assert_eq!(year_of_title("Seven (Se7en) (1995)"), Some(1995));
        assert_eq!(year_of_title("Nineteen (1984) Ways (2001)"), Some(2001));
        assert_eq!(year_of_title("unknown"), None);
        assert_eq!(year_of_title("(199)"), None);
        assert_eq!(year_of_title("(+199"), None);
    }

    #[test]
    fn buckets_hold_codes_and_ages() {
        let line = Line { file: Path::new("u"), number: 1, text: "" };
        let bucket = |age: &str| age_bucket(age, &line).unwrap();
        assert_eq!(["1", "17", "18", "24", "25"].map(bucket), ["under 18", "under 18", "18-24", "18-24", "25-34"]);
        assert_eq!(
            ["45", "49", "50", "55", "56", "73"].map(bucket),
            ["45-49", "45-49", "50-55", "50-55", "above 56", "above 56"]
        );
        assert!(age_bucket("131", &line).is_err());
        assert!(age_bucket("-1", &line).is_err());
    }
}
