"""The measurements of throughput.rs with llama.cpp on the same file. Started by it; takes the model file's path.

Its batch is that of llama.cpp's own batched decoding: one llama_decode call a step with a token of every sequence, and
its own sampling chain (temperature 0.8, top-p 0.9) for each.
"""
import ctypes
import os
import sys
import time

import llama_cpp as lib

THREADS = len(os.sched_getaffinity(0))


def best(run):
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


silent = lib.llama_log_callback(lambda *_: None)  # kept: llama.cpp calls it as long as it lives
lib.llama_log_set(silent, ctypes.c_void_p(0))
lib.llama_backend_init()
model = lib.llama_model_load_from_file(sys.argv[1].encode(), lib.llama_model_default_params())
assert model, "llama.cpp cannot load the model"
params = lib.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 8192, 4096, 512, 32
params.kv_unified = True
params.n_threads = params.n_threads_batch = THREADS
context = lib.llama_init_from_model(model, params)
assert context
memory = lib.llama_get_memory(context)


def decode(tokens):
    """One call: (token, position, sequence, whether its logits are wanted)."""
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, (token, position, sequence, wanted) in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
        batch.seq_id[i][0] = sequence
    assert lib.llama_decode(context, batch) == 0
    lib.llama_batch_free(batch)


def prefill(rows, count):
    # At most 8 prompts a call: the context holds no more.
    for first in range(0, rows, 8):
        lib.llama_memory_clear(memory, True)
        some = range(first, min(rows, first + 8))
        decode([(500 + i * 7 + row, i, row - first, i == count - 1) for row in some for i in range(count)])


def generate(rows, count):
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for sampler in (lib.llama_sampler_init_top_p(0.9, 1), lib.llama_sampler_init_temp(0.8), lib.llama_sampler_init_dist(1)):
        lib.llama_sampler_chain_add(chain, sampler)
    lib.llama_memory_clear(memory, True)
    prompt = [(500 + i * 7 + row * 13, i, row, i == 31) for row in range(rows) for i in range(32)]
    decode(prompt)
    outputs = [row * 32 + 31 for row in range(rows)]
    for step in range(count):
        drawn = [lib.llama_sampler_sample(chain, context, output) for output in outputs]
        if step == count - 1:
            break
        decode([(token, 32 + step, row, True) for row, token in enumerate(drawn)])
        outputs = range(rows)
    lib.llama_sampler_free(chain)


for rows in (1, 8, 32):
    print(f"prefill 512 x {rows}: {512 * rows / best(lambda: prefill(rows, 512)):.0f} tokens/s", flush=True)
for rows in (1, 8, 32):
    seconds = best(lambda: generate(rows, 64)) - best(lambda: generate(rows, 1))
    print(f"decode, batch {rows}: {rows * 63 / seconds:.1f} tokens/s", flush=True)
