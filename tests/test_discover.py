"Directions: planted ones are found, named and listed; small, unlabelled and broken studies."
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.discover import Directions, direction_images, discover, name_directions, unsaid
from datadesc.selection import ChoiceOptions
from datadesc.study import Study

C, D, EACH = 8, 16, 12
AXES = torch.eye(D)


def study_of(n_said=5, options=ChoiceOptions(form="direct"), val=True):
    "Classes around their own axes; a sentence 'axis c' about each of the first, and one about an axis that no image has."
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(C).repeat_interleave(EACH)
    emb = {split: F.normalize(AXES[labels] + .1 * torch.randn(len(labels), D, generator=rng) / D ** .5, dim=1) for split in ("train", "val", "test")}
    y = dict.fromkeys(emb, labels)
    if not val: emb["val"], y["val"] = emb["val"][:0], labels[:0]
    rows = [dict(class_id=c, text=f"axis {c}") for c in range(n_said)] + [dict(class_id=0, text=f"axis {D - 1}")]
    pool = pd.DataFrame(rows).assign(text_id=range(len(rows)), flag="", component="")
    return Study([f"class {c}" for c in range(C)], emb, y, pool, lambda texts: torch.stack([AXES[int(t.split()[1])] for t in texts]), options)


@pytest.fixture(scope="module")
def study(): return study_of(options=ChoiceOptions(form="direct", centered=False))


@pytest.fixture(scope="module")
def axes(study):
    "The classes' axes as directions."
    v = AXES[:C]
    return Directions(v, v, torch.zeros(C), torch.zeros(D), None, 2, 1.)


def test_an_autoencoder_finds_the_axes_of_the_classes(study):
    found = discover(study, n=16, active=2, epochs=100)
    to_class = found.cosines(study.image_emb["test"]).argmax(1)
    assert found.explained > .9 and len(found) <= 16
    assert all(len(to_class[study.labels["test"] == c].unique()) <= 3 for c in range(C))
    again = discover(study, n=16, active=2, epochs=100)
    assert torch.equal(found.vector, again.vector)


def test_activations_are_sparse_or_as_many_as_are_positive(study):
    emb = study.image_emb["test"]
    assert ((discover(study, n=12, active=3).activations(emb) > 0).sum(1) <= 3).all()
    dense, sparse = (discover(study, n=12, active=None, l1=l1).activations(emb).sum() for l1 in (0., 1.))
    assert sparse < dense


def test_names_are_the_nearest_texts_each_once(study, axes):
    table = name_directions(axes, study, ["axis 3", "axis 1", "axis 1", "axis 9"], n=5)
    assert table.groupby("direction").size().eq(3).all()
    best = table[table["rank"] == 1].set_index("direction").text
    assert best[3] == "axis 3" and best[1] == "axis 1"
    assert len(name_directions(axes, study)) == C


def test_what_no_sentence_says_is_listed_with_its_class(study, axes):
    table = unsaid(study, axes)
    assert set(table.direction[table.unsaid]) == {5, 6, 7}
    assert set(table.classes[table.unsaid]) == {"class 5", "class 6", "class 7"}
    assert table.auc.gt(.99).all() and table.said[~table.unsaid].gt(.99).all()


def test_everything_said_nothing_listed(axes):
    assert not unsaid(study_of(C, ChoiceOptions(form="direct", centered=False)), axes).unsaid.any()


def test_directions_that_separate_nothing_are_not_listed(study):
    v = F.normalize(torch.ones(1, D), dim=1)
    table = unsaid(study, Directions(v, v, torch.zeros(1), torch.zeros(D), None, 1, 1.))
    assert not table.unsaid.any() and table.auc[0] < .9


def test_several_sentences_say_a_mixture(study):
    v = F.normalize(AXES[:1] + AXES[1:2], dim=1)
    mixture = Directions(v, v, torch.zeros(1), torch.zeros(D), None, 1, 1.)
    assert unsaid(study, mixture, together=1).said[0] == pytest.approx(.5 ** .5, abs=1e-4)
    assert unsaid(study, mixture, together=3).said[0] == pytest.approx(1, abs=1e-4)


def test_a_group_of_classes_and_its_auc(study):
    v = F.normalize(AXES[:1] + AXES[1:2] - AXES[5:6], dim=1)
    table = unsaid(study, Directions(v, v, torch.zeros(1), torch.zeros(D), None, 1, 1.))
    assert set(table.classes[0].split(", ")) == {"class 0", "class 1"} and table.auc[0] > .99


@pytest.mark.parametrize("centered", [True, False])
def test_without_validation_images_the_training_images_judge(centered):
    table = unsaid(study_of(options=ChoiceOptions(form="direct", centered=centered), val=False))
    assert table.auc.notna().all() and (np.diff(table.said) >= 0).all()


def test_more_pictures_without_labels_and_few_images(study):
    more = F.normalize(AXES[-2:].repeat(40, 1) + .1 * torch.randn(80, D) / D ** .5, dim=1)
    assert discover(study, more=more, active=2, epochs=60).cosines(AXES[-1:]).max() > .8
    assert len(discover(study.few_shot(1), n=64)) <= 64


def test_messages(study, axes):
    with pytest.raises(ValueError, match="n=0: expected at least 1"): discover(study, n=0)
    with pytest.raises(ValueError, match="at least one to name"): unsaid(study, axes, [])
    with pytest.raises(ValueError, match="no images to show"): direction_images(study, axes, [0])
