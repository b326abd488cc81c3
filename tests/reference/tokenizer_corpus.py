#!/usr/bin/env python3
"""Writes the seeds of the tokenizer's fuzz target: tokenizer_corpus.py FOLDER. Needs the packages sentencepiece (for its
protobuf) and gguf. Every file is a kind byte and a small tokenizer of that kind, its vocabulary made up here."""
import base64, json, os, struct, sys, tempfile
import gguf
from sentencepiece import sentencepiece_model_pb2

FOLDER = sys.argv[1]
WORDS = ["He", "Hel", "ll", "Hell", "Hello", "aa", "aaaa", "12"]
ALPHABET = []
for byte in range(256):
    prints = 0x21 <= byte <= 0x7e or 0xa1 <= byte <= 0xac or byte >= 0xae
    ALPHABET.append(chr(byte) if prints else chr(256 + len([c for c in ALPHABET if ord(c) >= 256])))


def write(name, kind, data):
    with open(os.path.join(FOLDER, name), "wb") as f:
        f.write(kind + data)


def merges(pieces, words):
    return [[w[:k], w[k:]] for w in words for k in range(1, len(w)) if w[:k] in pieces and w[k:] in pieces]


def hub(extra):
    pieces = [c for c in ALPHABET if c in "Helo12a\u0120\u010a" or ord(c) > 0xe0] + WORDS
    content = {"added_tokens": [{"id": len(pieces), "content": "<s>", "special": True}, {"id": len(pieces) + 1, "content": "lo", "special": False}],
               "normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}, "decoder": {"type": "ByteLevel"},
               "model": {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges(pieces, WORDS)}}
    content.update(extra)
    return json.dumps(content).encode()


def sentencepieces():
    yield from (("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3))
    yield from ((f"<0x{b:02X}>", 0.0, 6) for b in range(256))
    for i, piece in enumerate(["\u2581H", "ll", "\u2581Hell", "aa", "\u2581aa"] + list("\u2581Helo1a2\n")):
        yield piece, -float(i), 1
    yield "<s\u2581", 0.0, 4


write("hub.json", b"j", hub({}))
write("hub_split.json", b"j", hub({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "\\s+(?!\\S)|\\p{L}+|(?i:'s)"}, "behavior": "MergedWithNext", "invert": True},
    {"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "add_prefix_space": True, "use_regex": False}]}}))
write("hub_metaspace.json", b"j", hub({"pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"},
      "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"},
                     {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
      "decoder": {"type": "Metaspace"}}))
write("hub_nul.json", b"j", json.dumps({"model": {"vocab": {"\0": 0, "a": 1, "\0a": 2}, "merges": ["\0 a"]}}).encode())
write("ranks.model", b"m", b"".join(base64.b64encode(w) + b" %d\n" % i for i, w in enumerate(
    [bytes([b]) for b in range(256)] + [w.encode() for w in WORDS])))
model = sentencepiece_model_pb2.ModelProto()
for text, score, kind in sentencepieces():
    model.pieces.add(piece=text, score=score, type=kind)
model.trainer_spec.model_type = 2
model.trainer_spec.byte_fallback = True
write("sentencepiece.model", b"m", model.SerializeToString())
write("llama2c.bin", b"b", struct.pack("<i", 10) + b"".join(
    struct.pack("<fi", s, len(t.replace("\u2581", " ").encode())) + t.replace("\u2581", " ").encode() for t, s, k in sentencepieces() if k != 4))
for name in ("llama", "gpt2"):
    with tempfile.NamedTemporaryFile() as f:
        out = gguf.GGUFWriter(f.name, "llama")
        out.add_tokenizer_model(name)
        if name == "llama":
            out.add_token_list([t for t, s, k in sentencepieces()])
            out.add_token_scores([s for t, s, k in sentencepieces()])
            out.add_token_types([k for t, s, k in sentencepieces()])
        else:
            pieces = ALPHABET + WORDS
            out.add_token_list(pieces + ["<s>"])
            out.add_token_merges([" ".join(m) for m in merges(pieces, WORDS)])
            out.add_token_types([1] * len(pieces) + [3])
            out.add_tokenizer_pre("smollm")
            out.add_chat_template("{% if a %}<|im_start|>{% endif %}<|im_end|>")
        out.write_header_to_file()
        out.write_kv_data_to_file()
        out.write_tensors_to_file()
        out.close()
        write(name + ".gguf", b"g", open(f.name, "rb").read())
write("config.json", b"c", json.dumps({"bos_token": "<s>", "eos_token": {"content": "a"}, "chat_template": "[INST] <<SYS>> <</SYS>>",
      "added_tokens_decoder": {"1": {"content": "<s>", "special": True}, "5": {"content": "new", "special": False}}}).encode())
