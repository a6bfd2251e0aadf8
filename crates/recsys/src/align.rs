//! Alignment of text with collaborative embeddings (eq. 5, 6): a two-layer MLP trained by symmetric InfoNCE.
//!
//! Only items with a collaborative embedding train; the result is for all items, which is the point: an item that
//! nobody rated gets a vector in the collaborative space from its text alone. There is no validation split and no
//! early stopping: the method trains for a fixed number of epochs.

use crate::{
    draw,
    training::{Adam, OnProgress, TrainError, TrainProgress, values},
};
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use rallrec_core::{
    params::{AlignParams, Negatives},
    rng::row_rng,
};

/// Added to squared norms, so that a zero row has similarity 0 and a gradient.
const NORM_EPSILON: f64 = 1e-12;

/// What the alignment learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Alignment {
    /// e_ssl of every item [items, dim], row after row.
    pub embeddings: Vec<f32>,
    /// Mean loss of each epoch.
    pub losses: Vec<f64>,
}

/// Trains on `text` [items, text_dim] and `collaborative` [items, dim], both row after row. An item whose
/// collaborative row is all zeros does not train. The callback is asked after every step.
///
/// # Errors
/// When the matrices do not have `items` rows, fewer than two items can train, the loss diverges, or the callback
/// says stop.
pub fn train(
    items: usize,
    text: &[f32],
    collaborative: &[f32],
    params: &AlignParams,
    seed: u64,
    device: &Device,
    on_progress: &mut OnProgress<'_>,
) -> Result<Alignment, TrainError> {
    let text_dim = width("e_text", text, items)?;
    let dim = width("e_colla", collaborative, items)?;
    let mut trained: Vec<u32> =
        (0..items as u32).filter(|&i| collaborative[i as usize * dim..][..dim].iter().any(|&v| v != 0.0)).collect();
    if trained.len() < 2 {
        let reason = format!("{} items have a collaborative embedding; it takes two", trained.len());
        return Err(TrainError::Empty { model: "alignment", reason });
    }
    let weights = Weights::initial(text_dim, params.hidden as usize, dim, seed);
    let mut model = Aligner::new([text, collaborative], items, &trained, weights, params, device);
    let mut losses = Vec::with_capacity(params.epochs as usize);
    for epoch in 1..=params.epochs {
        trained.sort_unstable();
        draw::shuffle(&mut row_rng(seed, "align.order", u64::from(epoch), 0), &mut trained);
        let batches = batches(&trained, params.batch_size as usize);
        let mut total = 0.0;
        for (done, batch) in batches.iter().enumerate() {
            total += f64::from(model.step(batch).into_scalar::<f32>()) * batch.len() as f64;
            let (step, steps, loss) = (done + 1, batches.len(), losses.last().copied());
            if !on_progress(&TrainProgress { epoch, epochs: params.epochs, step, steps, loss }) {
                return Err(TrainError::Stopped { epoch });
            }
        }
        let loss = total / trained.len() as f64;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { model: "alignment", epoch, loss });
        }
        losses.push(loss);
    }
    Ok(Alignment { embeddings: model.embeddings(), losses })
}

/// Columns of a matrix with `items` rows.
fn width(what: &'static str, matrix: &[f32], items: usize) -> Result<usize, TrainError> {
    let columns = matrix.len().checked_div(items).unwrap_or(0);
    TrainError::check_len(what, matrix.len(), items * columns.max(1))?;
    Ok(columns)
}

/// Runs of `size` items; a last one of a single item, which has nothing to be told apart from, joins the one before.
fn batches(items: &[u32], size: usize) -> Vec<&[u32]> {
    let full = items.len() / size;
    let cut = if full > 0 && items.len() % size == 1 { (full - 1) * size } else { full * size };
    let (head, tail) = items.split_at(cut);
    head.chunks(size).chain((!tail.is_empty()).then_some(tail)).collect()
}

