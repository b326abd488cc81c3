"""The training step of a plain Llama in PyTorch, on the shapes of build/bench/step; prints the same columns.

    python torch_step.py --shape 15m --type f32|bf16 --batch N --seq S --threads T [--compile] [--runs R] [--layers L] [--recompute]
                         [--device cuda]

RMSNorm, RoPE, grouped attention by scaled_dot_product_attention, SwiGLU, tied head; forward, cross-entropy on every token,
backward, clipping, AdamW (fused where it is to be had). bf16 is autocast over f32 weights, PyTorch's usual way; --recompute checkpoints
each layer. Start it with
OMP_WAIT_POLICY=PASSIVE and MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=34359738368 MALLOC_TOP_PAD_=268435456, which keep the heap
and are what it runs fastest with.
"""
import argparse, contextlib, resource, statistics, time
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from shapes import SHAPES, show


class Norm(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(c))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)


class Layer(torch.nn.Module):
    def __init__(self, c, h, k, d, f):
        super().__init__()
        line = lambda i, o: torch.nn.Linear(i, o, bias=False)
        self.h, self.k, self.d = h, k, d
        self.norm1, self.norm2 = Norm(c), Norm(c)
        self.q, self.kv, self.o = line(c, h * d), line(c, 2 * k * d), line(h * d, c)
        self.gate, self.up, self.down = line(c, f), line(c, f), line(f, c)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        turn = lambda y: y * cos + torch.cat((-y[..., self.d // 2:], y[..., :self.d // 2]), -1) * sin
        y = self.norm1(x)
        q = turn(self.q(y).view(b, t, self.h, self.d).transpose(1, 2))
        k, v = self.kv(y).view(b, t, 2, self.k, self.d).permute(2, 0, 3, 1, 4)
        k, v = turn(k).repeat_interleave(self.h // self.k, 1), v.repeat_interleave(self.h // self.k, 1)
        x = x + self.o(F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), is_causal=True).transpose(1, 2).reshape(b, t, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(torch.nn.Module):
    def __init__(self, layers, c, h, k, d, f, v):
        super().__init__()
        self.embed, self.norm = torch.nn.Embedding(v, c), Norm(c)
        self.layers = torch.nn.ModuleList(Layer(c, h, k, d, f) for _ in range(layers))
        self.freq = 1e4 ** (-torch.arange(0, d, 2) / d)

    def forward(self, ids, targets):
        angle = torch.outer(torch.arange(ids.shape[1], device=ids.device), self.freq.to(ids.device)).repeat(1, 2)
        x, cos, sin = self.embed(ids), angle.cos(), angle.sin()
        for layer in self.layers:
            x = checkpoint(layer, x, cos, sin, use_reentrant=False) if a.recompute else layer(x, cos, sin)
        return F.cross_entropy((self.norm(x) @ self.embed.weight.t()).float().flatten(0, 1), targets.flatten())


p = argparse.ArgumentParser()
p.add_argument("--shape", default="15m", choices=SHAPES)
p.add_argument("--type", default="f32", choices=["f32", "bf16"])
for name, default in ("layers", 0), ("batch", 4), ("seq", 256), ("threads", 2), ("runs", 3):
    p.add_argument("--" + name, type=int, default=default)
p.add_argument("--compile", action="store_true"), p.add_argument("--recompute", action="store_true")
p.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(1)
shape = (a.layers or SHAPES[a.shape][0], *SHAPES[a.shape][1:])
model = Llama(*shape).to(a.device)
torch.nn.init.normal_(model.embed.weight, std=0.02)
opt = torch.optim.AdamW(model.parameters(), 1e-6, betas=(0.9, 0.95), fused=True)
ids, targets = torch.randint(shape[-1], (2, a.batch, a.seq), device=a.device)
wait = torch.cuda.synchronize if a.device == "cuda" else lambda: None
run = torch.compile(model) if a.compile else model
seconds, faults = [], []
for step in range(-1, a.runs):
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.monotonic()
    with torch.autocast(a.device, torch.bfloat16) if a.type == "bf16" else contextlib.nullcontext():
        loss = run(ids, targets)
    opt.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    wait()
    if step >= 0:
        seconds.append(time.monotonic() - begin)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
rate = a.batch * a.seq / statistics.median(seconds)
layers, c, h, k, d, f, v = shape
flops = 3 * rate * (2 * (layers * c * (2 * h * d + 2 * k * d + 3 * f) + v * c) + 4 * layers * h * d * a.seq / 2)
show(a, f"torch {torch.__version__}{' compiled' if a.compile else ''} step", tok_s=rate, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
     faults_step=statistics.median(faults), gflop_s=flops * 1e-9)
