"""Prefill and batched decode by a llama.cpp compiled for this machine: the work of build/bench/generate; prints the same columns.

    python llama.py --bench FOLDER/llama-batched-bench --model FILE --batch N --prompt P --new G --threads T [--fork] [--runs R]

How to get it: the source is in PyPI's source package of llama-cpp-python (vendor/llama.cpp) or on GitHub; configure with
-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF, then build the target llama-batched-bench alone. The fork
ik_llama.cpp is on GitHub and is built likewise. A prebuilt package knows no AVX-512 and would be no match.

FILE is a GGUF by random_gguf.py. Prompts share nothing; flash attention is on; llama.cpp keeps one stream of keys and values for
each sequence. The fork (--fork) keeps one for all, and repacks its rows at load (-rtr), which is what makes it fast. The bench
picks tokens at random where waltz samples from its logits: that work is spared the peer.
"""
import argparse, os, re, resource, statistics, subprocess, sys, tempfile
from shapes import SHAPES, show

p = argparse.ArgumentParser()
p.add_argument("--bench", required=True)
p.add_argument("--model", required=True)
p.add_argument("--shape", default="135m", choices=SHAPES)
p.add_argument("--type", default="f32", choices=["f32", "bf16", "int8"])
for name, default in ("batch", 32), ("prompt", 128), ("new", 64), ("threads", 2), ("runs", 1):
    p.add_argument("--" + name, type=int, default=default)
p.add_argument("--fork", action="store_true")
a = p.parse_args()
longest = a.prompt + a.new
cells = a.batch * (longest if a.fork else (longest + 255) // 256 * 256)        # a stream's cells come by 256
command = [os.path.abspath(a.bench), "-m", os.path.abspath(a.model), "-t", a.threads, "-tb", a.threads, "-c", cells, "-b", 2048, "-ub", 512, "-npp", a.prompt, "-ntg", a.new,
           "-npl", ",".join([str(a.batch)] * a.runs), "-fa", "on", *(["-rtr"] if a.fork else ["-no-kvu"])]
with tempfile.TemporaryDirectory() as here:                                    # the fork leaves a log behind
    r = subprocess.run([str(x) for x in command], capture_output=True, text=True, cwd=here)
rows = [[float(x) for x in line.strip("|").split("|")] for line in (r.stdout + r.stderr).splitlines() if re.fullmatch(r"\|( *[\d.]+ \|)+", line)]
if r.returncode or len(rows) != a.runs or any(row[:3] != [a.prompt, a.new, a.batch] for row in rows):
    sys.exit(f"{' '.join(map(str, command))}: {(r.stderr.strip().splitlines() or ['printed nothing'])[-1]}")
said = subprocess.run([a.bench, "--version"], capture_output=True, text=True)
version = re.search(r"version: *([^(,\n]*)", said.stdout + said.stderr)
median = lambda i: statistics.median(row[i] for row in rows)
show(a, ("ik_llama.cpp " if a.fork else "llama.cpp ") + (version.group(1).strip() if version else "") + " generate", prefill_tok_s=a.batch * a.prompt / median(4),
     tok_s=a.batch * a.new / median(6), peak_mb=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
