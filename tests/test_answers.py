"Answers from models that answer as models do"
import json
import time

import pytest
from hypothesis import given, settings, strategies as st

from datadesc.answers import from_json, is_refusal, one_line, parse_list, says_nothing


@pytest.mark.parametrize("answer, items", [
    ("1.beak\n2.crown", ["beak", "crown"]), ("1) Beak\n\n2) Crown\n", ["Beak", "Crown"]), ("- beak\n  - upper half\n- crown", ["beak", "upper half", "crown"]),
    ("beak\ncrown", ["beak", "crown"]), ("beak", ["beak"]), ("Beak; crown; and tail.", ["Beak", "crown", "tail"]), ("beak,crown,tail", ["beak", "crown", "tail"]), ("beak, 2,5 cm crown", ["beak", "2,5 cm crown"]), ("", []), ("```\n```", []),
    ('{"beak": "hooked", "crown": "red"}', ["beak", "crown"]), ('[1, 2]', ["1", "2"]), ("[beak, crown]", ["beak", "crown"]),
    ("They have a long history...</think>\n- beak", ["beak"]), ("* beak\n* beak\n", ["beak"]), ("- café\n- 嘴", ["café", "嘴"]), ("– beak\r\n– crown\r\n", ["beak", "crown"])])
def test_lists(answer, items): assert parse_list(answer) == items


@pytest.mark.parametrize("answer, line", [
    ("red wings", "red wings"), ("\n\n  red   wings \n\nand a body", "red wings"), ("Certainly! Here's one:\n\n- red wings", "red wings"),
    ("“red wings”", "red wings"), ("wings: red wings", "red wings"), ("Here's a short line: red wings", "red wings"), ("```text\nred wings\n```", "red wings"),
    ('["red wings", "a body"]', "red wings"), ("Sure!", "Sure!"), ("red wings [1]", "red wings [1]"), ("", ""), ("<think>hm\nhm</think>\n\nred wings", "red wings"),
    ("wings with {two} spots", "wings with {two} spots"), ("12 mm long: red", "12 mm long: red"), ("red wings [1]\n\n[1] A field guide", "red wings [1]"), ("- **Wings**: red wings", "red wings"), ("**Wings:** red wings", "red wings"),
    ('{"description": "red wings"}', "red wings"), ('```json\n{"description": "red wings"}\n```\nIt is a red one.', "red wings"), ('{"class": "Peacock", "part": "wings", "look": "red wings"}', "red wings"), ('{"wings": "red wings"}', "red wings"),
    ('{"description": ["red wings", "two of them"]}', "red wings"), ('{"result": {"description": "red wings"}}', "red wings"), ('{"reasoning": "The article says so.", "description": "red wings"}', "red wings"), ("{'description': 'red wings'}", "red wings"),
    ('{"description": "red wi', ""), ('{"description": null}', ""), ('{"description": 7}', ""), ("{}", ""), ('{"part": "wings"}', ""), ("<think>red? or", ""), ("---", ""), ("Subject: Peacock\nPart: wings\nred wings", "red wings"),
    ("Based on the encyclopaedia article, here is a summary:\nred wings", "red wings"), ("According to the article, red wings", "red wings"), ("Here's a one-line summary: “red wings”", "red wings"), ("Description: Wings: red wings", "red wings"), ("Wings — red wings", "red wings"),
    ("red wings<|eot_id|>", "red wings"), ("red wings</s>\nUser: thanks", "red wings"), ("<answer>red wings</answer>", "red wings"), ("| Part | Look |\n|--|--|\n| wings | red wings |", "red wings"), ("1️⃣ red wings\n2️⃣ thin body", "red wings"), ("red &amp; black wings", "red & black wings"),
    ("Absolutely! Here you go:\n\n> red wings\n\nLet me know!", "red wings"), ("好的，描述如下：\n红色的翅膀", "红色的翅膀"), ("a *deep* red, `plain` wing", "a deep red, plain wing"), ("red wings.\n\nNote: only the male.", "red wings."), ("4.5 cm red wings", "4.5 cm red wings"),
    ("red-and-black, two-toned wings - with spots", "red-and-black, two-toned wings - with spots"), ("I'm sorry, I can't describe it.", "I'm sorry, I can't describe it."), ("<5 mm long red wings", "<5 mm long red wings")])
def test_lines(answer, line): assert one_line(answer, "wings") == line


