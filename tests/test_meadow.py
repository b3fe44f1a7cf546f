"What is promised about the bundled dataset, its second world and the assets of the package."
import hashlib
from itertools import combinations

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


def digest(*tables):
    return hashlib.sha256("".join(table.to_json() for table in tables).encode()).hexdigest()[:16]


def test_the_defaults_still_draw_meadow(world):
    "Its tables and, picture by picture, the first of every species."
    again = meadow.make_synthetic(meadow._SEED, "meadow", per_class=(2, 1, 1))
    assert meadow._fingerprint() == "fc1f5605f97618e4b3afb6dadc881317619ee2b1022a87e31c558eb8d48cbb65"
    for table in ("species", "articles", "truth"):
        assert getattr(again, table).to_dict() == getattr(world, table).to_dict(), table
    for split, n in {"train": 2, "val": 1, "test": 1}.items():
        frozen, labels = world.images.images(split), world.images.labels(split)
        first = [frozen[i] for c in range(24) for i in (labels == c).nonzero().flatten().tolist()[:n]]
        assert [np.asarray(image).tobytes() for image in again.images.images(split)] == [np.asarray(image).tobytes() for image in first]
    assert again.factors == world.factors


def test_the_defaults_still_draw_heath():
    heath = meadow.make_synthetic(7, "heath", per_class=(2, 1, 1))
    assert digest(heath.species, heath.articles, heath.truth) == "6e6f7d4745aad9d6"
    pictures = b"".join(np.asarray(image).tobytes() for split in heath.images.samples for image in heath.images.images(split))
    assert hashlib.sha256(pictures).hexdigest()[:16] == "64c4c8e7f101966a"


@pytest.mark.parametrize("twin_every, telling, visible, aberrant", [
    (6, .25, 9, .1), (6, .75, 15, .3), (2, .25, 15, .3), (2, .75, 9, .1), (0, 0, 7, 0), (24, 1, 20, 1)])
def test_factors(twin_every, telling, visible, aberrant):
    factors = dict(twin_every=twin_every, telling=telling, visible=visible, aberrant=aberrant)
    drawn = meadow.make_synthetic(5, "drawn", per_class=(1, 0, 0), **factors)
    species, looks = drawn.species, meadow._looks_of(drawn.species)
    assert drawn.factors == factors and species.name.nunique() == 24 and all(look.held_out for look in looks)
    assert species.telling.sum() == 24*telling
    assert (species.twin_of >= 0).sum() == (2*(24//twin_every) if twin_every else 0)
    for i, j in combinations(range(24), 2):
        apart = meadow._differences(looks[i], looks[j])
        assert apart == [species.twin_feature[i]] if species.twin_of[i] == j else len(apart) > 2
    seen = drawn.truth[drawn.truth.feature.isin([*Look.FEATURES, "overall"])]
    count = (seen.truth == "visible").groupby([seen.knowledge, seen.class_id]).sum()
    assert set(count["text"]) == {visible} and set(count["none"]) == {max(visible - 2, 7)}
    assert (seen.truth == "visible").groupby([seen.knowledge, seen.class_id, seen.component]).any().all()
    texts = seen[seen.truth == "visible"].groupby(["knowledge", "class_id"]).text
    assert (texts.nunique() == texts.size()).all()


def test_factors_change_nothing_else():
    "The species do not depend on what is said of them, nor the texts on the pictures."
    plain, other = (meadow.make_synthetic(5, "drawn", (1, 0, 0), **factors) for factors in ({}, dict(visible=9, aberrant=1)))
    assert plain.species.equals(other.species) and plain.images.fingerprint != other.images.fingerprint
    more = meadow.make_synthetic(5, "drawn", (2, 0, 0))
    assert plain.truth.equals(more.truth) and plain.articles.equals(more.articles)
    kept = [np.asarray(image).tobytes() for image in more.images.images("train")][::2]
    assert kept == [np.asarray(image).tobytes() for image in plain.images.images("train")]


def test_names_are_found_where_one_draw_has_too_many_alike():
    "With every name telling and every second species a twin, half of the draws have four species of one colour and outline."
    for seed in range(20):
        species = meadow._species_table(np.random.default_rng(seed), twin_every=2, telling=1)
        assert species.name.nunique() == 24 and species.groupby(["base", "shape"]).size().max() <= 3


@pytest.mark.parametrize("factor", [
    dict(twin_every=1), dict(twin_every=-3), dict(twin_every=2.5), dict(twin_every=None), dict(telling=50), dict(telling=float("nan")),
    dict(visible=6), dict(visible=21), dict(visible=9.5), dict(aberrant=-.1), dict(aberrant=2),
    dict(per_class=(40, 20)), dict(per_class=(40, 20, -1)), dict(per_class=(1.5, 1, 1))])
def test_a_factor_that_cannot_be_right_is_named(factor):
    with pytest.raises(ValueError, match=f"^{next(iter(factor))}="):
        meadow.make_synthetic(5, "drawn", **factor)


def test_looks_that_cannot_be_found_are_an_error(monkeypatch):
    monkeypatch.setattr(Look, "held_out", False)
    with pytest.raises(ValueError, match="twin_every=2: only 0 of 24 species were found"):
        meadow.make_synthetic(5, "drawn", twin_every=2)


def test_names_that_cannot_be_found_are_an_error(monkeypatch):
    looks = meadow._species_looks(np.random.default_rng(0))
    monkeypatch.setattr(meadow, "_species_looks", lambda rng, n, twin_every: looks[:1]*4 + looks[4:])
    with pytest.raises(ValueError, match="telling=1: too many of 24 species are alike in colour and outline"):
        meadow.make_synthetic(5, "drawn", telling=1)
