"The benchmark table: what a method may see, whom each row is about, and that every method meets the same."
import json
import re
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc import benchmark_page
from datadesc.benchmark_page import BenchmarkPage
from datadesc.adapters import adapters
from datadesc.benchmark import _as_texts, benchmark, chosen_by, _collect_texts, controls, method_from, top_per_class
from datadesc.stats import _correct_matrix, summary
from datadesc.describe import flagged
from datadesc.llm import LLM
from datadesc.selection import ChoiceOptions
from datadesc.study import Study
from datadesc.zeroshot import names_only

torch.set_num_threads(1)  # these layers are so small that a second thread only waits
CLASSES, WIDTH = ("ant", "bee", "cat", "dog"), 16
FACTS = ["method", "protocol", "aggregation", "names", "shots", "k", "weighting", "seed"]
ADAPTERS = adapters(10.)


def vector(word):
    "A direction of its own for every word."
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def embed(texts):
    "Texts as the sums of their words, all shifted one way."
    return F.normalize(torch.stack([sum(map(vector, re.findall(r"\w+", text))) for text in texts]) + 2 * vector("text"), dim=1)


@pytest.fixture(scope="module")
def images():
    "Image embeddings around the direction of a word for each class, shifted another way; (embeddings, labels) by split."
    g = torch.Generator().manual_seed(0)
    labels = {split: torch.arange(len(CLASSES)).repeat_interleave(n) for split, n in dict(train=8, val=4, test=30).items()}
    centre = torch.stack([vector(f"looks{c}") for c in range(len(CLASSES))])
    return {split: F.normalize(centre[y] + 1.5 * torch.randn(len(y), WIDTH, generator=g) + 2 * vector("image"), dim=1) for split, y in labels.items()}, labels


SAID = {name: [f"looks{c} {part}" for part in ("head", "legs", "tail")] for c, name in enumerate(CLASSES)}
POOL = flagged([dict(class_id=c, component="", sample=n, text=text, source="", knowledge="") for c, texts in enumerate(SAID.values()) for n, text in enumerate(texts)], CLASSES)


def study_of(images, pool=POOL, embed=embed, **options): return Study(CLASSES, *images, pool, embed, ChoiceOptions(**dict(top_k=2) | options))


def looking(study):
    "A method that chooses by all that it is shown: the two sentences of each class nearest to its images."
    means = torch.stack([torch.cat([study.image_emb[part][study.labels[part] == c] for part in ("train", "val")]).mean(0) for c in range(study.n_classes)])
    return top_per_class(POOL.assign(score=(embed(POOL.text) * means[POOL.class_id.to_numpy(copy=True)]).sum(1).numpy()), 2)


def tried(images, methods, shots=(2,), **options):
    "The benchmark with two seeds, and all images under the paper's protocol unless that is said otherwise."
    return benchmark(study_of(images), methods, shots=shots, **dict(seeds=range(2), paper_shots=()) | options)


@pytest.fixture(scope="module")
def methods(images, tmp_path_factory):
    "The same sentences through every door there is, and the controls."
    folder = tmp_path_factory.mktemp("methods")
    (folder/"said.json").write_text(json.dumps({name.upper(): texts for name, texts in SAID.items()}))
    (folder/"mine.py").write_text(f"SAID = {SAID}\ndef say(study): return {{name: SAID[name][:study.split.seed + 1] for name in study.classes}}")
    from_files = dict(method_from(f"{name}={folder/place}", CLASSES)[:2] for name, place in {"json": "said.json", "python": "mine.py:say"}.items())
    return {"dict": SAID, "table": POOL, "function": looking} | from_files | controls(study_of(images), "function", looking)


@pytest.fixture(scope="module")
def full(images, methods):
    "The table of all methods, in all protocols."
    given = {"Tip-Adapter": (ADAPTERS["Tip-Adapter"], list(methods)), "logistic regression": (ADAPTERS["logistic regression"], ["class names"])}
    return tried(images, methods, paper_shots=[2], start=list(methods), joint=list(methods), adapters=given)


