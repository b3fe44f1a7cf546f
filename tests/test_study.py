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
    for name in ("train_head", "influence", "ift", "choose"):
        def counted(*args, function=getattr(module, name), name=name, **options): calls.append(name); return function(*args, **options)
        monkeypatch.setattr(module, name, counted)
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
    study = new(made)
    assert not made
    for _ in range(2):
        for other in (study, study.with_options(top_k=2), study.with_options(form="clip"), study.few_shot("all", 3), study.few_shot("all", 4)):
            other.texts(), other.features, other.text
    texts = [name for name in made if name.isdigit()]
    assert sorted(texts) == sorted(set(POOL.text)), "each distinct text once"
    assert made.count("train_head") == 1 and made.count("influence") == 0, "direct and clip need no influence of images"
    study.few_shot("all").influence, study.influence
    assert made.count("influence") == 1 and made.count("train_head") == 1


def test_a_choice_with_all_images_is_made_once_for_all_seeds(made):
    study = new()
    for seed in range(3): study.few_shot("all", seed).texts()
    assert made.count("ift") == made.count("choose") == 1


@pytest.mark.parametrize("shots", [1, 2, 4, "all"])
def test_a_study_of_few_images_holds_no_test_image(shots):
    study = new()
    episode = study.few_shot(shots, seed=2)
    for form in FORMS: episode.texts(form)
    hidden = set(map(tuple, study.image_emb["test"].tolist()))
    held = [episode.image_emb, episode._heads.emb, {"chosen": TEXT}]
    assert not any(hidden & set(map(tuple, x.tolist())) for of in held for x in of.values())
    assert set(episode.image_emb) == set(episode.labels) == set(episode.features) == {"train", "val"} and episode.image_set is None
    with pytest.raises(ValueError, match="draw from the study of all images"): episode.few_shot(1)


def test_options_that_concern_the_images_make_heads_anew(made):
    study = new()
    assert study.with_options(diversity=.5).scorer is study.scorer
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
    for changes in (dict(top_m=60), dict(centered=False), dict(diversity=.5)): assert study.with_options(**changes).influence is elsewhere
    study.with_options(top_m=60).scorer is study.scorer
    few = replace(elsewhere, proponents=elsewhere.proponents[:, :3], proponent_scores=elsewhere.proponent_scores[:, :3])
    with pytest.raises(ValueError, match="top_m=20, but image_influence keeps 3 proponents"):
        new(image_influence=few, options=ChoiceOptions(top_m=3)).with_options(top_m=20).scores("proponent")
    scored = study.with_scorer(study.classifier)
    assert scored.influence is not elsewhere and scored.with_options(top_m=60).scorer is study.classifier


@pytest.mark.parametrize("options, words", [
    (dict(form="cosine"), "form='cosine': expected one of eq2"), (dict(top_k=0), "top_k=0: expected at least one text per class"),
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
