//! A pass through attention, [`crate::ops::StepAttention`]: rotation, the write to the cache, runs of tokens, chunks that
//! samples share, and a copied page.

use super::{
    Emitted, Scalar, assert_close, emitted,
    shapes::{CHUNKS, KEYS, QUERIES, TILES, WHOLE, WIDTH},
    values, words,
};
use crate::{
    attention_plan::{Items, Plan, TileTokens},
    config::{ModelConfig, RopeScaling},
    host::{RopeTable, floats, matrix, read},
    host_cache::HostCache,
    kv::{Keep, PAGE, PageId},
    matrix::tests::{le_bytes, uniform},
    ops::{Cache, HeadWeights, Segment, Vector},
};
use burn::tensor::Device;
use half::bf16;
use std::sync::Arc;

const LAYERS: usize = 2;
const CONTEXT: usize = 256;
const EPSILON: f32 = 1e-5;
/// Pages of the test's cache. The passing one has a part for one layer only.
const PAGES: usize = 12;
const PASSING: PageId = PageId(3);

fn config(adorned: bool, window: Option<usize>) -> ModelConfig {
    ModelConfig {
        vocabulary: 1,
        hidden: 1,
        feed_forward: 1,
        layers: LAYERS,
        heads: QUERIES,
        kv_heads: KEYS,
        head_width: WIDTH,
        context: CONTEXT,
        rope_base: 1e4,
        rope: RopeScaling::None,
        norm_epsilon: EPSILON,
        qkv_bias: adorned,
        qk_norm: adorned,
        sliding_window: window,
        tied_head: true,
    }
}

/// Floats as a kernel takes them.
#[derive(Clone, Copy, PartialEq)]
enum Float {
    F32,
    Bf16,
}

impl Float {
    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => le_bytes(values),
            Self::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        }
    }

    fn values(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => values(bytes),
            Self::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        }
    }

    /// How far a kernel may be off, of the largest value: in 16 bits queries, keys, values, the softmax's weights and the
    /// result are rounded, each to 8 bits.
    fn bound(self) -> f32 {
        match self {
            Self::F32 => 2e-6,
            Self::Bf16 => 1.0 / 100.0,
        }
    }
}

/// A cache and the kernels that fill and read it.
struct Emulated<'a> {
    kernels: &'a Emitted,
    float: Float,
    adorned: bool,
    window: Option<usize>,
    rotation: Vec<f32>,
    keys: Vec<u8>,
    values: Vec<u8>,
}

/// The kernels' order in the program.
const NAMES: [&str; 6] = ["rotate_plain", "rotate_bias_norm", "attend_whole", "attend_chunks", "combine", "copy_parts"];

fn code(page: PageId) -> u32 {
    2 * (page.0 * LAYERS) as u32 + u32::from(page != PASSING)
}

fn tokens_of((planes, rows): (usize, usize)) -> usize {
    planes * rows / (QUERIES / KEYS)
}

impl Emulated<'_> {
    fn copy(&mut self, from: PageId, to: PageId) {
        for buffer in [&mut self.keys, &mut self.values] {
            let scalars = [from, to].map(|page| Scalar::U32(code(page) >> 1));
            self.kernels.launch(5, [LAYERS as u32, 1], &scalars, &mut [buffer]);
        }
    }

    fn attend(&mut self, segments: &[Segment<'_>], projected: &[f32], layer: usize, heads: &HeadWeights) -> Vec<f32> {
        let whole = if self.float == Float::F32 { WHOLE } else { TILES };
        let tokens = TileTokens { whole: tokens_of(whole), shared: tokens_of(CHUNKS) };
        let plan = Plan::new(segments, code, self.window, tokens);
        let rows = plan.places.len() / 2;
        let mut queries = self.float.bytes(&vec![f32::NAN; rows * QUERIES * WIDTH]);
        let layer = Scalar::U32(layer as u32);
        self.kernels.launch(
            usize::from(self.adorned),
            [rows as u32, 1],
            &[layer, Scalar::F32(EPSILON)],
            &mut [
                &mut self.float.bytes(projected),
                &mut le_bytes(heads.bias.values()),
                &mut le_bytes(heads.query_norm.values()),
                &mut le_bytes(heads.key_norm.values()),
                &mut le_bytes(&self.rotation),
                &mut words(&plan.places),
                &mut queries,
                &mut self.keys,
                &mut self.values,
            ],
        );
        let mut out = self.float.bytes(&vec![f32::NAN; rows * QUERIES * WIDTH]);
        let partials = plan.partials.max(1) * QUERIES;
        let mut sums = le_bytes(&vec![f32::NAN; partials * WIDTH]);
        let mut stats = le_bytes(&vec![f32::NAN; partials * 2]);
        let scalars = [layer, Scalar::F32(1.0 / (WIDTH as f32).sqrt()), Scalar::U32(self.window.unwrap_or(0) as u32)];
        let mut launch = |kernel: usize, items: &Items| {
            if items.count == 0 {
                return;
            }
            let mut tables = [&items.items, &items.tokens, &items.pages].map(|table| words(table));
            let [items_, tokens, pages] = &mut tables;
            let mut buffers = vec![&mut queries, &mut self.keys, &mut self.values, items_, tokens, pages, &mut out];
            if kernel < NAMES.len() {
                buffers.extend([&mut sums, &mut stats]);
            }
            self.kernels.launch(kernel, [items.count as u32, KEYS as u32], &scalars, &mut buffers);
        };
        launch(if self.float == Float::F32 { 2 } else { NAMES.len() }, &plan.whole);
        launch(3, &plan.shared);
        launch(3, &plan.alone);
        if !plan.ranges.is_empty() {
            let grid = [(plan.ranges.len() / 3) as u32, QUERIES as u32];
            self.kernels.launch(4, grid, &[], &mut [&mut sums, &mut stats, &mut words(&plan.ranges), &mut out]);
        }
        self.float.values(&out)
    }

    /// Keys \[head width, PAGE\] and values \[PAGE, head width\] of one head in a page, as [`HostCache::head`] has them.
    fn head(&self, page: PageId, layer: usize, head: usize) -> (Vec<f32>, Vec<f32>) {
        let part = (code(page) >> 1) as usize + if page == PASSING { 0 } else { layer };
        let size = PAGE * WIDTH;
        let at = (part * KEYS + head) * size..(part * KEYS + head + 1) * size;
        let [keys, values] = [&self.keys, &self.values].map(|bytes| self.float.values(bytes)[at.clone()].to_vec());
        let turned = (0..WIDTH).flat_map(|d| keys[d..].iter().step_by(WIDTH).copied()).collect();
        (turned, values)
    }
}

