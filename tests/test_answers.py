"Answers from models that answer as models do"
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from datadesc.answers import fault, one_line, parse_list

SENTENCES = Path(__file__).parents[2]/"shared"/"data"/"clothing_sentences.json"


@pytest.mark.parametrize("answer, items", [
    ("1.beak\n2.crown", ["beak", "crown"]), ("1) Beak\n\n2) Crown\n", ["Beak", "Crown"]), ("- beak\n  - upper half\n- crown", ["beak", "crown"]),
    ("beak\ncrown", ["beak", "crown"]), ("beak", ["beak"]), ("Beak; crown; and tail.", ["Beak", "crown", "tail"]), ("A long beak.", []), ("beak,crown,tail", ["beak", "crown", "tail"]), ("beak, 2,5 cm crown, tail", ["beak", "2,5 cm crown", "tail"]), ("", []), ("```\n```", []),
    ('{"beak": "hooked", "crown": "red"}', ["beak", "crown"]), ("[beak, crown, tail]", ["beak", "crown", "tail"]), ('{"name": "show", "arguments": {"parts": ["beak"]}}', []), ('{"properties": {"parts": {"type": "array"}}}', []), ("{'parts': ['beak', 'crown',],}", ["beak", "crown"]), ('{"parts": ["beak", "cro', ["beak"]), ("[" * 50, []),
    ("They have a long history...</think>\n- beak", ["beak"]), ("* beak\n* beak\n", ["beak"]), ("- café\n- 嘴", ["café", "嘴"]), ("– beak\r\n– crown\r\n", ["beak", "crown"])])
def test_lists(answer, items): assert parse_list(answer) == items


@pytest.mark.parametrize("answer, line", [
    ("red wings", "red wings"), ("\n\n  red   wings \n\nand a body", "red wings"), ("Certainly! Here's one:\n\n- red wings", "red wings"),
    ("“red wings”", "red wings"), ("wings: red wings", "red wings"), ("Here's a short line: red wings", "red wings"), ("```text\nred wings\n```", "red wings"),
    ('["red wings", "a body"]', "red wings"), ("Sure!", ""), ("Okay.", "Okay."), ("以下是描述：", ""), ("[THINK]red? or[/THINK]red wings", "red wings"), ("<cot>red? or</cot>red wings", "red wings"), ("**Look:** red wings\n\n*(Note: it is one.)*", "red wings"), ("worth $5, <b>bold</b> | red wings", "worth $5, bold | red wings"), ("red wings [1]", "red wings [1]"), ("", ""), ("<think>hm\nhm</think>\n\nred wings", "red wings"),
    ("wings with {two} spots", "wings with {two} spots"), ("12 mm long: red", "12 mm long: red"), ("red wings [1]\n\n[1] A field guide", "red wings [1]"), ("- **Wings**: red wings", "red wings"), ("**Wings:** red wings", "red wings"),
    ('{"description": "red wings"}', "red wings"), ('```json\n{"description": "red wings"}\n```\nIt is a red one.', "red wings"), ('{"class": "Peacock", "part": "wings", "look": "red wings"}', "red wings"), ('{"wings": "red wings"}', "red wings"),
    ('{"description": ["red wings", "two of them"]}', "red wings"), ('{"result": {"description": "red wings"}}', "red wings"), ('{"reasoning": "The article says so.", "description": "red wings"}', "red wings"), ("{'description': 'red wings'}", "red wings"),
    ('{"description": "red wi', ""), ('{"description": null}', ""), ('{"description": 7}', ""), ("{}", ""), ('{"part": "wings"}', ""), ("<think>red? or", ""), ("---", ""), ("Subject: Peacock\nPart: wings\nred wings", "red wings"),
    ("Based on the encyclopaedia article, here is a summary:\nred wings", "red wings"), ("Here's a one-line summary: “red wings”", "red wings"), ("Description: Wings: red wings", "red wings"),
    ("red wings<|eot_id|>", "red wings"), ("red wings</s>\nUser: thanks", "red wings"), ("<answer>red wings</answer>", "red wings"), ("1️⃣ red wings\n2️⃣ thin body", "red wings"), ("red &amp; black wings", "red & black wings"),
    ("Absolutely! Here you go:\n\n> red wings\n\nLet me know!", "red wings"), ("好的，描述如下：\n红色的翅膀", "红色的翅膀"), ("a *deep* red, `plain` wing", "a deep red, plain wing"), ("red wings.\n\nNote: only the male.", "red wings."), ("4.5 cm red wings", "4.5 cm red wings"),
    ("red-and-black, two-toned wings - with spots", "red-and-black, two-toned wings - with spots"), ("I'm sorry, I can't describe it.", "I'm sorry, I can't describe it."), ("<5 mm long red wings", "<5 mm long red wings")])
def test_lines(answer, line): assert one_line(answer) == line


QUESTION = "Subject: Peacock (butterfly)\nPart: wings\nHow does this part look? Answer with one short line. wide scarlet cap with raised white warts"

