"""TRL's loss and its gradient, in double, against those in FOLDER (tests/test_objectives.c): `objectives.py FOLDER`. Status 77: a
library is missing."""
import json
import sys
from types import SimpleNamespace

try:
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM
    from trl import GRPOTrainer
except ImportError as missing:
    print(missing)
    sys.exit(77)

DIR = sys.argv[1]


def padded(rows, dtype):
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=dtype)


def advantages(case):
    """As GRPOTrainer has it: rewards of a prompt's samples less their mean, divided by their deviation where rewards are scaled."""
    rewards = torch.tensor([t["reward"] for t in case["turns"]], dtype=torch.double).view(-1, case["peers"])
    out = rewards - rewards.mean(1, keepdim=True)
    if "none" not in case["trl"]:
        out = out / (rewards.std(1, keepdim=True) + 1e-4)
    return out.view(-1)


class Count:
    """Metrics that the trainer keeps, which nobody reads here."""
    def __getitem__(self, key):
        return self

    def append(self, value):
        pass


def trl_loss(model, case):
    loss_type, _, level = case["trl"].split()
    turns = case["turns"]

    def logps(model, ids, mask, keep, **options):
        logits = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1:-1] / case["temperature"]
        rows = logits.log_softmax(-1)
        return rows.gather(-1, ids[:, -keep:, None]).squeeze(-1), -(rows.exp() * rows).sum(-1), None

    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **how: x)
    trainer = SimpleNamespace(_get_per_token_logps_and_entropies=logps, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
                              importance_sampling_level=level, beta=case["beta"], loss_type=loss_type, epsilon_low=case["low"],
                              epsilon_high=case["high"], max_completion_length=case["length"], model=SimpleNamespace(training=True),
                              args=SimpleNamespace(delta=case["delta"] or None, use_bias_correction_kl=False, steps_per_generation=1),
                              use_vllm=False, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, aux_loss_enabled=False,
                              accelerator=accelerator, _metrics=Count(), use_adaptive_entropy=False, use_liger_kernel=False)
    completion = padded([t["ids"] for t in turns], torch.long)
    mask = padded([[1] * len(t["ids"]) for t in turns], torch.long)
    prompt = torch.tensor([t["context"] for t in turns])
    inputs = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion, "completion_mask": mask,
              "advantages": advantages(case), "old_per_token_logps": padded([t["old"] for t in turns], torch.double),
              "num_items_in_batch": mask.sum()}
    if case["beta"]:
        inputs["ref_per_token_logps"] = padded([t["ref"] for t in turns], torch.double)
    return GRPOTrainer._compute_loss(trainer, model, inputs)


for i, case in enumerate(json.load(open(DIR + "/cases.json"))):
    model = LlamaForCausalLM.from_pretrained(f"{DIR}/{i}", dtype=torch.double)
    ours = load_file(f"{DIR}/{i}.gradient/model.safetensors")
    loss = trl_loss(model, case)
    loss.backward()
    what = f"{case['trl']} (case {i})"
    assert abs(loss.item() - case["loss"]) < 1e-5 * max(1, abs(loss.item())), f"{what}: loss {case['loss']}, TRL's {loss.item()}"
    for name, p in model.named_parameters():
        off = (ours[name].double() - p.grad).norm() / p.grad.norm()
        assert off < 1e-5, f"{what}: gradient of {name}: off by a relative {off:.2g}"