def test_every_door_leads_into_every_protocol(full, methods):
    named = {"zero_shot": "{}", "transfer": "{}", "paper": "{}", "adapter": "Tip-Adapter: {}"}
    for protocol, name in named.items():
        assert {name.format(m) for m in methods} <= set(full[full.protocol == protocol].method)
    assert {f"{way}: {m}" for m in methods for way in ("zero-shot start", "joint")} <= set(full[full.protocol == "transfer"].method)
    assert {"images only", "images only, same steps"} <= set(full[full.protocol == "transfer"].method) & set(full[full.protocol == "paper"].method)


def test_the_same_sentences_score_the_same_through_every_door(full):
    rows = full[full.method.isin(["dict", "json", "table"])].drop(columns="method").groupby(["protocol", "names", "aggregation", "seed"])
    for _, of_one in rows: assert len(of_one) == 3 and of_one.astype({"options": str}).nunique(dropna=False).max() == 1


def test_every_row_says_where_it_comes_from(full):
    assert not full[FACTS].isna().any().any() and not full.duplicated(FACTS).any()
    assert set(full[full.protocol == "zero_shot"].shots) == {"0"} and set(full[full.protocol != "zero_shot"].shots) == {"2"}
    assert set(full[full.protocol != "zero_shot"].groupby(["protocol", "method"]).seed.agg(tuple)) == {(0, 1)}
    k = full.groupby("method").k.agg(set)
    assert k["images only"] == k["logistic regression"] == {0} and k["class names"] == {1} and k["function"] == {2} and k["dict"] == {3} and k["python"] == {2}, "the most of a class, over all seeds"
    weighting = full[full.protocol.isin(["transfer", "paper"])].groupby("method").weighting.agg(set)
    assert weighting["function"] != {"none"} and weighting["function, unweighted"] == weighting["dict"] == weighting["images only"] == {"none"}


def test_rows_say_whether_names_were_in_the_texts(full):
    names = full.groupby(["protocol", "method"]).names.agg(set)
    assert names["zero_shot", "dict"] == {"without", "with"} and names["transfer", "dict"] == {"without"} and names["paper", "dict"] == {"with"}
    for protocol, method in (("zero_shot", "class names"), ("transfer", "class names"), ("transfer", "joint: class names"), ("paper", "class names"), ("adapter", "Tip-Adapter: class names")):
        assert names[protocol, method] == {"only"}
    assert names["transfer", "images only"] == names["paper", "images only"] == names["adapter", "logistic regression"] == {"none"}


def test_a_method_of_nothing_but_names(images):
    table = tried(images, {"names": pd.DataFrame(dict(class_id=range(4), prompt=names_only(CLASSES)))}, paper_shots=[2], budget=2)
    assert set(table[table.method == "names"].names) == {"only"} and set(table[table.method == "names"].k) == {1}


def test_the_table_is_the_same_each_time(images, methods, full):
    few = {name: methods[name] for name in ("function", "random choice", "random words", "function, shuffled", "class names")}
    def again(): return tried(images, few, paper_shots=[2], adapters={"Tip-Adapter": (ADAPTERS["Tip-Adapter"], ["function"])})
    torch.manual_seed(1); np.random.seed(1)
    first = again()
    torch.manual_seed(2); np.random.seed(2)
    pd.testing.assert_frame_equal(first, again())
    both = first[first.protocol == "transfer"].merge(full[full.protocol == "transfer"], on=FACTS, suffixes=("", "_in_full"))
    assert len(both) == 2*(len(few) + 2)
    other = both[both.method != "images only, same steps"]  # whose steps are those of the longest method
    assert (other.accuracy == other.accuracy_in_full).all(), "what a method scores depends on its company"


def test_test_images_decide_nothing(images, methods):
    "Half of the test images become noise and all labels are dealt out: texts stay, and so does what every head says of the other half."
    emb, labels = images
    half, g = torch.arange(len(labels["test"])) % 2 == 0, torch.Generator().manual_seed(3)
    noise = F.normalize(torch.randn(emb["test"].shape, generator=g), dim=1)
    other = emb | {"test": torch.where(half[:, None], emb["test"], noise)}, labels | {"test": torch.where(half, labels["test"], labels["test"][torch.randperm(len(half), generator=g)])}
    before, after = (_collect_texts(study_of(of), methods, shots=(2,), seeds=range(2)) for of in (images, other))
    for setting, said in before.items():
        for name, texts in said.items(): pd.testing.assert_frame_equal(texts, after[setting][name])
    options = dict(shots=(2, "all"), paper_shots=["all"], start=["function"], joint=["function"], adapters={name: (ADAPTERS[name], ["function"]) for name in ("Tip-Adapter", "logistic regression")})
    few = {"function": methods["function"]}
    before, after = (tried(of, few, **options) for of in (images, other))
    same = FACTS + ["epoch", "options"]
    pd.testing.assert_frame_equal(before[same], after[same])
    assert (_correct_matrix(before)[:, half.numpy()] == _correct_matrix(after)[:, half.numpy()]).all() and (before.correct != after.correct).any()


