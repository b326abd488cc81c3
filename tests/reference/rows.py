"""Golden values of every row of wz_archs (model/arch.c), from the transformers library in float64.

    $WALTZ_PYTHON tests/reference/rows.py tests/golden/rows              samples of the gradients: what is committed
    $WALTZ_PYTHON tests/reference/rows.py FOLDER full                    other weights, and all of the gradients
    $WALTZ_PYTHON tests/reference/rows.py save FOLDER                    a folder of each row in it by save_pretrained, with ids.json
    $WALTZ_PYTHON tests/reference/rows.py logits FOLDER                  logits.f32 of the ids.json in each of its folders

Files and formula of the weights: tests/golden/model/README.md and llama.py beside this. The library computes norms, softmax and
RoPE in float32 whatever the weights are: to it, float32 is made another name of float64 here. Exit status 77: this Python lacks
transformers, PyTorch or xxhash.
"""
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
try:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np
    import torch
    import transformers
    from llama import INIT, SCALE, TEST, below, normal, uniform, xxhash
except ImportError as e:
    print(e)
    sys.exit(77)

SMALL = dict(vocab_size=37, hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None, rms_norm_eps=1e-5)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)
PLAIN = dict(rope_type="default")
ROWS = {
    "llama2": ("llama", dict(num_key_value_heads=4, rope_parameters=dict(PLAIN, rope_theta=10000.0))),
    "llama3": ("llama", dict(head_dim=16, tie_word_embeddings=True, rope_parameters=LLAMA3)),
    "smollm2": ("llama", dict(num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True,
                              rope_parameters=dict(PLAIN, rope_theta=100000.0))),
    "mistral": ("mistral", dict(sliding_window=None, rope_parameters=dict(PLAIN, rope_theta=1000000.0))),
    "nemo": ("mistral", dict(sliding_window=None, head_dim=16, rope_parameters=dict(PLAIN, rope_theta=1000000.0))),
    "qwen2": ("qwen2", dict(rope_parameters=dict(PLAIN, rope_theta=1000000.0))),
    "qwen2-tied": ("qwen2", dict(tie_word_embeddings=True, rope_parameters=dict(PLAIN, rope_theta=1000000.0))),
    "qwen3": ("qwen3", dict(head_dim=16, tie_word_embeddings=True, rope_parameters=dict(PLAIN, rope_theta=1000000.0))),
    "granite": ("granite", dict(embedding_multiplier=12.0, residual_multiplier=0.22, attention_multiplier=0.2,
                                logits_scaling=3.0, tie_word_embeddings=True, rope_parameters=dict(PLAIN, rope_theta=10000.0))),
    "olmo2": ("olmo2", dict(rope_parameters=dict(PLAIN, rope_theta=500000.0))),
    "smollm3": ("smollm3", dict(num_hidden_layers=5, tie_word_embeddings=True,
                                rope_parameters=dict(PLAIN, rope_theta=2000000.0))),
}
LOCAL = dict(sliding_attention=dict(PLAIN, rope_theta=10000.0), full_attention=dict(PLAIN, rope_theta=1000000.0))
ROWS.update({
    "mistral-window": ("mistral", dict(sliding_window=4, rope_parameters=dict(PLAIN, rope_theta=10000.0))),
    "qwen2-window": ("qwen2", dict(use_sliding_window=True, sliding_window=3, max_window_layers=1,
                                   rope_parameters=dict(PLAIN, rope_theta=1000000.0))),
    "qwen3-yarn": ("qwen3", dict(head_dim=32, rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0,
                                                                   original_max_position_embeddings=16))),
    "gemma": ("gemma", dict(head_dim=16, num_key_value_heads=1, rope_parameters=dict(PLAIN, rope_theta=10000.0))),
    "gemma2": ("gemma2", dict(head_dim=16, num_hidden_layers=3, sliding_window=4, query_pre_attn_scalar=6,
                              attn_logit_softcapping=1.5, final_logit_softcapping=2.0,
                              rope_parameters=dict(PLAIN, rope_theta=10000.0))),
    "gemma3": ("gemma3_text", dict(head_dim=16, num_hidden_layers=3, sliding_window=4, sliding_window_pattern=3, query_pre_attn_scalar=16,
                                   rope_parameters=LOCAL)),
    "gemma3-scaled": ("gemma3_text", dict(head_dim=16, num_hidden_layers=3, sliding_window=3, query_pre_attn_scalar=24,
                                          layer_types=["full_attention", "sliding_attention", "full_attention"],
                                          rope_parameters=dict(LOCAL, full_attention=dict(rope_type="linear", factor=8.0,
                                                                                          rope_theta=1000000.0)))),
})
LENS, TEMPERATURE = (9, 4), 0.8
ORDER = ["input_layernorm.weight", "self_attn.q_proj.weight", "self_attn.q_proj.bias", "self_attn.k_proj.weight",
         "self_attn.k_proj.bias", "self_attn.v_proj.weight", "self_attn.v_proj.bias", "self_attn.q_norm.weight",
         "self_attn.k_norm.weight", "self_attn.o_proj.weight", "post_attention_layernorm.weight",
         "pre_feedforward_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight",
         "post_feedforward_layernorm.weight"]


