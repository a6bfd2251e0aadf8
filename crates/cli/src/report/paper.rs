//! The paper's tables: which systems they compare, what it published for them (arXiv 2503.20430), and the stages of our
//! pipelines (`pipelines/parts/systems.yaml`) that are these systems.

use serde::Serialize;

/// What the paper published, as it is in its tables.
const PUBLISHED: &str = include_str!("paper.csv");

/// A data set of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) enum PaperSet {
    MovieLens,
    BookCrossing,
    Amazon,
}

impl PaperSet {
    /// Its name in the paper's tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::MovieLens => "MovieLens",
            Self::BookCrossing => "BookCrossing",
            Self::Amazon => "Amazon",
        }
    }

    /// Users, items and samples of the paper's Table 1. For BookCrossing a sample is a user; its ratings are 227,735. The
    /// paper counts MovieLens' items by the largest identifier.
    pub(super) fn counts(self) -> [u64; 3] {
        match self {
            Self::MovieLens => [6_040, 3_952, 970_009],
            Self::BookCrossing => [8_723, 3_547, 8_723],
            Self::Amazon => [14_386, 5_000, 141_829],
        }
    }

    /// Test samples that the paper evaluates.
    pub(super) fn evaluated(self) -> u64 {
        if self == Self::BookCrossing { 873 } else { 10_000 }
    }

    /// Samples a window of Figure 3.
    pub(super) fn window(self) -> usize {
        if self == Self::BookCrossing { 500 } else { 1_000 }
    }
}

/// A row of a table: a system by the paper's name, and the stage that is it.
pub(super) struct Row {
    /// Name of the stage.
    pub(super) stage: &'static str,
    /// System and variant as [`published`] knows them.
    pub(super) paper: (&'static str, &'static str),
    /// What it is called here.
    pub(super) label: &'static str,
}

/// A table of systems.
pub(super) struct Table {
    /// `table_4`.
    pub(super) id: &'static str,
    /// Number in the paper; 0 for a figure's numbers.
    pub(super) number: u32,
    /// What stands above it.
    pub(super) title: &'static str,
    /// Its rows.
    pub(super) rows: &'static [Row],
    /// Stage that the others are tested against.
    pub(super) reference: &'static str,
}

const fn row(stage: &'static str, label: &'static str, paper: (&'static str, &'static str)) -> Row {
    Row { stage, paper, label }
}

const fn classic(stage: &'static str, label: &'static str) -> Row {
    row(stage, label, (label, "default"))
}

const R1: &str = "DeepSeek-R1-Distill-Llama-8B";

/// Tables 2 to 6, and Figure 8 as one.
pub(super) const TABLES: &[Table] = &[
    Table {
        id: "table_2",
        number: 2,
        title: "Table 2. General and reasoning model, zero-shot",
        rows: &[
            row("zero-shot", "General model", ("Llama-3.1-8B-Instruct", "zero-shot")),
            row("reasoning-zero-shot", "Reasoning model", (R1, "zero-shot")),
        ],
        reference: "zero-shot",
    },
    Table {
        id: "table_3",
        number: 3,
        title: "Table 3. The reasoning model without and with retrieval",
        rows: &[
            row("reasoning-zero-shot", "Without retrieval", (R1, "without retrieval")),
            row("reasoning-retrieval", "With retrieval", (R1, "with retrieval")),
        ],
        reference: "reasoning-zero-shot",
    },
    Table {
        id: "table_4",
        number: 4,
        title: "Table 4. All systems",
        rows: &[
            classic("deepfm", "DeepFM"),
            classic("xdeepfm", "xDeepFM"),
            classic("dcn", "DCN"),
            classic("autoint", "AutoInt"),
            row("zero-shot", "Zero-shot", ("Llama3.1", "zero-shot")),
            row("rella", "ReLLa", ("ReLLa", "default")),
            row("hybrid-score", "Hybrid-Score", ("Hybrid-Score", "default")),
            row("rallrec", "RALLRec", ("RALLRec", "default")),
            row("rallrec-plus", "RALLRec+", ("RALLRec+", "default")),
        ],
        reference: "rallrec",
    },
    Table {
        id: "table_5",
        number: 5,
        title: "Table 5. Knowledge-injected prompting (KP) and consistency-based merging (CM)",
        rows: &[
            row("no-kp-no-cm", "Neither", ("RALLRec+", "no KP no CM")),
            row("cm-only", "CM only", ("RALLRec+", "CM only")),
            row("kp-only", "KP only", ("RALLRec+", "KP only")),
            row("rallrec-plus", "KP and CM", ("RALLRec+", "KP and CM")),
        ],
        reference: "no-kp-no-cm",
    },
    Table {
        id: "table_6",
        number: 6,
        title: "Table 6. Item embeddings for retrieval",
        rows: &[
            row("text-based", "Text", ("RALLRec", "text-based")),
            row("id-based", "ID", ("RALLRec", "ID-based")),
            row("concat-without-ssl", "Both, without alignment", ("RALLRec", "concat without SSL")),
            row("rallrec", "Both, with alignment", ("RALLRec", "concat with SSL")),
        ],
        reference: "text-based",
    },
    Table {
        id: "figure_8",
        number: 0,
        title: "Figure 8. Strategies of retrieval",
        rows: &[
            row("retrieval-simple", "Most recent", ("", "")),
            row("retrieval-sequential", "Most similar, in time order", ("", "")),
            row("retrieval-high", "Most similar first", ("", "")),
            row("rallrec", "Reranked", ("", "")),
        ],
        reference: "retrieval-simple",
    },
];

/// What the paper published of a system on a data set.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Published {
    pub(super) auc: f64,
    pub(super) logloss: f64,
    pub(super) accuracy: f64,
}

/// The published values of a row, if there are any.
pub(super) fn published(table: u32, row: &Row, set: PaperSet) -> Option<Published> {
    let found = PUBLISHED.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>()).find(|cells| {
        cells.get(..4).is_some_and(|c| c[0].parse() == Ok(table) && (c[1], c[2]) == row.paper && c[3] == set.name())
    })?;
    let number = |at: usize| found.get(at)?.parse().ok();
    Some(Published { auc: number(4)?, logloss: number(5)?, accuracy: number(6)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_a_table_is_published_for_every_set() {
        for table in TABLES.iter().filter(|table| table.number > 0) {
            assert!(table.rows.iter().any(|row| row.stage == table.reference), "{}", table.id);
            for row in table.rows {
                for set in [PaperSet::MovieLens, PaperSet::BookCrossing, PaperSet::Amazon] {
                    assert!(
                        published(table.number, row, set).is_some(),
                        "{}: {} on {}",
                        table.id,
                        row.stage,
                        set.name()
                    );
                }
            }
        }
        let found = published(4, &TABLES[2].rows[8], PaperSet::MovieLens);
        assert_eq!(found, Some(Published { auc: 0.7663, logloss: 0.6118, accuracy: 0.6948 }));
    }
}
