//! Keys and values on a CUDA device, and the attention over them.
//!
//! Both lie in one buffer each, in parts: one layer of one page, \[kv heads, PAGE, head width\]. A page of all layers is
//! as many parts in a row; a passing page is one. The buffers grow by half, with a copy.
//!
//! Prompts in 16-bit floats are attended on tensor cores ([`rallrec_kernels::tiles`]), and everything else without them:
//! prompts in 32 bits, and decoding, which waits for memory.

use super::{Shared, Table, contiguous, cubes, floats, passing, tensor, vectors};
use crate::{
    attention_plan::{Items, Plan, TileTokens},
    config::ModelConfig,
    kv::{Keep, PAGE, PageId},
    ops::{Cache, HeadWeights, Segment, StepAttention},
};
use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::{prelude::CubeDim, server::Handle};
use rallrec_kernels::{
    PLANE,
    attention::{self, Tile},
    norm,
    rotary::{self, Heads},
    tiles,
};
use std::sync::Arc;

/// Planes of a cube for few query rows, and for many.
const FEW_PLANES: usize = 4;
const MANY_PLANES: usize = 8;
/// Query rows of a plane: their sums fill half of a unit's registers at a head width of 128.
const ROWS: usize = 8;
/// Planes of a cube that rotates: heads go round them.
const ROTATE_PLANES: u32 = 8;
/// Units of a cube that copies a part.
const COPY_UNITS: u32 = 256;
/// Parts of a buffer at first.
const FIRST_PARTS: usize = 256;

/// The pages of a pool.
pub(super) struct CudaCache {
    config: ModelConfig,
    shared: Arc<Shared>,
    /// Of each page: twice its first part, plus 1 when it has a part for every layer.
    codes: Vec<u32>,
    /// Parts given to pages.
    parts: usize,
    store: Option<Store>,
}

/// Buffers for some parts.
struct Store {
    keys: Handle,
    values: Handle,
    capacity: usize,
    /// Parts that pages had when it was made or last used: those that may hold numbers.
    filled: usize,
}

impl CudaCache {
    pub(super) fn new(config: ModelConfig, shared: Arc<Shared>) -> Self {
        Self { config, shared, codes: Vec::new(), parts: 0, store: None }
    }

    fn part_numbers(&self) -> usize {
        self.config.kv_width() * PAGE
    }

    fn code(&self, page: PageId) -> u32 {
        self.codes[page.0]
    }

    /// Buffers with room for all parts.
    fn reserve(&mut self) {
        let capacity = self.store.as_ref().map_or(0, |store| store.capacity);
        if self.parts > capacity {
            let capacity = self.parts.max(capacity + capacity / 2).next_multiple_of(FIRST_PARTS);
            let bytes = capacity * self.part_numbers() * self.shared.dtype.size();
            // One after the other: each old buffer, which may be an eighth of the device's memory, goes back first.
            let (keys, values) = match self.store.take() {
                Some(Store { keys, values, filled, .. }) => {
                    let keys = self.grow(keys, bytes, filled);
                    (keys, self.grow(values, bytes, filled))
                }
                None => (self.buffer(bytes), self.buffer(bytes)),
            };
            self.store = Some(Store { keys, values, capacity, filled: self.parts });
        }
        let store = self.store.as_mut().expect("no pool is read that has no pages");
        store.filled = self.parts;
    }

    fn buffer(&self, bytes: usize) -> Handle {
        passing(&self.shared.client, || self.shared.client.empty(bytes))
    }

    /// A buffer of some bytes that begins with the parts of another.
    fn grow(&self, old: Handle, bytes: usize, parts: usize) -> Handle {
        let new = self.buffer(bytes);
        self.move_parts(&old, &new, parts);
        new
    }

    fn move_parts(&self, from: &Handle, to: &Handle, count: usize) {
        let size = self.part_numbers();
        let ids = self.shared.upload(&(0..count as u32).collect::<Vec<_>>());
        // SAFETY: both buffers have `count` parts, and one cube copies each.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            norm::gather_rows::launch_unchecked(
                &self.shared.client,
                cubes(count, 1),
                CubeDim::new_1d(COPY_UNITS),
                floats(from, count * size / 4),
                ids.argument(),
                floats(to, count * size / 4),
                size / 4,
                [self.shared.element(); 2],
            );
        }
    }
}

