//! An adapter as products take it: transposed, scaled, its targets beside one another.

use super::{Adapter, Place, Product};
use crate::{
    config::ModelConfig,
    host::matrix,
    tune::rows::{Rows, narrow_product, short_product},
};
use burn::tensor::{DType, Device, Tensor};

/// An adapter on a device, ready to add to a block's products.
pub(crate) struct LowRanks {
    layers: Vec<[Option<LowRank>; 4]>,
}

/// What an adapter adds to one product.
struct LowRank {
    /// A of its targets beside one another, \[inputs, targets * rank\].
    down: Tensor<2>,
    /// Scaled B of each target in its columns, zeros elsewhere, \[targets * rank, outputs\].
    up: Tensor<2>,
}

impl LowRanks {
    pub(crate) fn new(adapter: &Adapter, config: &ModelConfig, device: &Device) -> Self {
        let layers = (0..config.layers).map(|layer| {
            Product::ALL.map(|product| {
                let places: Vec<&Place> = adapter
                    .places
                    .iter()
                    .filter(|p| p.layer == layer && product.targets().contains(&p.target))
                    .collect();
                let inputs = places.first()?.inputs;
                Some(LowRank {
                    down: matrix(transposed_down(adapter, &places), inputs, device),
                    up: matrix(
                        scaled_up(adapter, product, &places, config),
                        places.len() * adapter.settings.rank,
                        device,
                    ),
                })
            })
        });
        Self { layers: layers.collect() }
    }

    /// `y`, which is a product of `x`, with the adapter's part.
    pub(crate) fn add(&self, layer: usize, product: Product, x: Tensor<2>, y: Tensor<2>) -> Tensor<2> {
        let low = self.layers.get(layer).and_then(|products| products[product as usize].as_ref());
        let Some(low) = low else { return y };
        let device = y.device();
        // The adapter is in 32 bits everywhere; on CUDA activations are narrower.
        let x = if x.dtype() == DType::F32 { x } else { x.cast(DType::F32) };
        let added = short_product(narrow_product(x, low.down.clone()), low.up.clone());
        let added = if y.dtype() == DType::F32 { added } else { added.cast(y.dtype()) };
        Rows::of(y).add(added).into_tensor(&device)
    }
}

/// Transposed A of some projections with the same inputs, beside one another: \[inputs, targets * rank\].
pub(crate) fn transposed_down(adapter: &Adapter, places: &[&Place]) -> Vec<f32> {
    let below: Vec<f32> = places.iter().flat_map(|place| &adapter.values[place.down.clone()]).copied().collect();
    transposed(&below, places.first().map_or(1, |place| place.inputs))
}

/// Transposed and scaled B of some projections of one product, each in its own rows and columns:
/// \[targets * rank, outputs of the product\].
pub(crate) fn scaled_up(adapter: &Adapter, product: Product, places: &[&Place], config: &ModelConfig) -> Vec<f32> {
    let (rank, scale, width) = (adapter.settings.rank, adapter.settings.scale(), product.width(config));
    let mut out = vec![0.0; places.len() * rank * width];
    for (number, place) in places.iter().enumerate() {
        let first = product.columns(place.target, config).start;
        for (output, row) in adapter.values[place.up.clone()].chunks_exact(rank).enumerate() {
            for (r, &value) in row.iter().enumerate() {
                out[(number * rank + r) * width + first + output] = value * scale;
            }
        }
    }
    out
}

/// Rows of `width` numbers as columns.
pub(crate) fn transposed(rows: &[f32], width: usize) -> Vec<f32> {
    (0..width).flat_map(|column| rows.iter().skip(column).step_by(width).copied()).collect()
}
