#!/usr/bin/env python3
"""Holds `waltz tokenize` against the hub's own libraries, token for token.

usage: tokenizer.py BUILD DATA [SMOLLM2.gguf [GOLDEN.jsonl]]

BUILD is the build folder, DATA the test data. Needs the packages tokenizers, sentencepiece and jinja2, and gguf for the third
argument. With the fourth, also writes golden vectors: texts of our own and the ids that the hub's libraries gave.
Texts are made here from a seed: words, blanks of all kinds, digits, scripts, emoji, control characters. Compared:
  - every kind of file with the library that owns it, and
  - the folder that Waltz saves from it, read by `tokenizers`;
  - chat templates, rendered by jinja2 and encoded with special tokens as such.
Exit status 1 and the first differences when something differs."""
import json, os, random, subprocess, sys, tempfile, unicodedata
import jinja2, sentencepiece, tokenizers

BUILD, DATA = sys.argv[1:3]
failures = 0
golden = []


def waltz(model, lines, *options):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run = subprocess.run([BUILD + "/waltz", "tokenize", model, *options], input=text, capture_output=True, text=True)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    if len(answers) != len(lines):
        sys.exit(f"{model}: {len(answers)} answers to {len(lines)} lines: {run.stderr[:500]}")
    return [answer.get("ids", answer.get("text", answer.get("error"))) for answer in answers]


def save(model):
    folder = tempfile.mkdtemp()
    subprocess.run([BUILD + "/tests/test_tokenizer", model, folder], check=True)
    return folder


def report(what, texts, got, want):
    global failures
    bad = [(t, g, w) for t, g, w in zip(texts, got, want) if g != w]
    failures += len(bad)
    print(f"{what}: {len(texts) - len(bad)} of {len(texts)} equal")
    for t, g, w in bad[:3]:
        print(f"  {t!r}\n    waltz {g}\n    hub   {w}")


PARTS = ["the", "The", "ing", "WaltzRL", "safe", "can't", "I'LL", "we've", "'s", "'ſ", "don’t", "naïve", "Straße",
         "ß", "ÅNGSTRÖM", "1", "12", "123", "2024", "3.14", "१२३", "Ⅷ", "½", "²", " ", "  ", "   ", "\n", "\n\n",
         "\r\n", "\t", "\u00a0", "\u3000", "\u2003", "\u180e", "\u200b", "\u200d", "\u0085", "\u2028", "\x1c",
         "\x7f", "\x01", "\u1680", "\ufeff", "日本語", "中文", "한국어", "ไทย", "العربية", "עברית", "हिन्दी", "Ελλάδα",
         "Привет", "😀", "👩‍👩‍👧", "🇩🇪", "e\u0301", "́", "{\"a\": true}", "<|eot_id|>", "<s>", "</s>", "<0x41>",
         "<unk>", "[INST]", "▁", "▁▁", "__", "==", "()", "\\n", "://", "a", "b", "aaaa", "zzzzzzz", "zzqqq", "2024x",
         " safe, ", "\U0010ffff", "\ue000"]