/// The cubes' work for runs of tokens, for chunks that sequences share, and for chunks of one sequence.
pub(super) fn tiles(config: &ModelConfig, tensor_cores: bool) -> [Tile; 3] {
    let ModelConfig { heads: queries, kv_heads: keys, head_width: width, .. } = *config;
    let group = config.group();
    let tile = |planes, rows, whole| Tile { queries, keys, width, planes, rows, whole };
    let rows = |planes: usize| ROWS.max(group.div_ceil(planes));
    [
        // A plane has a fragment's rows, and a token's heads have to fit into a cube. Few planes: by their registers two
        // cubes then share a processor, and one computes while the other waits for its page.
        if tensor_cores {
            tile(FEW_PLANES.max(group.div_ceil(tiles::ROWS)), tiles::ROWS, true)
        } else {
            tile(MANY_PLANES, rows(MANY_PLANES), true)
        },
        tile(FEW_PLANES, rows(FEW_PLANES), false),
        tile(FEW_PLANES, group.div_ceil(FEW_PLANES), false),
    ]
}

/// Most shared memory that a cube of them takes, in bytes.
pub(super) fn shared_bytes(config: &ModelConfig, tensor_cores: bool) -> usize {
    let [whole, shared, alone] = tiles(config, tensor_cores);
    let whole = if tensor_cores { tiles::shared_bytes(&whole) } else { whole.shared_bytes() };
    whole.max(shared.shared_bytes()).max(alone.shared_bytes())
}

impl Cache for CudaCache {
    fn add(&mut self, keep: Keep) {
        let all = keep == Keep::AllLayers;
        self.codes.push(2 * self.parts as u32 + u32::from(all));
        self.parts += if all { self.config.layers } else { 1 };
    }

    fn copy(&mut self, from: PageId, to: PageId) {
        let (from, to) = (self.code(from) >> 1, self.code(to) >> 1);
        let (layers, size) = (self.config.layers, self.part_numbers());
        self.reserve();
        let store = self.store.as_ref().expect("just reserved");
        for buffer in [&store.keys, &store.values] {
            // SAFETY: both pages have a part for every layer, in the buffer, and do not overlap.
            #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
            unsafe {
                attention::copy_parts::launch_unchecked(
                    &self.shared.client,
                    cubes(layers, 1),
                    CubeDim::new_1d(COPY_UNITS),
                    floats(buffer, layers * size / 4),
                    from,
                    to,
                    size / 4,
                    self.shared.element(),
                );
            }
        }
    }

    fn page_bytes(&self) -> u64 {
        (2 * self.config.layers * self.part_numbers() * self.shared.dtype.size()) as u64
    }

    fn step<'a>(&'a mut self, segments: &'a [Segment<'a>]) -> Box<dyn StepAttention + 'a> {
        self.reserve();
        let tiles = tiles(&self.config, self.shared.tensor_cores);
        let tokens = TileTokens { whole: tiles[0].tokens(), shared: tiles[1].tokens() };
        let plan = Plan::new(segments, |page| self.code(page), self.config.sliding_window, tokens);
        let shared = &self.shared;
        let partials = plan.partials.max(1) * self.config.heads;
        let lists = [(&plan.whole, tiles[0]), (&plan.shared, tiles[1]), (&plan.alone, tiles[2])];
        let lists = lists.into_iter().filter(|(items, _)| items.count > 0);
        let all: Vec<&[u32]> = [&plan.places[..], &plan.ranges]
            .into_iter()
            .chain(lists.clone().flat_map(|(items, _)| [&items.items[..], &items.tokens, &items.pages]))
            .collect();
        let mut tables = shared.upload_all(&all).into_iter();
        let mut table = || tables.next().expect("one for each list");
        let (places, ranges) = (table(), table());
        let launch = |(items, tile): (&Items, Tile)| Launch {
            count: items.count,
            tile,
            items: table(),
            tokens: table(),
            pages: table(),
        };
        Box::new(CudaStep {
            rows: plan.places.len() / 2,
            places,
            launches: lists.map(launch).collect(),
            ranges: (ranges.length > 0).then_some(ranges),
            sums: shared.client.empty(4 * partials * self.config.head_width),
            stats: shared.client.empty(4 * partials * 2),
            partials,
            cache: self,
        })
    }
}

/// One forward pass's tables and room for partial results, on the device.
struct CudaStep<'a> {
    cache: &'a CudaCache,
    rows: usize,
    places: Table,
    launches: Vec<Launch>,
    ranges: Option<Table>,
    sums: Handle,
    stats: Handle,
    partials: usize,
}

struct Launch {
    count: usize,
    tile: Tile,
    items: Table,
    tokens: Table,
    pages: Table,
}

