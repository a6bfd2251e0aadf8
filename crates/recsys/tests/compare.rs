//! Comparisons against scikit-learn, numpy's bootstrap and DeLong's formula; and how often a gate is right.

use rallrec_core::{
    rng::row_rng,
    spec::gate::Measure::{self, Accuracy, Auc, LogLoss},
};
use rallrec_recsys::{
    compare::{Answer, Paired, Question, Verdict, answers},
    draw::{below, normal, unit},
};
use serde_json::Value;

const ALL: [Measure; 3] = [Auc, LogLoss, Accuracy];

#[test]
fn differences_and_their_errors_are_those_of_numpy_and_of_delong() {
    let case: Value = serde_json::from_str(include_str!("fixtures/compare.json")).unwrap();
    let list = |name: &str| case[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    let labels: Vec<i8> = list("label").iter().map(|v| *v as i8).collect();
    let users: Vec<i32> = list("user").iter().map(|v| *v as i32).collect();
    let [old, new] = ["old", "new"].map(|p| list(p).iter().map(|p| Some(*p as f32)).collect::<Vec<_>>());
    for (units, name) in [(None, "error_by_samples"), (Some(&users[..]), "error_by_users")] {
        let paired = Paired::new(&labels, &old, &new, units).unwrap();
        assert_eq!(paired.drawn(), if units.is_some() { 60 } else { 1200 });
        let resampled = paired.resample(4000, 1);
        for (i, measure) in ALL.into_iter().enumerate() {
            let found = resampled.difference(measure, 0.0, 0.95);
            let (change, error) = (found.new.unwrap() - found.old.unwrap(), found.standard_error.unwrap());
            assert!((change - list("difference")[i]).abs() < 1e-12, "{measure}: {change}");
            // Two bootstraps of 4,000 draws each: 1.1 % of noise in each error.
            let expected = list(name)[i];
            assert!((error / expected - 1.0).abs() < 0.05, "{measure} {name}: {error} for {expected}");
        }
        let error = resampled.difference(Auc, 0.0, 0.95).standard_error.unwrap();
        let delong = case["error_of_auc_by_delong"].as_f64().unwrap();
        assert!(units.is_some() || (error / delong - 1.0).abs() < 0.04, "{error} for DeLong's {delong}");
    }
}

/// Two systems' predictions for the same samples of users, whose AUCs are known exactly.
///
/// A system's score of a sample is strength x (label - 1/2) + an error of variance 1, so its AUC is
/// Phi(strength / sqrt 2). The error has three parts: `PER_USER` of its variance is the user's and the same in both systems;
/// of the rest, the share `shared` is the sample's and the same in both (it is hard, whoever predicts it), and what is
/// left is each system's own. So errors of two systems correlate by PER_USER + (1 - PER_USER) x shared, and those of
/// two samples of one user by PER_USER. p is the probability of a like given the score: both systems are calibrated.
struct World {
    samples: usize,
    users: usize,
    shared: f64,
}

const PER_USER: f64 = 0.1;
/// Strengths whose AUCs are 0.75 and 0.73: sqrt 2 x the normal quantile.
const AUC_75: f64 = 0.953_872_552_4;
const AUC_73: f64 = 0.866_626_4;

type Drawn = (Vec<i8>, Vec<i32>, [Vec<Option<f32>>; 2]);

impl World {
    fn draw(&self, seed: u64, strengths: [f64; 2]) -> Drawn {
        let mut rng = row_rng(seed, "test.world", 0, 0);
        let mut noise = Vec::new();
        normal(&mut rng, 1.0, self.users + 3 * self.samples, &mut noise);
        let (of_users, of_samples) = noise.split_at(self.users);
        let (mut labels, mut users, mut p) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
        for noise in of_samples.chunks(3) {
            let user = below(&mut rng, self.users);
            let like = unit(&mut rng) < 0.5;
            let common = PER_USER.sqrt() * f64::from(of_users[user])
                + ((1.0 - PER_USER) * self.shared).sqrt() * f64::from(noise[0]);
            for (system, strength) in strengths.into_iter().enumerate() {
                let own = ((1.0 - PER_USER) * (1.0 - self.shared)).sqrt() * f64::from(noise[1 + system]);
                let score = strength * (if like { 0.5 } else { -0.5 }) + common + own;
                p[system].push(Some((1.0 / (1.0 + (-strength * score).exp())) as f32));
            }
            labels.push(i8::from(like));
            users.push(user as i32);
        }
        (labels, users, p)
    }
}

/// A gate that asks for AUC, log loss and accuracy of one system, as docs/compare.md recommends for 10,000 samples.
fn ask(world: &World, seed: u64, strengths: [f64; 2]) -> [Answer; 3] {
    let (labels, _, [old, new]) = world.draw(seed, strengths);
    let paired = Paired::new(&labels, &old, &new, None).expect("the rows are paired");
    let resampled = paired.resample(600, seed);
    let questions = ALL.map(|measure| Question {
        difference: resampled.difference(measure, 0.005, 0.99),
        tolerated: 0.005,
        detect: 0.02,
    });
    answers(&questions, 0.99, 0.9).try_into().expect("one answer a question")
}

/// Of 100 test sets of 10,000 samples, in how many anything is called a regression, and in how many the AUC is.
fn alarms(strengths: [f64; 2], first_seed: u64) -> (usize, usize) {
    // Errors that correlate by 0.82; two trainings of one model share more (docs/compare.md).
    let world = World { samples: 10_000, users: 200, shared: 0.8 };
    let drawn: Vec<_> = (first_seed..first_seed + 100).map(|seed| ask(&world, seed, strengths)).collect();
    let regression = |answer: &Answer| answer.verdict == Verdict::Regression;
    (drawn.iter().filter(|a| a.iter().any(regression)).count(), drawn.iter().filter(|a| regression(&a[0])).count())
}

#[test]
fn a_regression_of_two_points_is_found_and_none_where_nothing_changed() {
    let (_, found) = alarms([AUC_75, AUC_73], 1000);
    assert!(found >= 90, "the AUC's fall was found in {found} of 100 test sets");
    let (false_alarms, _) = alarms([AUC_75, AUC_75], 2000);
    assert!(false_alarms <= 2, "{false_alarms} false alarms of 100");
}

#[test]
fn a_fall_as_large_as_is_tolerated_hardly_ever_alarms() {
    // The worst case of the promise: the true fall is exactly what is tolerated. One question, 1 % each.
    let world = World { samples: 2_000, users: 100, shared: 0.8 };
    let alarmed = (0..200_u64).filter(|seed| {
        let (labels, _, [old, new]) = world.draw(3000 + seed, [AUC_75, AUC_73]);
        let paired = Paired::new(&labels, &old, &new, None).unwrap();
        let difference = paired.resample(400, *seed).difference(Auc, 0.02, 0.99);
        answers(&[Question { difference, tolerated: 0.02, detect: 0.1 }], 0.99, 0.9)[0].verdict == Verdict::Regression
    });
    let alarmed = alarmed.count();
    assert!(alarmed <= 6, "{alarmed} of 200 where 2 are expected");
}

#[test]
fn the_detectable_harm_is_found_as_often_as_is_said() {
    // At the minimum detectable harm, power 0.9: what is stated for one test set holds over others.
    let world = World { samples: 2_000, users: 100, shared: 0.8 };
    let asked = |seed: u64| {
        let (labels, _, [old, new]) = world.draw(seed, [AUC_75, AUC_73]);
        let paired = Paired::new(&labels, &old, &new, None).unwrap();
        // Tolerated so that 0.02 is what is detectable, as the first of the test sets tells.
        move |tolerated: f64| paired.resample(400, seed).difference(Auc, tolerated, 0.95)
    };
    let error = asked(4000)(0.0).standard_error.unwrap();
    let tolerated = 0.02 - (1.644_854 + 1.281_552) * error;
    let found = (4001..4201).filter(|seed| asked(*seed)(tolerated).p <= 0.05).count();
    assert!((160..=195).contains(&found), "found in {found} of 200, where 180 are expected");
}

#[test]
fn what_is_the_same_passes_without_a_draw_and_what_misses_a_prediction_is_left_out() {
    let labels = [1, 0, 1, 0, 1];
    let old = [Some(0.9), Some(0.2), None, Some(0.4), Some(0.6)];
    let mut new = old;
    (new[1], new[2]) = (Some(f32::NAN), Some(0.5));
    let paired = Paired::new(&labels, &old, &new, Some(&[7, 7, 3, 3, 9])).unwrap();
    assert_eq!((paired.samples(), paired.drawn()), (3, 3), "rows 0, 3 and 4 have both");
    let difference = paired.resample(2000, 1).difference(Auc, 0.0, 0.99);
    assert_eq!((difference.harm, difference.standard_error, difference.p), (Some(0.0), Some(0.0), 1.0));
    let answer = &answers(&[Question { difference, tolerated: 0.0, detect: 0.01 }], 0.99, 0.9)[0];
    assert_eq!((answer.verdict, answer.detectable), (Verdict::Pass, Some(0.0)));
}

#[test]
fn where_a_metric_is_not_defined_nothing_can_be_told() {
    let (old, new) = ([Some(0.9), Some(0.8)], [Some(0.1), Some(0.2)]);
    let paired = Paired::new(&[1, 1], &old, &new, None).unwrap();
    let difference = paired.resample(200, 1).difference(Auc, 0.0, 0.9);
    assert_eq!((difference.old, difference.harm, difference.p), (None, None, 1.0));
    let asked = Question { difference, tolerated: 0.0, detect: 0.01 };
    assert_eq!(answers(&[asked], 0.9, 0.9)[0].verdict, Verdict::TooFew);
    assert!(Paired::new(&[1], &old, &new, None).is_err());
    assert!(Paired::new(&[1, 2], &old, &new, None).is_err());
}

#[test]
fn the_two_sided_p_value_by_hand() {
    // Every resampling of these samples has the old log loss below the new one: the rarer side has none.
    let labels = [1, 0, 1, 0];
    let (old, new) = ([0.9, 0.1, 0.8, 0.2].map(Some), [0.6, 0.4, 0.6, 0.4].map(Some));
    let p = |old: &[Option<f32>], new: &[Option<f32>]| {
        Paired::new(&labels, old, new, None).expect("right columns").resample(999, 7).two_sided(LogLoss)
    };
    assert_eq!(p(&old, &new), Some(2.0 / 1000.0));
    assert_eq!(p(&new, &old), Some(2.0 / 1000.0), "it has no side");
    assert_eq!(p(&old, &old), Some(1.0), "the same to the bit");
    // Better for half of the samples, as much worse for the other half.
    let mixed = [0.9, 0.4, 0.6, 0.1].map(Some);
    let swapped = [0.6, 0.1, 0.9, 0.4].map(Some);
    assert!(p(&mixed, &swapped).is_some_and(|p| p > 0.5));
}
