"Peers' published files in all their layouts, the real ones where they are at hand, and the questions of their recipes."
import json
from pathlib import Path

import pytest

from datadesc import meadow
from datadesc.llm import LLM, LLMError
from datadesc.baselines import BASELINES, from_templates, match_classes, waffle
from datadesc.sentences import read_sentences

REAL = Path(__file__).parents[2]/"shared"/"data"/"peers"
pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")  # what torch says of a pickle that it did not write
real = pytest.mark.skipif(not REAL.is_dir(), reason="needs the published files in ../shared/data/peers")


# Names

def test_numbers_are_names():
    digits = [str(i) for i in range(10)]
    matched, report = match_classes({d: [f"the digit {d}"] for d in reversed(digits)}, digits)
    assert set(report.how) == {"exact"} and list(matched) == digits and matched["7"] == ["the digit 7"]


def test_a_name_is_given_to_one_class_only():
    _, report = match_classes({"crane": ["a beak"]}, ["Crane", "cranes"], empty="name")
    assert list(report.how) == ["spelling", "missing"]


def test_what_is_ambiguous_is_left_open_and_what_is_named_is_taken():
    theirs = {"Crane": ["a beak"], "crane_": ["a hook"]}
    with pytest.raises(ValueError, match="1 of the classes end without a text: 'CRANE' \\(not found; nearest: 'Crane or crane_'\\)"):
        match_classes(theirs, ["CRANE"])
    matched, report = match_classes(theirs, ["CRANE"], renamed={"CRANE": "crane_"})
    assert matched == {"CRANE": ["a hook"]} and list(report.how) == ["renamed", "extra"]


def test_the_nearest_spelling_is_named():
    with pytest.raises(ValueError, match="'lotus flower' \\(not found; nearest: 'lotus flwer'\\)"):
        match_classes({"lotus flwer": ["pink"]}, ["lotus flower"])


@pytest.mark.parametrize("renamed", [{"swan": "crane"}, {"hen": "crow"}])
def test_renamed_must_name_what_exists(renamed):
    with pytest.raises(ValueError, match="expected a class of the dataset and a name in the published texts"):
        match_classes({"crane": ["a beak"]}, ["hen"], renamed)


def test_classes_need_names_of_their_own():
    with pytest.raises(ValueError, match="Two classes are named 'missile'"):
        match_classes({"missile": ["a"]}, ["hen", "missile", "missile"])


def test_a_folders_name_is_an_alias():
    theirs = {"Artic Tern": ["a black cap"], "Brewer Blackbird": ["a yellow eye", ""]}
    matched, report = match_classes(theirs, ["Brewer's Blackbird", "Arctic Tern"], aliases=["009.Brewer_Blackbird", "141.Artic_Tern"])
    assert matched == {"Brewer's Blackbird": ["a yellow eye"], "Arctic Tern": ["a black cap"]} and list(report.how) == ["spelling", "spelling"] and list(report.texts) == [1, 1]
    with pytest.raises(ValueError, match="'Arctic Tern' \\(not found; nearest: 'Artic Tern'\\)"): match_classes(theirs, ["Brewer's Blackbird", "Arctic Tern"])


# The published files

def names_of(dataset): return list(dict.fromkeys(json.loads((REAL/"clip_benchmark"/"en_classnames.json").read_text())[dataset]))
def published(file): return read_sentences(REAL/file)
FOLDERS = ["AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential", "River", "SeaLake"]


FILES = {  # file -> where the class names are, how they are matched, classes without a text
    "waffleclip/descriptors_cub.json": ("vdt/cub.pt", {"spelling": 200}, []),
    "waffleclip/descriptors_dtd.json": ("vdt/dtd.pt", {"exact": 47}, []),
    "waffleclip/descriptors_eurosat.json": ("folders", {"alias": 8, "spelling": 2}, []),
    "waffleclip/descriptors_flowers102.json": ("flowers", {"exact": 98, "spelling": 1, "words": 2, "missing": 1, "extra": 1}, ["air plant"]),
    "waffleclip/descriptors_food101.json": ("vdt/food-101.pt", {"exact": 41, "spelling": 60}, ["donuts", "french_fries", "fried_calamari", "mussels", "oysters"]),
    "waffleclip/descriptors_imagenet.json": ("imagenet1k", {"exact": 996, "missing": 2, "extra": 4}, ["newt", "tights"]),
    "waffleclip/descriptors_pets.json": ("pets", {"exact": 12, "spelling": 25}, []),
    "vdt/cub.pt": ("waffleclip/descriptors_cub.json", {"spelling": 200}, []),
    "vdt/dtd.pt": ("waffleclip/descriptors_dtd.json", {"exact": 47}, []),
    "vdt/eurosat.pt": ("folders", {"alias": 8, "spelling": 2}, []),
    "vdt/food-101.pt": ("waffleclip/descriptors_food101.json", {"exact": 41, "spelling": 60}, []),
    "vdt/oxford_flowers.pt": ("flowers", {"exact": 99, "spelling": 1, "words": 1, "missing": 1, "extra": 1}, ["air plant"]),
    "vdt/oxford_pets.pt": ("pets", {"spelling": 37}, [])}