def test_validation_images_do_not_train(images):
    "What a method is shown in each setting: from two images a class on, none is both a train and a validation image."
    shown = []
    _collect_texts(study_of(images), {"spy": lambda study: shown.append(study) or SAID}, shots=(1, 2, 4, 8), seeds=range(3))
    assert len(shown) == 5*3
    for seen in shown:
        train, val = (set(map(tuple, seen.image_emb[part].tolist())) for part in ("train", "val"))
        assert train and val and (train == val if seen.split.shots == "1" else not train & val)
        assert set(seen.labels["val"].tolist()) == set(range(4)) and set(seen.image_emb) == set(seen.labels) == set(seen.features) == {"train", "val"}
        assert not any(test <= {tuple(row) for row in rows.tolist()} for test in [set(map(tuple, images[0]["test"].tolist()))] for rows in vars(seen._heads)["emb"].values())


def test_few_shots_leave_the_validation_split_alone(images, methods):
    "The dataset's own validation images are more than the few that the task allows: without them all few-shot rows are the same."
    emb, labels = images
    other = emb | {"val": torch.full_like(emb["val"], .25)}
    before, after = (tried((e, labels), {name: methods[name] for name in ("function", "dict")}, shots=(1, 4), paper_shots=[4], start=["function"],
                           adapters={"Tip-Adapter": (ADAPTERS["Tip-Adapter"], ["function"])}) for e in (emb, other))
    trained = before.protocol != "zero_shot"
    pd.testing.assert_frame_equal(before[trained], after[trained])


def test_under_the_papers_protocol_validation_says_nothing_at_all(images):
    emb, labels = images
    other = emb | {"val": torch.full_like(emb["val"], .25)}
    before, after = (tried((e, labels), {"dict": SAID}, shots=(), paper_shots=["all"]) for e in (emb, other))
    pd.testing.assert_frame_equal(before, after)


def test_images_only_knows_no_words(images):
    "The row is the same beside true sentences, beside noise and beside heads that start at the sentences."
    noise = {name: [f"noise{c}{n}" for n in range(3)] for c, name in enumerate(CLASSES)}
    rows = [tried(images, given, shots=(1, 2, "all"), paper_shots=["all"], **more).query("method == 'images only'").reset_index(drop=True)
            for given, more in (({"true": SAID}, {}), ({"noise": noise}, {}), ({"true": SAID, "noise": noise}, dict(start=["true"], joint=["noise"])))]
    for other in rows[1:]: pd.testing.assert_frame_equal(rows[0], other)
    by_start = tried(images, {"true": SAID, "noise": noise}, shots=(1,), start=["true", "noise"]).groupby("method").accuracy.mean()
    assert by_start["zero-shot start: true"] > by_start["zero-shot start: noise"], "a start at the texts is seen in the accuracy, so the row above has none"


def test_a_budget_holds_for_all(images, methods):
    table = tried(images, methods, paper_shots=[2], budget=2, adapters={"Tip-Adapter": (ADAPTERS["Tip-Adapter"], list(methods))}, start=["dict"], joint=["dict"])
    k = table[table.k > 0].groupby("method").k.agg(set)
    assert k["class names"] == {1} and all(found == {2} for name, found in k.items() if "class names" not in name)
    said = _collect_texts(study_of(images), methods, shots=(2,), seeds=range(2), budget=1)
    for of_methods in said.values():
        for texts in of_methods.values(): assert texts.groupby("class_id").size().tolist() == [1]*4


