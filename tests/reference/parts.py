#!/usr/bin/env python3
"""Holds each normalizer, pre-tokenizer and kind of added token against `tokenizers`, token for token: parts.py WALTZ [TEXTS].

Small tokenizers are trained here on texts made from a seed, one for each part, and saved by the library; where SentencePiece is
there, also a model with user-defined pieces. Exit status 1 and the first differences when something differs."""
import json, random, subprocess, sys, tempfile, unicodedata
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

WALTZ, COUNT = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1000
PARTS = ["the", "The", "ing", "safe", "can't", "I'LL", "'s", "'ſ", "naïve", "Straße", "ÅNGSTRÖM", "1", "12", "123", "2024x", "३", "Ⅷ", "½",
         "²", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\u180e", "\u200d", "\u0085", "\u2028", "\x1c", "\x01",
         "日本語", "한국어", "각", "ไทย", "العربية", "हिन्दी", "Ελλάδα", "ΟΔΟΣ", "İI", "ﬁ", "Ⓐ", "Привет", "😀", "👩‍👩‍👧", "e\u0301",
         "\u0301", "▁", "▁▁", "__", "()", "://", "x/\n", "HTTPResponse", "a", "b", "aaaa", "zzqqq", "zzq", " zzq ", "xzzq", "Foo", "fOO ",
         "FOO B", "  <tool>  ", "<tool>", "é<tool>_", "day", "monday", "a-day!", "<s><s>x>", "<s>", "<unk>", "<|eot_id|>", "\ue000"]
ADDED = [AddedToken("zzq", lstrip=True, rstrip=True, normalized=False), AddedToken("day", single_word=True, normalized=False),
         AddedToken("Foo", normalized=True), AddedToken("foo b", normalized=True, single_word=True, rstrip=True),
         AddedToken("<tool>", lstrip=True, normalized=False), AddedToken("x>", normalized=False)]


