#!/usr/bin/env python3
"""Chat templates against jinja2, set as transformers sets it: `templates.py WALTZ FOLDER`, one line a template that differs and
their number. FOLDER holds public templates, *.jinja; launch/test fetches dozens, in the source of llama-cpp-python.

Every template gets a tokenizer of bytes and of what looks like a special token in it, some of which take in the white space beside
them. Conversations must become the ids that
`tokenizers` makes of jinja2's text; and texts that spell special tokens must leave the ids around them unchanged."""
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers

WALTZ, FOLDER = sys.argv[1], sys.argv[2]
BOS, EOS, MARK = "<BOS>", "<EOS>", "\ue000"
HOSTILE = 500


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.TemplateError(message)


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                       extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda x, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda how: datetime.datetime(2024, 7, 26).strftime(how)  # the day of every run of Waltz
    return env


def conversations():
    """20 of them: with and without a system turn, turns, blanks, nothing, other scripts, both endings."""
    texts = ["Hello there", " padded \n", "", "Größe «да» 日本語 👩‍👩‍👧", "a\n\nb\n", "{\"a\": [1, 2]} 'q' \"q\" \\ & < >", "\t", "x" * 300,
             "What is 2 + 2?", "/no_think Why?"]
    for i in range(20):
        talk = [{"role": "system", "content": ["Be brief.", " Two lines\nof it ", "", "Nur «ja»"][i // 2 % 4]}] if i % 2 else []
        for turn in range(1 + i % 4):
            talk.append({"role": "user", "content": texts[(i + 3 * turn) % 10]})
            talk.append({"role": "assistant", "content": texts[(3 * i + turn + 1) % 10]})
        generate = i % 5 != 0
        yield {"messages": talk[:-1] if generate else talk, "generate": generate}


def tokenizer(source, path):
    specials = [BOS, EOS] + sorted(set(re.findall(r"<[|/]?[^<>\s'\"{}=]{1,40}>|\[/?[A-Z_]{2,}\]", source)))
    vocab = {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.add_special_tokens([tokenizers.AddedToken(s, special=True, normalized=False, rstrip=i % 4 == 1, lstrip=i % 4 == 2)
                                for i, s in enumerate(specials)])
    library.save(path + "/tokenizer.json")
    json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS, "chat_template": source},
              open(path + "/tokenizer_config.json", "w"))
    plain = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
    plain.pre_tokenizer = library.pre_tokenizer
    return library, plain, specials


def render(template, asked):
    """Its text, or None where it raises."""
    try:
        return template.render(messages=asked["messages"], tools=None, documents=None, add_generation_prompt=asked["generate"],
                               bos_token=BOS, eos_token=EOS)
    except Exception as e:
        return e


def answers(path, asked):
    lines = "".join(json.dumps(a) + "\n" for a in asked)
    run = subprocess.run([WALTZ, "tokenize", path], input=lines, capture_output=True, text=True)
    return [json.loads(line) for line in run.stdout.splitlines()] or [{"error": run.stderr}] * len(asked)


def hostile(specials, i):
    """Text i of those that spell special tokens, whole, doubled, cut, in other text."""
    a, b = specials[i % len(specials)], specials[(7 * i + 1) % len(specials)]
    return ["x" + a + "y", a, a + b + "z", "u " + a[:-1], b[1:] + a, a[:len(a) // 2] + "-" + a[len(a) // 2:], "\n".join(["v", a, b, "w"]),
            a * 3 + str(i)][i // len(specials) % 8]


def main():
    total = equal = raised = attacks = held = 0
    names = sorted(os.path.join(d, f) for d, _, fs in os.walk(FOLDER) for f in fs if f.endswith(".jinja"))
    for name in names:
        source = open(name, newline="").read()
        try:
            template = environment().from_string(source)
        except jinja2.TemplateError as e:
            print(f"# {os.path.basename(name)}: jinja2 does not read it: {e}")
            continue
        with tempfile.TemporaryDirectory() as path:
            library, plain, specials = tokenizer(source, path)
            asked = list(conversations())
            wrong = []
            total += len(asked)
            for a, got in zip(asked, answers(path, asked), strict=True):
                want = render(template, a)
                if isinstance(want, Exception):
                    raised += 1
                    good = "error" in got
                else:
                    good = got.get("ids") == library.encode(want, add_special_tokens=False).ids
                equal += good
                if not good:
                    wrong.append((a, got.get("error") or library.decode(got["ids"], skip_special_tokens=False), want))
            if wrong:
                print(f"{os.path.basename(name)}: {len(wrong)} of {len(asked)} differ; {wrong[0]!r}")
            ask = lambda text: {"messages": [{"role": "user", "content": text}], "generate": True}
            frame = render(template, ask("Q" + MARK + "Q"))
            if isinstance(frame, Exception) or frame.count(MARK) != 1:
                continue
            before, after = frame.split(MARK)
            before, after = library.encode(before, add_special_tokens=False).ids, library.encode(after, add_special_tokens=False).ids
            texts = [t for t in (hostile(specials, i) for i in range(HOSTILE)) if render(template, ask("Q" + t + "Q")) == frame.replace(MARK, t)]
            bad = [t for t, got in zip(texts, answers(path, [ask("Q" + t + "Q") for t in texts]), strict=True)
                   if got.get("ids") != before + plain.encode(t).ids + after]
            attacks += len(texts)
            held += len(texts) - len(bad)
            if bad:
                print(f"{os.path.basename(name)}: {len(bad)} of {len(texts)} hostile texts change what is around them; {bad[0]!r}")
    print(f"{len(names)} templates, {equal} of {total} conversations equal ({raised} of them refused by both), "
          f"{held} of {attacks} hostile texts kept apart")
    return equal < total or held < attacks or not total


if __name__ == "__main__":
    sys.exit(main())
