"Descriptions from models that answer as models do, and from files that people write"
import asyncio, csv, json, time, unicodedata

import pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from datadesc import meadow
from datadesc.describe import describe, failed_questions, flagged, from_file, kinds_of, parts_of, _check_line, _without_name
from datadesc.llm import LLM, LLMError, Request
from datadesc.selection import scored_text
from llm_server import completion, llm_server, surroundings

COLUMNS = ["text_id", "class_id", "component", "sample", "text", "scored_text", "source", "knowledge", "flag", "names_class"]

def answering(parts="- collar\n- sleeves", look="a red {component}"):
    "An LLM that always answers alike"
    return LLM("m", client=lambda request: parts if request.about["stage"] == "components" else look.format(**request.about))

ARTICLES = pd.DataFrame([{"class": "T_shirt", "passages": ["Short sleeves.", "Round collar."], "url": "https://example.org/T-shirt"},
                         {"class": "hat", "passages": [], "url": "https://example.org/hat"}])


LISTED = ["beak", "crown", "wings", "tail"]

def parts_in(answer, parts=10):
    "The parts of a bird that are taken from a model that gives this answer, and how often it is asked"
    asked = []
    llm = LLM("m", client=lambda request: asked.append(request) or answer)
    return parts_of(("Wren",), llm, "bird", parts=parts)["Wren"], len(asked)