/// Weights of the MLP, row after row: y = relu(x `w1` + `b1`) `w2` + `b2`.
#[derive(Clone, Debug)]
pub struct Weights {
    /// [text_dim, hidden].
    pub w1: Vec<f32>,
    /// [hidden].
    pub b1: Vec<f32>,
    /// [hidden, dim].
    pub w2: Vec<f32>,
    /// [dim].
    pub b2: Vec<f32>,
}

impl Weights {
    /// First weights: uniform within 1 / sqrt(inputs of the layer), as PyTorch's linear layer.
    pub fn initial(text_dim: usize, hidden: usize, dim: usize, seed: u64) -> Self {
        let layer = |number: u64, inputs: usize, outputs: usize| {
            let bound = 1.0 / (inputs as f32).sqrt();
            let mut rng = row_rng(seed, "align.init", number, 0);
            let (mut w, mut b) = (Vec::new(), Vec::new());
            draw::symmetric(&mut rng, bound, inputs * outputs, &mut w);
            draw::symmetric(&mut rng, bound, outputs, &mut b);
            (w, b)
        };
        let ((w1, b1), (w2, b2)) = (layer(0, text_dim, hidden), layer(1, hidden, dim));
        Self { w1, b1, w2, b2 }
    }
}

/// A parameter with its optimiser.
struct Learned {
    value: Tensor<2>,
    optimiser: Adam<2>,
}

/// The MLP in training.
pub struct Aligner {
    /// [items, text_dim].
    text: Tensor<2>,
    /// Unit rows [items, dim].
    target: Tensor<2>,
    /// Items that train: the candidates under [`Negatives::All`].
    trained: Vec<u32>,
    /// `w1` [text_dim, hidden], `b1` [1, hidden], `w2` [hidden, dim], `b2` [1, dim].
    learned: [Learned; 4],
    temperature: f64,
    learning_rate: f64,
    negatives: Negatives,
    device: Device,
}

impl Aligner {
    /// A model on `[text, collaborative]`, each with `items` rows, of which `trained` train.
    ///
    /// # Panics
    /// When the sizes of matrices and weights do not belong together.
    pub fn new(
        [text, collaborative]: [&[f32]; 2],
        items: usize,
        trained: &[u32],
        weights: Weights,
        params: &AlignParams,
        device: &Device,
    ) -> Self {
        let (hidden, dim) = (weights.b1.len(), weights.b2.len());
        let text_dim = weights.w1.len() / hidden;
        let matrix = |v: Vec<f32>, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(v, shape), device);
        let learned = |v: Vec<f32>, shape| {
            let value = matrix(v, shape);
            Learned { optimiser: Adam::new(&value), value }
        };
        Self {
            text: matrix(text.to_vec(), [items, text_dim]),
            target: unit_rows(matrix(collaborative.to_vec(), [items, dim])),
            trained: trained.to_vec(),
            learned: [
                learned(weights.w1, [text_dim, hidden]),
                learned(weights.b1, [1, hidden]),
                learned(weights.w2, [hidden, dim]),
                learned(weights.b2, [1, dim]),
            ],
            temperature: params.temperature,
            learning_rate: params.learning_rate,
            negatives: params.negatives,
            device: device.clone(),
        }
    }

    /// One step of Adam on these items. Gives the loss before the step [1].
    pub fn step(&mut self, batch: &[u32]) -> Tensor<1> {
        let parameters: [Tensor<2>; 4] =
            self.learned.each_ref().map(|l| Tensor::from_inner(l.value.clone()).require_grad());
        let loss = match self.negatives {
            Negatives::InBatch => {
                let (z, c) = self.pair(batch, &parameters);
                let similarity = z.matmul(c.transpose()) / self.temperature;
                (own_place_loss(similarity.clone()) + own_place_loss(similarity.transpose())) / 2.0
            }
            Negatives::All => self.loss_over_all(batch, &parameters),
        };
        let gradients = loss.backward();
        for (learned, parameter) in self.learned.iter_mut().zip(&parameters) {
            let gradient = parameter.grad(&gradients).expect("the loss depends on every weight");
            learned.value = learned.optimiser.step(learned.value.clone(), gradient, self.learning_rate);
        }
        loss.inner()
    }

    /// e_ssl of every item, row after row.
    pub fn embeddings(&self) -> Vec<f32> {
        values(mlp(self.text.clone(), &self.learned.each_ref().map(|l| l.value.clone())))
    }

    /// Unit rows of these items: the MLP's and the collaborative ones.
    fn pair(&self, items: &[u32], parameters: &[Tensor<2>; 4]) -> (Tensor<2>, Tensor<2>) {
        let index: Vec<i32> = items.iter().map(|&i| i as i32).collect();
        let index = Tensor::<1, Int>::from_data(TensorData::new(index, [items.len()]), &self.device);
        let text = Tensor::from_inner(self.text.clone().select(0, index.clone()));
        (unit_rows(mlp(text, parameters)), Tensor::from_inner(self.target.clone().select(0, index)))
    }

    /// The batch's items told apart from all items that train. Those of the batch come first among the candidates, so
    /// that item r's own place is column r.
    fn loss_over_all(&self, batch: &[u32], parameters: &[Tensor<2>; 4]) -> Tensor<1> {
        let mut in_batch = vec![false; self.text.dims()[0]];
        batch.iter().for_each(|&i| in_batch[i as usize] = true);
        let others = self.trained.iter().copied().filter(|&i| !in_batch[i as usize]);
        let candidates: Vec<u32> = batch.iter().copied().chain(others).collect();
        let (all_z, all_c) = self.pair(&candidates, parameters);
        let own = |all: &Tensor<2>| all.clone().narrow(0, 0, batch.len());
        let text_to_item = own(&all_z).matmul(all_c.clone().transpose()) / self.temperature;
        let item_to_text = own(&all_c).matmul(all_z.transpose()) / self.temperature;
        (own_place_loss(text_to_item) + own_place_loss(item_to_text)) / 2.0
    }
}

