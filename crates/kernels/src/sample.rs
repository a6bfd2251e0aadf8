//! Draws the next tokens on the device, by the definition of `rallrec_llm::sampler`: temperature, then top-k, top-p
//! and min-p, then one uniform number a row, which the host gives.
//!
//! Weights exp((logit - largest) / temperature) are fixed-point numbers of 40 fractional bits. Their sums are exact, so
//! units may add them up in any order, and the vocabulary need not be sorted: the token at which a running sum from
//! the heaviest on crosses a target is found by the digits of the weights, 8 bits at a time. Sums of a digit are kept in
//! parts of 32 bits, which the hardware adds up in shared memory; with 64 bits units that meet would try again and again.

use crate::{
    PLANE,
    reduce::{cube_sum, cube_sum_u64},
};
use cubecl::prelude::*;

/// What [`sample`] gives for a row whose logits are all minus infinity, or of which one is plus infinity or no number.
pub const NO_TOKEN: u32 = u32::MAX;
/// Numbers of a row in `shapes`.
pub const SHAPE: usize = 2;
/// Numbers of a row in `limits`.
pub const LIMIT: usize = 3;
/// The weight 1.
const ONE: f32 = 1_099_511_627_776.0;
const LARGEST: f32 = 3.4e38;
/// Values of a digit.
const DIGITS: usize = 256;
/// Bits of a part of a weight, and parts.
const PART_BITS: u32 = 14;
const PARTS: usize = 3;
/// Tokens of a vocabulary at most: so many parts do not overflow 32 bits.
pub const MAX_VOCABULARY: usize = 1 << (32 - PART_BITS);

/// One token a row; one cube of `planes` planes a row, at least 8. The vocabulary has [`MAX_VOCABULARY`] tokens at most.
///
/// * `logits` \[rows, vocabulary\]; minus infinity is never drawn
/// * `shapes` \[rows, [`SHAPE`]\]: 1 / temperature, or 0 for the largest logit, the first of equals; min-p, or 0 for all
/// * `limits` \[rows, [`LIMIT`]\]: top-k, or 0 for all; top-p in units of 2^-32, or 0 for all; the uniform number in units
///   of 2^-32
/// * `tokens` \[rows\]: the token, or [`NO_TOKEN`]; `log_probabilities` \[rows\]: its logarithm in softmax(logits)
#[cube(launch_unchecked)]
pub fn sample<F: Float>(
    logits: &[F],
    shapes: &[f32],
    limits: &[u32],
    tokens: &mut [u32],
    log_probabilities: &mut [f32],
    #[comptime] vocabulary: usize,
    #[comptime] planes: u32,
    #[define(F)] _element: ElemType,
) {
    let row = CUBE_POS_X as usize;
    let units = comptime!((planes * PLANE) as usize);
    let start = row * vocabulary;
    let (largest, best) = largest_logit::<F>(logits, start, vocabulary, planes);
    let mut sum = 0.0f32;
    let mut i = UNIT_POS as usize;
    while i < vocabulary {
        sum += weight(f32::cast_from(logits[start + i]), largest, 1.0f32);
        i += units;
    }
    let sum = cube_sum(sum, planes);
    let scale = shapes[row * SHAPE];
    let mut token = best;
    // Not so if a logit is no number or plus infinity: then their sum is neither.
    let finite = sum <= LARGEST;
    if !finite {
        token = u32::cast_from(NO_TOKEN);
    }
    if token != NO_TOKEN && scale > 0.0f32 {
        let row_of = Row { start, largest, scale };
        token = draw::<F>(logits, &row_of, shapes[row * SHAPE + 1], limits, row * LIMIT, vocabulary, planes);
    }
    if UNIT_POS == 0 {
        tokens[row] = token;
        log_probabilities[row] = 0.0f32;
        if token != NO_TOKEN {
            log_probabilities[row] = f32::cast_from(logits[start + token as usize]) - largest - f32::ln(sum);
        }
    }
}