@pytest.mark.parametrize("answer", [
    "Beak\nCrown\nWings\nTail", "1. Beak\n2. Crown\n3. Wings\n4. Tail", "1) beak\n2) crown\n3) wings\n4) tail", " 9. beak\n10. crown\n11. wings\n12. tail", "**1. Beak**\n**2. Crown**\n**3. Wings**\n**4. Tail**",
    "**Beak**\n**Crown**\n**Wings**\n**Tail**", "### Beak\n### Crown\n### Wings\n### Tail", "- [ ] beak\n- [ ] crown\n- [ ] wings\n- [ ] tail",
    "Certainly! Here are the most telling visible parts of a bird in a photograph:\n\n1. **Beak**\n2. **Crown**\n3. **Wings**\n4. **Tail**\n\nLet me know if you need anything else!",
    "Here's the list:\n\n* Beak\n* Crown\n* Wings\n* Tail\n\nThese parts together make up the look of the bird.\n\nNote: males and females may differ.",
    "Beak: long and hooked\nCrown: often crested\nWings: two\nTail: long", "- **Beak:** long and hooked\n- **Crown:** often crested\n- **Wings:** two\n- **Tail:** long",
    "1. Beak – its shape and colour\n2. Crown – the top of the head\n3. Wings – folded or spread\n4. Tail – long or short", "- Beak (bill)\n- Crown (top of the head)\n- Wings (folded)\n- Tail (rectrices)",
    "- The beak\n- The crown\n- The wings\n- The tail", "- beak, hooked and yellow\n- crown, red\n- wings, two\n- tail", "1. Beak\n   - hooked\n   - yellow\n2. Crown\n   - red\n3. Wings\n4. Tail\n   * forked",
    "Parts:\n  - beak\n  - crown\n  - wings\n  - tail",
    "| Part | Description |\n|------|-------------|\n| Beak | long |\n| Crown | red |\n| Wings | two |\n| Tail | forked |", 
    '{"parts": ["beak", "crown", "wings", "tail"]}', '```json\n{\n  "parts": [\n    "Beak",\n    "Crown",\n    "Wings",\n    "Tail"\n  ]\n}\n```\n\nI listed the most telling ones first [see above].', '```\n- beak\n- crown\n- wings\n- tail\n```',
    'Sure, here is the JSON: {"parts": ["beak", "crown", "wings", "tail"]} Hope this helps!', '`["beak", "crown", "wings", "tail"]`', "```json [\"beak\", \"crown\", \"wings\", \"tail\"] ```", "['beak', 'crown', 'wings', 'tail']", "{'parts': ['beak', 'crown', 'wings', 'tail',]}",
    '{"parts": [{"name": "Beak", "description": "hooked"}, {"name": "Crown", "description": "red"}, {"name": "Wings", "description": "two"}, {"name": "Tail", "description": "forked"}]}', '{"subject": "bird", "parts": ["beak", "crown", "wings", "tail"], "count": 4}',
    '{"answer": {"parts": ["beak", "crown", "wings", "tail"]}}', '{"part_1": "beak", "part_2": "crown", "part_3": "wings", "part_4": "tail"}', '{"beak": {"look": "hooked"}, "crown": {"look": "red"}, "wings": {}, "tail": {}}',
    '{"parts": "beak, crown, wings, tail"}', '{"parts": ["1. Beak", "2. Crown", "3. Wings", "4. Tail"]}', '{"parts": ["beak", "crown", "wings", "tail", "bel', '{\n"part": "beak"}\n{"part": "crown"}\n{"part": "wings"}\n{"part": "tail"}',
    "<think>\nThe user wants parts:\n- feet?\n- eyes?\n</think>\n\n- beak\n- crown\n- wings\n- tail", "<thinking>- feet</thinking><answer>\n- beak\n- crown\n- wings\n- tail\n</answer>", "◁think▷feet◁/think▷- beak\n- crown\n- wings\n- tail",
    "<|channel|>analysis<|message|>- feet<|end|><|start|>assistant<|channel|>final<|message|>- beak\n- crown\n- wings\n- tail<|return|>", "- beak\n- crown\n- wings\n- tail\n\nUser: Subject: fish\nAssistant:\n- fins", "- beak\n- crown\n- wings\n- tail</s>",
    "<ol>\n<li>Beak</li>\n<li>Crown</li>\n<li>Wings</li>\n<li>Tail</li>\n</ol>", "The visible parts: the beak, the crown, the wings, and the tail.", "beak; crown; wings; tail", "beak / crown / wings / tail", "beak · crown · wings · tail",
    "1. beak 2. crown 3. wings 4. tail", "• beak • crown • wings • tail", "• Beak\n• Crown\n• Wings\n• Tail", "・Beak\n・Crown\n・Wings\n・Tail", "► beak\n► crown\n► wings\n► tail", "🐦 Beak\n👑 Crown\n🪽 Wings\n🪶 Tail", "1️⃣ Beak\n2️⃣ Crown\n3️⃣ Wings\n4️⃣ Tail", "①beak\n②crown\n③wings\n④tail",
    "a. beak\nb. crown\nc. wings\nd. tail", "i. beak\nii. crown\niii. wings\niv. tail", "Part 1: Beak\nPart 2: Crown\nPart 3: Wings\nPart 4: Tail", "> - beak\n> - crown\n> - wings\n> - tail", "[1] beak\n[2] crown\n[3] wings\n[4] tail", "+ beak\n+ crown\n+ wings\n+ tail",
    "---\n\nbeak\n\ncrown\n\nwings\n\ntail\n\n---", "- beak\n- crown\n- wings\n- tail\n- I'm sorry, I can't name more.", "- bird's beak\n- beaks\n- crown\n- a wings\n- tail\n- bird-baggery\n- tail-tail", "- beak\r\n- crown\r\n- wings\r\n- tail\r\n", "-  _beak_\n-  *crown*\n-  `wings`\n-  “tail”",
    "- beak\n- crown\n- wings\n- the general impression that the whole bird makes on somebody who sees it\n- tail"])
def test_parts_are_found_however_a_model_lists_them(answer): assert parts_in(answer) == (LISTED, 1)


@pytest.mark.parametrize("answer, parts", [
    ("1、喙\n2、冠\n3、翅膀", ["喙", "冠", "翅膀"]), ("喙、冠、翅膀", ["喙", "冠", "翅膀"]), ("一、喙\n二、冠", ["喙", "冠"]), ("以下是列表：\n• 喙：长而弯\n• 冠：红色", ["喙", "冠"]), ("（1）くちばし\n（2）翼", ["くちばし", "翼"]), ("٣. منقار\n٤. جناح", ["منقار", "جناح"]),
    ("– клюв\n– крылья", ["клюв", "крылья"]), ("а) клюв\nб) крылья", ["клюв", "крылья"]), ("- Schnabel: lang\n- Flügel", ["schnabel", "flügel"]), ("« bec »\n« ailes »", ["bec", "ailes"])])
