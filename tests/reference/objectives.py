"""TRL's and OpenRLHF's losses and gradients, in double, against those in FOLDER (tests/test_objectives.c): `objectives.py FOLDER`.
Status 77: a library is missing."""
import json
import sys
from types import SimpleNamespace

try:
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM
    from trl import GRPOTrainer
    from trl.rewards import get_soft_overlong_punishment
except ImportError as missing:
    print(missing)
    sys.exit(77)

DIR = sys.argv[1]


def padded(rows, dtype):
    longest = max(map(len, rows))
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=dtype)


def rewards(case):
    turns = case["turns"]
    out = torch.tensor([t["reward"] for t in turns], dtype=torch.double)
    if case["overlong"] == "soft":
        punish = get_soft_overlong_punishment(case["limit"], case["cache"])
        out = out + torch.tensor(punish([t["ids"] for t in turns]), dtype=torch.double)
    return out.view(-1, case["peers"])


def advantages(case):
    """As GRPOTrainer has it: rewards of a prompt's samples less their mean, divided by their deviation where rewards are scaled."""
    own = rewards(case)
    out = own - own.mean(1, keepdim=True)
    if "none" not in case["theirs"]:
        out = out / (own.std(1, keepdim=True) + 1e-4)
    return out.view(-1)


def importance(case, begun, sampled, mask):
    """vllm_importance_sampling_mode: the ratio of what the learner computes at first to what the sampler did."""
    level, what = case["importance"].split("_")
    off = (begun - sampled) * mask
    ratio = (off.sum(1, keepdim=True) if level == "sequence" else off).exp()
    return ratio.clamp(max=case["cap"]) if what == "truncate" else ratio.masked_fill(ratio > case["cap"], 0)


class Count:
    """Metrics that the trainer keeps, which nobody reads here."""
    def __getitem__(self, key):
        return self

    def append(self, value):
        pass


def log_softmax(model, ids, mask, keep, case):
    return (model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1:-1] / case["temperature"]).log_softmax(-1)


def trl_loss(model, case):
    loss_type, _, level = case["theirs"].split()
    turns = case["turns"]
    high = case["high"] + (loss_type == "cispo")  # where it is the bound itself, not what it is above 1

    def logps(model, ids, mask, keep, **options):
        rows = log_softmax(model, ids, mask, keep, case)
        return rows.gather(-1, ids[:, -keep:, None]).squeeze(-1), -(rows.exp() * rows).sum(-1), None

    accelerator = SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **how: x)
    trainer = SimpleNamespace(_get_per_token_logps_and_entropies=logps, top_entropy_quantile=1.0, off_policy_mask_threshold=None,
                              importance_sampling_level=level, beta=case["beta"], loss_type=loss_type, epsilon_low=case["low"],
                              epsilon_high=high, max_completion_length=case["length"], model=SimpleNamespace(training=True),
                              args=SimpleNamespace(delta=case["delta"] or None, use_bias_correction_kl=False, steps_per_generation=1),
                              use_vllm=bool(case["importance"]), vllm_importance_sampling_correction=True, current_gradient_accumulation_steps=1, _entropy_bonus_enabled=False, aux_loss_enabled=False,
                              accelerator=accelerator, _metrics=Count(), use_adaptive_entropy=False, use_liger_kernel=False)
    completion = padded([t["ids"] for t in turns], torch.long)
    mask = padded([[1] * len(t["ids"]) for t in turns], torch.long)
    prompt = torch.tensor([t["context"] for t in turns])
    inputs = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": completion, "completion_mask": mask,
              "advantages": advantages(case), "old_per_token_logps": padded([t["old"] for t in turns], torch.double),
              "num_items_in_batch": mask.sum()}
    if case["importance"]:
        with torch.no_grad():
            begun = logps(model, torch.cat([prompt, completion], 1), torch.cat([torch.ones_like(prompt), mask], 1), mask.shape[1])[0]
        inputs["importance_sampling_ratio"] = importance(case, begun, inputs["old_per_token_logps"], mask)
        inputs["old_per_token_logps"] = begun
    if case["beta"]:
        inputs["ref_per_token_logps"] = padded([t["ref"] for t in turns], torch.double)
    return GRPOTrainer._compute_loss(trainer, model, inputs)


def states_values(model, turn, critic):
    """Values of the states that predict the turn's tokens, by a value head {weights, bias} on the last hidden state."""
    hidden = model.model(input_ids=torch.tensor([turn["context"] + turn["ids"]])).last_hidden_state[0]
    return hidden[len(turn["context"]) - 1:-1] @ critic[:-1] + critic[-1]


