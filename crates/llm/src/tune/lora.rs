//! An adapter's part of one product while it is trained: forward, gradients of A and B, dropout.
//!
//! Gradients are summed sample after sample, each by itself, so that they do not depend on which samples are computed
//! together. Dropout is drawn by (seed, sample, epoch, layer, projection, position) and drawn again on the way back.

use super::{
    draw,
    rows::{HostRows, Rows, narrow_product, product, product_back, short_product},
};
use crate::{
    adapter::{Adapter, Place, Product, scaled_up, transposed, transposed_down},
    config::ModelConfig,
    host::{floats, matrix, read},
    matrix::Matrix,
};
use burn::tensor::{Device, Tensor};
use rallrec_core::rng::row_rng;
use rayon::prelude::*;
use std::ops::Range;

/// Positions whose dropout one generator draws.
const DRAW_POSITIONS: usize = 16;

/// One sample's place in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// Identity of the sample, which its random numbers follow from.
    pub(crate) sample: u64,
    /// Its rows.
    pub(crate) rows: Range<usize>,
}

/// Which random numbers are drawn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws {
    pub(crate) seed: u64,
    pub(crate) epoch: u64,
}

/// The adapter's part of one product of one layer.
pub(crate) struct TrainedProduct<'a> {
    places: Vec<&'a Place>,
    /// Transposed A of each target, \[inputs, rank\].
    down: Vec<Tensor<2>>,
    /// Scaled B of each target in its columns, \[targets * rank, outputs\].
    up: Tensor<2>,
    /// The same, transposed.
    up_back: Tensor<2>,
    first_columns: Vec<usize>,
    rank: usize,
    scale: f32,
    dropout: f64,
    draws: Draws,
}

impl<'a> TrainedProduct<'a> {
    /// `None` where the product has no adapter.
    pub(crate) fn new(
        adapter: &'a Adapter,
        config: &ModelConfig,
        layer: usize,
        product: Product,
        draws: Draws,
        device: &Device,
    ) -> Option<Self> {
        let ours = |place: &&Place| place.layer == layer && product.targets().contains(&place.target);
        let places: Vec<&Place> = adapter.places().iter().filter(ours).collect();
        if places.is_empty() {
            return None;
        }
        let settings = adapter.settings();
        let down = |place: &&Place| matrix(transposed_down(adapter, &[*place]), place.inputs, device);
        let (up, width) = (scaled_up(adapter, product, &places, config), product.width(config));
        let up_back = matrix(transposed(&up, width), width, device);
        Some(Self {
            down: places.iter().map(down).collect(),
            up: matrix(up, places.len() * settings.rank, device),
            up_back,
            first_columns: places.iter().map(|place| product.columns(place.target, config).start).collect(),
            places,
            rank: settings.rank,
            scale: settings.scale(),
            dropout: settings.dropout,
            draws,
        })
    }

    /// What each target reads: `x`, with dropout if there is some. Gives `x` back as a tensor.
    fn inputs(&self, x: Rows, sequences: &[Sequence], device: &Device) -> (Tensor<2>, Vec<Tensor<2>>) {
        if self.dropout == 0.0 {
            let x = x.into_tensor(device);
            return (x.clone(), vec![x; self.places.len()]);
        }
        let dropped = |place: &&Place| match &x {
            Rows::Host(host) => {
                let mut out = host.clone();
                self.drop_in_place(place, &mut out, sequences);
                Rows::Host(out).into_tensor(device)
            }
            Rows::Device(x) => x.clone() * self.kept(place, x.dims()[0], sequences, device),
        };
        let inputs = self.places.iter().map(dropped).collect();
        (x.into_tensor(device), inputs)
    }

    /// Multiplies rows with what dropout leaves of them.
    fn drop_in_place(&self, place: &Place, rows: &mut HostRows, sequences: &[Sequence]) {
        let width = rows.width();
        let stream = format!("tune.dropout.{}", place.target);
        let draws = self.draws;
        for sequence in sequences {
            let part = &mut rows.values_mut()[sequence.rows.start * width..sequence.rows.end * width];
            part.par_chunks_mut(DRAW_POSITIONS * width).enumerate().for_each(|(block, values)| {
                let draw = (draws.epoch << 40) | ((place.layer as u64) << 24) | block as u64;
                let mut rng = row_rng(draws.seed, &stream, sequence.sample, draw);
                draw::drop_some(&mut rng, self.dropout, values);
            });
        }
    }

    /// What inputs are multiplied with, for a device with memory of its own.
    fn kept(&self, place: &Place, rows: usize, sequences: &[Sequence], device: &Device) -> Tensor<2> {
        let mut kept = HostRows::new(vec![1.0; rows * place.inputs], place.inputs);
        self.drop_in_place(place, &mut kept, sequences);
        matrix(kept.values().to_vec(), rows, device)
    }