def test_parts_are_found_in_other_languages(answer, parts): assert parts_in(answer) == (parts, 1)


@pytest.mark.parametrize("answer", ["", "```\n```", "I'm sorry, but I can't assist with that.", "I cannot identify animals in images.\nPlease provide a photo.", "Sure!", "Here are the parts:", '{"parts": []}', '{"parts": null}', "[]", "{}", '{"error": "I can\'t help with that"}',
                                    "<think>beak, crown", '{"parts": [', "Birds are warm-blooded animals that have lived on this planet for a very long time and differ widely.", "As an AI language model, I cannot see pictures.", "抱歉，我无法回答这个问题。"])
def test_no_parts_are_found_where_there_are_none(answer):
    with pytest.raises(LLMError, match="without the parts of 'bird'. (No usable answer in 2 attempts, at last: No parts of 'bird'|Model 'm' gave an empty answer)"): parts_in(answer)


def test_a_model_that_cannot_stop_is_stopped():
    assert parts_in("\n".join(f"- part {chr(97 + n % 26)}{n}" for n in range(80)), parts=7) == ([f"part {c}{n}" for n, c in enumerate("abcdefg")], 1)
    assert parts_in("beak, " * 50_000)[0] == ["beak"]


@pytest.mark.parametrize("answer, parts, asked", [
    ('{"parts": ["head", "tail", "tail", "eyes", "eye"]}', ["head", "tail", "eyes"], 1), ('{"parts": ["eyes", "eyes-eye", "eyes-eye-eye", "eyes-eye-eye-eye"]}', ["eyes"], 2), ("- bird-baggery\n- birds\n- the bird\n- beak", ["beak"], 2),
    ("- The bird has a long beak\n- It has got a red crown\n- Its tail is not very long\n- wings", ["wings"], 2), ("- d\n- not described\n- beak\n- 12\n- ??", ["beak"], 2), ("- beak. crown\n- beak\n- crown", ["beak", "crown"], 1)])
def test_a_list_of_something_else_is_asked_for_once_more(answer, parts, asked): assert parts_in(answer) == (parts, asked)

@pytest.mark.parametrize("answer", ["not described", "Not described.", '{"parts": ["not described"]}'])
def test_a_subject_whose_parts_are_not_described_is_asked_about_as_a_whole(answer): assert parts_in(answer) == (["overall look"], 1)

def test_the_second_list_is_taken():
    llm, asked = talking(lambda about, attempt: "red" if about["stage"] == "describe" else ("- eyes\n- eyes-eye\n- eyes-eyes-eye", "- collar\n- hem\n- seam")[attempt])
    assert describe(("hat",), llm, parts=2)["component"].tolist() == ["collar", "hem"] and [request.attempt for request in asked] == [0, 1, 0, 0]


@pytest.mark.parametrize("text, name, superclass, expected", [
    ("red wings", "Peacock", None, "red wings"), ("PEACOCK wings", "peacock", "butterfly", "This butterfly wings"), ("The Peacock is red.", "Peacock", "bird", "This bird is red."),
    ("peacocks' wings", "Peacock", None, "its wings"), ("a black-footed albatross", "Black_footed_Albatross", "bird", "this bird"), ("blackfooted albatrosses", "Black_footed_Albatross", "bird", "this bird"),
    ("a T-shirt", "shirt", None, "a T-shirt"), ("a t shirt and a tshirt", "T-shirt", None, "it and it"), ("overlapping carpets", "car", None, "overlapping carpets"),
    ("c++ code", "C++", None, "it++ code"), ("(x) marks", "(x)", None, "(it) marks"), ("an odd ??? sign", "???", None, "an odd it sign"),
    ("a hat lying on a table", "hat", None, "it lying on a table"), ("a hat lying on a table", "hat", "garment", "this garment lying on a table"),
    ("a Brewer Blackbird, a brewers blackbird's eye", "Brewer's Blackbird", "bird", "this bird, this bird's eye"), ("कि और का", "कि", None, "it और का")])
def test_class_names_are_replaced(text, name, superclass, expected): assert _without_name(text, name, superclass) == expected