/// The logits of a row and how they become weights.
#[derive(CubeType)]
struct Row {
    start: usize,
    largest: f32,
    scale: f32,
}

/// A place in the order of weights, from the heaviest on.
#[derive(CubeType)]
struct Place {
    /// Bits of the weight.
    key: u32,
    /// Sum of the heavier weights.
    mass: u64,
    /// Number of heavier weights.
    count: u64,
}

#[cube]
fn weight(logit: f32, largest: f32, scale: f32) -> f32 {
    f32::exp((logit - largest) * scale)
}

#[cube]
fn fixed(weight: f32) -> u64 {
    u64::cast_from(weight * ONE)
}

/// `a b / 2^32`, rounded down.
#[cube]
fn times_fraction(a: u64, b: u32) -> u64 {
    let b = b as u64;
    (a >> 32u64) * b + (((a & 0xffff_ffffu64) * b) >> 32u64)
}

/// The largest logit and the first token that has it; [`NO_TOKEN`] when none is larger than minus infinity.
#[cube]
fn largest_logit<F: Float>(
    logits: &[F],
    start: usize,
    #[comptime] vocabulary: usize,
    #[comptime] planes: u32,
) -> (f32, u32) {
    let mut largest = f32::new(-LARGEST);
    let mut token = u32::cast_from(NO_TOKEN);
    let mut i = UNIT_POS as usize;
    while i < vocabulary {
        let logit = f32::cast_from(logits[start + i]);
        if logit > largest {
            largest = logit;
            token = i as u32;
        }
        i += comptime!((planes * PLANE) as usize);
    }
    let mut values = Shared::<[f32]>::new_slice(PLANE as usize);
    let mut firsts = Shared::<[u32]>::new_slice(PLANE as usize);
    let value = plane_max(largest);
    let first = plane_min(select(largest == value, token, NO_TOKEN));
    if UNIT_POS_PLANE == 0 {
        values[PLANE_POS as usize] = value;
        firsts[PLANE_POS as usize] = first;
    }
    sync_cube();
    let mut value = values[0];
    let mut first = firsts[0];
    for plane in 1..planes {
        let other = values[plane as usize];
        let other_first = firsts[plane as usize];
        if other_first != NO_TOKEN && (first == NO_TOKEN || other > value || (other == value && other_first < first)) {
            value = other;
            first = other_first;
        }
    }
    sync_cube();
    (value, first)
}

#[cube]
fn draw<F: Float>(
    logits: &[F],
    row: &Row,
    min_p: f32,
    limits: &[u32],
    limit: usize,
    #[comptime] vocabulary: usize,
    #[comptime] planes: u32,
) -> u32 {
    let units = comptime!((planes * PLANE) as usize);
    let top_k = limits[limit] as u64;
    let top_p = limits[limit + 1];
    let mut mass = 0u64;
    let mut heavy = 0u64;
    let mut count = 0u64;
    let mut i = UNIT_POS as usize;
    while i < vocabulary {
        let weight = weight(f32::cast_from(logits[row.start + i]), row.largest, row.scale);
        let exact = fixed(weight);
        mass += exact;
        heavy += select(weight >= min_p, exact, 0u64);
        count += select(exact > 0u64, 1u64, 0u64);
        i += units;
    }
    let mut mass = cube_sum_u64(mass, planes);
    let heavy = cube_sum_u64(heavy, planes);
    let count = cube_sum_u64(count, planes);

    // What may be drawn is always a beginning of the order of weights: its sum and its smallest weight describe it.
    let mut floor = 0u32;
    if top_k > 0u64 && top_k < count {
        let place = find::<F>(logits, row, top_k, true, floor, vocabulary, planes);
        mass = place.mass + (top_k - place.count) * fixed(f32::from_bits(place.key));
        floor = place.key;
    }
    if top_p > 0u32 {
        let target = times_fraction(mass, top_p) + 1u64;
        // Weights below this are together less than what top-p leaves out.
        let left_out = f32::cast_from(mass - target) / ONE;
        let negligible = f32::to_bits(left_out * (0.99f32 / vocabulary as f32));
        floor = select(floor > negligible, floor, negligible);
        let place = find::<F>(logits, row, target, false, floor, vocabulary, planes);
        let one = fixed(f32::from_bits(place.key));
        mass = place.mass + ((target - place.mass - 1u64) / one + 1u64) * one;
        floor = place.key;
    }
    if min_p > 0.0f32 {
        mass = select(heavy < mass, heavy, mass);
        let key = f32::to_bits(min_p);
        floor = select(floor > key, floor, key);
    }
    let target = times_fraction(mass, limits[limit + 2]) + 1u64;
    // Without an order of weights, that of the tokens.
    if top_p == 0u32 && (top_k == 0u64 || top_k >= count) {
        nth::<F>(logits, row, target, false, floor, vocabulary, planes)
    } else {
        let place = find::<F>(logits, row, target, false, floor, vocabulary, planes);
        let one = fixed(f32::from_bits(place.key));
        let rank = (target - 1u64 - place.mass) / one + 1u64;
        nth::<F>(logits, row, rank, true, place.key, vocabulary, planes)
    }
}