def texts(n, seed):
    """Of characters as old as Unicode 3.2, besides the parts: the libraries' tables are of different ages."""
    rng, old = random.Random(seed), unicodedata.ucd_3_2_0
    ranges = [(0x20, 0x250), (0x250, 0xd800), (0xe000, 0x10000)]

    def words():
        return "".join(rng.choice(PARTS) + (" " if rng.random() < 0.4 else "") for _ in range(rng.randint(1, 24)))

    def characters():
        return "".join(c for c in (chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(1, 40)))
                       if old.category(c) != "Cn")
    return [""] + PARTS + [words() for _ in range(n)] + [characters() for _ in range(n // 2)]


def ids(model, sample):
    run = subprocess.run([WALTZ, "tokenize", model], input="".join(json.dumps({"text": t}) + "\n" for t in sample),
                         capture_output=True, text=True)
    answers = [json.loads(line) for line in run.stdout.rstrip("\n").split("\n")] if run.stdout else []
    if len(answers) != len(sample):
        sys.exit(f"{model}: {run.stderr[:500]}")
    return [a.get("ids", a.get("error")) for a in answers]


def compare(what, sample, got, want):
    global failures
    bad = [(t, g, w) for t, g, w in zip(sample, got, want, strict=True) if g != w]
    failures += len(bad)
    print(f"{what}: {len(sample) - len(bad)} of {len(sample)} equal")
    for t, g, w in bad[:3]:
        print(f"  {t!r}\n    waltz {g}\n    hub   {w}")


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPACED = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
CONTRACTIONS, TAIL = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
UPPER, LOWER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]", "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
MIXED = "[^\\r\\n\\p{L}\\p{N}]?" + UPPER + "*" + LOWER + "+", "[^\\r\\n\\p{L}\\p{N}]?" + UPPER + "+" + LOWER + "*"
WORDS = "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
REGEXES = {  # what the models of these families use, and whatever else the two regex libraries say differently
    "llama3, olmo2, smollm3": CONTRACTIONS + "|" + WORDS + "\\p{N}{1,3}|" + TAIL,
    "qwen2": CONTRACTIONS + "|" + WORDS + "\\p{N}|" + TAIL,
    "tekken": "|".join(MIXED) + "|\\p{N}|" + TAIL.replace("\\r\\n]*", "\\r\\n/]*"),
    "o200k": "|".join(m + CONTRACTIONS + "?" for m in MIXED) + "|\\p{N}{1,3}|" + TAIL.replace("\\r\\n]*", "\\r\\n/]*"),
    "words": "\\w+", "no words": "\\W+", "boundaries": "\\b...", "no boundaries": "\\B..", "hexadecimal": "\\h+", "class": "[\\w\\-.]+",
    "lines": "(?m:a.)|^.|.$", "digits": "\\d{2}(?=\\d*\\b)", "spaces": "[^\\S\\n]+|\\S"}


def parts():
    n, p = normalizers, pre_tokenizers
    for normalizer in (n.NFC(), n.NFD(), n.NFKC(), n.NFKD(), n.Lowercase(), n.StripAccents(), n.Strip(), n.Strip(right=False),
                       n.Sequence([n.NFD(), n.StripAccents(), n.Lowercase()]), n.Replace(Regex("a+"), "bb"), n.Replace("zz", "y"),
                       n.Prepend("x")):
        yield f"normalizer {normalizer}"[:90], normalizer, GPT2, decoders.ByteLevel(), True
    for name, regex in REGEXES.items():
        yield f"Split {name}", None, p.Sequence([p.Split(Regex(regex), "isolated"), BYTES]), decoders.ByteLevel(), True
    for behavior in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous"):
        yield f"Punctuation {behavior}", None, p.Sequence([p.Punctuation(behavior), BYTES]), decoders.ByteLevel(), True
    for pre in (p.Whitespace(), p.WhitespaceSplit(), p.CharDelimiterSplit("a"), p.Digits(True), p.Digits(False)):
        yield f"{pre}"[:90], None, p.Sequence([pre, GPT2]), decoders.ByteLevel(), True
    yield "gemma", n.Replace(" ", "▁"), p.Split(" ", "merged_with_previous"), SPACED, False
    yield "llama2", n.Sequence([n.Prepend("▁"), n.Replace(" ", "▁")]), None, SPACED, False
    for scheme in ("first", "always", "never"):
        for split in (False, True):
            yield (f"Metaspace {scheme} {split}", None, p.Metaspace(prepend_scheme=scheme, split=split),
                   decoders.Metaspace(prepend_scheme=scheme, split=split), False)


def user_defined(sample):
    try:
        import sentencepiece
    except ModuleNotFoundError:
        return
    with tempfile.TemporaryDirectory() as folder:
        with open(folder + "/texts", "w") as f:
            f.writelines(t.replace("\n", " ").replace("\r", " ") + "\n" for t in texts(2000, 4)[:2000])
        for prefix in (True, False):
            sentencepiece.SentencePieceTrainer.train(
                input=folder + "/texts", model_prefix=folder + "/tokenizer", vocab_size=600, model_type="bpe", byte_fallback=True,
                normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=prefix, minloglevel=2,
                user_defined_symbols=["<tool>", "▁\n", "\n", "__", "▁▁", "zzq"], character_coverage=0.98)
            spm = sentencepiece.SentencePieceProcessor(model_file=folder + "/tokenizer.model")
            got = ids(folder + "/tokenizer.model", sample)
            compare(f"user-defined pieces, prefix {prefix}", sample, got, [spm.encode(t) for t in sample])


def named_patterns(sample):
    """The names of tokenizer.ggml.pre against the classes of transformers that such models have, normalizer and all: neither
    llama.cpp nor what transformers makes of a GGUF file normalizes, but the models' own files do."""
    try:
        import gguf
        from transformers import CohereTokenizer, GPT2Tokenizer, GPTNeoXTokenizer, Qwen2Tokenizer
    except ImportError:
        return
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = GPT2
    t.train_from_iterator(sample, trainers.BpeTrainer(vocab_size=700, show_progress=False,
                                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(t.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    for pre, kind in (("qwen2", Qwen2Tokenizer), ("deepseek-r1-qwen", Qwen2Tokenizer), ("command-r", CohereTokenizer),
                      ("olmo", GPTNeoXTokenizer), ("mpt", GPTNeoXTokenizer), ("gpt-2", GPT2Tokenizer)):
        try:
            library = kind(vocab=model["vocab"], merges=[tuple(m) for m in model["merges"]]).backend_tokenizer
        except TypeError:       # before transformers 5
            return
        with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
            out = gguf.GGUFWriter(f.name, "llama")
            out.add_tokenizer_model("gpt2")
            out.add_tokenizer_pre(pre)
            out.add_token_list(tokens)
            out.add_token_types([1] * len(tokens))
            out.add_token_merges([" ".join(m) for m in model["merges"]])
            out.write_header_to_file()
            out.write_kv_data_to_file()
            out.write_tensors_to_file()
            out.close()
            plain = [s for s in sample if "<" not in s]
            compare(f"patterns named {pre}", plain, ids(f.name, plain), [library.encode(s, add_special_tokens=False).ids for s in plain])


failures = 0
sample = texts(COUNT, 3)
for what, normalizer, pre, decoder, byte_level in parts():
    t = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>"))
    t.decoder = decoder
    if normalizer:
        t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else sorted(set("".join(PARTS)))
    t.train_from_iterator([s.replace("<", "(").replace(">", ")") for s in sample[:400]], trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "<|eot_id|>"], show_progress=False, initial_alphabet=alphabet))
    t.add_tokens(ADDED)
    t.encode_special_tokens = True      # as Waltz reads what people write
    with tempfile.TemporaryDirectory() as folder:
        t.save(folder + "/tokenizer.json")
        compare(what, sample, ids(folder, sample), [t.encode(s, add_special_tokens=False).ids for s in sample])
user_defined(sample)
named_patterns(sample)
sys.exit(failures > 0)