def config_of(row):
    kind, more = ROWS[row]
    return transformers.AutoConfig.for_model(kind, attn_implementation="eager", **{**SMALL, **more})


def place(name):
    """Where the tensor is in the model's walk."""
    if name.startswith("model.layers."):
        layer, rest = name[len("model.layers."):].split(".", 1)
        return 1, int(layer), ORDER.index(rest)
    return {"model.embed_tokens.weight": (0,), "model.norm.weight": (2,), "lm_head.weight": (3,)}[name]


def fill(model, seed):
    tensors = sorted(model.named_parameters(), key=lambda p: place(p[0]))
    layers = model.config.num_hidden_layers
    for index, (name, p) in enumerate(tensors):
        shape = tuple(p.shape)
        if len(shape) == 1:
            near = -0.5 if name.endswith("bias") or "gemma" in model.config.model_type else 0.5
            w = (near + uniform(seed, TEST, np.arange(shape[0], dtype=np.uint64), 4, index, 0)).astype(np.float32)
        else:
            std = 0.02 / np.sqrt(2 * layers) if "o_proj" in name or "down_proj" in name else 0.02
            h = xxhash.xxh3_64_intdigest(name.encode(), 0)
            x = normal(seed, INIT, h & 0xFFFFFFFF, h >> 32, np.arange(shape[0] * shape[1], dtype=np.uint64), 0)
            w = (x * std).astype(np.float32).reshape(shape) * np.float32(SCALE)
        with torch.no_grad():
            p.copy_(torch.tensor(w.astype(np.float64)))
    return tensors


def golden(out, full):
    torch.set_default_dtype(torch.float64)
    single = torch.float32
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    for number, row in enumerate(ROWS):
        folder, seed, n = os.path.join(out, row), (900 if full else 200) + number, sum(LENS)
        model = transformers.AutoModelForCausalLM.from_config(config_of(row)).double().eval()
        for name, b in model.named_buffers():       # frequencies are floats in both
            if name.endswith("inv_freq"):
                b.copy_(b.to(single).double())
        tensors = fill(model, seed)
        model.config.save_pretrained(folder)
        rows = np.arange(n, dtype=np.uint64)
        vocab = model.config.vocab_size
        ids = below(vocab, seed, TEST, rows, 1, 0, 0)
        targets = below(vocab, seed, TEST, rows, 2, 0, 0)
        targets = [-1 if i % 5 == 3 else t for i, t in enumerate(targets)]
        d_logp = (uniform(seed, TEST, rows, 3, 0, 0) - 0.3).astype(np.float32)
        logits, logp, loss, at = [], [], 0.0, 0
        for length in LENS:
            z = model(torch.tensor([ids[at:at + length]]), use_cache=False).logits[0]
            logits.append(z)
            for i in range(length):
                t = targets[at + i]
                lp = (z[i] / TEMPERATURE).log_softmax(-1)[t] if t >= 0 else torch.zeros(())
                logp.append(lp.item())
                loss = loss + float(d_logp[at + i]) * lp
            at += length
        assert logits[0].dtype == torch.float64
        loss.backward()
        keep, sample = (1 << 30, 0) if full else (0, 8)
        values = [torch.cat(logits).detach().numpy().ravel(), np.array(logp)]
        for _, p in tensors:
            g = p.grad.numpy().ravel()
            values.append(np.array([np.linalg.norm(g)]))
            values.append(g if len(g) <= keep else g[[k * 2654435761 % len(g) for k in range(sample)]])
        np.concatenate(values).astype("<f4").tofile(os.path.join(folder, "values.f32"))
        with open(os.path.join(folder, "case.json"), "w") as f:
            json.dump(dict(seed=seed, scale=SCALE, temperature=TEMPERATURE, lens=LENS, ids=ids, targets=targets,
                           d_logp=[float(x) for x in d_logp], full=keep, sample=sample), f)


def logits(folder):
    ids = json.load(open(folder + "/ids.json"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        model(torch.tensor([ids])).logits[0].float().numpy().astype("<f4").tofile(folder + "/logits.f32")


if __name__ == "__main__":
    if sys.argv[1] == "logits":
        for name in os.listdir(sys.argv[2]):
            logits(os.path.join(sys.argv[2], name))
    elif sys.argv[1] == "save":
        torch.manual_seed(3)
        for row in ROWS:
            folder = os.path.join(sys.argv[2], row)
            model = transformers.AutoModelForCausalLM.from_config(config_of(row))
            fill(model, 5)
            model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="10KB")
            json.dump(torch.randint(0, 37, (40,)).tolist(), open(folder + "/ids.json", "w"))
            logits(folder)
    else:
        golden(sys.argv[1], len(sys.argv) > 2)
