"What a study shares, what it makes anew, and what a study of few images cannot see."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc import study as module
from datadesc.selection import FORMS, ChoiceOptions, flag_too_long
from datadesc.study import Study

torch.set_num_threads(1)
C, D, SIZES = 3, 8, dict(train=12, val=5, test=7)


def cloud(per_class, seed):
    y = torch.arange(C).repeat_interleave(per_class)
    return F.normalize(torch.eye(C, D)[y] + .3 * torch.randn(len(y), D, generator=torch.Generator().manual_seed(seed)) + .5, dim=1), y


TEXT, TEXT_CLASS = cloud(6, 9)
POOL = pd.DataFrame(dict(text_id=range(18), class_id=TEXT_CLASS.numpy(), text=[str(i % 17) for i in range(18)], flag=[""] * 17 + ["duplicate"]))


@pytest.fixture
def made(monkeypatch):
    "What was made by the study, in order: the functions by name, and the texts that were embedded."
    calls = []
    for name in ("train_head", "influence", "ift", "choose", "choose_set"):
        where = module.on_this_machine if name == "influence" else module
        def counted(*args, function=getattr(where, name), name=name, **options): calls.append(name); return function(*args, **options)
        monkeypatch.setattr(where, name, counted)
    return calls


def new(made=None, **more):
    def embed(texts):
        if made is not None: made.extend(texts)
        return TEXT[[int(t) for t in texts]]
    images, labels = ({split: of[i] for split, of in zip(SIZES, map(cloud, SIZES.values(), range(3)))} for i in (0, 1))
    return Study("abc", images, labels, POOL, embed, **more)


class Words:
    "Stands for an encoder that reads three words."
    context_length = 3
    def __call__(self, texts, context_length=3): return torch.tensor([([1] * len(t.split()) + [0] * context_length)[:context_length] for t in texts])


def test_answers_that_are_too_long_are_flagged_and_other_sentences_are_not():
    said = [("", "wings", "one two three"), ("", "wings", "one two three four five"), ("duplicate", "wings", "one two three four five"),
            ("", "", "a sentence of a file"), ("not described", "wings", "not described")]
    pool = pd.DataFrame(said, columns=["flag", "component", "scored_text"], index=[7, 3, 5, 1, 2]).assign(text="short", text_id=range(5), class_id=0)
    flagged = flag_too_long(pool, Words())
    assert flagged.flag.tolist() == ["", "too long (5 tokens of 3)", "duplicate", "", "not described"] and flagged.index.equals(pool.index)
    assert pool.flag.tolist() == [flag for flag, *_ in said] and flag_too_long(flagged, Words()).flag.equals(flagged.flag)


def test_a_table_of_version_01_is_named():
    with pytest.raises(ValueError, match="pool: no column flag; expected the table"): flag_too_long(POOL.drop(columns="flag"), Words())


def test_nothing_is_made_before_it_is_asked_for_and_nothing_twice(made):
    study = new(made, options=ChoiceOptions("direct"))
    assert not made
    for _ in range(2):
        for other in (study, study.with_options(top_k=2), study.with_options(form="clip"), study.with_options(form="set"), study.few_shot("all", 3), study.few_shot("all", 4)):
            other.texts(), other.features, other.text
    texts = [name for name in made if name.isdigit()]
    assert sorted(texts) == sorted(set(POOL.text)), "each distinct text once"
    assert made.count("train_head") == 1 and made.count("influence") == 0, "direct, clip and set need no influence of images"
    study.few_shot("all").influence, study.influence
    assert made.count("influence") == 1 and made.count("train_head") == 1


def test_a_choice_with_all_images_is_made_once_for_all_seeds(made):
    for form, of_form in (("direct", ["ift", "choose"]), ("set", ["choose_set"])):
        study = new(options=ChoiceOptions(form))
        for seed in range(3): study.few_shot("all", seed).texts()
        assert [name for name in made if name != "train_head"] == of_form and (form == "direct" or "train_head" not in made)
        made.clear()


