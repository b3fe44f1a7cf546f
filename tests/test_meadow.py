"What is promised about the bundled dataset, its second world and the assets of the package."
import numpy as np
import pytest

from datadesc import meadow
from datadesc.describe import describe
from datadesc.llm import LLM
from datadesc.renderer import Look


@pytest.fixture(scope="module")
def world():
    return meadow.load()


@pytest.fixture(scope="module")
def other():
    return meadow.make_synthetic(11, "elsewhere", per_class=(1, 1, 0))


def test_assets_stay_small():
    sizes = {f.name: f.stat().st_size for f in meadow.exported_answers().parent.parent.rglob("*") if f.is_file()}
    assert sum(sizes.values()) <= 20e6, sizes


def test_pictures(world):
    assert {split: len(world.images.labels(split)) for split in world.images.samples} == {"train": 960, "val": 480, "test": 960}
    for split in world.images.samples:
        assert len(set(world.images.labels(split).bincount().tolist())) == 1
        assert {np.asarray(image).shape for image in world.images.images(split)} == {(64, 64, 3)}


def test_no_picture_stands_in_two_splits(world):
    pictures = [np.asarray(image).tobytes() for split in world.images.samples for image in world.images.images(split)]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("which", ["world", "other"])
def test_species(which, request):
    species = request.getfixturevalue(which).species
    looks = meadow._looks_of(species)
    assert len(species) == 24 and species.telling.sum() == 12 and species.name.nunique() == 24
    assert all(look.held_out for look in looks)
    twins = species[species.twin_of >= 0]
    assert len(twins) == 16
    for i, row in twins.iterrows():
        assert meadow._differences(looks[i], looks[row.twin_of]) == [row.twin_feature]
    for i in range(24):
        for j in range(i):
            assert species.twin_of[i] == j or len(meadow._differences(looks[i], looks[j])) > 2


@pytest.mark.parametrize("which", ["world", "other"])
@pytest.mark.parametrize("knowledge", ["text", "none"])
def test_enough_to_choose_from(which, knowledge, request):
    truth = request.getfixturevalue(which).truth.query("knowledge == @knowledge")
    per_class = truth.groupby("class_id")
    assert per_class.size().min() >= 25
    assert per_class.apply(lambda t: (t.truth == "visible").sum()).min() >= 10
    assert set(truth.truth) == set(meadow.SyntheticDataset.TRUTHS)


def test_the_feature_that_tells_twins_apart_is_told(world):
    "Visible sentences cover every feature of every species when the article was read."
    told = world.truth[(world.truth.truth == "visible") & (world.truth.knowledge == "text")].groupby("class_id").feature.agg(set)
    assert all(set(Look.FEATURES) <= features for features in told)


@pytest.mark.parametrize("knowledge", ["text", "none"])
def test_both_stages_replay_without_a_key(world, knowledge, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    llm = LLM("meadow-author", cache=tmp_path/"answers.sqlite", exports=[meadow.exported_answers()])
    table = describe(world.classes, llm, world.superclass, world.articles, knowledge=knowledge, samples=world.SAMPLES)
    assert len(table) == 720 and set(table.knowledge) == {knowledge}
    assert not (tmp_path/"answers.sqlite").exists()
    truth = world.truth_of(table)
    assert ((truth == "refusal") == (table.flag == "a stock phrase")).all()
    assert not any(name.lower() in text.lower() for name, text in zip(table.class_id.map(dict(enumerate(world.classes))), table.scored_text))


def test_worlds_differ(world, other):
    looks = lambda w: set(meadow._looks_of(w.species))
    assert not looks(world) & looks(other)
    assert not set(world.classes) & set(other.classes)


def test_same_seed_same_world(other):
    again = meadow.make_synthetic(11, "elsewhere", per_class=(1, 1, 0))
    assert again.images.fingerprint == other.images.fingerprint and again.truth.equals(other.truth) and again.species.equals(other.species)


def test_captions_hold_only_words_for_what_is_there():
    rng = np.random.default_rng(3)
    look = Look("tailed", "yellow", "checks", "blue", "plain", "white", "curled")
    words = {word: value for value, (_, said) in Look.COLOURS.items() for word in said}
    for _ in range(200):
        caption = look.caption(rng)
        if any(mark in caption for mark in ("underside", "below", "caterpillar", "larva", "chrysalis", "scent", "leaves", "eggs", "flowers")):
            continue
        assert {words[w] for w in caption.replace(",", "").split() if w in words} <= {"yellow", "blue", "white"}, caption


def test_a_look_has_known_values():
    with pytest.raises(ValueError, match="No body 'plaid'"):
        Look("tailed", "yellow", "checks", "blue", "plain", "plaid", "curled")
