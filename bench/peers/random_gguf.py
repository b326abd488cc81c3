"""Writes a Llama of one of the shapes with random weights and a vocabulary of numbers as a GGUF, for llama.cpp and its kin.

    python random_gguf.py --shape 135m --type f32|bf16|int8 FILE

Needs gguf and numpy from PyPI. Norms are f32, matrices of the type asked for (int8: Q8_0, the embedding too); the head is the embedding, as in the shapes.
"""
import argparse
import gguf
import numpy as np
from shapes import SHAPES

p = argparse.ArgumentParser()
p.add_argument("--shape", default="135m", choices=SHAPES)
p.add_argument("--type", default="f32", choices=["f32", "bf16", "int8"])
p.add_argument("file")
a = p.parse_args()
layers, c, h, k, d, f, v = SHAPES[a.shape]
KINDS = {"f32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16, "int8": gguf.GGMLQuantizationType.Q8_0}
rng = np.random.default_rng(1)
w = gguf.GGUFWriter(a.file, "llama")
w.add_context_length(8192), w.add_embedding_length(c), w.add_block_count(layers), w.add_feed_forward_length(f)
w.add_head_count(h), w.add_head_count_kv(k), w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(d)
w.add_vocab_size(v), w.add_rope_freq_base(1e4), w.add_tokenizer_model("llama")
w.add_token_list([b"<unk>", b"<s>", b"</s>"] + [b"t%d" % i for i in range(3, v)])
w.add_token_scores([0.0] * v), w.add_token_types([2, 3, 3] + [1] * (v - 3))
w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0)


def add(name, *dims):
    x = np.ones(dims, np.float32) if len(dims) == 1 else rng.standard_normal(dims, np.float32) * np.float32(0.02)
    kind = KINDS[a.type if len(dims) > 1 else "f32"]
    w.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)


add("token_embd.weight", v, c), add("output_norm.weight", c)
for i in range(layers):
    for name, *dims in (("attn_norm", c), ("attn_q", h * d, c), ("attn_k", k * d, c), ("attn_v", k * d, c), ("attn_output", c, h * d),
                        ("ffn_norm", c), ("ffn_gate", f, c), ("ffn_up", f, c), ("ffn_down", c, f)):
        add(f"blk.{i}.{name}.weight", *dims)
w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
