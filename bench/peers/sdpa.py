"""PyTorch's scaled_dot_product_attention on a GPU at the shapes of `test_opcheck --bench`: 32 heads on 8 of 128, bf16, causal, one
document of 4096 tokens and 8 of 512. Prints what it prints: GFLOP/s, of pairs that are seen, 4 H D forwards and 10 H D backwards."""
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

H, K, D = 32, 8, 128


def best(fn):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    top = 1e9
    for i in range(40):
        start.record()
        fn()
        end.record()
        torch.cuda.synchronize()
        if i >= 5:
            top = min(top, start.elapsed_time(end) / 1e3)
    return top


for docs, length in (1, 4096), (8, 512):
    q = torch.randn(docs, H, length, D, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(docs, K, length, D, device="cuda", dtype=torch.bfloat16).repeat_interleave(H // K, 1).requires_grad_()
            for _ in range(2))
    d_out = torch.randn_like(q)
    pairs = docs * length * (length + 1) / 2 * H * D
    forward = best(lambda: sdpa(q, k, v, is_causal=True))
    out = sdpa(q, k, v, is_causal=True)
    backward = best(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True))
    print(f"{docs} x {length}: attention {4 * pairs / forward * 1e-9:.1f}, attention_back {10 * pairs / backward * 1e-9:.1f} GFLOP/s")