@pytest.mark.parametrize("shots", [1, 2, 4, "all"])
def test_a_study_of_few_images_holds_no_test_image(shots):
    study = new()
    episode = study.few_shot(shots, seed=2)
    for form in ("set", *FORMS): episode.texts(form)
    hidden = set(map(tuple, study.image_emb["test"].tolist()))
    held = [episode.image_emb, episode._heads.emb, {"chosen": TEXT}]
    assert not any(hidden & set(map(tuple, x.tolist())) for of in held for x in of.values())
    assert set(episode.image_emb) == set(episode.labels) == set(episode.features) == {"train", "val"} and episode.image_set is None
    with pytest.raises(ValueError, match="draw from the study of all images"): episode.few_shot(1)


def test_options_that_concern_the_images_make_heads_anew(made):
    study = new()
    assert study.with_options(form="direct", diversity=.5).scorer is study.scorer
    raw = study.with_options(centered=False)
    assert raw.scorer is not study.scorer and raw.text is raw.text_emb and torch.equal(raw.features["val"], study.image_emb["val"])
    assert torch.equal(study.with_options(centered=False).with_options(centered=True).scorer[-1].weight, study.scorer[-1].weight)
    assert study.with_options(top_m=60).scores("proponent").ift.notna().all()


def test_another_scorer_changes_influence_and_scores_and_leaves_the_rest():
    study = new()
    other = study.with_scorer(study.classifier)
    assert other.classifier is study.classifier and torch.equal(other.text_emb, study.text_emb) and study.scorer is not other.scorer
    assert not torch.equal(other.influence.self_influence, study.influence.self_influence)
    assert not np.allclose(other.scores("direct").ift, study.scores("direct").ift)
    assert np.allclose(other.scores("clip").ift, study.scores("clip").ift)


def test_an_influence_from_elsewhere_is_for_all_images_only():
    study = new(image_influence=new().influence)
    assert study.few_shot("all").influence is study.influence and study.few_shot(2).influence is not study.influence


def test_an_influence_from_elsewhere_stays_under_other_options():
    "It is carried over where it fits, never replaced by the scorer's; with too few proponents it is refused."
    elsewhere = new().influence
    study = new(image_influence=elsewhere)
    for changes in (dict(top_m=60), dict(centered=False), dict(form="direct", diversity=.5)): assert study.with_options(**changes).influence is elsewhere
    study.with_options(top_m=60).scorer is study.scorer
    few = replace(elsewhere, proponents=elsewhere.proponents[:, :3], proponent_scores=elsewhere.proponent_scores[:, :3])
    with pytest.raises(ValueError, match="top_m=20, but image_influence keeps 3 proponents"):
        new(image_influence=few, options=ChoiceOptions(top_m=3)).with_options(top_m=20).scores("proponent")
    scored = study.with_scorer(study.classifier)
    assert scored.influence is not elsewhere and scored.with_options(top_m=60).scorer is study.classifier


@pytest.mark.parametrize("options, words", [
    (dict(form="cosine"), "form='cosine': expected set, eq2"), (dict(top_k=0), "top_k=0: expected at least one text per class"),
    (dict(top_m=0), "top_m=0: expected at least one"), (dict(diversity=1.1), "diversity=1.1: expected 0"), (dict(diversity=-.1), "diversity=-0.1: expected 0"),
    (dict(diversity=float("nan")), "diversity=nan: expected 0"), (dict(near_duplicate=0), "near_duplicate=0: expected a cosine"),
    (dict(near_duplicate=1.1), "near_duplicate=1.1: expected a cosine")])
def test_options_are_checked_when_they_are_made(options, words):
    with pytest.raises(ValueError, match=words): ChoiceOptions(**options)
    with pytest.raises(ValueError, match=words): new().with_options(**options)


def test_no_texts_are_no_rows(made):
    assert new(made).embed([]).shape == (0, D) and not made