/// The place at which the sum of the weights, or their number, reaches `target`, among weights whose bits are `floor`
/// or more.
#[cube]
fn find<F: Float>(
    logits: &[F],
    row: &Row,
    target: u64,
    #[comptime] by_count: bool,
    floor: u32,
    #[comptime] vocabulary: usize,
    #[comptime] planes: u32,
) -> Place {
    let units = comptime!((planes * PLANE) as usize);
    // Of the largest digit first: parts of sums, then numbers.
    let digits = Shared::<[Atomic<u32>]>::new_slice(comptime!((PARTS + 1) * DIGITS));
    let mut key = 0u32;
    let mut mass = 0u64;
    let mut count = 0u64;
    for pass in 0..4u32 {
        let shift = 24u32 - 8u32 * pass;
        let mut i = UNIT_POS as usize;
        while i < comptime!((PARTS + 1) * DIGITS) {
            digits[i].store(0u32);
            i += units;
        }
        sync_cube();
        let mut i = UNIT_POS as usize;
        while i < vocabulary {
            let weight = weight(f32::cast_from(logits[row.start + i]), row.largest, row.scale);
            let bits = f32::to_bits(weight);
            let exact = fixed(weight);
            if exact > 0u64 && bits >= floor && ((bits >> shift) >> 8u32) == key {
                let digit = (DIGITS - 1) - ((bits >> shift) & 255u32) as usize;
                #[unroll]
                for part in 0..PARTS {
                    let bits =
                        (exact >> comptime!(part as u64 * PART_BITS as u64)) & comptime!((1u64 << PART_BITS) - 1);
                    digits[part * DIGITS + digit].fetch_add(bits as u32);
                }
                digits[comptime!(PARTS * DIGITS) + digit].fetch_add(1u32);
            }
            i += units;
        }
        sync_cube();
        let crossing = cross(&digits, target, by_count, mass, count);
        key = key * 256u32 + (255u32 - crossing.key);
        mass = crossing.mass;
        count = crossing.count;
    }
    Place { key, mass, count }
}

