"""Prefill and batched decode by llama.cpp, on the shapes of build/bench/generate; prints the same columns.

    python llama_generate.py --shape 135m --type f32|bf16 --batch N --prompt P --new G --threads T [--runs R]

Needs the packages gguf, numpy and xllamacpp, whose server runs in this process. A random-weight Llama is written as a GGUF once
and kept in --folder. Each run sends all prompts at once, for one token (prefill), then for G more with the cache kept.
Which instructions llama.cpp was compiled for goes to standard error: compare like with like (WZ_ISA).
"""
import argparse, json, os, resource, statistics, sys, tempfile, threading, time
import gguf
import numpy as np
import xllamacpp

SHAPES = {  # layers, width, heads, kv heads, head size, ffn, vocabulary
    "15m": (6, 288, 6, 6, 48, 768, 32000), "135m": (30, 576, 9, 3, 64, 1536, 49152),
}


def write(path, shape, kind):
    layers, c, h, k, d, f, v = shape
    rng = np.random.default_rng(1)
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(8192), w.add_embedding_length(c), w.add_block_count(layers), w.add_feed_forward_length(f)
    w.add_head_count(h), w.add_head_count_kv(k), w.add_layer_norm_rms_eps(1e-5), w.add_rope_dimension_count(d)
    w.add_vocab_size(v), w.add_rope_freq_base(1e4)
    w.add_tokenizer_model("llama")
    w.add_token_list([b"<unk>", b"<s>", b"</s>"] + [b"t%d" % i for i in range(3, v)])
    w.add_token_scores([0.0] * v)
    w.add_token_types([2, 3, 3] + [1] * (v - 3))
    w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_unk_token_id(0)

    def add(name, *dims):
        x = np.ones(dims, np.float32) if len(dims) == 1 else rng.standard_normal(dims, np.float32) * np.float32(0.02)
        if kind == "bf16" and len(dims) > 1:
            w.add_tensor(name, gguf.quants.quantize(x, gguf.GGMLQuantizationType.BF16), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            w.add_tensor(name, x)

    add("token_embd.weight", v, c), add("output_norm.weight", c)
    for i in range(layers):
        for name, *dims in (("attn_norm", c), ("attn_q", h * d, c), ("attn_k", k * d, c), ("attn_v", k * d, c), ("attn_output", c, h * d),
                            ("ffn_norm", c), ("ffn_gate", f, c), ("ffn_up", f, c), ("ffn_down", c, f)):
            add(f"blk.{i}.{name}.weight", *dims)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()


p = argparse.ArgumentParser()
p.add_argument("--shape", default="135m", choices=SHAPES)
p.add_argument("--type", default="f32", choices=["f32", "bf16"])
for name, default in ("batch", 32), ("prompt", 128), ("new", 64), ("threads", 2), ("runs", 1):
    p.add_argument("--" + name, type=int, default=default)
p.add_argument("--folder", default=tempfile.gettempdir())
a = p.parse_args()
path = os.path.join(a.folder, f"bench-{a.shape}-{a.type}.gguf")
if not os.path.exists(path):
    write(path, SHAPES[a.shape], a.type)
params = xllamacpp.CommonParams()
params.model.path = path
params.n_ctx = a.batch * (a.prompt + a.new + 32)
params.n_parallel = a.batch
params.n_batch, params.n_ubatch = 2048, 512
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = a.threads
params.warmup = False
server = xllamacpp.Server(params)
print(xllamacpp.get_system_info(), file=sys.stderr)
rng = np.random.default_rng(2)


def run(prompts, n):
    """Seconds until every prompt has n tokens; the tokens."""
    out = [None] * len(prompts)

    def one(i):
        out[i] = server.handle_completions({"prompt": prompts[i], "max_tokens": n, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
                                            "ignore_eos": True, "cache_prompt": True, "id_slot": i, "seed": i})

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
    begin = time.monotonic()
    for t in threads: t.start()
    for t in threads: t.join()
    seconds = time.monotonic() - begin
    for o in out:
        o = json.loads(o) if isinstance(o, (str, bytes)) else o
        if o.get("usage", {}).get("completion_tokens") != n: sys.exit(f"asked for {n} tokens, got {json.dumps(o)[:300]}")
    return seconds


new_prompts = lambda: rng.integers(3, SHAPES[a.shape][-1], (a.batch, a.prompt)).tolist()
run(new_prompts(), 2)
prefill, decode = [], []
for _ in range(a.runs):
    prompts = new_prompts()
    prefill.append(run(prompts, 1))
    decode.append(run(prompts, a.new))
print("program,shape,type,batch,prompt,new,threads,prefill_tok_s,tok_s,peak_mb,faults_step,allocations_step,gb_s,gflop_s,others_percent")
print(f"llama.cpp (xllamacpp {xllamacpp.__version__ if hasattr(xllamacpp, '__version__') else ''}) generate,{a.shape},{a.type},{a.batch},{a.prompt},{a.new},{a.threads},"
      f"{a.batch * a.prompt / statistics.median(prefill):.1f},{a.batch * a.new / statistics.median(decode):.1f},"
      f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f},,,,,")
