"""The measurements of throughput.rs with transformers in 32 bits. Started by it; takes the model file's path."""
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/fixtures"))
from gguf import GGUFReader
from make_reference import load_model


def best(run):
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


model = load_model(GGUFReader(sys.argv[1]))
with torch.no_grad():
    for batch in (1, 8, 32):
        ids = torch.arange(500, 500 + 512 * 7, 7).repeat(batch, 1)
        seconds = best(lambda: model(ids, logits_to_keep=1, use_cache=False))
        print(f"prefill 512 x {batch}: {512 * batch / seconds:.0f} tokens/s", flush=True)
    for batch in (1, 8, 32):
        ids = torch.arange(500, 500 + 32 * 7, 7).repeat(batch, 1)
        run = lambda count: model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.8, top_p=0.9, pad_token_id=0,
            max_new_tokens=count, min_new_tokens=count)
        seconds = best(lambda: run(64)) - best(lambda: run(1))
        print(f"decode, batch {batch}: {batch * 63 / seconds:.1f} tokens/s", flush=True)
