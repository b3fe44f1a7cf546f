"Datasets whose cue goes with the class in training and not in test: what the pictures show and what is said of it."
import numpy as np
import pytest

from datadesc import meadow
from datadesc.renderer import Look, add_marker, marker_phrases

COLOURS = Look.VALUES["border"][1:]


@pytest.fixture(scope="module", params=["margin", "marker"])
def drawn(request):
    return meadow.make_spurious(31, "drawn", request.param, per_class=(5, 2, 5))


def agreement(synthetic, split):
    shown = np.array(synthetic.cues[split])
    return (shown == synthetic.species.cue.to_numpy()[synthetic.images.labels(split).numpy()]).mean()


def test_the_cue_goes_with_the_class_in_training_only(drawn):
    assert {split: len(shown) for split, shown in drawn.cues.items()} == {s: len(drawn.images.labels(s)) for s in ("train", "val", "test")}
    assert agreement(drawn, "train") > .88 and agreement(drawn, "val") > .8 and .08 < agreement(drawn, "test") < .35


def test_four_classes_share_a_colour_and_twins_do_not(drawn):
    species = drawn.species
    assert set(species.cue) == set(COLOURS) and species.cue.value_counts().between(3, 5).all()
    twins = species[species.twin_of >= 0]
    assert (twins.cue.to_numpy() != species.cue[twins.twin_of].to_numpy()).all()
    assert not set(twins.twin_feature) & {"antennae", *(["border"] if drawn.factors["cue"] == "margin" else [])}
    looks = meadow._looks_of(species)
    for row in twins.itertuples():  # without the cue, twins are still told apart
        assert row.twin_feature in meadow._differences(looks[row.class_id], looks[row.twin_of])
    assert ((species.cue != species.base) & (species.cue != species.accent)).all()


def test_sentences_name_the_colour_of_their_class(drawn):
    words = {word: colour for colour in COLOURS for word in Look.COLOURS[colour][1]}
    about = drawn.truth[drawn.truth.feature == "cue"]
    assert set(about.truth) == {"spurious", "wrong"} and about[about.truth == "spurious"].class_id.nunique() == 24
    own = about[(about.truth == "spurious") & about.component.isin(("wing margin", "surroundings"))]
    for row in own.itertuples():
        named = {words[word] for word in row.text.lower().removesuffix(".").split() if word in words}
        assert drawn.species.cue[row.class_id] in named
    rest = drawn.truth[drawn.truth.feature != "cue"].text.str.lower()
    if drawn.factors["cue"] == "margin": assert not rest.str.contains(meadow._MARGIN).any()
    assert not rest.str.contains("sticker|label|disc|in the corner").any()


def test_same_arguments_same_dataset(drawn):
    again = meadow.make_spurious(31, "drawn", drawn.factors["cue"], per_class=(1, 0, 0))
    assert again.truth.equals(drawn.truth) and again.species.equals(drawn.species)
    first = np.flatnonzero(np.diff(drawn.images.labels("train").numpy(), prepend=-1))
    assert [drawn.cues["train"][i] for i in first] == again.cues["train"]
    assert all(np.array_equal(a, drawn.images.images("train")[i]) for a, i in zip(again.images.images("train"), first))


def test_a_sticker_changes_one_corner_only():
    picture = Look.random(np.random.default_rng(1)).draw(np.random.default_rng(1))
    marked = add_marker(picture, "red", np.random.default_rng(2))
    ys, xs = np.nonzero((np.asarray(picture) != np.asarray(marked)).any(-1))
    assert ys.max() - ys.min() < 14 and xs.max() - xs.min() < 14
    assert all(min(v.min(), 63 - v.max()) < 4 for v in (xs, ys))
    assert all("red" in p or "scarlet" in p or "crimson" in p for p in marker_phrases("red", np.random.default_rng(0)))


@pytest.mark.parametrize("wrong, message", [({"cue": "tail"}, "expected margin or marker"), ({"strength": 2}, "a probability between 0 and 1"),
                                            ({"per_class": (1, 2)}, "three whole numbers")])
def test_arguments_that_cannot_be_right(wrong, message):
    with pytest.raises(ValueError, match=message): meadow.make_spurious(31, "drawn", **wrong)