def texts(n, seed):
    rng = random.Random(seed)
    ranges = [(0x20, 0x250), (0x250, 0xd800), (0xe000, 0x11000), (0x1f000, 0x1fb00)]

    def words():
        return "".join(rng.choice(PARTS) + (" " if rng.random() < 0.4 else "") for _ in range(rng.randint(1, 24)))

    def characters():
        return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 40)))

    some = [words() for _ in range(n)] + [characters() for _ in range(n // 2)]
    # Characters younger than the Unicode of PCRE2 (and of Python's tables) may be of another class in newer libraries.
    return [""] + PARTS + ["".join(c for c in t if unicodedata.category(c) != "Cn") for t in some]


OWN = ["Two agents dance: one answers, the other listens.", "  It's 2024-07-26, isn't it?\n\n\tYes!  ",
       "Größe Straße naïve — «да», 日本語 ไทย", "x = {\"unsafe\": false, \"overrefuse\": true}\r\n",
       "<|eot_id|><s>[INST]<|im_end|>", "😀👩‍👩‍👧 e\u0301 ½ ²", "1234567890 12 3", "     ", "\n\n\n", "a",
       "a \u180e!b\u180e \u0085\u3000"]


def keep_texts(model, hub):
    golden.extend({"model": model, "text": t, "ids": hub.encode(t, add_special_tokens=False).ids} for t in OWN)


def compare_hub(what, model, folder, sample):
    hub = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
    hub.encode_special_tokens = True
    report(what, sample, waltz(model, [{"text": t} for t in sample]),
           [hub.encode(t, add_special_tokens=False).ids for t in sample])
    return hub


def compare_sentencepiece(model, sample):
    spm = sentencepiece.SentencePieceProcessor(model_file=model)
    report(model + " and sentencepiece", sample, waltz(model, [{"text": t} for t in sample]), [spm.encode(t) for t in sample])


TURNS = {"system": "  Be kind.\nBe short. ", "user": " What is 2 + 2?\n", "assistant": "\tIt is 4. "}
CHATS = [[(r, TURNS[r] + "!" * k) for k, r in enumerate(roles)] for roles in (
    ["user"], ["system", "user"], ["user", "assistant"], ["system", "user", "assistant", "user"],
    ["user", "assistant"] * 3 + ["user"],
    ["system"])] + [[("user", "")], [("system", "\u00a0x\u3000"), ("user", "<|eot_id|> <|im_end|> [INST]")]]
LLAMA3 = ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
          "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
          "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
          "{% set system_message = messages[0]['content'] %}"
          "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
          "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
          "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + "
          "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
          "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
          "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
MISTRAL = ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
           "{{ raise_exception('alternate') }}{% endif %}{% if message['role'] == 'user' %}"
           "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
           "{{ message['content'] + eos_token}}{% else %}{{ raise_exception('roles') }}{% endif %}{% endfor %}")


def compare_chat(name, model, hub, jinja, bos, eos):
    """What is special is marked by characters of private use before rendering, so that special tokens written in a message
    stay text: the rendering is cut at the marks, and each part encoded as `tokenizers` would."""
    special = [t.content for t in hub.get_added_tokens_decoder().values() if t.special]

    def fail(why):
        raise ValueError(why)
    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    env.globals["raise_exception"] = fail
    marks = {s: chr(0xf0000 + i) for i, s in enumerate(special)}
    for s, mark in marks.items():
        jinja = jinja.replace(s, mark)
    template, lines, wanted = env.from_string(jinja), [], []
    for chat in CHATS:
        for generate in (False, True):
            messages = [{"role": r, "content": c} for r, c in chat]
            try:
                text = template.render(messages=messages, add_generation_prompt=generate, bos_token=marks.get(bos, ""),
                                       eos_token=marks.get(eos, ""))
            except ValueError:
                continue
            if name in ("llama2", "mistral") and messages[-1]["role"] == "system":
                continue
            ids, part = [], ""
            for c in text + "\U000fffff":
                at = ord(c) - 0xf0000
                if 0 <= at < len(special) or c == "\U000fffff":
                    if part:
                        ids += hub.encode(part, add_special_tokens=False).ids
                    part = ""
                    if c != "\U000fffff":
                        ids.append(hub.token_to_id(special[at]))
                else:
                    part += c
            lines.append({"messages": messages, "generate": generate})
            wanted.append(ids)
    report(f"template {name} of {model}", lines, waltz(model, lines, "--template", name), wanted)
    key = model[len(DATA) + 1:] if model.startswith(DATA) else "smollm2"
    golden.extend({"model": key, "template": name, **line, "ids": ids} for line, ids in zip(lines[:8], wanted))


def compare_variants(folder, key, variants, added, sample):
    """The same vocabulary under other normalizers and pre-tokenizers, with pieces added that are not special."""
    for variant in variants:
        changed = json.load(open(folder + "/tokenizer.json"))
        changed.update(variant)
        top = 1 + max(changed["model"]["vocab"].values())
        changed["added_tokens"] += [{"id": top + i, "content": t, "single_word": False, "lstrip": False, "rstrip": False,
                                     "normalized": False, "special": False} for i, t in enumerate(added)]
        with tempfile.TemporaryDirectory() as other:
            json.dump(changed, open(other + "/tokenizer.json", "w"))
            compare_hub(f"{key} with {json.dumps(variant)[:150]}", other, other, sample)


SPLITS = [{"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": p, "behavior": b, "invert": i},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}}
    for b in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous") for i in (False, True)
    for p in ({"Regex": "\\s+|\\p{N}|[a-c]"}, {"String": " "})]
