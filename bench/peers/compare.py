"""Runs waltz and its peers in turn, on this machine and in one session, and writes the table of what they reach.

    python3 compare.py --build build --llama FOLDER --ik FOLDER --gguf PYTHON --torch PYTHON [--rounds 3] [--only WORD]
                       [--out bench/results/cpu.md] [--minutes 60]

FOLDER: where llama-batched-bench of llama.cpp and of ik_llama.cpp is (llama.py says how to get them). PYTHON: interpreters of
environments made outside the repository, one with gguf and numpy, one with torch, trl, transformers, accelerate and datasets from
PyPI. What is not given is not compared.

A round runs every program once, waltz and its peers next to each other; the next round runs them the other way round. A row is the
median of the rounds. All figures of all rounds are kept in BUILD/compare.json, so a run cut short goes on with --only WORD, which
measures anew the rows whose name has WORD in it and leaves the others as they were; --rounds 0 only writes the table. --out
replaces what is between the two marks in that file, and nothing else of it.
"""
import argparse, datetime, json, os, re, statistics, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
QUIET = 0.1                                    # of all cores: where others used more, a ratio decides nothing
MARKS = "<!-- compare.py writes from here -->\n", "<!-- to here -->\n"
# torch runs fastest with a heap that never gives memory back, and with threads that sleep where they wait: others share the cores
HEAP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "34359738368", "MALLOC_TOP_PAD_": "268435456", "OMP_WAIT_POLICY": "PASSIVE"}

p = argparse.ArgumentParser()
p.add_argument("--build", default="build")
for name in "llama", "ik", "gguf", "torch", "out":
    p.add_argument("--" + name)
p.add_argument("--only", default="")
p.add_argument("--rounds", type=int, default=3)
p.add_argument("--minutes", type=float, default=60, help="starts nothing more after these")
p.add_argument("--threads", type=int, default=os.cpu_count())
a = p.parse_args()

# ---- what is compared: rows of (what, peer, our command, the peer's, column, must, goal); of peak_mb less is better
rows = []
llama = lambda folder, extra="": f"{sys.executable} {HERE}/llama.py --bench {folder}/llama-batched-bench --model {{model}}{extra}" if folder and a.gguf else None
torch = lambda script: f"{a.torch} {HERE}/{script}" if a.torch else None


def row(what, peer, ours, theirs, work, column="tok_s", must=1.0, goal=1.5):
    work += f" --threads {a.threads}"
    order = " --bf16 auto" if "--type bf16" in work else ""
    rows.append((what, peer, f"{a.build}/bench/{ours} {work}{order} --csv", f"{theirs} {work}" if theirs else None, column, must, goal))


for what, work in (("prefill bf16, 1 x 512", "--batch 1 --prompt 512 --new 32 --runs 3"), ("prefill bf16, 32 x 64", "--batch 32 --prompt 64 --new 64")):
    for peer, command in ("llama.cpp", llama(a.llama)), ("ik_llama.cpp -rtr", llama(a.ik, " --fork")):
        row(what, peer, "generate", command, f"--shape 135m --type bf16 {work}", "prefill_tok_s", 1.3, 2)
row("decode bf16, batch 1", "llama.cpp", "generate", llama(a.llama), "--shape 135m --type bf16 --batch 1 --prompt 64 --new 64 --runs 3", "tok_s", 0.95, 1.1)
for t in "f32", "bf16":
    for b, new in (32, 64), (64, 32):
        row(f"decode {t}, batch {b}", "llama.cpp", "generate", llama(a.llama), f"--shape 135m --type {t} --batch {b} --prompt 64 --new {new}", "tok_s", 1.3, 2.5)
for shape, t, name, prompt in ("135m", "int8", "llama.cpp, Q8_0", 64), ("1b", "bf16", "llama.cpp", 128):
    work = f"--shape {shape} --type {t} --batch 32 --prompt {prompt} --new 32"
    for what, column, must, goal in ("prefill", "prefill_tok_s", 1.3, 2), ("decode", "tok_s", 1.3, 2.5):
        row(f"{what} {shape} {t}, 32 x {prompt}", name, "generate", llama(a.llama), work, column, must, goal)