    /// Each target's inputs times its A, beside one another, \[rows, targets * rank\].
    fn reduced(&self, inputs: &[Tensor<2>]) -> Tensor<2> {
        let parts = inputs.iter().zip(&self.down).map(|(x, down)| narrow_product(x.clone(), down.clone()));
        Tensor::cat(parts.collect(), 1)
    }

    /// Adds the gradients of A and B to `gradients`, and gives that of the inputs where it is wanted.
    fn backward(
        &self,
        inputs: &[Tensor<2>],
        gradient: &Tensor<2>,
        sequences: &[Sequence],
        gradients: &mut [f32],
        wants_inputs: bool,
    ) -> Option<Rows> {
        let reduced = self.reduced(inputs);
        let d_reduced = narrow_product(gradient.clone(), self.up_back.clone());
        let columns = |number: usize| number * self.rank..(number + 1) * self.rank;
        for sequence in sequences {
            let rows = sequence.rows.clone();
            let d_up = narrow(&reduced, rows.clone()).transpose().matmul(narrow(gradient, rows.clone()));
            let d_up = read(d_up);
            for (number, place) in self.places.iter().enumerate() {
                self.add_up(floats(&d_up), number, place, gradients);
                let d_reduced = d_reduced.clone().slice([rows.clone(), columns(number)]);
                let d_down = read(d_reduced.transpose().matmul(narrow(&inputs[number], rows.clone())));
                add(&mut gradients[place.down.clone()], floats(&d_down));
            }
        }
        if !wants_inputs {
            return None;
        }
        let rows = gradient.dims()[0];
        let mut sum: Option<Rows> = None;
        for (number, (place, down)) in self.places.iter().zip(&self.down).enumerate() {
            let mut part = Rows::of(product_back(d_reduced.clone().slice([0..rows, columns(number)]), down.clone()));
            if self.dropout > 0.0 {
                part = match part {
                    Rows::Host(mut host) => {
                        self.drop_in_place(place, &mut host, sequences);
                        Rows::Host(host)
                    }
                    Rows::Device(part) => {
                        let kept = self.kept(place, rows, sequences, &part.device());
                        Rows::Device(part * kept)
                    }
                };
            }
            sum = Some(match sum {
                Some(sum) => sum.add(part.into_tensor(&gradient.device())),
                None => part,
            });
        }
        sum
    }

    /// Adds one target's part of \[targets * rank, outputs\] to the gradient of its B.
    fn add_up(&self, d_up: &[f32], number: usize, place: &Place, gradients: &mut [f32]) {
        let width = d_up.len() / (self.places.len() * self.rank);
        let to = &mut gradients[place.up.clone()];
        for r in 0..self.rank {
            let from = &d_up[(number * self.rank + r) * width + self.first_columns[number]..][..place.outputs];
            for (to, from) in to.iter_mut().skip(r).step_by(self.rank).zip(from) {
                *to += from * self.scale;
            }
        }
    }
}

/// A product with frozen weights, and the adapter beside it.
pub(crate) struct Projection<'a> {
    pub(crate) weights: &'a Matrix,
    pub(crate) trained: Option<TrainedProduct<'a>>,
}

impl Projection<'_> {
    /// x W, with the adapter's part.
    pub(crate) fn forward(&self, x: Rows, sequences: &[Sequence], device: &Device) -> Tensor<2> {
        let Some(trained) = &self.trained else { return product(x.into_tensor(device), self.weights) };
        let (x, inputs) = trained.inputs(x, sequences, device);
        let added = short_product(trained.reduced(&inputs), trained.up.clone());
        Rows::of(product(x, self.weights)).add(added).into_tensor(device)
    }

    /// The gradient of the inputs, where it is wanted; the adapter's are added to `gradients`. `x` makes the inputs
    /// anew, and is called only where there is an adapter.
    pub(crate) fn backward(
        &self,
        x: impl FnOnce() -> Rows,
        gradient: Tensor<2>,
        sequences: &[Sequence],
        gradients: &mut [f32],
        wants_inputs: bool,
    ) -> Option<Tensor<2>> {
        let device = gradient.device();
        let added = self.trained.as_ref().and_then(|trained| {
            let (_, inputs) = trained.inputs(x(), sequences, &device);
            trained.backward(&inputs, &gradient, sequences, gradients, wants_inputs)
        });
        if !wants_inputs {
            return None;
        }
        let through = product_back(gradient, self.weights.dense(&device));
        Some(match added {
            Some(added) => added.add(through).into_tensor(&device),
            None => through,
        })
    }

    /// Whether it has an adapter.
    pub(crate) fn is_trained(&self) -> bool {
        self.trained.is_some()
    }
}

fn narrow(tensor: &Tensor<2>, rows: Range<usize>) -> Tensor<2> {
    let width = tensor.dims()[1];
    tensor.clone().slice([rows, 0..width])
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}
