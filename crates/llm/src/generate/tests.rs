//! The engine step by step: pages, and who is paused. What it gives is tested in `tests/engine.rs`.

use super::*;
use crate::{LanguageModel, Precision, device::pick_device, tiny};
use rallrec_core::rng::row_rng;

fn model() -> LanguageModel {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tiny::gguf()).unwrap();
    LanguageModel::load(file.path(), &pick_device("cpu").unwrap(), Precision::F32).unwrap()
}

/// Prompts of 40 tokens and on, every second with a beginning that others have, three samples each.
fn requests() -> Vec<GenerateRequest> {
    let samples = |row| (0..3).map(move |sample| row_rng(1, "test", row, sample));
    let prompt = |row: u32| {
        (0..40 + 9 * row).map(move |i| if i < 34 && row.is_multiple_of(2) { i } else { (i * row + row) % 250 })
    };
    (0..8)
        .map(|row| GenerateRequest { prompt: prompt(row).collect(), samples: samples(row.into()).collect() })
        .collect()
}

struct Seen {
    /// Most pages in use after a step.
    peak: usize,
    /// Steps after which samples were paused.
    paused: usize,
    most_slots: usize,
    computed: u64,
}

/// Runs an engine to its end. Pages in use must be none then.
fn run(model: &LanguageModel, pages: usize, batch_size: usize) -> Seen {
    // A drawn token that overflows would end its row.
    let sampling = Sampling { max_new_tokens: 100, stop_tokens: vec![tiny::BAD], ..Sampling::default() };
    let rules = Rules { tokenizer: model.tokenizer(), sampling: &sampling, context: model.config().context };
    let kv_bytes = Some(pages as u64 * model.decoder.pool().page_bytes());
    let mut engine = Engine::new(&model.decoder, rules, requests(), Slots { samples: batch_size, kv_bytes });
    let mut seen = Seen { peak: 0, paused: 0, most_slots: 0, computed: 0 };
    loop {
        engine.refill().unwrap();
        if engine.slots.is_empty() {
            break;
        }
        seen.most_slots = seen.most_slots.max(engine.slots.len());
        let first = (engine.slots[0].row, engine.slots[0].sample, engine.slots[0].tokens.len());
        engine.pause_what_has_no_room();
        let running = engine.slots.len();
        engine.step().unwrap();
        let used = engine.pool.used();
        assert!(used <= pages || running == 1, "{used} of {pages} pages with {running} samples");
        seen.peak = seen.peak.max(used);
        seen.paused += usize::from(!engine.paused.is_empty());
        // The first sample has gone on or ended.
        if let Some(slot) = engine.slots.iter().find(|slot| (slot.row, slot.sample) == (first.0, first.1)) {
            assert_eq!(slot.tokens.len(), first.2 + 1);
        }
        assert!(!engine.paused.iter().any(|slot| (slot.row, slot.sample) == (first.0, first.1)));
    }
    assert_eq!(engine.pool.used(), 0, "pages in use at the end");
    assert!(engine.paused.is_empty() && engine.ready.is_empty() && engine.tree.is_done());
    seen.computed = engine.done().tokens;
    assert!(engine.results().iter().all(Result::is_ok));
    seen
}

#[test]
fn memory_is_kept_and_all_is_used() {
    let model = model();
    let ample = run(&model, 1000, 24);
    // A sample or two may end with their first token.
    assert_eq!(ample.paused, 0);
    assert!(ample.most_slots >= 22, "{} of 24 samples", ample.most_slots);
    // The longest sample, 103 tokens of prompt and 100 of answer, takes 7 pages.
    for pages in [7, 10, 16, 30, 60] {
        let tight = run(&model, pages, 24);
        // One sample goes on all the same, beside its prompt and the beginning that others wait for.
        assert!(tight.peak <= pages.max(7 + 4 + 1), "{} of {pages} pages", tight.peak);
        assert!(tight.most_slots < ample.most_slots || pages >= 60, "{pages} pages, {} slots", tight.most_slots);
        assert_eq!(tight.computed > ample.computed, tight.paused > 0, "only what was paused is computed again");
    }
    assert!(run(&model, 16, 24).paused > 0, "samples are paused when there is no room");
    let least = run(&model, 0, 24);
    assert_eq!((least.most_slots, least.paused), (1, 0), "one sample always runs");
    assert!(least.peak <= 7 + 4 + 1, "{} pages", least.peak);
    assert_eq!(run(&model, 1000, 5).most_slots, 5);
}
