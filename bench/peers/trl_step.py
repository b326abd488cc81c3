"""One whole reinforcement step by TRL on the processor: the work of build/bench/cycle; prints the same columns.

    python trl_step.py --shape 135m --type f32|bf16 --batch N --prompt P --new G --threads T [--micro M] [--runs R]

Needs torch, transformers, trl, accelerate and datasets from PyPI. GRPOTrainer samples G tokens for each of N prompts of P random
tokens, rewards them (share of ids below half the vocabulary), and makes one AdamW update; no reference model (beta 0). Its
advantages want groups, so the N prompts are N / 2 different ones, two samples each: which spares it no work that waltz does.
bf16 is a model all in bf16, weights and moments, without f32 masters: less than waltz keeps, but what TRL runs fastest with
(--autocast: bf16 by autocast over f32 weights, which keeps masters). It learns by M samples at a time: 2 take as
much of the processors as 8 and half of the memory. The first step warms up and is not counted.
"""
import argparse, os, resource, statistics, sys, tempfile, time

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
import transformers, trl
from shapes import SHAPES, show

p = argparse.ArgumentParser()
p.add_argument("--shape", default="135m", choices=SHAPES)
p.add_argument("--type", default="f32", choices=["f32", "bf16"])
for name, default in ("batch", 32), ("prompt", 64), ("new", 128), ("threads", 2), ("micro", 2), ("runs", 1):
    p.add_argument("--" + name, type=int, default=default)
p.add_argument("--autocast", action="store_true")
a = p.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(1)
layers, c, h, k, d, f, v = SHAPES[a.shape]
half = a.type == "bf16" and not a.autocast
config = LlamaConfig(vocab_size=v, hidden_size=c, intermediate_size=f, num_hidden_layers=layers, num_attention_heads=h, num_key_value_heads=k,
                     head_dim=d, max_position_embeddings=a.prompt + a.new + 1, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1, pad_token_id=2)
config._attn_implementation = "sdpa"
model = LlamaForCausalLM(config).to(torch.bfloat16 if half else torch.float32)
words = Tokenizer(models.WordLevel({**{f"<{i}>": i for i in range(4)}, **{f"t{i}": i for i in range(4, v)}}, unk_token="<3>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<0>", eos_token="<1>", pad_token="<2>", padding_side="left")
ids = torch.randint(4, v, ((a.runs + 1) * a.batch // 2, a.prompt)).tolist()
prompts = Dataset.from_dict({"prompt": [" ".join(f"t{i}" for i in row) for row in ids]})
begins, ends, rewards, faults = [], [], [], []


class Clock(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        faults.append(-resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
        begins.append(time.monotonic())

    def on_step_end(self, *args, **kwargs):
        ends.append(time.monotonic())
        faults[-1] += resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def reward(completion_ids, **_):
    """Also notes that rollouts are done, and that they are as long as they should be."""
    rewards.append(time.monotonic())
    if any(len(row) != a.new for row in completion_ids): sys.exit(f"asked for {a.new} tokens, got {sorted({len(r) for r in completion_ids})}")
    return [sum(i < v // 2 for i in row) / len(row) for row in completion_ids]


how = GRPOConfig(
    output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=a.type == "bf16" and a.autocast, per_device_train_batch_size=a.micro,
    gradient_accumulation_steps=a.batch // a.micro, num_generations=2, max_completion_length=a.new, generation_kwargs={"min_new_tokens": a.new},
    max_steps=a.runs + 1, beta=0.0, loss_type="grpo", temperature=1.0, learning_rate=1e-6, max_grad_norm=1.0, adam_beta2=0.95,
    gradient_checkpointing=False, logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True)
trainer = GRPOTrainer(model=model, reward_funcs=reward, args=how, train_dataset=prompts, processing_class=tokenizer, callbacks=[Clock()])
trainer.train()
if len(begins) != a.runs + 1 or len(rewards) != a.runs + 1: sys.exit(f"{len(begins)} steps and {len(rewards)} rollouts for {a.runs + 1}")
median = lambda x, y: statistics.median(e - b for b, e in list(zip(x, y))[1:])
print(f"rollout {median(begins, rewards):.2f} s, update {median(rewards, ends):.2f} s", file=sys.stderr)
show(a, f"trl {trl.__version__} (torch {torch.__version__}; transformers {transformers.__version__}) cycle", tok_s=a.batch * a.new / median(begins, ends),
     peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, faults_step=float(statistics.median(faults[1:])))