impl CudaStep<'_> {
    fn store(&self) -> &Store {
        self.cache.store.as_ref().expect("reserved when the step began")
    }

    fn cache_buffer(&self, handle: &Handle, vector: usize) -> cubecl::prelude::BufferArg {
        floats(handle, self.store().capacity * self.cache.part_numbers() / vector)
    }

    /// Turned queries \[rows, heads * head width\]; keys and values go to the cache.
    fn rotate(&self, projections: CubeTensor, layer: usize, weights: &HeadWeights) -> CubeTensor {
        let CudaCache { config, shared, .. } = self.cache;
        let heads = Heads {
            queries: config.heads,
            keys: config.kv_heads,
            width: config.head_width,
            bias: !weights.bias.values().is_empty(),
            norm: config.qk_norm,
        };
        let queries = shared.empty(self.rows, config.query_width(), shared.dtype);
        let vector = |tensor: CubeTensor| floats(&tensor.handle, tensor.meta.shape().num_elements());
        let store = self.store();
        // SAFETY: the projections have the rows of the step's tokens, every token's page and slot is its own, and
        // weights that the model does not have are not read.
        #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
        unsafe {
            rotary::rotate_and_store::launch_unchecked(
                &shared.client,
                cubes(self.rows, 1),
                CubeDim::new_1d(ROTATE_PLANES * PLANE),
                vector(projections),
                vector(contiguous(weights.bias.tensor())),
                vector(contiguous(weights.query_norm.tensor())),
                vector(contiguous(weights.key_norm.tensor())),
                floats(&shared.rotation, shared.rotation_floats),
                self.places.argument(),
                vector(queries.clone()),
                self.cache_buffer(&store.keys, 1),
                self.cache_buffer(&store.values, 1),
                layer as u32,
                config.norm_epsilon,
                heads,
                ROTATE_PLANES,
                shared.element(),
            );
        }
        queries
    }
}

impl StepAttention for CudaStep<'_> {
    fn attend(&mut self, projections: Tensor<2>, layer: usize, heads: &HeadWeights) -> Tensor<2> {
        let queries = self.rotate(contiguous(projections), layer, heads);
        let CudaCache { config, shared, .. } = self.cache;
        let store = self.store();
        let out = shared.empty(self.rows, config.query_width(), shared.dtype);
        let (scale, window) = (1.0 / (config.head_width as f32).sqrt(), config.sliding_window.unwrap_or(0) as u32);
        let out_buffer = || floats(&out.handle, self.rows * config.query_width());
        let sums = || floats(&self.sums, self.partials * config.head_width);
        let stats = || floats(&self.stats, 2 * self.partials);
        for Launch { count, tile, items, tokens, pages } in &self.launches {
            if tile.whole && shared.tensor_cores {
                // SAFETY: as below.
                #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
                unsafe {
                    tiles::attend_tiles::launch_unchecked(
                        &shared.client,
                        cubes(*count, config.kv_heads),
                        CubeDim::new_1d(tile.planes as u32 * PLANE),
                        floats(&queries.handle, self.rows * config.query_width() / 8),
                        self.cache_buffer(&store.keys, 8),
                        self.cache_buffer(&store.values, 8),
                        items.argument(),
                        tokens.argument(),
                        pages.argument(),
                        floats(&out.handle, self.rows * config.query_width() / 8),
                        layer as u32,
                        scale,
                        window,
                        *tile,
                        shared.element(),
                    );
                }
                continue;
            }
            // SAFETY: the plan's tables name rows of the queries, parts of the cache that are filled up to the tokens'
            // positions, and a partial result of its own for every token and chunk.
            #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
            unsafe {
                attention::attend::launch_unchecked(
                    &shared.client,
                    cubes(*count, config.kv_heads),
                    CubeDim::new_1d(tile.planes as u32 * PLANE),
                    vectors(queries.clone()),
                    self.cache_buffer(&store.keys, 4),
                    self.cache_buffer(&store.values, 4),
                    items.argument(),
                    tokens.argument(),
                    pages.argument(),
                    out_buffer(),
                    sums(),
                    stats(),
                    layer as u32,
                    scale,
                    window,
                    *tile,
                    shared.element(),
                );
            }
        }
        if let Some(ranges) = &self.ranges {
            // SAFETY: every range names partial results that the launches above have written.
            #[expect(unsafe_code, reason = "a kernel launch without checks of every access")]
            unsafe {
                attention::combine::launch_unchecked(
                    &shared.client,
                    cubes(ranges.length / attention::RANGE, config.heads),
                    CubeDim::new_1d(config.head_width as u32),
                    sums(),
                    stats(),
                    ranges.argument(),
                    out_buffer(),
                    config.heads,
                    config.head_width,
                    shared.element(),
                );
            }
        }
        tensor(out)
    }
}