@pytest.mark.parametrize("text", ["I’m sorry, I can’t do that", "The article does not explicitly mention its legs.", "Not specified.", "No description available", "As a language model I cannot see.", "unknown", "", "I can't assist with that request.", "I'm unable to provide a description.",
    "I won't be able to help with that.", "I'm really sorry, but I cannot help.", "I must decline.", "I'd rather not speculate.", "I'm not able to identify it.", "I'm not familiar with this species.", "I do not have enough information to describe it.", "I don't currently have information on that.",
    "There is no information on its legs in the article.", "There isn't enough information to say.", "Insufficient information.", "The article is silent on the tail.", "The article is silent regarding this part", "The provided text doesn't include a description of the feet.", "The passage lacks any detail of the feet",
    "The tail is not mentioned.", "Its colour isn't specified in the passage", "The legs are not explicitly described.", "Details are not provided", "Feet: not described", "Could you please provide more context?", "Please provide an image.", "It's unclear what the tail looks like.", "The eye colour is unknown.",
    "My apologies, I have no data on this.", "I apologize, but this is beyond my abilities.", "Cannot be determined from the article.", "I can’t determine its colour", "None", "N/A.", "(none)", "—", "-", "null", "Not applicable", "No details are given.", "No details about the antennae", "No specific details",
    "No mention of the legs.", "No reliable information available", "Details unavailable.", "No info on this part", "Sorry, but no.", "As an artificial intelligence, I lack eyes.", "Es tut mir leid, das kann ich nicht.", "Lo siento, no puedo.", "Je suis désolé, je ne peux pas.", "很抱歉，我不知道。", "申し訳ありませんが", "К сожалению, я не знаю", "[withheld by the server's content filter]"])
def test_refusals_are_seen(text): assert is_refusal(text)

@pytest.mark.parametrize("text", ["a provided bowl", "does not taper", "no white wings", "can hold water", "unknown-looking grey shape", "not a spot", "no visible markings", "no fine details", "plain belly not covered in feathers", "a clear soup that does not contain noodles", "sorry-looking drooping crest", "a drooping, sorry, ragged crest",
    "never fully black", "a description-defying pattern", "wings that cannot fold flat", "two silent black eyes", "pale, not streaked breast", "short tail without white", "you can see four spots", "a bowl of rice, please-yourself toppings", "an article of clothing with no sleeves", "text printed in red", "sources of light in rows",
    "data-like grid of fields", "a paysage of green and brown", "no detail lost in the dark crown", "bright yellow eye, not always visible", "dark page-like folds that overlap", "iris of no known colour but blue"])
def test_descriptions_are_not_refusals(text): assert not is_refusal(text)


def test_garbage_is_read_in_a_moment():
    start = time.perf_counter()
    for garbage in ("[" * 50_000, "{" * 50_000, '{"a":' * 20_000, "- " * 50_000, "\n[" * 20_000, "(" * 50_000, " " * 50_000, "*" * 50_000, "<think>" * 10_000, "<" * 50_000, "|-" * 20_000, "a, " * 20_000, "`" * 50_000, "User:" * 10_000, "\n" * 50_000, '"' * 50_000):
        parse_list(garbage), one_line(garbage, "wings"), is_refusal(garbage)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("answer, values", [
    ("", []), ("[1] See the guide.", []), ("wings [1, 2]", []), ('{"a": 1}{"b": 2}', [{"a": 1}, {"b": 2}]), ('[{"a": 1}, {"b": 2}]', [[{"a": 1}, {"b": 2}]]), ('{"a": 1},\n{"b": 2},', [{"a": 1}, {"b": 2}]),
    ('{"a": "one\ntwo"}', [{"a": "one\ntwo"}]), ("{'a': None, 'b': True}", [{"a": None, "b": True}]), ('so: {"a": "}"} or [not]', [{"a": "}"}]), ("{'a': 'b'} and {c}", [{"a": "b"}]), ("{a: b}", []), ("{1, 2}", []), ("[[[", [])])
def test_json_is_found_among_words(answer, values): assert from_json(answer) == values


WRAPS = [lambda items: "\n".join(f"- {item}" for item in items), lambda items: "\n".join(f"{n}. **{item}**" for n, item in enumerate(items, 1)), lambda items: "\n".join(f"{n}) {item}" for n, item in enumerate(items, 1)),
         lambda items: json.dumps({"parts": items}), lambda items: f"```json\n{json.dumps(items, indent=1)}\n```", lambda items: str(items), lambda items: "\n".join(json.dumps({"part": item}) for item in items),
         lambda items: "| Part |\n|---|\n" + "\n".join(f"| {item} |" for item in items), lambda items: "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>", lambda items: "• " + "\n• ".join(items)]
PREFACES = ["", "Sure! Here are the parts:\n\n", "<think>\n- no, not this one\n</think>\n", "Certainly, these come to mind:\n"]
AFTERWORDS = ["", "\n\nI hope this helps!", "\n\nUser: go on\n- nothing", "<|im_end|>"]

@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.from_regex(r"[a-z]{3,9}( [a-z]{2,8}){0,2}", fullmatch=True).filter(lambda text: not is_refusal(text)), min_size=3, max_size=10, unique=True), st.sampled_from(WRAPS), st.sampled_from(PREFACES), st.sampled_from(AFTERWORDS))
def test_any_list_is_found_in_any_wrapping(items, wrap, preface, afterword): assert parse_list(preface + wrap(items) + afterword) == items


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["[", "]", "{", "}", '"', "'", ":", ",", "\n", "- ", "1. ", "|", "---", "```", "**", "<think>", "</think>", "<li>", "&lt;", "\\", "parts", "User:"])), max_size=25).map("".join))
def test_whatever_comes_is_read_without_an_error(answer):
    line, items = one_line(answer, "wings"), parse_list(answer)
    assert all("\n" not in text and text == text.strip() for text in [line, *items]) and len(set(items)) == len(items)
    says_nothing(line), is_refusal(answer)