def test_a_budget_keeps_the_best_and_draws_where_there_is_no_best(images):
    said = _collect_texts(study_of(images), {"scored": POOL.assign(score=range(len(POOL), 0, -1)), "bare": POOL}, shots=(), seeds=range(4), budget=1)
    for seed in range(4): assert said["all", seed]["scored"].text.tolist() == [texts[0] for texts in SAID.values()]
    assert len({tuple(said["all", seed]["bare"].text) for seed in range(4)}) > 1


def test_random_choice_leaves_out_what_has_a_flag(images):
    study = study_of(images, POOL.assign(flag=POOL["sample"].map(["not described", "duplicate", ""].__getitem__)))
    said = _collect_texts(study, {"random": controls(study)["random choice"]}, shots=(2,), seeds=range(2))
    for of_methods in said.values(): assert of_methods["random"].text.tolist() == [texts[2] for texts in SAID.values()]


def test_random_choice_does_not_read_the_pools_scores(images):
    study = study_of(images, POOL.assign(score=range(len(POOL))), top_k=1)
    said = [tuple(controls(study)["random choice"](study.few_shot(2, seed)).text) for seed in range(4)]
    plain = study_of(images, top_k=1)
    assert len(set(said)) > 1 and said == [tuple(controls(plain)["random choice"](plain.few_shot(2, seed)).text) for seed in range(4)]


def test_no_seeds_is_one_clear_error(images):
    with pytest.raises(ValueError, match="seeds: there are none; expected at least one"): tried(images, {"dict": SAID}, seeds=())


def test_seeds_may_be_given_once(images):
    pd.testing.assert_frame_equal(tried(images, {"dict": SAID}, seeds=iter(range(2))), tried(images, {"dict": SAID}))


def test_a_benchmark_in_the_describing_kernel_asks_by_a_model_of_its_own(images, tmp_path):
    "The study is shared; what `describe` asked is not counted again."
    study, asked_before = study_of(images), LLM("somebody", cache=tmp_path/"answers.sqlite")
    params = dict(llm_model="somebody", llm_base_url=None, answers=[])
    (tmp_path/"result.json").write_text(json.dumps(dict(parameters=params)))
    made = dict(study=study, synthetic=None, sentences=SimpleNamespace(llm=asked_before))
    page = BenchmarkPage.of_run(tmp_path, tmp_path, store=str(tmp_path), made=made)
    llm = page.llm
    assert page.study is study and page.params == params | dict(store=str(tmp_path))
    assert llm.model == "somebody" and llm is not asked_before and not llm.asked and llm.costs.table().calls.sum() == 0


def test_a_comparison_in_a_sentence():
    row = dict(over="class names", shots="0", over_accuracy=.389, accuracy=.901, gain=.512, low=.4, high=.6, p_holm=.0001, significant=True)
    assert benchmark_page._comparison_sentence(row) == ("Zero-shot, the chosen sentences raise accuracy from 38.9 % (class names) to 90.1 %: +51.2 points "
                                                       "(95 % interval +40.0 to +60.0; p < .001 after Holm's correction for the two), significant.")
    row |= dict(shots="1", accuracy=.3, gain=-.089, over="images only", p_holm=.2, significant=False)
    assert "With 1 labelled image per class, the chosen sentences lower accuracy from 38.9 % (images only) to 30.0 %: -8.9 points" in benchmark_page._comparison_sentence(row)


