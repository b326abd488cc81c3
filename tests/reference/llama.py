"""Golden values for tests/test_model_golden.c: a plain Llama in float64 with PyTorch's autograd.

    /usr/bin/python3 tests/reference/llama.py tests/golden/model

Shares with the program only config.json, the seed and the keyed formula for random weights (Philox4x32-10, Box-Muller,
the key being the seed and XXH3-64 of the tensor's name), times SCALE. Needs python3-torch and python3-xxhash.
"""
import json
import math
import os
import sys

import numpy as np
import torch
import xxhash

SCALE = 8.0        # matrices are this many times wz_model_init's, so that attention is not flat
INIT, TEST = 4, 7  # wz_purpose
FULL, SAMPLE = 1024, 128   # tensors up to FULL elements are stored whole, of others SAMPLE elements and the norm


def philox(counter, key):
    c = [np.asarray(x, np.uint64) for x in counter]
    k0, k1 = int(key[0]), int(key[1])
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0 = np.uint64(0xD2511F53) * c[0]
        p1 = np.uint64(0xCD9E8D57) * c[2]
        c = [(p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0), p1 & mask, (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def bits(seed, purpose, a, b, c, d):
    seed ^= purpose * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
    a, b, c, d = np.broadcast_arrays(a, b, c, d)
    return philox([a, b, c, d], [seed & 0xFFFFFFFF, seed >> 32])


def uniform(*key):
    r = bits(*key)
    return ((r[1] << np.uint64(32) | r[0]) >> np.uint64(11)).astype(np.float64) * 2.0 ** -53


def below(n, *key):
    r = bits(*key)
    return [(int(hi) << 32 | int(lo)) * n >> 64 for lo, hi in zip(r[0], r[1])]


def normal(*key):
    r = bits(*key)
    u = ((r[1] << np.uint64(32) | r[0]) >> np.uint64(11)).astype(np.float64) + 0.5
    v = ((r[3] << np.uint64(32) | r[2]) >> np.uint64(11)).astype(np.float64)
    return np.sqrt(-2 * np.log(u * 2.0 ** -53)) * np.cos(2 * np.pi * v * 2.0 ** -53)


def shapes(c):
    dim, ffn = c["hidden_size"], c["intermediate_size"]
    d = c["head_dim"]
    hd, kd = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    yield "model.embed_tokens.weight", (c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (dim,)
        yield p + "self_attn.q_proj.weight", (hd, dim)
        yield p + "self_attn.k_proj.weight", (kd, dim)
        yield p + "self_attn.v_proj.weight", (kd, dim)
        yield p + "self_attn.o_proj.weight", (dim, hd)
        yield p + "post_attention_layernorm.weight", (dim,)
        yield p + "mlp.gate_proj.weight", (ffn, dim)
        yield p + "mlp.up_proj.weight", (ffn, dim)
        yield p + "mlp.down_proj.weight", (dim, ffn)
    yield "model.norm.weight", (dim,)
    if not c["tie_word_embeddings"]:
        yield "lm_head.weight", (c["vocab_size"], dim)


def weights(c, seed):
    out = {}
    for index, (name, shape) in enumerate(shapes(c)):
        if len(shape) == 1:     # not the ones of a fresh model: one norm must not pass for another
            w = (0.5 + uniform(seed, TEST, np.arange(shape[0], dtype=np.uint64), 4, index, 0)).astype(np.float32)
        else:
            std = 0.02 / math.sqrt(2 * c["num_hidden_layers"]) if "o_proj" in name or "down_proj" in name else 0.02
            h = xxhash.xxh3_64_intdigest(name.encode(), 0)
            n = shape[0] * shape[1]
            x = normal(seed, INIT, h & 0xFFFFFFFF, h >> 32, np.arange(n, dtype=np.uint64), 0)
            w = (x * std).astype(np.float32).reshape(shape) * np.float32(SCALE)
        out[name] = torch.tensor(w.astype(np.float64), requires_grad=True)
    return out


def frequencies(c):
    d, r = c["head_dim"], c.get("rope_scaling") or {"rope_type": "default"}
    f = np.array([c["rope_theta"] ** (-2 * i / d) for i in range(d // 2)])
    kind = r.get("rope_type", r.get("type"))
    if kind == "linear":
        f = f / r["factor"]
    elif kind == "llama3":
        old = r["original_max_position_embeddings"]
        wave = 2 * np.pi / f
        low, high = old / r["low_freq_factor"], old / r["high_freq_factor"]
        smooth = (old / wave - r["low_freq_factor"]) / (r["high_freq_factor"] - r["low_freq_factor"])
        mixed = (1 - smooth) * f / r["factor"] + smooth * f
        f = np.where(wave > low, f / r["factor"], np.where(wave < high, f, mixed))
    return torch.tensor(f.astype(np.float32).astype(np.float64))


def norm(x, w, eps):
    return w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def turn(x, angle):
    a, b = x.chunk(2, -1)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(c, w, ids):
    n, heads, kv, d = len(ids), c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    eps = float(np.float32(c["rms_norm_eps"]))
    angle = torch.arange(n, dtype=torch.float64)[:, None] * frequencies(c)[None]
    mask = torch.full((n, n), -math.inf, dtype=torch.float64).triu(1)
    x = w["model.embed_tokens.weight"][torch.tensor(ids)]
    for i in range(c["num_hidden_layers"]):
        p = lambda name: w[f"model.layers.{i}.{name}.weight"]
        h = norm(x, p("input_layernorm"), eps)
        q = turn((h @ p("self_attn.q_proj").T).view(n, heads, d), angle)
        k = turn((h @ p("self_attn.k_proj").T).view(n, kv, d), angle)
        v = (h @ p("self_attn.v_proj").T).view(n, kv, d)
        k, v = (t.repeat_interleave(heads // kv, 1) for t in (k, v))
        score = torch.einsum("nhd,thd->hnt", q, k) / math.sqrt(d) + mask
        att = torch.einsum("hnt,thd->nhd", score.softmax(-1), v).reshape(n, heads * d)
        x = x + att @ p("self_attn.o_proj").T
        h = norm(x, p("post_attention_layernorm"), eps)
        h = torch.nn.functional.silu(h @ p("mlp.gate_proj").T) * (h @ p("mlp.up_proj").T)
        x = x + h @ p("mlp.down_proj").T
    x = norm(x, w["model.norm.weight"], eps)
    return x @ w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"].T


def case(heads, kv, d, tied, temperature, rope=None, theta=10000.0, lens=(21, 6)):
    c = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=24, intermediate_size=36, num_hidden_layers=2,
             num_attention_heads=heads, num_key_value_heads=kv, head_dim=d, vocab_size=53, max_position_embeddings=64,
             rms_norm_eps=1e-5, rope_theta=theta, rope_scaling=rope, hidden_act="silu", attention_bias=False, mlp_bias=False,
             tie_word_embeddings=tied, bos_token_id=1, eos_token_id=[2, 3], torch_dtype="float32")
    return c, temperature, lens


LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
CASES = {
    "gqa1-64": case(2, 2, 64, False, 1.0),
    "gqa1-128-llama3": case(2, 2, 128, True, 0.7, LLAMA3, 500000.0),
    "gqa3-64-llama3": case(3, 1, 64, True, 1.3, LLAMA3, 500000.0, (13, 20)),
    "gqa3-80-linear": case(6, 2, 80, False, 1.0, dict(type="linear", factor=4.0)),
    "gqa4-64": case(8, 2, 64, True, 0.9, None, 10000.0, (33, 2)),
    "gqa4-128-llama3": case(4, 1, 128, False, 1.0, LLAMA3),
}


def main(out):
    for number, (name, (c, temperature, lens)) in enumerate(CASES.items()):
        folder, seed, n = os.path.join(out, name), 100 + number, sum(lens)
        os.makedirs(folder, exist_ok=True)
        rows = np.arange(n, dtype=np.uint64)
        ids = below(c["vocab_size"], seed, TEST, rows, 1, 0, 0)
        targets = below(c["vocab_size"], seed, TEST, rows, 2, 0, 0)
        targets = [-1 if i % 5 == 3 else t for i, t in enumerate(targets)]
        d_logp = (uniform(seed, TEST, rows, 3, 0, 0) - 0.3).astype(np.float32)
        w = weights(c, seed)
        logits, logp, loss, at = [], [], 0.0, 0
        for length in lens:
            z = forward(c, w, ids[at:at + length])
            logits.append(z)
            for i in range(length):
                t = targets[at + i]
                lp = (z[i] / temperature).log_softmax(-1)[t] if t >= 0 else torch.zeros((), dtype=torch.float64)
                logp.append(lp.item())
                loss = loss + float(d_logp[at + i]) * lp
            at += length
        loss.backward()
        values = [torch.cat(logits).detach().numpy().ravel(), np.array(logp)]
        for tensor in w.values():
            g = tensor.grad.numpy().ravel()
            values.append(np.array([np.linalg.norm(g)]))
            if len(g) > FULL:
                g = g[[k * 2654435761 % len(g) for k in range(SAMPLE)]]
            values.append(g)
        np.concatenate(values).astype("<f4").tofile(os.path.join(folder, "values.f32"))
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(c, f, indent=1)
        with open(os.path.join(folder, "case.json"), "w") as f:
            json.dump(dict(seed=seed, scale=SCALE, temperature=temperature, lens=lens, ids=ids, targets=targets,
                           d_logp=[float(x) for x in d_logp], full=FULL, sample=SAMPLE), f)


if __name__ == "__main__":
    main(sys.argv[1])
