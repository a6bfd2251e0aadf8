"""Writes a Hugging Face folder with random bf16 weights in the shape of a known model, for measuring speed.

usage: random_model.py FOLDER [SHAPE [LAYERS]]

SHAPE is llama-8b (Llama-3.1-8B, 16 GB; the default) or smollm2-135m. Nothing but Python's standard library. The tokenizer
knows single bytes and fillers.
"""

import json
import pathlib
import random
import struct
import sys

# Hidden size, feed-forward size, heads, key heads, head width, vocabulary, layers, whether the head is tied.
SHAPES = {
    "llama-8b": (4096, 14336, 32, 8, 128, 128256, 32, False),
    "smollm2-135m": (576, 1536, 9, 3, 64, 49152, 30, True),
}
HIDDEN, FEED, HEADS, KEYS, WIDTH, VOCABULARY, LAYERS, TIED = SHAPES[sys.argv[2] if len(sys.argv) > 2 else "llama-8b"]
CONTEXT = 8192


def shapes(layers):
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    for layer in range(layers):
        name = f"model.layers.{layer}."
        yield name + "input_layernorm.weight", [HIDDEN]
        yield name + "self_attn.q_proj.weight", [HEADS * WIDTH, HIDDEN]
        yield name + "self_attn.k_proj.weight", [KEYS * WIDTH, HIDDEN]
        yield name + "self_attn.v_proj.weight", [KEYS * WIDTH, HIDDEN]
        yield name + "self_attn.o_proj.weight", [HIDDEN, HEADS * WIDTH]
        yield name + "post_attention_layernorm.weight", [HIDDEN]
        yield name + "mlp.gate_proj.weight", [FEED, HIDDEN]
        yield name + "mlp.up_proj.weight", [FEED, HIDDEN]
        yield name + "mlp.down_proj.weight", [HIDDEN, FEED]
    yield "model.norm.weight", [HIDDEN]
    if not TIED:
        yield "lm_head.weight", [VOCABULARY, HIDDEN]


def bf16(value):
    return struct.pack("<f", value)[2:]


def weights(folder, layers):
    random.seed(1)
    # A prime number of values, written over and over: no two rows of a matrix are the same.
    pattern = b"".join(bf16(random.gauss(0, 0.02)) for _ in range(1_000_003))
    header, end = {}, 0
    sizes = []
    for name, shape in shapes(layers):
        size = 2
        for length in shape:
            size *= length
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        sizes.append((name, size))
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, size in sizes:
            data = bf16(1.0) * (size // 2) if name.endswith("norm.weight") else pattern
            while size > 0:
                file.write(data[:size])
                size -= len(data)


def byte_characters():
    """The characters that byte-level tokenizers write bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in plain)
    return [*map(chr, plain), *(chr(256 + index) for index, _ in enumerate(others))]


def tokenizer():
    known = byte_characters()
    names = known + [f"<filler {index}>" for index in range(VOCABULARY - len(known))]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": {name: index for index, name in enumerate(names)}, "merges": []},
    }


def main():
    folder = pathlib.Path(sys.argv[1])
    layers = int(sys.argv[3]) if len(sys.argv) > 3 else LAYERS
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "head_dim": WIDTH,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": TIED,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer()))
    weights(folder, layers)


main()