def gae(rewarded, values, gamma, lam):
    """Generalized advantage estimation by its recursion."""
    out, last, following = [], 0, 0
    for reward, value in zip(rewarded.flip(0), values.flip(0)):
        last = reward + gamma * following - value + gamma * lam * last
        following = value
        out.insert(0, last)
    return torch.stack(out)


def openrlhf_loss(model, case):
    """OpenRLHF's loss for its advantage estimators reinforce (REINFORCE++), reinforce_baseline and gae (PPO): a token's reward is -beta
    times k1, and the sample's reward at its last token; an advantage is the sum of the rewards from its token on, or GAE's, normalised
    over the batch's tokens with the variance clamped at 1e-8; PPO's clipped loss, whose mean is over tokens or over samples of their
    means; of the critic half the larger of the squared distances from the target, of the value and of the clipped value."""
    _, estimator, mean = case["theirs"].split()
    total, count, tokens = 0, len(case["turns"]), sum(len(t["ids"]) for t in case["turns"])
    critic = torch.tensor(case["critic_now"], dtype=torch.double, requires_grad=True) if estimator == "gae" else None
    value_total, targets, before = 0, [], []
    scores = rewards(case)
    if estimator == "reinforce_baseline":
        scores = scores - scores.mean(1, keepdim=True)
    advantages = []
    for turn, score in zip(case["turns"], scores.flatten()):
        kl = torch.tensor(turn["old"], dtype=torch.double) - torch.tensor(turn["ref"] or turn["old"], dtype=torch.double)
        rewarded = -case["beta"] * kl
        rewarded[-1] += score
        if critic is None:
            advantages.append(rewarded.flip(0).cumsum(0).flip(0))
            continue
        with torch.no_grad():
            before.append(states_values(model, turn, torch.tensor(case["critic"], dtype=torch.double)))
        advantages.append(gae(rewarded, before[-1], case["gamma"], case["lambda"]))
        targets.append(advantages[-1] + before[-1])
    whole = torch.cat(advantages)
    centre = whole.sum() / tokens
    scale = ((whole - centre) ** 2).sum() / tokens
    for i, (turn, advantage) in enumerate(zip(case["turns"], advantages)):
        advantage = (advantage - centre) / scale.clamp(min=1e-8).sqrt()
        ids = torch.tensor([turn["context"] + turn["ids"]])
        n = len(turn["ids"])
        now = log_softmax(model, ids, torch.ones_like(ids), n, case)[0].gather(-1, ids[0, -n:, None]).squeeze(-1)
        ratio = (now - torch.tensor(turn["old"], dtype=torch.double)).exp()
        each = torch.minimum(ratio * advantage, ratio.clamp(1 - case["low"], 1 + case["high"]) * advantage)
        total = total - (each.sum() / tokens if mean == "token" else each.mean() / count)
        if critic is None:
            continue
        values = states_values(model, turn, critic)
        near = before[i] + (values - before[i]).clamp(-case["value_clip"], case["value_clip"])
        each = 0.5 * torch.maximum((near - targets[i]) ** 2, (values - targets[i]) ** 2)
        value_total = value_total + (each.sum() / tokens if mean == "token" else each.mean() / count)
    assert abs(total.item() - case["loss"]) < 1e-5 * max(1, abs(total.item())), f"loss {case['loss']}, theirs {total.item()}"
    if critic is None:
        return total
    theirs = torch.autograd.grad(value_total, critic, retain_graph=True)[0]
    off = (torch.tensor(case["critic_gradient"], dtype=torch.double) - theirs).norm() / theirs.norm()
    assert off < 1e-5, f"{case['theirs']}: gradient of the critic: off by a relative {off:.2g}"
    assert abs(value_total.item() - case["value_loss"]) < 1e-5 * value_total.item(), f"value loss {case['value_loss']}"
    return total + case["coef"] * value_total


for i, case in enumerate(json.load(open(DIR + "/cases.json"))):
    model = LlamaForCausalLM.from_pretrained(f"{DIR}/{i}", dtype=torch.double)
    ours = load_file(f"{DIR}/{i}.gradient/model.safetensors")
    loss = (openrlhf_loss if "openrlhf" in case["theirs"] else trl_loss)(model, case)
    loss.backward()
    what = f"{case['theirs']} {case['importance']} (case {i})"
    ours_loss = case["loss"] + case.get("coef", 0) * case["value_loss"]
    assert abs(loss.item() - ours_loss) < 1e-5 * max(1, abs(loss.item())), f"{what}: loss {ours_loss}, theirs {loss.item()}"
    for name, p in model.named_parameters():
        off = (ours[name].double() - p.grad).norm() / p.grad.norm()
        assert off < 1e-5, f"{what}: gradient of {name}: off by a relative {off:.2g}"