@pytest.mark.parametrize("text, reason", [
    ("orange wings with black veins", ""), ("red and black", ""), ("no visible spots", ""), ("a drooping, sorry, ragged crest", ""), ("black spots, white spots, red spots", ""), ("a black and white stripe on a black and white wing", ""),
    ("Not described.", "not described"), ("The wings are not described in the article", "not described"), ("][1]", "no words"), ("—", "no words"), ("42", "no words"), ("d", "too short"), ("N/A", "too short"), ("john", "too short"), ("descriptión", "too short"), ("翅", "too short"),
    ("the butterfly", "only the class name"), ("This butterfly (butterfly)", "only the class name"), ("it", "only the class name"), ("the wings", "only the part's name"), ("wings of this butterfly", "only the part's name"),
    ("tight and tight and tight and tight", "repeats itself"), ("lilac, lilac, lilac wings", "repeats itself"), ("a red tail; a blue eye of the wing; a red tail; a blue eye of the wing; a red tail", "repeats itself"),
    ("long cap with raised white warts and wide scarlet cap with raised white", "repeats the prompt"), ("Answer with one short line", "repeats the prompt"), ("深色的短毛，带有白色斑点", "another script"), ("فراء داكن قصير", "another script"), ("красные крылья", "another script"),
    ("red wings, 翅膀", "another script"), ("wings with μ marks and very many white spots", ""), (" ".join(f"spot{n}" for n in range(76)), "too long")])
def test_faults_of_a_models_line(text, reason): assert fault(text, "wings", "butterfly", QUESTION) == reason

def test_what_nobody_asked_for_has_fewer_faults():
    assert [fault(text) for text in ("stripes", "深色的短毛", "wide scarlet cap with raised white warts", " ".join(f"spot{n}" for n in range(76)))] == [""] * 4
    assert [fault(text) for text in ("d", "??", "red " * 9, "not described", "it", "This.")] == ["too short", "no words", "repeats itself", "not described", "only the class name", "only the class name"]

def test_the_scripts_of_the_question_and_the_article_are_known():
    assert [fault("深色的短毛", "头部", "", QUESTION), fault("深色的短毛", "头部", "", QUESTION + "头部"), fault("深色的短毛", "", "", QUESTION, "孔雀蛱蝶")] == ["another script", "", ""]

@pytest.mark.skipif(not SENTENCES.is_file(), reason="needs the sentences in ../shared/data")
def test_sentences_that_people_wrote_have_no_fault():
    assert [text for texts in json.loads(SENTENCES.read_text()).values() for text in texts if fault(text)] == []


def test_garbage_is_read_in_a_moment():
    start = time.perf_counter()
    for garbage in ("[" * 50_000, "{" * 50_000, '{"a":' * 20_000, "- " * 50_000, "\n[" * 20_000, "(" * 50_000, " " * 50_000, "*" * 50_000, "<think>" * 10_000, "<" * 50_000, "|-" * 20_000, "a, " * 20_000, "`" * 50_000, "User:" * 10_000, "\n" * 50_000, '"' * 50_000):
        parse_list(garbage), one_line(garbage), fault(garbage), fault(garbage, "wings", "butterfly", QUESTION)
    assert time.perf_counter() - start < 10


WRAPS = [lambda items: "\n".join(f"- {item}" for item in items), lambda items: "\n".join(f"{n}. **{item}**" for n, item in enumerate(items, 1)), lambda items: "\n".join(f"{n}) {item}" for n, item in enumerate(items, 1)),
         lambda items: json.dumps({"parts": items}), lambda items: f"```json\n{json.dumps(items, indent=1)}\n```", lambda items: str(items), lambda items: "\n".join(json.dumps({"part": item}) for item in items),
         lambda items: "| Part |\n|---|\n" + "\n".join(f"| {item} |" for item in items), lambda items: "<ul>\n" + "\n".join(f"<li>{item}</li>" for item in items) + "\n</ul>", lambda items: "• " + "\n• ".join(items)]
PREFACES = ["", "Sure! Here are the parts:\n\n", "<think>\n- no, not this one\n</think>\n", "Certainly, these come to mind:\n"]
AFTERWORDS = ["", "\n\nI hope this helps!", "\n\nUser: go on\n- nothing", "<|im_end|>"]

@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.from_regex(r"[a-z]{3,9}( [a-z]{2,8}){0,2}", fullmatch=True), min_size=3, max_size=10, unique=True), st.sampled_from(WRAPS), st.sampled_from(PREFACES), st.sampled_from(AFTERWORDS))
def test_any_list_is_found_in_any_wrapping(items, wrap, preface, afterword): assert parse_list(preface + wrap(items) + afterword) == items


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["[", "]", "{", "}", '"', "'", ":", ",", "\n", "- ", "1. ", "|", "---", "```", "**", "<think>", "</think>", "<li>", "&lt;", "\\", "parts", "User:"])), max_size=25).map("".join))
def test_whatever_comes_is_read_without_an_error(answer):
    line, items = one_line(answer), parse_list(answer)
    assert all("\n" not in text and text == text.strip() for text in [line, *items]) and len(set(items)) == len(items)
    assert isinstance(fault(line, "wings", "", answer), str)