@pytest.mark.parametrize("answer, says", [("red wings", True), ("Not described.", True), ("unknown", True), ("", False), ("Sure!", False), ("Certainly! Here's one:", False), ("Here is the line:", False), ('{"description": "red wi', False),
                                          ("<think>red wings", False), ('{"description": ""}', False), ("以下是描述：", False), ("red.", True)])
def test_an_answer_must_say_something(answer, says):
    request = Request((("user", "?"),), "m", about={"component": "wings"})
    if says: _check_line(request, answer)
    else:
        with pytest.raises(ValueError, match="No description in the model's answer"): _check_line(request, answer)


def test_the_table_has_its_columns_and_one_row_a_class_component_and_sample():
    table = describe(("T_shirt", "hat"), answering(), "garment", ARTICLES, samples=2)
    assert list(table) == COLUMNS and table["text_id"].tolist() == list(range(8))
    assert table.groupby("class_id")["knowledge"].unique().str[0].tolist() == ["text", "none"]
    assert table["flag"].tolist() == ["", "duplicate"] * 4
    assert not table.duplicated(["class_id", "component", "sample"]).any()


def test_the_paper_prompt_names_the_address():
    asked = []
    llm = LLM("m", client=lambda request: asked.append(request) or "- collar")
    describe(("T_shirt", "hat"), llm, "garment", ARTICLES, knowledge="url")
    assert "https://example.org/hat" in asked[-1].messages[-1][1] and asked[-1].about["knowledge"] == "url"
    assert "T shirt (garment)" in asked[1].messages[-1][1]


def test_stage_1_is_asked_once_for_a_superclass_and_once_per_class_without():
    asked = []
    llm = LLM("m", client=lambda request: asked.append(request.about) or "- collar")
    describe(("T_shirt", "hat"), llm, "garment")
    assert [about["subject"] for about in asked if about["stage"] == "components"] == ["garment"]
    asked.clear()
    describe(("dress", "hat"), llm)
    assert [about["subject"] for about in asked if about["stage"] == "components"] == ["dress", "hat"]


def test_a_refusal_of_stage_1_names_the_class():
    with pytest.raises(LLMError, match="(?s)No description of 1 of 1 classes:.*'hat': the list of parts failed.*No parts of 'hat'.*Take another model"): describe(("hat",), answering(parts="I'm sorry, but I can't."))
    with pytest.raises(LLMError, match="No parts of 'hat'"): describe(("hat",), answering(parts="Well, a hat is something that people wear on their heads. I like it"))
    with pytest.raises(LLMError, match="No class can be described without the parts of 'garment'"): describe(("hat", "shirt"), answering(parts="I can't."), "garment")


@pytest.mark.parametrize("options, message", [({"knowledge": "wiki"}, "expected one of 'text', 'url', 'none'"), ({"samples": 0}, "samples=0: expected at least 1"), ({"article_tokens": 0}, "article_tokens=0: expected at least 1"), ({"parts": 0}, "parts=0: expected at least 1")])
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message): describe(("hat",), answering(), **options)


def talking(answers):
    "An LLM that says to each question what the function of its `about` and of the attempt says, and the list of what it was asked"
    asked = []
    return LLM("m", client=lambda request: asked.append(request) or answers(request.about, request.attempt)), asked

def test_an_answer_that_says_nothing_is_asked_for_again():
    def answers(about, attempt): return "- collar" if about["stage"] == "components" else ("Sure!", '{"description": "re', "red")[attempt]
    llm, asked = talking(answers)
    assert describe(("hat",), llm)["text"].tolist() == ["red"] and llm.failures == []
    assert [request.attempt for request in asked] == [0, 0, 1, 2]
    assert describe(("hat",), llm)["text"].tolist() == ["red"] and len(asked) == 4

def test_failed_questions_leave_a_gap_and_are_listed():
    llm, asked = talking(lambda about, _: "- collar\n- sleeves" if about["stage"] == "components" else "Sure!" if about["component"] == "collar" and about["class"] == "hat" and about["sample"] else "red")
    for _ in range(2):
        table = describe(("hat", "shirt"), llm, samples=2)
        assert len(table) == 7 and table["text_id"].tolist() == list(range(7))
        failed = failed_questions(llm)
        assert failed.drop(columns="reason").values.tolist() == [["describe", "hat", "collar", 1]] and "No description in the model's answer" in failed["reason"][0]