@pytest.mark.parametrize("old, new_name", [("influence", "direct"), ("printed", "eq2")])
def test_former_names_of_forms_are_accepted_with_a_note(old, new_name):
    with pytest.warns(UserWarning, match=f"form='{old}' is now form='{new_name}'"): study = new(options=ChoiceOptions(form=old, top_k=2))
    assert study.options.form == new_name and study.scores() is study.scores(new_name) and set(study.scores().form) == {new_name}
    with pytest.warns(UserWarning, match=f"is now form='{new_name}'"): assert study.chosen(old) is study.chosen()


def test_a_set_has_no_weights_and_is_in_order_of_choice():
    study = new(options=ChoiceOptions(top_k=3))
    texts, chosen = study.texts(), study.chosen()
    assert study.texts("set").equals(texts) and texts.score.tolist() == [1.] * 9 and texts.class_id.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert chosen.loc[texts.index, "rank"].tolist() == [1, 2, 3] * 3 and study.n_chosen.tolist() == [3] * 3
    assert study.text_scores().tolist() == chosen.proponent.astype(float).tolist()
    assert list(study.scores("set")) == list(study.scores("clip")) and list(chosen) == list(study.chosen("clip"))


@pytest.mark.parametrize("top_k", ["auto", 2])
@pytest.mark.parametrize("shots", [1, 2, "all"])
def test_a_set_from_few_images_of_a_pool_with_flags(top_k, shots):
    "A class whose sentences are all flagged has none chosen, and the only one of another class is chosen."
    flag = ["", "not described"] + ["vague"] * 4 + [""] * 6 + ["not described"] * 6
    study = new(options=ChoiceOptions(top_k=top_k))
    study.pool = POOL.assign(flag=flag)
    chosen = study.few_shot(shots).chosen()
    n = chosen.groupby("class_id").proponent.sum().tolist()
    assert n[0] == 1 and n[2] == 0 and (n[1] == 2 if top_k == 2 else 1 <= n[1] <= 6)
    assert chosen.why_not[chosen.class_id == 2].eq("not described").all() and set(chosen.why_not[6:12]) <= {"", "others add more", "would raise the loss"}
    assert chosen.ift[chosen.proponent].notna().all() and chosen.ift[12:].isna().all()


def test_one_sentence_per_class_is_the_set():
    study = new()
    study.pool = POOL.iloc[::6].reset_index(drop=True)
    assert study.chosen().proponent.all() and study.n_chosen.tolist() == [1, 1, 1] and study.texts().class_id.tolist() == [0, 1, 2]


def test_an_order_of_the_pool_does_not_change_the_set():
    turned = new()
    turned.pool = POOL.iloc[torch.randperm(18, generator=torch.Generator().manual_seed(3)).tolist()]
    assert turned.texts().text_id.tolist() == new().texts().text_id.tolist()


@pytest.mark.parametrize("options", [dict(diversity=.5), dict(near_duplicate=.9)])
def test_options_for_scores_are_refused_for_a_set_and_a_set_is_there_beside_them(options):
    with pytest.raises(ValueError, match="such as form='direct': form='set' avoids repetition by itself"): ChoiceOptions(**options)
    with pytest.raises(ValueError, match="top_k='many': expected at least one text per class, or 'auto'"): ChoiceOptions(top_k="many")
    beside = new(options=ChoiceOptions("direct", **options))
    assert beside.chosen("set").equals(new().chosen())


def test_precision_needs_the_truth():
    study = new(options=ChoiceOptions(top_k=2))
    assert study.precision() is None
    study.pool = POOL.assign(truth=["visible", "wrong"] * 9)
    assert study.precision()["precision"] == pytest.approx((study.pool.truth[study.chosen().proponent] == "visible").mean())
    assert set(study.precision()) == {"form", "precision", "chance", "ceiling"} and set(study.precision("clip")) == set(study.precision()) | {"precision_at_5", "precision_at_10"}
