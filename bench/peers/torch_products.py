"""Products of bf16 as PyTorch makes them: rows of f32 that are rounded, times a weight of bf16, to f32 or bf16; GFLOP/s.

    python torch_products.py [--threads 2]

The shapes are those of `build/tests/test_opcheck --bench 2 cpu amx`, which rounds its rows too and writes f32.
"""
import argparse, statistics, time
import torch

p = argparse.ArgumentParser()
p.add_argument("--threads", type=int, default=2)
torch.set_num_threads(p.parse_args().threads)
for n in 8, 64, 512:
    x, w = torch.randn(n, 576), torch.randn(1536, 576).bfloat16()
    for name, product in (("rows of bf16", lambda a: torch.nn.functional.linear(a, w)), ("rows of f32, rounded", lambda a: torch.nn.functional.linear(x.bfloat16(), w)),
                          ("the same, to f32", lambda a: torch.nn.functional.linear(x.bfloat16(), w).float())):
        half, took = x.bfloat16(), []
        with torch.no_grad():
            for k in range(30):
                begin = time.perf_counter()
                for _ in range(20): product(half)
                took.append((time.perf_counter() - begin) / 20)
        print(f"n {n:4d}  in 576  out 1536  {name:22s} {2 * n * 576 * 1536 / statistics.median(took) * 1e-9:8.0f} GFLOP/s")