def test_every_class_without_an_answer_is_named():
    def answers(about, _):
        if about["stage"] == "components": return "" if about["subject"] == "scarf" else "- collar\n- sleeves"
        return "" if about["class"] in ("hat", "dress") else "red"
    llm, asked = talking(answers)
    with pytest.raises(LLMError) as error: describe(("hat", "shirt", "dress", "scarf"), llm, samples=2)
    first, *lines = str(error.value).splitlines()
    assert first == "No description of 3 of 4 classes:" and "answers that came are cached" in lines[-1]
    assert [line.split(".")[0] for line in lines] == ["'hat', 'dress': all 4 questions failed", "'scarf': the list of parts failed"]
    assert {request.about["class"] for request in asked if request.about["stage"] == "describe"} == {"hat", "shirt", "dress"}

def test_nothing_failed_is_an_empty_table():
    assert list(failed_questions(answering())) == ["stage", "class", "component", "sample", "reason"] and failed_questions(answering()).empty


def test_cats_and_dogs_have_parts_of_their_own():
    llm, asked = talking(lambda about, _: {"cat": "- whiskers", "dog": "- snout"}.get(about.get("subject"), "the dog's red coat"))
    table = describe(("Abyssinian", "Beagle", "Birman"), llm, ("cat", "dog", "cat"))
    assert table["component"].tolist() == ["whiskers", "snout", "whiskers"]
    assert [request.about["subject"] for request in asked if request.about["stage"] == "components"] == ["cat", "dog"]
    assert "Subject: Beagle (dog)" in asked[3].messages[-1][1]
    assert parts_of(("Abyssinian", "Beagle"), llm, {"Abyssinian": "cat", "Beagle": "dog"}) == {"Abyssinian": ["whiskers"], "Beagle": ["snout"]}
    named = describe(("Abyssinian", "Beagle"), LLM("n", client=lambda r: "- coat" if r.about["stage"] == "components" else f"the {r.about['class']}'s coat"), ("cat", "dog"))
    assert named["scored_text"].tolist() == ["this cat's coat", "this dog's coat"] and named["names_class"].all()
    assert named["text"].tolist() == ["the Abyssinian's coat", "the Beagle's coat"]

@pytest.mark.parametrize("superclass, kinds", [(None, [None, None]), ("", [None, None]), ("cat", ["cat", "cat"]), (["cat", ""], ["cat", None]), ({"Beagle": "dog"}, [None, "dog"])])
def test_kinds_may_be_given_in_many_ways(superclass, kinds): assert kinds_of(superclass, ("Abyssinian", "Beagle")) == kinds

@pytest.mark.parametrize("superclass, message", [(("cat",), "1 superclasses for 2 classes"), ({"Boxer": "dog"}, "superclass names 'Boxer', which the dataset lacks")])
def test_kinds_must_fit_the_classes(superclass, message):
    with pytest.raises(ValueError, match=message): kinds_of(superclass, ("Abyssinian", "Beagle"))


def test_structured_answers_come_from_a_server_that_offers_them():
    "The schema is sent; an answer that breaks it is asked for again, and one in words is read all the same."
    replies = {"collar": iter(['{"description": 7}', '{"description": "a plain collar"}']), "sleeves": iter(["- short sleeves"])}
    def answer(chat):
        question = chat["messages"][-1]["content"]
        return '{"parts": ["collar", "sleeves"]}' if "Which visible parts" in question else next(replies["collar" if "Part: collar" in question else "sleeves"])
    with llm_server(answer) as (url, server):
        llm = LLM("m", url)
        assert describe(("shirt",), llm)["text"].tolist() == ["a plain collar", "short sleeves"] and llm.failures == []
    forms = [chat["response_format"]["json_schema"]["schema"] for chat in server.chats]
    assert [list(form["properties"]) for form in forms] == [["parts"]] + [["description"]]*3 and all(form["additionalProperties"] is False for form in forms)