/// relu(x w1 + b1) w2 + b2.
fn mlp(x: Tensor<2>, [w1, b1, w2, b2]: &[Tensor<2>; 4]) -> Tensor<2> {
    let hidden = activation::relu(x.matmul(w1.clone()) + b1.clone());
    hidden.matmul(w2.clone()) + b2.clone()
}

/// Each row divided by its norm.
fn unit_rows(x: Tensor<2>) -> Tensor<2> {
    let norm = ((x.clone() * x.clone()).sum_dim(1) + NORM_EPSILON).sqrt();
    x / norm
}

/// Mean over rows r of -log softmax(row r)[r], for logits [rows, at least rows].
fn own_place_loss(logits: Tensor<2>) -> Tensor<1> {
    let [rows, columns] = logits.dims();
    let eye = Tensor::<2>::eye(rows, &logits.device());
    let own = activation::log_softmax(logits, 1).slice([0..rows, 0..rows.min(columns)]) * eye;
    -own.sum() / rows as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_last_item_joins_the_batch_before() {
        let lens =
            |n: u32, size| batches(&(0..n).collect::<Vec<_>>(), size).iter().map(|b| b.len()).collect::<Vec<_>>();
        assert_eq!(lens(7, 3), [3, 4]);
        assert_eq!(lens(8, 3), [3, 3, 2]);
        assert_eq!(lens(6, 3), [3, 3]);
        assert_eq!(lens(2, 3), [2]);
        assert_eq!(lens(4, 3), [4]);
    }

    #[test]
    fn refuses_when_nothing_can_train() {
        let (text, colla) = ([1.0, 2.0, 3.0], [0.0, 0.0, 1.0]);
        let error = train(3, &text, &colla, &AlignParams::default(), 1, &Device::flex(), &mut |_| true)
            .expect_err("one item with a collaborative embedding");
        assert!(error.to_string().contains("1 items have a collaborative embedding"), "{error}");
    }
}
