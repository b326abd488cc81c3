"""The transformers library's side of tests/test_model_transformers.c.

    $WALTZ_PYTHON tests/reference/hub.py logits MODEL IDS OUT     logits of the ids (JSON list) as float32
    $WALTZ_PYTHON tests/reference/hub.py make MODEL OUT           a folder by save_pretrained, its ids and logits in OUT.*

Exit status 77: this Python lacks transformers or PyTorch.
"""
import json
import os
import sys

try:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as e:
    print(e)
    sys.exit(77)


def logits(folder, ids, out):
    model = LlamaForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    with torch.no_grad():
        model(torch.tensor([ids])).logits[0].float().numpy().astype("<f4").tofile(out)


if sys.argv[1] == "logits":
    logits(sys.argv[2], json.load(open(sys.argv[3])), sys.argv[4])
else:
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=70, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
                         num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, bos_token_id=1,
                         eos_token_id=2, rope_theta=20000.0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[2], max_shard_size="40KB")
    ids = torch.randint(0, 70, (40,)).tolist()
    json.dump(ids, open(sys.argv[3] + ".json", "w"))
    logits(sys.argv[2], ids, sys.argv[3] + ".f32")