@real
@pytest.mark.parametrize("file", FILES)
def test_published_names_are_matched(file):
    where, how, without = FILES[file]
    classes = FOLDERS if where == "folders" else list(published(where)) if "/" in where else names_of(where)
    matched, report = match_classes(published(file), classes, empty="name")
    assert report.how.value_counts().to_dict() == how
    assert sorted(c for c in classes if not matched[c]) == without
    table = BASELINES["menon" if "waffle" in file else "vdt"].table(matched, classes)
    assert set(table.class_id) == set(range(len(classes))) and (table.text.str.len() > 0).all() and (table.prompt.str.len() > 0).all()


@real
@pytest.mark.parametrize("file", ["waffleclip/descriptors_eurosat.json", "vdt/eurosat.pt"])
def test_eurosat_by_its_longer_names(file):
    _, report = match_classes(published(file), names_of("eurosat"))
    assert set(report.how) <= {"exact", "words", "alias"} and len(report) == 10


@real
def test_what_only_a_person_can_match():
    matched, _ = match_classes(published("vdt/oxford_flowers.pt"), names_of("flowers"), renamed={"air plant": "ball moss"})
    assert all(matched.values())
    with pytest.raises(ValueError, match="5 of the classes end without a text: 'donuts' \\(its list is empty\\)"):
        match_classes(published("waffleclip/descriptors_food101.json"), list(published("waffleclip/descriptors_food101.json")))


@real
def test_published_templates():
    templates = read_sentences(REAL/"clip_benchmark"/"en_zeroshot_classification_templates.json")["eurosat"]
    assert from_templates(["River"], templates)["River"][0] == "a centered satellite photo of River."


# Tables

def test_a_template_needs_its_field():
    with pytest.raises(ValueError, match="expected {c}"):
        from_templates(["hen"], ["a photo"])
    assert len(set(from_templates(["hen"])["hen"])) == len(from_templates(["hen"])["hen"]) == 7


def test_repetitions_and_names_are_flagged():
    table = BASELINES["cupl"].table({"hen": ["A hen has a comb.", "a hen has a comb", "Not described."]}, ["hen"], "bird")
    assert list(table.scored_text[:2]) == ["This bird has a comb.", "this bird has a comb"] and list(table.text[:2]) == ["A hen has a comb.", "a hen has a comb"]
    assert (list(table.flag), list(table.names_class)) == (["", "duplicate", "not described"], [True, True, False])


def test_random_descriptors_are_shared_and_repeatable():
    one = waffle(["black swan", "hen"], n=10, words=["kettle", "moon"], seed=3)
    assert one == waffle(["black swan", "hen"], n=10, words=["moon", "kettle"], seed=3) != waffle(["black swan", "hen"], n=10, words=["kettle", "moon"], seed=4)
    assert one["hen"] == one["black swan"] and len(one["hen"]) == 10
    assert {word for text in one["hen"][::2] for word in text.split()} <= {"kettle", "moon"}
    assert not {word for text in waffle(["hen"], n=10)["hen"] for word in text.split()} & {"kettle", "moon"}


# Questions

def test_what_is_asked(tmp_path):
    for baseline in BASELINES.values():
        if not baseline.recipe: continue
        asked = []
        baseline.ask(["black_swan"], LLM("any", cache=tmp_path/f"{baseline.name}.sqlite", client=lambda request: asked.append(request) or "- black feathers\n- a beak"), "bird", ["beak"], progress=False)
        assert len({request.key for request in asked}) == len(asked) == len(baseline.recipe.questions)*baseline.recipe.samples
        assert all("black swan (bird)" in request.messages[-1][1] for request in asked)
        assert {request.about["baseline"] for request in asked} == {baseline.name}


def answered(tmp_path, name, answer):
    "The texts of a baseline whose every question gets this answer, once"
    return BASELINES[name].ask(["Velta"], LLM("any", cache=tmp_path/f"{name}.sqlite", client=lambda request: answer), samples=1, progress=False)["Velta"]

