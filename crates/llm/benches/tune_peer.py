"""The measurement of tune.rs with PEFT in 32 bits. Started by it; takes the model file's path."""
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests/fixtures"))
from gguf import GGUFReader
from make_reference import load_model
from peft import LoraConfig, get_peft_model

SAMPLES, TOKENS, STEPS = 4, 512, 4

torch.manual_seed(1)
model = get_peft_model(
    load_model(GGUFReader(sys.argv[1])),
    LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
)
model.train()
parameters = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=1e-3)
ids = torch.stack([torch.arange(500, 500 + TOKENS * 7, 7) + row for row in range(SAMPLES)])
answers = torch.tensor([10 + row % 2 for row in range(SAMPLES)])
times, losses = [], []
for _ in range(STEPS):
    began = time.perf_counter()
    # The head at the answer's position only, as rallrec does.
    logits = model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1]
    loss = torch.nn.functional.cross_entropy(logits, answers)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(round(loss.item(), 4))
    times.append(time.perf_counter() - began)
print(f"PEFT: {min(times):.2f} s a step; losses {losses}")