def test_a_refusal_in_its_own_field_is_a_row():
    with llm_server(lambda chat: "- collar" if "Which visible" in chat["messages"][-1]["content"] else completion(None, refusal="I'm sorry, I can't help with that.")) as (url, _):
        assert describe(("shirt",), LLM("m", url))["flag"].tolist() == ["not described"]

def test_a_dry_run_plans_both_stages():
    llm = LLM("gpt-4o-mini", "http://127.0.0.1:9/v1", dry_run=True)
    assert len(describe(("shirt", "hat"), llm, "garment", samples=2)) == 2 * 10 * 2
    assert llm.costs.table().set_index("stage")["calls"].to_dict() == {"components": 1, "describe": 40, "total": 41}


def test_an_article_is_asked_about_as_far_as_it_is_text():
    articles = pd.DataFrame([{"class": "hat", "passages": [" ", "\u200b"], "url": float("nan")}, {"class": "shirt", "passages": ["Red sleeves."], "url": None}])
    for knowledge, kinds in (("text", ["none", "text"]), ("url", ["none", "none"])):
        assert describe(("hat", "shirt"), answering(), "garment", articles, knowledge).drop_duplicates("class_id")["knowledge"].tolist() == kinds

def test_a_long_article_is_cut_to_what_bears_on_the_part():
    passages = [f"The {part} of this garment is {colour}. " + "It has a long history of trade and fashion in many countries. " * 12 for part, colour in (("brim", "red"), ("crown", "blue"), ("ribbon", "green"), ("lining", "white"))]
    article = {"class": "hat", "url": "", "passages": passages, "sections": ["", "Description", "History", "Lining"]}
    llm, asked = talking(lambda about, _: "- ribbon\n- lining" if about["stage"] == "components" else "red")
    for tokens in (250, 2000): describe(("hat",), llm, "garment", pd.DataFrame([article]), article_tokens=tokens)
    ribbon, lining, *whole = [request.messages[-1][1].split("article tags:\n<")[1].split("\n</article-")[0].split(">\n")[1] for request in asked[1:]]
    assert whole == ["\n".join(map(str.strip, passages))] * 2 and "green" in ribbon and "white" in lining and max(len(ribbon), len(lining)) <= 4 * 250

def test_a_server_describes_clothing_and_the_cache_replays_it():
    def answer(chat): return "1. collar\n2. sleeves" if "Which visible parts" in chat["messages"][-1]["content"] else "- **A shirt's plain collar**"
    with llm_server(answer) as (url, server):
        table = describe(("shirt", "hat"), LLM("m", url))
        assert len(server.chats) == 2 + 4 and [len(chat["messages"]) for chat in server.chats] == [3] * 2 + [5] * 4
    assert table.equals(describe(("shirt", "hat"), LLM("m")))
    assert table["text"].tolist() == ["A shirt's plain collar"] * 4
    assert table["scored_text"].tolist() == ["Its plain collar"] * 2 + ["A shirt's plain collar"] * 2
    assert table["names_class"].tolist() == [True, True, False, False]


def test_meadow_replays_both_ways_without_a_server(tmp_path):
    world = meadow.load()
    llm = LLM("meadow-author", cache=tmp_path/"none.sqlite", exports=[meadow.exported_answers()])
    start = time.perf_counter()
    for knowledge in ("text", "none"):
        table = describe(world.classes, llm, world.superclass, world.articles, knowledge, samples=3)
        assert len(table) == 720 and set(table["knowledge"]) == {knowledge}
        assert ((world.truth_of(table) == "refusal") == (table["flag"] == "a stock phrase")).all()
        assert not any(name.lower() in text.lower() for name, text in zip(table["class_id"].map(dict(enumerate(world.classes))), table["scored_text"]))
    assert time.perf_counter() - start < 5 and not (tmp_path/"none.sqlite").exists()


def test_it_works_inside_a_running_loop():
    async def cell(): return describe(("hat",), answering())
    assert len(asyncio.run(cell())) == 2


