//! A training's whole state as bytes: how far it is, the embeddings of layer 0, and the optimiser's moments.
//!
//! Little-endian: a word, epoch u32, step u64, loss so far f32, steps of the optimiser i32, losses (count u64, f64 each), then
//! three matrices of the model's size in f32. Whose state it is, is said by where it is kept.

use super::{LightGcn, Position};
use crate::training::{Adam, values};
use burn::tensor::{Tensor, TensorData};

const WORD: &[u8; 8] = b"lightgcn";

pub(super) fn write(at: &Position, model: &LightGcn) -> Vec<u8> {
    let (mean, square, steps) = model.optimiser.state();
    let base = values(model.base.clone());
    let mut out = Vec::with_capacity(64 + 8 * at.losses.len() + 12 * base.len());
    out.extend_from_slice(WORD);
    out.extend(at.epoch.to_le_bytes());
    out.extend((at.step as u64).to_le_bytes());
    out.extend(at.total.to_le_bytes());
    out.extend(steps.to_le_bytes());
    out.extend((at.losses.len() as u64).to_le_bytes());
    at.losses.iter().for_each(|loss| out.extend(loss.to_le_bytes()));
    for matrix in [&base, &mean, &square] {
        matrix.iter().for_each(|value| out.extend(value.to_le_bytes()));
    }
    out
}

/// Puts a state into a model of the same size; `None`, and the model as it was, when it is not one.
pub(super) fn read(bytes: &[u8], model: &mut LightGcn) -> Option<Position> {
    let mut rest = bytes.strip_prefix(WORD)?;
    let epoch = u32::from_le_bytes(take(&mut rest)?);
    let step = usize::try_from(u64::from_le_bytes(take(&mut rest)?)).ok()?;
    let total = f32::from_le_bytes(take(&mut rest)?);
    let steps = i32::from_le_bytes(take(&mut rest)?);
    let count = u64::from_le_bytes(take(&mut rest)?);
    let mut losses = Vec::new();
    for _ in 0..count {
        losses.push(f64::from_le_bytes(take(&mut rest)?));
    }
    let shape = model.base.dims();
    let size = shape[0] * shape[1];
    let (floats, odd) = rest.as_chunks::<4>();
    if floats.len() != 3 * size || !odd.is_empty() {
        return None;
    }
    let mut matrices = floats.chunks(size.max(1)).map(|part| part.iter().map(|b| f32::from_le_bytes(*b)).collect());
    let (base, mean, square): (Vec<f32>, _, _) = (matrices.next()?, matrices.next()?, matrices.next()?);
    model.base = Tensor::from_data(TensorData::new(base, shape), &model.device);
    model.optimiser = Adam::restored(&model.base, (mean, square, steps));
    Some(Position { epoch, step, total, losses })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}
