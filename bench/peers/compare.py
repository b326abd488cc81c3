"""Runs waltz and its peers in turn, on this machine and in one session, and writes the table of medians as Markdown.

    python compare.py --build build --torch PYTHON --llama PYTHON [--rounds 3] [--out bench/results/cpu.md] [--only WORD] [--compile]

PYTHON are interpreters of environments made outside the repository: one with torch, one with xllamacpp, gguf and numpy. Every
figure of the table is computed here from what the programs printed. A peer that prints nothing is said so, with its last words.
"""
import argparse, datetime, os, statistics, subprocess, time

HERE = os.path.dirname(os.path.abspath(__file__))
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}       # threads of others share these cores: spinning would ruin both sides
HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "34359738368", "MALLOC_TOP_PAD_": "268435456"}

p = argparse.ArgumentParser()
for name, default in ("build", "build"), ("torch", None), ("llama", None), ("out", None), ("only", "") :
    p.add_argument("--" + name, default=default)
p.add_argument("--rounds", type=int, default=3)
p.add_argument("--minutes", type=float, default=60, help="starts no further round after these")
p.add_argument("--compile", action="store_true", help="torch.compile too, which takes its time to compile")
a = p.parse_args()

generate = lambda t, b, prompt, new: f"generate --shape 135m --type {t} --batch {b} --prompt {prompt} --new {new} --threads 2"
step = lambda shape, t, b: f"step --shape {shape} --type {t} --batch {b} --seq 256 --threads 2 --runs 2"
rows = []                                      # what, ours, its environment, peer program, its arguments
for b, prompt, new in (1, 64, 16), (32, 32, 16):
    rows.append((f"generate 135m f32, batch {b}, both AVX2", generate("f32", b, prompt, new), {"WZ_ISA": "avx2"}, "llama", generate("f32", b, prompt, new)))
for t in "f32", "bf16":
    for b, prompt, new in (1, 64, 16), (32, 32, 16), (64, 32, 16):
        rows.append((f"generate 135m {t}, batch {b}", generate(t, b, prompt, new), {}, None, None))
for shape, b in ("15m", 4), ("135m", 2):
    for t, more in [(t, more) for t in ("f32", "bf16") for more in ("", " --compile")[:1 + a.compile]]:
        rows.append((f"step {shape}, {b} x 256: f32 against torch {t}{more.replace(' --', ', ')}", step(shape, "f32", b), {}, "torch", step(shape, t, b) + more))
rows = [r for r in rows if a.only in r[0] and (r[3] is None or getattr(a, r[3]))]


def run(command, env):
    """The printed columns by name, or None; and the last line of standard error."""
    r = subprocess.run(command.split(), env={**os.environ, **env}, capture_output=True, text=True)
    lines = [line.split(",") for line in r.stdout.splitlines() if line.count(",") > 10]
    if r.returncode or len(lines) < 2: return None, (r.stderr.strip().splitlines() or ["nothing"])[-1][:160]
    return dict(zip(lines[-2], lines[-1])), ""


ours, theirs, others, loads, words, done = {}, {}, {}, [], {}, 0
begin = time.monotonic()
started = datetime.datetime.now(datetime.timezone.utc)
for _ in range(a.rounds):
    if time.monotonic() - begin > 60 * a.minutes: break
    done += 1
    mine = {}                                  # the same command of ours is run once a round
    for what, command, env, program, arguments in rows:
        loads.append(os.getloadavg()[0])
        key = command, tuple(env.items())
        if key not in mine: mine[key], words[what, 0] = run(f"{a.build}/bench/{command} --csv", env)
        if mine[key]:
            ours.setdefault(what, []).append(mine[key])
            others.setdefault(what, []).append(float(mine[key]["others_percent"]))
        if not program: continue
        script = os.path.join(HERE, "llama_generate.py" if program == "llama" else "torch_step.py")
        theirs_now, words[what, 1] = run(f"{getattr(a, program)} {script} {arguments.split(' ', 1)[1]}", {**PASSIVE, **(HEAP if program == "torch" else {})})
        if theirs_now: theirs.setdefault(what, []).append(theirs_now)

shell = lambda c: subprocess.run(c, shell=True, capture_output=True, text=True).stdout.strip()
median = lambda results, column: statistics.median(float(r[column]) for r in results if r[column]) if any(r[column] for r in results) else None
show = lambda x, digits=0: "" if x is None else f"{x:,.{digits}f}"
out = ["# The cpu row beside its peers", "",
       f"Machine: {shell('lscpu | sed -n s/^Model.name:.//p').strip()}, {os.cpu_count()} cores; commit {shell('git -C ' + HERE + ' rev-parse --short HEAD')}; "
       f"{started:%Y-%m-%d %H:%M} UTC and {(time.monotonic() - begin) / 60:.0f} minutes on, {done} rounds of waltz and peer in turn.",
       f"Load average (1 minute) before each pair: {min(loads):.1f} to {max(loads):.1f}, median {statistics.median(loads):.1f}. The medians of the rounds are shown, "
       "(least to most) behind tokens/s; ratio: waltz over peer.", "",
       "| what | waltz prefill | waltz tokens/s | peer prefill | peer tokens/s | ratio prefill | ratio tokens/s | waltz MB | peer MB | waltz faults a step | peer faults a step | others used |",
       "|---|---|---|---|---|---|---|---|---|---|---|---|"]
for what, *_ in rows:
    o, t = ours.get(what), theirs.get(what)
    if not o:
        out.append(f"| {what} | failed: {words[what, 0]} |" + " |" * 10)
        continue
    span = lambda r: f"{show(median(r, 'tok_s'), 1)} ({show(min(float(x['tok_s']) for x in r))} to {show(max(float(x['tok_s']) for x in r))})"
    prefill = lambda r: median(r, "prefill_tok_s") or None
    ratio = lambda x, y: "" if not x or not y else f"{x / y:.2f}"
    out.append("| " + " | ".join([what, show(prefill(o)), span(o), show(prefill(t)) if t else words.get((what, 1), "not run") or "not run", span(t) if t else "",
        ratio(prefill(o), prefill(t)) if t else "", ratio(median(o, "tok_s"), median(t, "tok_s")) if t else "", show(median(o, "peak_mb")),
        show(median(t, "peak_mb")) if t else "", show(median(o, "faults_step")), show(median(t, "faults_step")) if t else "",
        f"{statistics.median(others[what]):.0f} %"]) + " |")
out += ["", "Commands, alternately; peers with `" + " ".join(f"{k}={v}" for k, v in PASSIVE.items()) + "`, torch with `" + " ".join(f"{k}={v}" for k, v in HEAP.items()) + "` too:", "", "```"]
for what, command, env, program, arguments in rows:
    out.append("".join(f"{k}={v} " for k, v in env.items()) + f"build/bench/{command} --csv")
    if program: out.append(f"python bench/peers/{'llama_generate' if program == 'llama' else 'torch_step'}.py {arguments.split(' ', 1)[1]}")
out += ["```", "", "Peers: " + ", ".join(sorted({r["program"].rsplit(" ", 1)[0] for rs in theirs.values() for r in rs})) + ".", ""]
text = "\n".join(out)
print(text)
if a.out: open(a.out, "w").write(text)