/// Sequences by their pages: new tokens begin at a position.
type Batch = Vec<(Vec<PageId>, usize, usize)>;

fn pages<const N: usize>(ids: [usize; N]) -> Vec<PageId> {
    ids.map(PageId).to_vec()
}

/// A prompt of five pages, a short one in a page for one layer at a time, another; then three samples of the first and
/// one of the other; then samples beside a sequence that goes on by several tokens.
fn batches() -> [Batch; 3] {
    let samples = || [pages([0, 1, 2, 4, 7]), pages([0, 1, 2, 4, 8]), pages([0, 1, 2, 4, 9])];
    let step = |count| samples().into_iter().map(move |pages| (pages, 150, count));
    [
        vec![(pages([0, 1, 2, 4, 7]), 0, 150), (vec![PASSING], 0, 20), (pages([5, 6]), 0, 33)],
        step(1).chain([(pages([5, 6]), 33, 1)]).collect(),
        vec![
            (pages([0, 1, 2, 4, 8]), 151, 1),
            (pages([5, 6]), 34, 7),
            (pages([0, 1, 2, 4, 7]), 151, 4),
            (pages([0, 1, 2, 4, 9]), 151, 1),
        ],
    ]
}

fn compare(float: Float, adorned: bool, window: Option<usize>) {
    let suffix = if float == Float::F32 { "f32" } else { "bf16" };
    let mut names: Vec<String> = NAMES.map(|name| format!("{name}_{suffix}")).into();
    names.extend((float == Float::Bf16).then(|| "attend_tiles_bf16".into()));
    let program = format!("twins_attention_{suffix}_{adorned}");
    let kernels = emitted(&program, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let config = config(adorned, window);
    let rope = Arc::new(RopeTable::new(config.rope_frequencies(), CONTEXT));
    let device = Device::flex();
    let adornment =
        |length: usize, seed| Vector::new(if adorned { uniform(length, seed) } else { Vec::new() }, &device);
    let width = (QUERIES + 2 * KEYS) * WIDTH;
    let heads =
        HeadWeights { bias: adornment(width, 1), query_norm: adornment(WIDTH, 2), key_norm: adornment(WIDTH, 3) };
    let numbers = vec![0.0; PAGES * LAYERS * KEYS * PAGE * WIDTH];
    let mut cuda = Emulated {
        kernels: &kernels,
        float,
        adorned,
        window,
        rotation: rope.rows(CONTEXT).collect(),
        keys: float.bytes(&numbers),
        values: float.bytes(&numbers),
    };
    let mut cpu = HostCache::new(config, rope);
    for page in 0..PAGES {
        cpu.add(if PageId(page) == PASSING { Keep::CurrentLayer } else { Keep::AllLayers });
    }
    for (number, batch) in batches().into_iter().enumerate() {
        let segments: Vec<_> =
            batch.iter().map(|(pages, start, count)| Segment { pages, start: *start, count: *count }).collect();
        let rows: usize = segments.iter().map(|segment| segment.count).sum();
        for layer in 0..LAYERS {
            let projected = uniform(rows * width, (10 * number + layer) as u64);
            let projected: Vec<f32> =
                float.values(&float.bytes(&projected.iter().map(|x| 4.0 * x).collect::<Vec<_>>()));
            let got = cuda.attend(&segments, &projected, layer, &heads);
            let want = read(cpu.step(&segments).attend(matrix(projected, rows, &device), layer, &heads));
            let what = format!("{suffix}, adorned {adorned}, window {window:?}, batch {number}, layer {layer}");
            assert_close(&what, &got, floats(&want), float.bound());
            for (page, head) in (0..PAGES).flat_map(|page| (0..KEYS).map(move |head| (PageId(page), head))) {
                let (keys, values) = cuda.head(page, layer, head);
                let want = cpu.head(page, layer, head);
                let size = float.bound().max(1e-5);
                assert_close(&format!("{what}, keys of {page:?}"), &keys, want.0, size);
                assert_close(&format!("{what}, values of {page:?}"), &values, want.1, size);
            }
        }
        if number == 0 {
            for to in [8, 9].map(PageId) {
                cuda.copy(PageId(7), to);
                cpu.copy(PageId(7), to);
            }
        }
    }
}

#[test]
fn attention_and_its_cache_in_32_bits() {
    compare(Float::F32, false, None);
    compare(Float::F32, true, Some(40));
}

#[test]
fn attention_and_its_cache_on_tensor_cores() {
    compare(Float::Bf16, false, Some(70));
    compare(Float::Bf16, true, None);
}