CLASSES = ("dress", "hat", "T_shirt")
GOOD = {"Dress": ["a skirt"], "hat": ["a brim", "a\ncrown  "], "t-shirt": ["the T shirt's sleeves"]}

def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8-sig")
    return path

def test_files_of_both_kinds_say_the_same(tmp_path):
    one = from_file(written(tmp_path/"d.json", GOOD), CLASSES)
    two = from_file(written(tmp_path/"d.csv", 'text,class\na skirt,Dress\na brim,hat\n"a\ncrown  ",hat\nthe T shirt\'s sleeves,t-shirt\n'), CLASSES)
    assert list(one) == COLUMNS and one.drop(columns="source").equals(two.drop(columns="source"))
    assert one["text"].tolist() == ["a skirt", "a brim", "a crown", "the T shirt's sleeves"] and one["class_id"].tolist() == [0, 1, 1, 2]
    assert one["scored_text"].tolist() == ["a skirt", "a brim", "a crown", "its sleeves"]
    assert one["names_class"].tolist() == [False, False, False, True] and set(one["knowledge"]) == {"given"}


@pytest.mark.parametrize("superclass, scored", [(None, "it lying on a table"), ("garment", "this garment lying on a table"), ({"hat": "garment"}, "this garment lying on a table")])
def test_a_sentence_is_shown_as_it_was_written_and_scored_without_its_name(tmp_path, superclass, scored):
    "A row of the cases: the report shows what the author wrote, whatever the encoder reads."
    path = written(tmp_path/"d.json", {"dress": ["a skirt"], "hat": ["a hat lying on a table", "A hat.", "it lying on a table"], "T_shirt": ["sleeves"]})
    table = from_file(path, CLASSES, superclass)
    assert table["text"].tolist() == ["a skirt", "a hat lying on a table", "A hat.", "it lying on a table", "sleeves"]
    assert table["scored_text"][1] == scored and table["names_class"].tolist() == [False, True, True, False, False]
    assert table["flag"].tolist() == ["", "", "only the class name", "" if superclass else "duplicate", ""]


def test_a_folder_of_text_files_and_the_folders_names(tmp_path):
    for name, text in (("Brewer Blackbird", "A bird with a yellow eye."), ("Artic Tern", "1. A white bird.\n2. A bird with a black cap.")): (tmp_path/f"{name}.txt").write_text(text)
    birds = ("Brewer's Blackbird", "Arctic Tern")
    with pytest.raises(ValueError, match=r"describes 'Artic Tern' \(did you mean 'Arctic Tern'\?\), which the dataset lacks"): from_file(tmp_path, birds)
    assert from_file(tmp_path, birds, "bird", ("009.Brewer_Blackbird", "141.Artic_Tern"))["text"].tolist() == ["A bird with a yellow eye.", "A white bird.", "A bird with a black cap."]


words = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=30).filter(str.strip)
sentences = st.one_of(words, st.builds("{} hat {}".format, words, words), st.builds("the Hats' {}".format, words))

@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(sentences, min_size=1, max_size=4), st.sampled_from(["d.json", "d.csv", "d.jsonl"]), st.sampled_from([None, "garment"]))
def test_what_was_given_is_in_the_table(tmp_path, texts, name, superclass):
    "Byte for byte but for blanks and the form of Unicode, whatever the sentence says."
    if name == "d.json": content = json.dumps({"hat": texts})
    elif name == "d.jsonl": content = "\n".join(json.dumps({"class": "hat", "text": text}) for text in texts)
    else:
        with (tmp_path/name).open("w", newline="", encoding="utf-8") as file: csv.writer(file).writerows([("class", "text"), *(("hat", text) for text in texts)])
        content = None
    if content: (tmp_path/name).write_text(content, encoding="utf-8")
    table = from_file(tmp_path/name, ("hat",), superclass)
    assert table["text"].tolist() == [unicodedata.normalize("NFC", " ".join(text.split())) for text in texts]
    assert (table["scored_text"] != table["text"]).tolist() == table["names_class"].tolist()


@pytest.mark.parametrize("columns", [[], ["scored_text"]])
def test_a_table_without_copies_is_scored_by_its_texts(columns):
    table = flagged([dict(class_id=0, component="", sample=0, text="a hat lying on a table", source="", knowledge="")], ("hat",)).drop(columns=columns)
    assert scored_text(table).tolist() == ["a hat lying on a table" if columns else "it lying on a table"]