@pytest.mark.parametrize("answer", ["not described", "- Not described.", '{"texts": ["not described"]}'])
def test_a_list_that_is_not_described_has_no_texts(tmp_path, answer): assert answered(tmp_path, "menon", answer) == []

def test_a_sentence_that_is_not_described_stays(tmp_path): assert answered(tmp_path, "cupl", '{"sentence": "not described"}') == ["not described"] * 5

@pytest.mark.parametrize("answer", ["I'm sorry, but I can't describe this class.", "As an AI language model, I have no information on it."])
def test_a_sentence_in_place_of_a_list_is_asked_for_again(tmp_path, answer):
    with pytest.raises(LLMError, match="No usable answer in 3 attempts, at last: No list in the model's answer"): answered(tmp_path, "menon", answer)

def test_texts_are_read_whatever_their_length(tmp_path):
    long = "a very long tail with " + ", ".join(f"a {n}. white ring" for n in range(60))
    assert answered(tmp_path, "labo", f"Features:\n- Wings:\n  - white\n  - d\n- {long}") == ["Wings:", "white", "d", long]


@pytest.mark.parametrize("given", [None, ["wings", "feelers"]])
def test_vdt_asks_for_parts_unless_it_has_them(tmp_path, given):
    asked = []
    def client(request):
        asked.append(request)
        return "- wings\n- body" if request.about["stage"] == "components" else "- Velta is a moth with white wings"
    said = BASELINES["vdt"].ask(["Velta"], LLM("any", cache=tmp_path/"a.sqlite", client=client), "moth", parts=given, progress=False)
    assert said == {"Velta": ["Velta is a moth with white wings"]}
    assert len(asked) == (1 if given else 2) and ", ".join(given or ["wings", "body"]) in asked[-1].messages[-1][1]


def test_a_world_answers_every_baseline_from_its_memory(tmp_path):
    world = meadow.load()
    llm = LLM("meadow-author", cache=tmp_path/"a.sqlite", client=world.simulated_llm)
    few = world.classes[:3]
    for name in ("menon", "labo", "vdt", "cupl"):
        said = BASELINES[name].ask(few, llm, world.superclass, samples=3, progress=False)
        assert list(said) == list(few) and min(map(len, said.values())) >= 15
        known = {phrase for *_, phrase in world._known[few[0]]}
        assert name == "cupl" or {text.removeprefix(f"{few[0]} is a butterfly with ") for text in said[few[0]]} <= known
        assert not BASELINES[name].table(said, few, world.superclass).flag.eq("not described").any()


def speaking(tmp_path, answers):
    "An LLM that says what the function of its question's `about` says, with a cache of its own"
    return LLM("any", cache=tmp_path/"any.sqlite", client=lambda request: answers(request.about))


def test_a_failed_question_leaves_a_gap_and_is_listed(tmp_path):
    llm = speaking(tmp_path, lambda about: "Sure!" if about["question"] == 1 else '{"sentence": "A Velta has white wings."}')
    assert BASELINES["cupl"].ask(["Velta"], llm, samples=2, progress=False) == {"Velta": ["A Velta has white wings."] * 8}
    assert [(request.about["question"], request.about["sample"]) for request, _ in llm.failures] == [(1, 0), (1, 1)]


def test_classes_without_a_text_are_named(tmp_path):
    llm = speaking(tmp_path, lambda about: '{"texts": []}' if about["class"] == "Velta" else '{"texts": ["white wings", "a thin body"]}')
    with pytest.raises(LLMError, match="Baseline 'menon': No description of 1 of 2 classes:\n'Velta': all 1 questions failed"):
        BASELINES["menon"].ask(["Velta", "Ulmka"], llm, progress=False)
    assert BASELINES["menon"].ask(["Ulmka"], llm, progress=False) == {"Ulmka": ["white wings", "a thin body"]}


def test_each_class_has_its_own_kind_and_parts(tmp_path):
    asked = []
    llm = LLM("any", cache=tmp_path/"any.sqlite", client=lambda request: asked.append(request) or {"cat": "- whiskers", "dog": "- snout"}.get(request.about.get("subject"), "- a coat"))
    BASELINES["vdt"].ask(["Birman", "Beagle"], llm, ["cat", "dog"], progress=False)
    assert [request.about["subject"] for request in asked if request.about["stage"] == "components"] == ["cat", "dog"]
    assert "Beagle is a dog with" in asked[-1].messages[-1][1] and "snout" in asked[-1].messages[-1][1]
