"""The measurements of roofline.rs with transformers in bf16 on the same CUDA device, and what PyTorch makes of the device.

usage: peer_cuda.py FOLDER...

First the ceilings as PyTorch reaches them: bytes a second of a copy, and operations a second of a product in bf16. Then
for each Hugging Face folder prefill and decoding, as roofline.rs prints them.
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM


def best(run):
    def timed():
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - began

    timed()
    return min(timed() for _ in range(3))


def ceilings():
    size, times = 8192, 10
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    product = best(lambda: [torch.matmul(a, b, out=out) for _ in range(times)]) / times
    big, to = (torch.empty(1 << 30, device="cuda", dtype=torch.uint8) for _ in range(2))
    copy = best(lambda: [to.copy_(big) for _ in range(times)]) / times
    print(f"ceilings with PyTorch: copy {2 * (1 << 30) / copy / 1e9:.0f} GB/s, "
          f"product {2 * size**3 / product / 1e12:.1f} TFLOP/s", flush=True)


def prompts(batch, length, vocabulary):
    rows = torch.arange(batch, device="cuda")[:, None] * 131 + torch.arange(length, device="cuda")[None] * 7
    return (500 + rows) % vocabulary


def measure(folder):
    print(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda").eval()
    vocabulary = model.config.vocab_size
    for batch, length in ((1, 512), (8, 512), (32, 650), (8, 2000)):
        ids = prompts(batch, length, vocabulary)
        seconds = best(lambda: model(ids, logits_to_keep=1, use_cache=False))
        print(f"  prefill {length} x {batch}: {batch * length / seconds:.0f} tokens/s", flush=True)
    for batch in (1, 8, 32, 256):
        ids = prompts(batch, 512, vocabulary)

        def run(count):
            model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.8, top_p=0.9,
                           pad_token_id=0, eos_token_id=None, max_new_tokens=count, min_new_tokens=count)

        seconds = best(lambda: run(64)) - best(lambda: run(1))
        print(f"  decode, batch {batch}: {batch * 63 / seconds:.0f} tokens/s, {1e3 * seconds / 63:.2f} ms a step",
              flush=True)
    del model
    torch.cuda.empty_cache()


with torch.no_grad():
    ceilings()
    for path in sys.argv[1:]:
        measure(path)