def test_an_article_is_found_in_either_form_of_unicode():
    llm, asked = talking(lambda about, _: "- door" if about["stage"] == "components" else "red")
    describe(("caf\u00e9",), llm, articles=pd.DataFrame([{"class": "cafe\u0301", "url": "", "passages": ["A bar with small tables."]}]))
    assert "A bar with small tables." in asked[-1].messages[-1][1]


def asked_about(texts, classes=("Peacock", "Brimstone", "Comma")):
    "The flags of texts (class, part, text) that a model gave"
    return flagged([dict(class_id=c, component=part, sample=0, text=text, source="m", knowledge="none") for c, part, text in texts], classes, "butterfly")["flag"].tolist()

def test_a_line_in_the_script_of_its_question_is_none_of_another():
    assert asked_about([(0, "wings", "深色的短毛"), (1, "头部", "深色的短毛")]) == ["another script", ""]
    llm, _ = talking(lambda about, _: "1、头部\n2、尾巴" if about["stage"] == "components" else "深色的短毛" if about["component"] == "头部" else "red tail")
    assert describe(("cat",), llm)["flag"].tolist() == ["", ""]
    llm = LLM("n", client=lambda request: "- tail" if request.about["stage"] == "components" else "深色的短毛")
    articles = pd.DataFrame([{"class": "cat", "url": "", "passages": ["猫有深色的短毛。"]}])
    assert describe(("cat", "dog"), llm, articles=articles)["flag"].tolist() == ["", "another script"]

def test_the_worked_example_is_no_answer():
    "Three of its words in a row are no answer either, unless the article has them; two are."
    example, three, two = "long slender white neck in an S-shaped curve", "long slender white wings", "slender white wings"
    assert asked_about([(0, "wings", example), (1, "wings", three), (1, "body", two)]) == ["repeats the prompt", "repeats the prompt", ""]
    rows = [dict(class_id=0, component="wings", sample=0, text=three, source="n", knowledge="text")]
    assert flagged(rows, ["egret"], articles={"egret": "Its long slender white wings are seen from afar."})["flag"].tolist() == [""]

PARTS = ["wings", "body", "antennae", "legs"]

def test_a_stock_phrase_names_three_parts_in_words_of_its_own():
    stock = [(n % 3, part, f"There is nothing known about the {part}.") for n, part in enumerate(PARTS)]
    others = [(c, part, f"{colour} {part}") for c in range(3) for part, colour in zip(PARTS, ("red", "blue", "pale", "thin"))]
    assert asked_about(stock + others) == ["a stock phrase"] * 4 + [""] * 12
    assert asked_about(stock[:2] + others) == [""] * 14
    assert asked_about(stock + others[:2]) == [""] * 6  # most of the table: the model's way of speaking

@pytest.mark.parametrize("line", ["long and black", "dark {} with long fur", "a red {}", "striped black {} with a white border"])
def test_short_true_lines_are_no_stock_phrases(line):
    lines = ["dark {} with soft fur", "pale {} with long fur", "round {} with long hair", "striped {} with a border", "black {} and white spots"]
    texts = [(0, part, line.format(part)) for part in PARTS] + [(c, part, other.format(part)) for c in (1, 2) for part, other in zip(PARTS, lines)]
    assert "a stock phrase" not in asked_about(texts)


@pytest.mark.parametrize("structured, shown", [(True, ['{"parts": ["frame", "wheels"]}', '{"description": "wide scarlet cap with raised white warts"}']), (False, ["- frame\n- wheels", "wide scarlet cap with raised white warts"])])
def test_examples_have_the_form_that_is_wanted(structured, shown):
    asked = []
    def client(request): return asked.append(request) or ("- wings" if request.about["stage"] == "components" else "red wings")
    describe(("Peacock",), LLM("m", client=client, structured=structured), parts=2)
    assert [request.messages[-2][1] for request in asked] == shown and asked[0].schema["properties"]["parts"]["maxItems"] == 2