BYTE_LEVELS = [{"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": a, "trim_offsets": True, "use_regex": r}}
               for a in (False, True) for r in (False, True)] + [
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": d},
     {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]}} for d in (False, True)]
METASPACES = [{"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": p, "split": s},
               "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": p, "split": s}}
              for p in ("never", "first", "always") for s in (False, True)]


def main():
    sample = texts(1500, 1)
    llama3 = DATA + "/tok_llama3"
    hub = compare_hub("llama3 tokenizer.json", llama3 + "/tokenizer.json", llama3, sample)
    compare_hub("llama3 ranks", llama3 + "/tokenizer.model", llama3, sample)
    for model in ("/tok_llama3/tokenizer.json", "/tok_llama3/tokenizer.model", "/tok_gpt2/ggml-vocab-gpt-2.gguf",
                  "/tok_llama2/ggml-vocab-llama-spm.gguf", "/tok_llama2/tokenizer.bin", "/tok_stories/tok4096.bin",
                  "/stories260k/tok512.bin", "/tok_tiny/test_tiktoken.model"):
        saved = save(DATA + model)
        compare_hub(model + " and what was saved of it", DATA + model, saved, sample)
        compare_hub(model + ", saved, read by both", saved, saved, sample[::4])
    for model in ("/tok_llama2/tokenizer.model", "/stories260k/tok512.model"):
        compare_sentencepiece(DATA + model, sample)
        compare_sentencepiece(save(DATA + model) + "/tokenizer.model", sample[::4])
    for name, jinja in (("llama3", LLAMA3), ("llama3.1", LLAMA31)):
        compare_chat(name, llama3 + "/tokenizer.json", hub, jinja, "<|begin_of_text|>", "<|eot_id|>")
    saved = save(DATA + "/tok_llama2/ggml-vocab-llama-spm.gguf")
    llama2 = tokenizers.Tokenizer.from_file(saved + "/tokenizer.json")
    llama2.encode_special_tokens = True
    for name, jinja in (("llama2", LLAMA2), ("mistral", MISTRAL)):
        compare_chat(name, DATA + "/tok_llama2/tokenizer.model", llama2, jinja, "<s>", "</s>")
    added = ["zzq", "zzqq", "日本語", " safe, ", "2024x"]       # in none of the vocabularies
    compare_variants(saved, "llama2", METASPACES, added, sample)
    compare_variants(save(DATA + "/tok_gpt2/ggml-vocab-gpt-2.gguf"), "gpt-2", SPLITS + BYTE_LEVELS, added, sample)
    if len(sys.argv) > 3:
        import gguf
        reader = gguf.GGUFReader(sys.argv[3])
        field = lambda key: reader.fields["tokenizer." + key].contents()
        vocab = {t: i for i, t in enumerate(field("ggml.tokens"))}
        smol = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [tuple(m.split(" ")) for m in field("ggml.merges")]))
        smol.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Digits(individual_digits=True),
                                                                 tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
        smol.add_special_tokens([t for t, kind in zip(field("ggml.tokens"), field("ggml.token_type")) if kind == 3])
        smol.encode_special_tokens = True
        report("SmolLM2 from GGUF", sample, waltz(sys.argv[3], [{"text": t} for t in sample]),
               [smol.encode(t, add_special_tokens=False).ids for t in sample])
        compare_hub("SmolLM2 and what was saved of it", sys.argv[3], save(sys.argv[3]), sample)
        compare_chat("smollm2", sys.argv[3], smol, field("chat_template"), "<|im_start|>", "<|im_end|>")
        plain = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + " \
                "'<|im_end|>' + '\n'}}{% endfor %}" \
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        compare_chat("chatml", sys.argv[3], smol, plain, "<|im_start|>", "<|im_end|>")
        for model, library in (("tok_llama3/tokenizer.json", hub), ("tok_llama2/tokenizer.model", llama2), ("smollm2", smol)):
            keep_texts(model, library)
    if len(sys.argv) > 4:
        with open(sys.argv[4], "w", encoding="utf-8") as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in golden)
    sys.exit(failures > 0)


main()
