# Makes tests/golden/ifeval.jsonl: made-up replies to made-up instructions of IFEval, with the verdicts of the published checkers as the
# package lm_eval has them (0.4.13; with nltk, langdetect, immutabledict, packaging):  python ifeval.py FILE [SEED [N]]
# want: per instruction 1, followed; 2, only loosely; 0, not; 3, not checked by rule here.
import importlib.util
import json
import random
import re
import sys
import types

import nltk

nltk.data.find = lambda *a, **k: None  # what needs its data is not asked
root = importlib.util.find_spec("lm_eval").submodule_search_locations[0]
package = types.ModuleType("lm_eval")  # without what it imports itself
package.__path__ = [root]
sys.modules["lm_eval"] = package
from lm_eval.tasks.ifeval import instructions_util, utils

instructions_util.count_words = lambda text: len(re.findall(r"\w+", text))  # nltk 3.10 has another \w
r = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
relation = lambda: r.choice(["less than", "at least"])
word = lambda: r.choice(["river", "stone bridge", "Fox", "ab-c", "light"])
KINDS = {
    "keywords:existence": lambda: {"keywords": [word(), word()]},
    "keywords:frequency": lambda: {"keyword": word(), "frequency": r.randint(1, 4), "relation": relation()},
    "keywords:forbidden_words": lambda: {"forbidden_words": [word(), word()]},
    "keywords:letter_frequency": lambda: {"letter": r.choice("aeRt#"), "let_frequency": r.randint(1, 9), "let_relation": relation()},
    "length_constraints:number_words": lambda: {"num_words": r.randint(1, 30), "relation": relation()},
    "length_constraints:number_paragraphs": lambda: {"num_paragraphs": r.randint(1, 3)},
    "length_constraints:nth_paragraph_first_word": lambda: {"num_paragraphs": r.randint(1, 3), "nth_paragraph": r.randint(1, 3),
                                                            "first_word": word().split()[0]},
    "detectable_content:number_placeholders": lambda: {"num_placeholders": r.randint(1, 3)},
    "detectable_content:postscript": lambda: {"postscript_marker": r.choice(["P.S.", "P.P.S"])},
    "detectable_format:number_bullet_lists": lambda: {"num_bullets": r.randint(1, 3)},
    "detectable_format:constrained_response": lambda: {},
    "detectable_format:number_highlighted_sections": lambda: {"num_highlights": r.randint(1, 3)},
    "detectable_format:multiple_sections": lambda: {"section_spliter": r.choice(["Section", "PART"]), "num_sections": r.randint(1, 3)},
    "detectable_format:json_format": lambda: {},
    "detectable_format:title": lambda: {},
    "combination:two_responses": lambda: {},
    "combination:repeat_prompt": lambda: {"prompt_to_repeat": "Say what a Fox is."},
    "startend:end_checker": lambda: {"end_phrase": "Is that all?"},
    "startend:quotation": lambda: {},
    "punctuation:no_comma": lambda: {},
}
LEFT_OUT = ["language:response_language", "length_constraints:number_sentences", "change_case:capital_word_frequency",
            "change_case:english_capital", "change_case:english_lowercase"]
PIECES = ["river", "stone bridge", "Fox", "fox", "foxes", "ab-c", "light", "\u00c9t\u00e9", "\u00df", "\u00bd", "a\u00b2b", "x_y", "1", " ", "\n", "\n\n", "\n \n",
          "\u00a0", "\u2028", "\x1c", "*", "**", "***", " *** ", "******", "\n***\n", "[a]", "[b\nc]", "[]", "<<t>>", "<< >>", "<<>>", ",", ".", "'", '"',
          "P.S. x", "p. s. x", "P.P.S x", "p.p. s", "\n* a", "\n*\n", "\n- b", "\n  - c", "*bold*", "**bold**", "Section 1", "Section2", "PART 3",
          "My answer is no.", "my answer is yes.", "Is that all?", "is that all?", "Say what a Fox is."]
WHOLE = ['{"a": [1]}', '```json\n{"a": 1}\n```', "``` 3 ```", '"text"', "[1, 2", "1, 2", "null", "***", "a***b", "a******b", "a******a", "******a******b",
         "My answer is maybe.", "Say what a Fox is.\nA beast.", "*Say what a fox is.*", 'x Is that all?"', "<<Fox>>\nit runs", "\u201cq\u201d", '"q"', "", " \n "]

EDGES = [  # of one rule each
    ("startend:end_checker", {"end_phrase": "Is that all?"}, "x Is that all?\x1c"),
    ("keywords:forbidden_words", {"forbidden_words": ["fox"]}, "xfox fox_ foxes"),
    ("keywords:forbidden_words", {"forbidden_words": ["fox"]}, "xfox a-Fox-b"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "fox"}, "a\n\n \n\nFox"),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "fox"}, "a\n\n'\"Fox's b"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "a **bold** b"),
    ("detectable_format:json_format", {}, "1, 2"),
    ("detectable_format:json_format", {}, "```JSON\n[1]```"),
    ("combination:two_responses", {}, "a****** ******b"),
    ("combination:two_responses", {}, "a****** a"),
    ("startend:quotation", {}, '"'),
    ("detectable_format:multiple_sections", {"section_spliter": "aa", "num_sections": 1}, "aaa1"),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 2}, "Day\u00a01Day 2"),
    ("detectable_format:title", {}, "<<a>>>\n<< >>"),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "x_y \u00bd"),
    ("length_constraints:number_words", {"num_words": 2, "relation": "at least"}, "e\u0301x"),
]


def reply():
    if r.random() < 0.25:
        return r.choice(WHOLE)
    return "".join(r.choice(PIECES) + r.choice(["", " ", " ", "\n"]) for _ in range(r.choice([1, 2, 4, 8, 16])))


def verdict(kind, args, text):
    if kind in LEFT_OUT or args.get("letter") == "#":
        return "3"
    doc = utils.InputExample(key=0, instruction_id_list=[kind], prompt="", kwargs=[args])
    if utils.test_instruction_following_strict(doc, text).follow_all_instructions:
        return "1"
    return "2" if utils.test_instruction_following_loose(doc, text).follow_all_instructions else "0"


with open(sys.argv[1], "w") as out:
    for n in range(int(sys.argv[3]) if len(sys.argv) > 3 else 240):
        if n < len(EDGES):
            kind, args, text = EDGES[n]
            out.write(json.dumps({"ids": [kind], "kwargs": [args], "reply": text, "want": verdict(kind, args, text)}) + "\n")
            continue
        ids = [list(KINDS)[n % len(KINDS)], r.choice(list(KINDS) + LEFT_OUT)]
        kwargs = [KINDS.get(i, dict)() for i in ids]
        text = reply()
        if r.random() < 0.2:
            text += r.choice(["Is that all?", '\n"Is that all?"', "\nSo."])
        want = "".join(verdict(i, a, text) for i, a in zip(ids, kwargs))
        out.write(json.dumps({"ids": ids, "kwargs": kwargs, "reply": text, "want": want}) + "\n")