/// The digit (counted from the largest) at which the sum, or the number, reaches `target`, and both before it.
#[cube]
fn cross(digits: &Shared<[Atomic<u32>]>, target: u64, #[comptime] by_count: bool, mass: u64, count: u64) -> Place {
    let mut groups = Shared::<[u64]>::new_slice(2 * PLANE as usize);
    let mut found = Shared::<[u64]>::new_slice(3usize);
    let per = comptime!(DIGITS / PLANE as usize);
    let unit = UNIT_POS as usize;
    if unit < 2 * PLANE as usize {
        let mut sum = 0u64;
        for i in 0..per {
            sum += of_digit(digits, unit * per + i);
        }
        groups[unit] = sum;
    }
    sync_cube();
    if unit == 0 {
        let mut mass = mass;
        let mut count = count;
        let mut group = 0usize;
        let mut reached = select(by_count, count + groups[PLANE as usize], mass + groups[0]);
        while group < comptime!(PLANE as usize - 1) && reached < target {
            mass += groups[group];
            count += groups[group + PLANE as usize];
            group += 1;
            reached = select(by_count, count + groups[group + PLANE as usize], mass + groups[group]);
        }
        let mut digit = group * per;
        let end = digit + comptime!(per - 1);
        reached = select(by_count, count + of_digit(digits, DIGITS + digit), mass + of_digit(digits, digit));
        while digit < end && reached < target {
            mass += of_digit(digits, digit);
            count += of_digit(digits, DIGITS + digit);
            digit += 1;
            reached = select(by_count, count + of_digit(digits, DIGITS + digit), mass + of_digit(digits, digit));
        }
        found[0] = digit as u64;
        found[1] = mass;
        found[2] = count;
    }
    sync_cube();
    let place = Place { key: found[0] as u32, mass: found[1], count: found[2] };
    sync_cube();
    place
}

/// The sum of a digit; beyond [`DIGITS`] the number of the digit before that.
#[cube]
fn of_digit(digits: &Shared<[Atomic<u32>]>, place: usize) -> u64 {
    let mut sum = 0u64;
    if place < DIGITS {
        #[unroll]
        for part in 0..PARTS {
            sum += (digits[part * DIGITS + place].load() as u64) << comptime!(part as u64 * PART_BITS as u64);
        }
    } else {
        sum = digits[comptime!((PARTS - 1) * DIGITS) + place].load() as u64;
    }
    sum
}

/// The token at which a running sum in the order of tokens reaches `target`: of the number of tokens whose weight has
/// the bits `key` if `ties`, else of the weights whose bits are `key` or more.
#[cube]
fn nth<F: Float>(
    logits: &[F],
    row: &Row,
    target: u64,
    #[comptime] ties: bool,
    key: u32,
    #[comptime] vocabulary: usize,
    #[comptime] planes: u32,
) -> u32 {
    let units = comptime!((planes * PLANE) as usize);
    let chunk = comptime!(vocabulary.div_ceil((planes * PLANE) as usize));
    let mut sums = Shared::<[u64]>::new_slice(units);
    let mut groups = Shared::<[u64]>::new_slice(PLANE as usize);
    let mut found = Shared::<[u32]>::new_slice(1usize);
    let unit = UNIT_POS as usize;
    let mut sum = 0u64;
    for i in unit * chunk..unit * chunk + chunk {
        if i < vocabulary {
            sum += part::<F>(logits, row, i, ties, key);
        }
    }
    sums[unit] = sum;
    sync_cube();
    if unit < PLANE as usize {
        let mut sum = 0u64;
        for i in 0..planes {
            sum += sums[unit * planes as usize + i as usize];
        }
        groups[unit] = sum;
    }
    sync_cube();
    if unit == 0 {
        let mut before = 0u64;
        let mut group = 0usize;
        while group < comptime!(PLANE as usize - 1) && before + groups[group] < target {
            before += groups[group];
            group += 1;
        }
        let mut owner = group * planes as usize;
        let last = owner + comptime!(planes as usize - 1);
        while owner < last && before + sums[owner] < target {
            before += sums[owner];
            owner += 1;
        }
        let mut token = owner * chunk;
        let mut reached = before + part::<F>(logits, row, token, ties, key);
        while token + 1 < vocabulary && reached < target {
            token += 1;
            reached += part::<F>(logits, row, token, ties, key);
        }
        found[0] = token as u32;
    }
    sync_cube();
    found[0]
}

#[cube]
fn part<F: Float>(logits: &[F], row: &Row, token: usize, #[comptime] ties: bool, key: u32) -> u64 {
    let weight = weight(f32::cast_from(logits[row.start + token]), row.largest, row.scale);
    let bits = f32::to_bits(weight);
    if comptime!(ties) { select(bits == key, 1u64, 0u64) } else { select(bits >= key, fixed(weight), 0u64) }
}