def test_zero_shot_columns_stand_in_one_order(full, images, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(benchmark_page, "display", shown.append)
    page = BenchmarkPage(study_of(images), {}, None, tmp_path, tmp_path)
    page.lines, page.templates = summary(full), []
    page.zero_shot()
    [table] = [item.data for item in shown if hasattr(getattr(item, "data", None), "columns")]
    ways = ["mean", "mean embedding", "max"]
    assert list(table.columns) == [(names, way) for names in ("bare texts", "with class names") for way in ways]
    of_both = full.query("method == 'python' and protocol == 'zero_shot' and names == 'without' and aggregation == 'max'")
    assert of_both.k.tolist() == [2, 2] and of_both.accuracy.nunique() == 2, "k is that of the seed with the most texts, so it is one row"
    assert table.loc["python", ("bare texts", "max")] == pytest.approx(100 * of_both.accuracy.mean())


def broken(study): raise KeyError("what is not there")


@pytest.mark.parametrize("answer, words", [
    ({name: SAID[name] for name in CLASSES[:3]}, ["does not describe 'dog'"]),
    (SAID | {"dog": []}, ["class 'dog'", "the list is empty"]),
    (SAID | {"emu": ["feathers"]}, ["'emu'", "'ant'"]),
    ({}, ["does not describe 'ant'"]),
    ({0: ["a tail"]}, ["describes '0'", "'ant'"]),
    (SAID | {"dog": "a tail"}, ["'dog'", "list of texts"]),
    (SAID | {"dog": ["a tail", 7]}, ["'dog'", "7"]),
    (SAID | {"dog": ["a tail", "  "]}, ["'dog'", "empty"]),
    (SAID | {"dog": None}, ["'dog'", "None"]),
    (None, ["{class: [texts]}", "None"]),
    (["a tail"], ["{class: [texts]}", "list"]),
    (POOL.drop(columns="class_id"), ["class_id"]),
    (POOL[["class_id", "source"]], ["text", "prompt"]),
    (POOL.assign(class_id=POOL.class_id + 1), ["class_id 4", "0 to 3"]),
    (POOL[POOL.class_id > 0], ["no text about 'ant'"]),
    (pd.concat([POOL, POOL.assign(class_id=4).head(1)]), ["class_id 4"]),
    (POOL.assign(score=float("nan")), ["score"]),
    (POOL.assign(text=None), ["missing values"]),
])
def test_a_method_that_answers_nonsense_is_named(images, answer, words):
    for method in (answer, lambda study: answer):
        if method is None: continue  # nobody gives that himself
        with pytest.raises(ValueError) as error: tried(images, {"dict": SAID, "mine": method})
        for word in ["'mine'", *words]: assert word in str(error.value)


def test_all_images_share_one_head_and_equal_answers_one_row(images, monkeypatch):
    "Scoring head and influence on all images are made once for all seeds; a choice that is the same under every seed has one zero-shot row, and as many trained ones as seeds."
    from datadesc import study as module
    sizes = []
    for owner, name in ((module, "train_head"), (module.on_this_machine, "influence")):
        monkeypatch.setattr(owner, name, lambda x, *args, made=getattr(owner, name), **options: sizes.append(len(x)) or made(x, *args, **options))
    study = study_of(images)
    methods = {form: lambda few, form=form: few.texts(form) for form in ("direct", "proponent")}
    table = benchmark(study, methods | controls(study), shots=(2, "all"), paper_shots=["all"], seeds=range(3))
    assert sizes.count(len(images[1]["train"])) == 2, "one head and one influence on all images"
    rows = table[table.method == "direct"].groupby(["protocol", "shots"]).seed.nunique()
    assert rows["zero_shot", "0"] == 1 and rows["transfer", "all"] == rows["transfer", "2"] == 3


def test_a_method_that_raises_is_named(images):
    with pytest.raises(ValueError, match="'mine'.*KeyError: 'what is not there'") as error: tried(images, {"dict": SAID, "mine": broken})
    assert isinstance(error.value.__cause__, KeyError)


def test_a_class_without_test_images_is_no_obstacle(images):
    emb, labels = images
    kept = labels["test"] < 3
    table = tried((emb | {"test": emb["test"][kept]}, labels | {"test": labels["test"][kept]}), {"dict": SAID}, paper_shots=[2])
    assert set(table.n_test) == {90} and table.query("method == 'dict' and protocol == 'zero_shot' and names == 'without'").accuracy.min() > .5


def test_a_text_that_names_its_class_is_scored_without_it_and_prompts_as_it_came(images):
    "The encoder reads the copy without names, the prompt is the text itself, and a table with `text` alone is scored by that."
    said = {name: [f"a {name} with looks{c} legs", f"looks{c} tail"] for c, name in enumerate(CLASSES)}
    table = _as_texts(said, CLASSES, superclass="animal")
    assert table.text[0] == table.prompt[0] == "a ant with looks0 legs" and table.scored_text[0] == "this animal with looks0 legs" and table.prompt[1] == "ant, looks0 tail"
    read = []
    def spy(texts):
        read.extend(texts)
        return embed(texts)
    study = study_of(images, table, spy, top_k=1)
    methods = {"mine": table, "bare": table[["class_id", "text"]].iloc[1::2]} | controls(study, "mine", lambda few: table.assign(score=1.))
    benchmark(study, methods, shots=(), paper_shots=(), seeds=[0])
    assert {"this animal with looks0 legs", "looks0 tail", "a ant with looks0 legs", "ant, looks0 tail"} <= set(read)
    assert not [text for text in read if any(text.startswith(f"{name}, a {name}") for name in CLASSES)]
    assert all(sum(name in text.split() for name in CLASSES) <= 1 for text in (t.replace(",", "") for t in read))


def test_published_names_find_classes_by_their_folders(tmp_path):
    (tmp_path/"labo.json").write_text(json.dumps({"artic tern": ["a black cap", ""], "brewer blackbird": ["a brewer blackbird's yellow eye"]}))
    birds, folders = ("Brewer's Blackbird", "Arctic Tern"), ("009.Brewer_Blackbird", "141.Artic_Tern")
    _, table, report = method_from(f"labo={tmp_path/'labo.json'}", birds, "bird", folders)
    assert table.text.tolist() == ["a brewer blackbird's yellow eye", "a black cap"] and table.scored_text.tolist() == ["this bird's yellow eye", "a black cap"] and set(report.how) == {"spelling"}
    with pytest.raises(ValueError, match="'Arctic Tern' \\(not found; nearest: 'artic tern'\\)"): method_from(f"labo={tmp_path/'labo.json'}", birds, "bird")


def test_both_pages_of_a_run_share_one_budget(tmp_path):
    from types import SimpleNamespace
    params = dict(dataset="photos", llm_model="gpt-4o-mini", llm_base_url=None, llm_budget=1., answers=[], store=None)
    (tmp_path / "result.json").write_text(json.dumps(dict(parameters=params)))
    def left(spent, **changes):
        (tmp_path / "result.json").write_text(json.dumps(dict(parameters=params | changes)))
        sentences = SimpleNamespace(llm=SimpleNamespace(costs=SimpleNamespace(total=lambda column: spent)))
        made = dict(study=None, synthetic=None, sentences=sentences)
        return BenchmarkPage.of_run(tmp_path, tmp_path, store=str(tmp_path), made=made).llm.costs.budget
    assert (left(.25), left(3.), left(.25, llm_budget=None)) == (.75, 0., None)


def test_controls_have_as_many_sentences_of_each_class_as_are_chosen(images):
    flags = ["not described" if c == 1 else "" for c in POOL.class_id]
    flags[POOL.index[POOL.class_id == 1][0]] = ""
    for form, top_k in (("set", "auto"), ("set", 2), ("direct", 2)):
        study = study_of(images, POOL.assign(flag=flags), form=form, top_k=top_k).few_shot("all")
        against, n = controls(study), study.n_chosen.tolist()
        assert n[1] == 1
        for name in ("random choice", "random words"): assert against[name](study).groupby("class_id").size().tolist() == n
        assert (f"{form}, unweighted" in against) == (form != "set") and f"{form}, shuffled" in against


def test_sentences_of_a_set_have_no_weights_and_one_number(images):
    study = study_of(images, top_k="auto")
    table = benchmark(study, dict(set=chosen_by("set"), direct=chosen_by("direct")), [1], [], range(4))
    trained = table[(table.protocol == "transfer") & table.method.isin(["set", "direct"])]
    assert trained.groupby("method").weighting.unique().map(list).to_dict() == {"direct": ["loss"], "set": ["none"]}
    most = max(study.few_shot(1, seed).n_chosen.max() for seed in range(4))
    assert set(trained.k[trained.method == "set"]) == {most} and len(summary(trained)) == 2


def test_a_number_of_texts_for_each_class():
    texts = pd.DataFrame(dict(class_id=[1, 0, 1, 0, 0], score=[1., 1, 1, 2, 1], text=list("abcde")), index=[5, 5, 2, 2, 0])
    assert "".join(top_per_class(texts, pd.Series({0: 2, 1: 1})).text) == "abd" and "".join(top_per_class(texts, 1).text) == "ad"
    assert "".join(top_per_class(texts, pd.Series({0: 1})).text) == "d"
