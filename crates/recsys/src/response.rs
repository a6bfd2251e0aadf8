//! What the lengths, variances and answers of sampled responses tell (Figures 2 and 3 of the paper).
//!
//! Numbers in, numbers out: which responses they are of, and what is drawn from them, is the caller's.

/// Responses of similar length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthGroup {
    /// Shortest, in tokens.
    pub shortest: u32,
    /// Longest, in tokens.
    pub longest: u32,
    /// How many.
    pub responses: usize,
    /// Share of right answers.
    pub accuracy: f64,
}

/// Responses, given as (tokens, whether the answer was right), sorted by length and cut into `groups` parts of equal size,
/// as far as their number allows; of equal lengths the earlier response comes first. No empty groups.
pub fn by_length(responses: &[(u32, bool)], groups: usize) -> Vec<LengthGroup> {
    let mut sorted = responses.to_vec();
    sorted.sort_by_key(|(tokens, _)| *tokens);
    let edge = |group: usize| sorted.len() * group / groups.max(1);
    (0..groups)
        .filter_map(|group| {
            let part = sorted.get(edge(group)..edge(group + 1))?;
            let (first, last) = (part.first()?, part.last()?);
            Some(LengthGroup { shortest: first.0, longest: last.0, responses: part.len(), accuracy: accuracy(part) })
        })
        .collect()
}

/// Samples, given as (variance of the predictions, whether the mean was right), sorted by variance; the accuracy of each
/// window of `window` of them, as (mean variance, accuracy). At most `points` windows, evenly spread, the first and the last
/// among them; none of fewer samples than a window.
pub fn moving_accuracy(samples: &[(f64, bool)], window: usize, points: usize) -> Vec<(f64, f64)> {
    if window == 0 || points == 0 || samples.len() < window {
        return Vec::new();
    }
    let mut sorted = samples.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let last = sorted.len() - window;
    let count = points.min(last + 1);
    (0..count)
        .map(|i| {
            let start = (last * i).checked_div(count - 1).unwrap_or(0);
            let part = &sorted[start..start + window];
            (part.iter().map(|s| s.0).sum::<f64>() / window as f64, accuracy(part))
        })
        .collect()
}

fn accuracy<T>(part: &[(T, bool)]) -> f64 {
    part.iter().filter(|(_, right)| *right).count() as f64 / part.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_length_by_hand() {
        let responses = [(9, true), (1, false), (5, true), (3, true), (7, false), (5, false), (2, true)];
        // Sorted: 1n 2y | 3y 5y | 5n 7n 9y.
        let found = by_length(&responses, 3);
        let group = |shortest, longest, responses, accuracy| LengthGroup { shortest, longest, responses, accuracy };
        assert_eq!(found, [group(1, 2, 2, 0.5), group(3, 5, 2, 1.0), group(5, 9, 3, 1.0 / 3.0)]);
        assert_eq!(by_length(&responses[..2], 5).len(), 2, "no empty groups");
        assert!(by_length(&[], 5).is_empty());
    }

    #[test]
    fn windows_over_the_variance_by_hand() {
        let samples = [(0.3, false), (0.1, true), (0.2, true), (0.4, false)];
        let found = moving_accuracy(&samples, 2, 10);
        let expected = [(0.15, 1.0), (0.25, 0.5), (0.35, 0.0)];
        assert_eq!(found.len(), 3);
        for (found, expected) in found.iter().zip(expected) {
            assert!((found.0 - expected.0).abs() < 1e-12 && found.1 == expected.1, "{found:?}");
        }
        assert_eq!(moving_accuracy(&samples, 2, 2).len(), 2);
        assert_eq!(moving_accuracy(&samples, 4, 5).len(), 1);
        assert!(moving_accuracy(&samples, 5, 5).is_empty());
    }
}