for shape, b, runs in ("15m", 4, 5), ("135m", 2, 2), ("135m", 8, 2):
    for t in "f32", "bf16":
        for peer, extra in ("PyTorch", ""), ("PyTorch, compiled", " --compile"):
            row(f"training step {shape} {t}, {b} x 256", peer, "step", torch("torch_step.py" + extra), f"--shape {shape} --type {t} --batch {b} --seq 256 --runs {runs}")
for t in "f32", "bf16":
    for what, column, must, goal in ("whole step", "tok_s", 3, 10), ("peak memory of a whole step", "peak_mb", 0.5, 0.25):
        row(f"{what}, 135m {t}, 32 x (64 + 128)", "TRL", "cycle", torch("trl_step.py"), f"--shape 135m --type {t} --batch 32 --prompt 64 --new 128", column, must, goal)
rows.sort(key=lambda r: r[0].startswith("peak"))


# ---- running
def model(command):
    """The GGUF of a command's shape and type of weights, written when first asked for."""
    shape, kind = re.search(r"--shape (\w+) --type (\w+)", command).groups()
    path = os.path.join(tempfile.gettempdir(), f"bench-{shape}-{kind}.gguf")
    if not os.path.exists(path):
        subprocess.run([a.gguf, f"{HERE}/random_gguf.py", "--shape", shape, "--type", kind, path + ".part"], check=True)
        os.rename(path + ".part", path)
    return path


def busy():
    with open("/proc/stat") as f: t = [int(x) for x in f.readline().split()[1:9]]
    return (sum(t) - t[3] - t[4]) / os.sysconf("SC_CLK_TCK")


def run(command):
    """One sample: the columns that the program printed, what others used of the machine meanwhile, and when; or why there is none."""
    env = {**os.environ, **(HEAP if a.torch and any(f"{HERE}/{script}" in command for script in ("torch_step.py", "trl_step.py")) else {})}
    words = [model(command) if w == "{model}" else w for w in command.split()]
    load, before, begin = os.getloadavg()[0], busy(), time.monotonic()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(words, env=env, stdout=out, stderr=err)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        lines = [line.strip().split(",") for line in out if line.count(",") > 10]
        last = ([line.strip() for line in err if line.strip()] or ["nothing was said"])[-1]
    took = time.monotonic() - begin
    own = used.ru_utime + used.ru_stime
    others = max(0.0, busy() - before - own) / took / os.cpu_count()
    sample = {"when": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M}", "load": load, "others": others, "took": took, "own": own, "commit": commit}
    if child.returncode or len(lines) < 2 or len(lines[-1]) != len(lines[-2]): return {**sample, "failed": last[:160]}
    return {**sample, **dict(zip(lines[-2], lines[-1]))}


shell = lambda c: subprocess.run(c, shell=True, capture_output=True, text=True).stdout.strip()
commit = shell(f"cd {HERE}/../.. && git rev-parse --short HEAD && git diff --quiet HEAD -- . ':!bench/results' || echo changed").replace("\n", ", ")
store = os.path.join(a.build, "compare.json")
samples = json.load(open(store)) if os.path.exists(store) else {}
wanted = list(dict.fromkeys(c for what, peer, ours, theirs, *_ in rows if a.only in what for c in (ours, theirs) if c))
begin, fresh = time.monotonic(), set()
for k in range(a.rounds):
    for command in wanted[::-1] if k % 2 else wanted:
        if time.monotonic() - begin > 60 * a.minutes: break
        if command not in fresh: samples[command] = []
        fresh.add(command)
        samples[command].append(run(command))
        s = samples[command][-1]
        print(f"round {k + 1}, {s['took']:.0f} s ({s['own']:.0f} s of processors), others {100 * s['others']:.0f} %: {command.replace(HERE + '/', '')}: "
              f"{s.get('failed') or ' '.join(n + ' ' + s[n] for n in ('prefill_tok_s', 'tok_s', 'peak_mb') if s[n])}", file=sys.stderr, flush=True)
        with open(store + ".part", "w") as f: json.dump(samples, f, indent=1)
        os.replace(store + ".part", store)

