//! `sample`: some samples at random (METHOD section 9).

use crate::{Columns, InputReader, OutputWriter, Stage, StageContext, StageError, columns::Table};
use arrow_array::{RecordBatch, UInt32Array};
use arrow_select::take::take_record_batch;
use rallrec_core::{params::SampleParams, rng::row_rng, task::Progress};

impl Stage for SampleParams {
    fn run(
        &self,
        context: &StageContext<'_>,
        inputs: &dyn InputReader,
        output: &mut dyn OutputWriter,
    ) -> Result<(), StageError> {
        let batch = inputs.table("samples", Columns::All)?;
        let samples = Table::new("samples", &batch).i64("sample")?.to_vec();
        let kept = kept(&samples, self.count as usize, context.seed);
        let done = kept.len() as u64;
        context.progress.report(Progress { done, total: done, ..Progress::default() });
        output.write("samples", rows(&batch, kept)?)
    }
}

/// Positions of the samples that are kept: those whose own random number is smallest. So the samples of a smaller count
/// are among those of a larger one, and whether one is kept does not depend on the order.
fn kept(samples: &[i64], count: usize, seed: u64) -> Vec<u32> {
    let draw = |sample: i64| -> u64 {
        let mut rng = row_rng(seed, "sample", sample.cast_unsigned(), 0);
        rand_chacha::rand_core::Rng::next_u64(&mut rng)
    };
    let mut drawn: Vec<(u64, u32)> = samples.iter().map(|&sample| draw(sample)).zip(0..).collect();
    drawn.sort_unstable();
    let mut kept: Vec<u32> = drawn.into_iter().take(count).map(|(_, row)| row).collect();
    kept.sort_unstable();
    kept
}

fn rows(batch: &RecordBatch, kept: Vec<u32>) -> Result<RecordBatch, StageError> {
    take_record_batch(batch, &UInt32Array::from(kept)).map_err(|e| StageError::Invalid(format!("input samples: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_samples_are_among_more() {
        let samples: Vec<i64> = (0..1000).map(|i| 7 * i).collect();
        let (few, more) = (kept(&samples, 50, 42), kept(&samples, 200, 42));
        assert_eq!((few.len(), more.len()), (50, 200));
        assert!(few.iter().all(|row| more.contains(row)));
        assert!(more.is_sorted());
        assert_ne!(kept(&samples, 50, 43), few);
        assert_eq!(kept(&samples, 5000, 42).len(), 1000);
        let mean = more.iter().map(|&row| f64::from(row)).sum::<f64>() / 200.0;
        assert!((mean - 500.0).abs() < 80.0, "{mean}");
    }
}
