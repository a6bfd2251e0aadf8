//! Parameters of every stage kind: one table gives the typed struct, the validation, the defaults, the JSON
//! Schema and the key fields.
//!
//! A parameter marked `keyed` can change the stage's output and is part of its key; one marked `free`
//! (batch sizes) cannot. A third mark, `scope`, is for limits on how many rows are made: the rows themselves
//! do not change, so shards stay reusable, but whole-table consumers see another table. One marked `later` was added
//! when the kind had artifacts already: it is part of the key only where it is not the default.

use crate::{
    field::{Effect, Field, ParamValue, ValueKind, choice, params},
    kind::StageKind,
    mapping::Mapping,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

choice! {
    /// Layout of a data set's raw files.
    DatasetFormat {
        /// Told by the files that are there.
        Auto = "auto",
        /// `ratings.dat`, `movies.dat`, `users.dat`, separated by `::`.
        MovieLens1m = "movielens-1m",
        /// `u.data`, `u.item`, `u.user`.
        MovieLens100k = "movielens-100k",
        /// RecBole atomic files of MovieLens: `*.inter`, `*.item`, `*.user`.
        RecBole = "recbole",
        /// `BX-Book-Ratings.csv`, `BX-Books.csv`, `BX-Users.csv`: books and users by the paper's rule. Without times.
        BookCrossing = "bookcrossing",
        /// `Movies_and_TV.json`, `meta_Movies_and_TV.json` of Amazon's reviews (2018): items and users by the paper's rule.
        Amazon = "amazon",
        /// Any files, as `mapping` says. Need not be given beside a `mapping`.
        Mapped = "mapped",
    }
}
choice! {
    /// How samples are split into training, validation and test.
    Split {
        /// By time, over all users (the paper's rule).
        Time = "time",
        /// Each user's last rating is the test; leaks, for comparison only.
        LeaveLastOut = "leave_last_out",
        /// By users, shuffled: each user's last rating is a sample, all earlier ones are its history.
        ShuffledUsers = "shuffled_users",
        /// By ratings, shuffled: all ratings of a user that are for training come before those that are not.
        ShuffledRatings = "shuffled_ratings",
    }
}
params! {
    /// `dataset`: raw files to items, users, interactions and samples (METHOD section 1).
    DatasetParams {
        /// Layout of the raw files.
        format: DatasetFormat = DatasetFormat::Auto, Keyed;
        /// A rating above this many stars is a like.
        like_above: f64 = 3.0, Keyed, 0 ..= 10;
        /// Samples with fewer earlier ratings of their user are dropped.
        min_history: u32 = 5u32, Keyed, 0 ..= 100000;
        /// How samples are split.
        split: Split = Split::Time, Keyed;
        /// Fraction of the samples for validation.
        valid_fraction: f64 = 0.1, Keyed, 0 ..= 0.9;
        /// Fraction of the samples for the test.
        test_fraction: f64 = 0.1, Keyed, 0 ..= 0.9;
        /// Seed of the shuffled splits, and of the order of ratings that have no time.
        split_seed: u32 = 42u32, Later, 0 ..= 4294967295.0;
        /// Files and columns of a data set of your own.
        mapping: Option<Box<Mapping>> = None::<Box<Mapping>>, Later;
        /// Core filter: ratings that a user must have at least. Users and items outside their bounds are left out with
        /// their ratings, again and again, until all are within.
        min_user_ratings: u32 = 0u32, Later, 0 ..= 1000000000;
        /// Core filter: ratings that a user may have at most; 0 for any number.
        max_user_ratings: u32 = 0u32, Later, 0 ..= 1000000000;
        /// Core filter: ratings that an item must have at least.
        min_item_ratings: u32 = 0u32, Later, 0 ..= 1000000000;
        /// Core filter: ratings that an item may have at most; 0 for any number.
        max_item_ratings: u32 = 0u32, Later, 0 ..= 1000000000;
        /// After the core filter, only so many most rated items are kept; 0 for all.
        top_items: u32 = 0u32, Later, 0 ..= 1000000000;
    }
}

params! {
    /// `describe`: a language model writes a description of each item (eq. 1).
    DescribeParams {
        /// Request to the model. `{title}`, `{genre}` and `{year}` are filled in; the title should come last, so
        /// that all items share the prompt's beginning.
        template: String = "Write a concise description, under 80 words, of the following movie. Cover its plot, themes and genre, setting, key characters, director and style, tone, and cultural impact. Answer with the description only.\n\nMovie: {title} ({genre})", Keyed;
        /// Longest description, in tokens.
        max_new_tokens: u32 = 1024u32, Keyed, 1 ..= 32768;
        /// Sampling temperature; 0 takes the most likely token.
        temperature: f64 = 0.8, Keyed, 0 ..= 10;
        /// Nucleus sampling: the smallest set of tokens with this probability.
        top_p: f64 = 0.9, Keyed, 0.0001 ..= 1;
        /// Draws from this many most probable tokens; 0 for all.
        top_k: u32 = 0u32, Keyed, 0 ..= 10000000;
        /// Draws from tokens at least this many times as probable as the most probable one; 0 for all.
        min_p: f64 = 0.0, Keyed, 0 ..= 1;
        /// Divides positive logits, and multiplies negative ones, of tokens that the prompt or the answer already has;
        /// 1 for no penalty.
        repetition_penalty: f64 = 1.0, Keyed, 0.01 ..= 100;
        /// Texts that end an answer, beside the model's own end. They are cut from it, and what came after them.
        stop: Vec<String> = Vec::<String>::new(), Keyed;
        /// Only items with at least this many ratings in the training period are described. The others get an empty
        /// description, and `embed` uses their title alone.
        min_ratings: u32 = 0u32, Keyed, 0 ..= 100000000;
        /// Sequences decoded together at most; fewer where memory is short.
        batch_size: u32 = 32u32, Free, 1 ..= 4096;
        /// Bytes for keys and values; 0 for a quarter of the memory that is free.
        kv_bytes: u64 = 0u64, Free, 0 ..= 9007199254740992.0;
    }
}

choice! {
    /// How token states become one vector.
    Pooling {
        /// Mean over the prompt's tokens.
        Mean = "mean",
        /// State of the last token.
        Last = "last",
    }
}
params! {
    /// `embed`: text embeddings of titles and descriptions from the language model's last layer (eq. 2, 3).
    EmbedParams {
        /// How token states become one vector.
        pooling: Pooling = Pooling::Mean, Keyed;
        /// Sentence that names an item. `{title}`, `{genre}` and `{year}` are filled in.
        title_template: String = "The movie is titled {title} and its genre is {genre}.", Keyed;
        /// Tokens computed together at most; fewer where more are no faster or memory is short.
        batch_tokens: u32 = 4096u32, Free, 1 ..= 1048576;
    }
}

choice! {
    /// Which ratings are edges of the user-item graph.
    GraphEdges {
        /// Likes only.
        Positive = "positive",
        /// Every rating.
        All = "all",
    }
}
params! {
    /// `lightgcn`: collaborative embeddings from the training period's graph (eq. 4).
    LightGcnParams {
        /// Dimension of the embeddings.
        dim: u32 = 64u32, Keyed, 1 ..= 4096;
        /// Propagation layers.
        layers: u32 = 3u32, Keyed, 0 ..= 16;
        /// Passes over the training edges.
        epochs: u32 = 100u32, Keyed, 1 ..= 100000;
        /// Edges a step.
        batch_size: u32 = 2048u32, Keyed, 1 ..= 10000000;
        /// Adam's learning rate.
        learning_rate: f64 = 0.001, Keyed, 0.000000001 ..= 10;
        /// L2 weight on the batch's layer-0 embeddings.
        l2: f64 = 0.0001, Keyed, 0 ..= 10;
        /// Which ratings are edges.
        edges: GraphEdges = GraphEdges::Positive, Keyed;
    }
}

choice! {
    /// What an item is told apart from during alignment.
    Negatives {
        /// The other items of the batch.
        InBatch = "in_batch",
        /// All items.
        All = "all",
    }
}
params! {
    /// `align`: maps text embeddings onto collaborative ones by symmetric InfoNCE (eq. 5, 6).
    AlignParams {
        /// Width of the MLP's hidden layer.
        hidden: u32 = 256u32, Keyed, 1 ..= 65536;
        /// Temperature of the cosine similarities.
        temperature: f64 = 1.0, Keyed, 0.0001 ..= 1000;
        /// Passes over the items.
        epochs: u32 = 50u32, Keyed, 1 ..= 100000;
        /// Items a step.
        batch_size: u32 = 256u32, Keyed, 2 ..= 10000000;
        /// What an item is told apart from.
        negatives: Negatives = Negatives::InBatch, Keyed;
        /// Adam's learning rate.
        learning_rate: f64 = 0.001, Keyed, 0.000000001 ..= 10;
    }
}

choice! {
    /// Parts of an item's vector (Table 6).
    IndexVariant {
        /// Text embeddings only.
        Text = "text",
        /// Collaborative embeddings only.
        Id = "id",
        /// Text and collaborative.
        Concat = "concat",
        /// Text, collaborative and aligned (eq. 7).
        ConcatSsl = "concat_ssl",
    }
}
choice! {
    /// What each part is divided by.
    IndexNorm {
        /// Each row's own norm (eq. 7).
        Row = "row",
        /// The largest row norm (the authors' code), then cosine.
        Max = "max",
    }
}
params! {
    /// `index`: one vector an item (eq. 7).
    IndexParams {
        /// Parts of an item's vector.
        variant: IndexVariant = IndexVariant::ConcatSsl, Keyed;
        /// What each part is divided by.
        norm: IndexNorm = IndexNorm::Row, Keyed;
        /// Text embeddings are first reduced to this many principal components; 0 leaves them.
        pca_dims: u32 = 0u32, Keyed, 0 ..= 4096;
    }
}

choice! {
    /// Which history a prompt shows, and in which order (METHOD section 8).
    PromptVariant {
        /// The K most recent, in time order.
        Simple = "simple",
        /// The K most similar, in time order.
        Sequential = "sequential",
        /// The K most similar, most similar first.
        High = "high",
        /// The K best of the two-channel reranker (eq. 8), in time order.
        Rerank = "rerank",
        /// Half of the K by `index`, half by `other_index`, in time order (the Hybrid-Score baseline).
        Hybrid = "hybrid",
    }
}
choice! {
    /// How the reranker fills its K places.
    Selection {
        /// Channel score times position score, summed (eq. 8).
        Score = "score",
        /// 2K/3 most relevant that are also most recent, then K/3 most recent (the authors' code).
        TwoThirds = "two_thirds",
    }
}
params! {
    /// `retrieve`: picks each sample's history and writes its prompt (METHOD sections 7 and 8).
    RetrieveParams {
        /// Entries of history in a prompt.
        k: u32 = 30u32, Keyed, 1 ..= 512;
        /// Weight of the similarity channel; recency has 1 - gamma.
        gamma: f64 = 0.6666666666666666, Keyed, 0 ..= 1;
        /// Position score is 1 / rank^beta.
        beta: f64 = 1.0, Keyed, 0 ..= 16;
        /// Which history a prompt shows.
        variant: PromptVariant = PromptVariant::Rerank, Keyed;
        /// How the reranker fills its K places.
        selection: Selection = Selection::Score, Keyed;
        /// Only the first samples, in their order; 0 means all (`eval_limit`).
        limit: u32 = 0u32, Scope, 0 ..= 100000000;
        /// The prompt. `{user}` is the sentence of user fields, `{verb}` is watched or read, `{history}` the rated
        /// entries, `{like_above}` the stars a like must exceed, `{target}` the target's title.
        template: String = "{user} The user {verb} the following items in the past and rated them: {history}. A like means a rating of more than {like_above} stars. Based on this, decide whether the user will like the item ***{target}***. Answer only Yes or No.", Keyed;
    }
}

params! {
    /// `sample`: some samples at random (METHOD section 9). The samples of a smaller count are among those of a
    /// larger one.
    SampleParams {
        /// Samples that are kept, in their order; all of them where there are fewer.
        count: u32 = 8192u32, Keyed, 1 ..= 100000000;
    }
}

choice! {
    /// A projection that has an adapter.
    AdapterTarget {
        /// Queries.
        Query = "q_proj",
        /// Keys.
        Key = "k_proj",
        /// Values.
        Value = "v_proj",
        /// From the heads back.
        Output = "o_proj",
        /// Gates of the feed-forward layer.
        Gate = "gate_proj",
        /// What the gates open.
        Up = "up_proj",
        /// From the feed-forward layer back.
        Down = "down_proj",
    }
}
params! {
    /// `tune`: a low-rank adapter (LoRA) of the language model, trained to answer the prompts (METHOD section 9).
    TuneParams {
        /// Rank of the adapter's matrices.
        rank: u32 = 8u32, Keyed, 1 ..= 1024;
        /// The adapter's part is multiplied with `alpha / rank`.
        alpha: f64 = 16.0, Keyed, 0.000001 ..= 1000000;
        /// Share of the adapter's inputs set to 0 in training.
        dropout: f64 = 0.05, Keyed, 0 ..= 0.95;
        /// Projections that have an adapter.
        targets: Vec<AdapterTarget> = vec![AdapterTarget::Query, AdapterTarget::Value], Keyed;
        /// Peak of the linear schedule.
        learning_rate: f64 = 0.001, Keyed, 0.000000001 ..= 10;
        /// Share of the steps in which the learning rate rises from 0.
        warmup: f64 = 0.05, Keyed, 0 ..= 1;
        /// AdamW's weight decay.
        weight_decay: f64 = 0.01, Keyed, 0 ..= 10;
        /// Gradients are scaled down to this norm; 0 for no limit.
        clip: f64 = 1.0, Keyed, 0 ..= 1000000;
        /// Most passes over the prompts.
        epochs: u32 = 1u32, Keyed, 1 ..= 100000;
        /// Prompts a step; gradients are summed up over them.
        batch_size: u32 = 256u32, Keyed, 1 ..= 10000000;
        /// Steps between two validations; 0 for one after every epoch. Without the input `valid` there are none.
        eval_steps: u32 = 0u32, Keyed, 0 ..= 100000000;
        /// Validations without a better AUC before training stops; 0 never stops it.
        patience: u32 = 2u32, Keyed, 0 ..= 1000;
        /// Answer that means a like.
        yes: String = "Yes", Keyed;
        /// Answer that means no like.
        no: String = "No", Keyed;
        /// System message of the chat, as in `score`; empty for none.
        system: String = "You judge whether a user will like an item. Answer only Yes or No.", Keyed;
        /// Longest prompt, in tokens (the cut-off); a longer one is a bad row and not learned from.
        max_prompt_tokens: u32 = 2048u32, Keyed, 1 ..= 1048576;
        /// Tokens computed together.
        batch_tokens: u32 = 4096u32, Free, 1 ..= 1048576;
        /// Memory for what blocks keep for the way back, in MiB; blocks beyond it are computed twice.
        keep_mb: u32 = 2048u32, Free, 0 ..= 10000000;
        /// Seconds between two checkpoints, which an interrupted training goes on from.
        checkpoint_seconds: u32 = 30u32, Free, 0 ..= 86400;
    }
}

params! {
    /// `score`: the probability of yes at the answer position, one forward pass a prompt (METHOD section 10).
    ScoreParams {
        /// Answer that means a like.
        yes: String = "Yes", Keyed;
        /// Answer that means no like.
        no: String = "No", Keyed;
        /// System message of the chat; empty for none.
        system: String = "You judge whether a user will like an item. Answer only Yes or No.", Keyed;
        /// Longest prompt, in tokens; a longer one is a bad row.
        max_prompt_tokens: u32 = 2048u32, Keyed, 1 ..= 1048576;
        /// Tokens computed together at most; fewer where more are no faster or memory is short.
        batch_tokens: u32 = 4096u32, Free, 1 ..= 1048576;
    }
}

choice! {
    /// Wording of the tuned model's prediction in the reasoning prompt (eq. 9).
    Hint {
        /// No hint.
        None = "none",
        /// `is`, `may be` or `might be`, by confidence.
        Graded = "graded",
        /// Always `might be` (the paper's shorter form).
        Might = "might",
    }
}
params! {
    /// `reason`: sampled reasoning traces and what each predicts (METHOD sections 11 and 12).
    ReasonParams {
        /// Traces a prompt.
        samples: u32 = 5u32, Keyed, 1 ..= 256;
        /// Sampling temperature; 0 takes the most likely token.
        temperature: f64 = 0.6, Keyed, 0 ..= 10;
        /// Nucleus sampling: the smallest set of tokens with this probability.
        top_p: f64 = 0.95, Keyed, 0.0001 ..= 1;
        /// Draws from this many most probable tokens; 0 for all.
        top_k: u32 = 0u32, Keyed, 0 ..= 10000000;
        /// Draws from tokens at least this many times as probable as the most probable one; 0 for all.
        min_p: f64 = 0.0, Keyed, 0 ..= 1;
        /// Divides positive logits, and multiplies negative ones, of tokens that the prompt or the answer already has;
        /// 1 for no penalty.
        repetition_penalty: f64 = 1.0, Keyed, 0.01 ..= 100;
        /// Texts that end an answer, beside the model's own end. They are cut from it, and what came after them.
        stop: Vec<String> = Vec::<String>::new(), Keyed;
        /// Longest trace, in tokens.
        max_new_tokens: u32 = 4800u32, Keyed, 1 ..= 131072;
        /// Wording of the hint. Needs the input `predictions`, unless it is `none`.
        hint: Hint = Hint::Graded, Keyed;
        /// Text that opens the thinking.
        think_open: String = "<think>\n", Keyed;
        /// Text that closes it.
        think_close: String = "</think>", Keyed;
        /// Answer that means a like.
        yes: String = "Yes", Keyed;
        /// Answer that means no like.
        no: String = "No", Keyed;
        /// Longest prompt, in tokens; a longer one is a bad row.
        max_prompt_tokens: u32 = 2048u32, Keyed, 1 ..= 1048576;
        /// Sequences decoded together at most; fewer where memory is short.
        batch_size: u32 = 32u32, Free, 1 ..= 4096;
        /// Bytes for keys and values; 0 for a quarter of the memory that is free.
        kv_bytes: u64 = 0u64, Free, 0 ..= 9007199254740992.0;
    }
}

choice! {
    /// Which of a trace's two predictions counts.
    TracePrediction {
        /// Read from the trace's text.
        Parse = "parse",
        /// Softmax over the answer tokens after the trace.
        Logit = "logit",
    }
}
choice! {
    /// How predictions are merged.
    MergeMethod {
        /// Weights by consistency (eq. 10).
        Consistency = "consistency",
        /// Plain mean of the two means.
        Mean = "mean",
        /// Mean over the reasoning traces alone; `predictions` only name the samples.
        Reasoning = "reasoning",
    }
}
params! {
    /// `merge`: consistency-based merging of tuned and reasoning predictions (eq. 10).
    MergeParams {
        /// Weight of the reasoning model.
        alpha: f64 = 0.1, Keyed, 0 ..= 1000;
        /// Added to each variance.
        eps: f64 = 0.001, Keyed, 0.000000000001 ..= 1000;
        /// How predictions are merged.
        method: MergeMethod = MergeMethod::Consistency, Keyed;
        /// Which of a trace's two predictions counts.
        prediction: TracePrediction = TracePrediction::Logit, Keyed;
    }
}

choice! {
    /// A CTR baseline (Table 4).
    CtrModel {
        /// DeepFM (arXiv 1703.04247).
        DeepFm = "deepfm",
        /// xDeepFM (arXiv 1803.05170).
        XDeepFm = "xdeepfm",
        /// Deep & Cross Network (arXiv 1708.05123).
        Dcn = "dcn",
        /// AutoInt (arXiv 1810.11921).
        AutoInt = "autoint",
    }
}
params! {
    /// `ctr`: a click-through-rate baseline on ID and user fields (METHOD section 14).
    CtrParams {
        /// The model.
        model: CtrModel = CtrModel::DeepFm, Keyed;
        /// Dimension of each field's embedding.
        embedding_dim: u32 = 16u32, Keyed, 1 ..= 1024;
        /// Widths of the deep part's layers; not of `autoint`, which has none.
        hidden: Vec<u32> = vec![256u32, 128u32], Keyed, 1 ..= 65536;
        /// Feature maps of each interaction layer of `xdeepfm`.
        cin: Vec<u32> = vec![16u32, 16u32], Later, 1 ..= 4096;
        /// Cross layers of `dcn`.
        cross_layers: u32 = 3u32, Later, 1 ..= 64;
        /// Attention layers of `autoint`.
        attention_layers: u32 = 3u32, Later, 1 ..= 64;
        /// Heads of each of them.
        heads: u32 = 2u32, Later, 1 ..= 64;
        /// Numbers of a field in each head.
        attention_dim: u32 = 32u32, Later, 1 ..= 4096;
        /// Fraction of the deep part's units dropped in training.
        dropout: f64 = 0.0, Keyed, 0 ..= 0.95;
        /// Adam's learning rate.
        learning_rate: f64 = 0.001, Keyed, 0.000000001 ..= 10;
        /// L2 weight on the embeddings of a batch's features.
        l2: f64 = 0.00001, Keyed, 0 ..= 10;
        /// Samples a step.
        batch_size: u32 = 2048u32, Keyed, 1 ..= 10000000;
        /// Most passes over the training samples.
        max_epochs: u32 = 20u32, Keyed, 1 ..= 100000;
        /// Epochs without a better validation AUC before training stops.
        patience: u32 = 2u32, Keyed, 1 ..= 1000;
        /// Only the first test samples, in their order, are predicted; 0 means all (`eval_limit`).
        limit: u32 = 0u32, Keyed, 0 ..= 100000000;
    }
}

params! {
    /// `evaluate`: AUC, log loss and accuracy with bootstrap intervals.
    EvaluateParams {
        /// Bootstrap resamplings.
        bootstrap: u32 = 1000u32, Keyed, 0 ..= 1000000;
        /// Coverage of the intervals.
        confidence: f64 = 0.95, Keyed, 0.01 ..= 0.9999;
    }
}

params! {
    /// `report`: the metrics as Markdown.
    ReportParams {
        /// Heading.
        title: String = "RALLRec+", Keyed;
    }
}

params! {
    /// `rows`: numbered rows, and nothing else in them. For trying and measuring a cluster: with `wait` it makes as many
    /// tasks as wanted, which need neither data nor a model.
    RowsParams {
        /// Rows to make.
        count: u32 = 1u32, Keyed, 1 ..= 10000000;
    }
}

params! {
    /// `wait`: passes its rows on after a while.
    WaitParams {
        /// What each task waits, in milliseconds.
        milliseconds: u32 = 0u32, Free, 0 ..= 3600000;
    }
}

macro_rules! stage_params {
    ($($variant:ident($ty:ty)),* $(,)?) => {
        /// Parameters of a stage: a closed enum, so that a new kind is one variant and the compiler finds the rest.
        #[derive(Clone, Debug, PartialEq)]
        pub enum StageParams { $(#[doc = concat!("Of kind [`StageKind::", stringify!($variant), "`].")] $variant($ty)),* }

        impl StageParams {
            /// The kind that these parameters belong to.
            pub fn kind(&self) -> StageKind {
                match self { $(Self::$variant(_) => StageKind::$variant),* }
            }

            /// The parameters of a kind, as data.
            pub fn fields(kind: StageKind) -> Vec<Field> {
                match kind { $(StageKind::$variant => <$ty>::fields()),* }
            }

            /// Typed parameters from a complete JSON object: every field there, but for those that came later to the
            /// kind, which journals from before lack.
            pub fn from_json(kind: StageKind, mut value: Value) -> Result<Self, serde_json::Error> {
                if let Value::Object(values) = &mut value {
                    for field in Self::fields(kind).into_iter().filter(|f| f.effect == Effect::Later) {
                        values.entry(field.name).or_insert(field.default);
                    }
                }
                Ok(match kind { $(StageKind::$variant => Self::$variant(serde_json::from_value(value)?)),* })
            }

            /// The parameters as a JSON object.
            pub fn to_json(&self) -> Value {
                match self { $(Self::$variant(p) => serde_json::json!(p)),* }
            }
        }
    };
}
stage_params! {
    Dataset(DatasetParams), Describe(DescribeParams), Embed(EmbedParams), LightGcn(LightGcnParams), Align(AlignParams),
    Index(IndexParams), Sample(SampleParams), Retrieve(RetrieveParams), Tune(TuneParams), Score(ScoreParams), Reason(ReasonParams), Merge(MergeParams),
    Ctr(CtrParams), Evaluate(EvaluateParams), Report(ReportParams), Rows(RowsParams), Wait(WaitParams),
}

impl StageParams {
    /// Most rows of the driving table that the stage reads; `None` for all.
    pub fn row_limit(&self) -> Option<u64> {
        match self {
            Self::Retrieve(p) if p.limit > 0 => Some(u64::from(p.limit)),
            _ => None,
        }
    }
}