# ---- the table
good = lambda command, column: [float(s[column]) for s in samples.get(command, []) if s.get(column)]
number = lambda x: f"{x:,.0f}" if x >= 100 else f"{x:.1f}"
span = lambda x: f"{number(statistics.median(x))} ({number(min(x))} to {number(max(x))})" if x else ""


def verdict(ratio, column, must, goal, others):
    reached = (lambda bar: ratio <= bar) if column == "peak_mb" else (lambda bar: ratio >= bar)
    word = "goal" if reached(goal) else "must" if reached(must) else "**short**"
    return word if max(others) <= QUIET else f"({word}: not quiet)"


def line(what, peer, ours, theirs, column, must, goal):
    o, t = good(ours, column), good(theirs, column)
    if not o or not t:
        failed = [s["failed"] for c in (ours, theirs) for s in samples.get(c, []) if "failed" in s]
        return f"| {what} | {peer} | {span(o)} | {span(t)} | | {must:g} | {goal:g} | {'failed: ' + failed[-1].replace('|', '/') if failed else 'not run'} | |"
    ratio = statistics.median(o) / statistics.median(t)
    others = [statistics.median(s["others"] for s in samples[c]) for c in (ours, theirs)]
    return f"| {what} | {peer} | {span(o)} | {span(t)} | {ratio:.2f} | {must:g} | {goal:g} | {verdict(ratio, column, must, goal, others)} | {others[0]:.0%}, {others[1]:.0%} |"


shown = [s for *_, ours, theirs, _, _, _ in rows for c in (ours, theirs) for s in samples.get(c, [])]
every = lambda name: sorted({s[name] for s in shown if s.get(name)})
cpu = shell("lscpu | sed -n 's/^Model name: *//p'")
out = [f"Machine: {cpu}, {os.cpu_count()} cores, {a.threads} threads for each; commit {', '.join(every('commit'))}; {(every('when') or [''])[0]} to {(every('when') or [''])[-1]} UTC. "
       + (f"Load average (1 minute) before each run: {min(every('load')):.1f} to {max(every('load')):.1f}." if shown else ""),
       "Tokens/s, for memory MB: the median of the rounds (least to most). Ratio: waltz over peer. Others: the share of all cores that other "
       f"processes used meanwhile, beside waltz and beside the peer; more than {QUIET:.0%} is not quiet.", "",
       "| what | peer | waltz | peer's | ratio | must | goal | reached | others |", "|---|---|---|---|---|---|---|---|---|"]
out += [line(*r) for r in rows]
memory = lambda c: f"{statistics.median(good(c, 'peak_mb')):,.0f} MB" + (f", {statistics.median(good(c, 'faults_step')):,.0f} faults a step" if good(c, "faults_step") else "")
out += ["", "Every program, with its peak memory and the page faults of a steady step where it counts them; torch and TRL with `"
        + " ".join(f"{k}={v}" for k, v in HEAP.items()) + "`:", ""]
plain = lambda c: c.replace(a.build + "/", "build/").replace(HERE + "/", "").replace(str(a.torch) + " ", "python ").replace(sys.executable + " ", "python ").replace(
    f"{a.llama}/", "").replace(f"{a.ik}/", "").replace("{model}", "FILE")
out += [f"- `{plain(c)}`: {memory(c)}" for c in dict.fromkeys(c for r in rows for c in r[2:4] if c) if good(c, "peak_mb")]
out += ["", "Programs: " + ", ".join(x.rsplit(" ", 1)[0] for x in every("program") if not x.startswith("waltz")) + ".", ""]
text = "\n".join(out)
print(text)
if a.out:
    with open(a.out) as f: page = f.read()
    if page.count(MARKS[0]) != 1 or page.count(MARKS[1]) != 1: sys.exit(f"{a.out}: wanted once each, on lines of their own: {MARKS[0]}{MARKS[1]}")
    head, rest = page.split(MARKS[0])
    with open(a.out, "w") as f: f.write(head + MARKS[0] + text + MARKS[1] + rest.split(MARKS[1])[1])
