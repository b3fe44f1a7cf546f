"Shift: changed pictures, misfiring counted by hand, masks and factors, re-standardised scores."
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datadesc.bottleneck import Bottleneck, Concepts
from datadesc.renderer import Look
from datadesc.shift import SHIFTS, flowers, misfiring, repaired, restandardised


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_keep_form_and_input(name):
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    before = picture.copy()
    changed = SHIFTS[name](picture)
    assert changed.shape == picture.shape and changed.dtype == np.uint8 and (changed != picture).any()
    np.testing.assert_array_equal(picture, before)


def test_flowers_are_a_function_of_the_seed():
    one, same, other = (np.asarray(flowers(np.random.default_rng(seed))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert one.shape == (192, 192, 3) and (one != other).any()


def test_a_scene_changes_what_is_behind_alone():
    look = Look("rounded", "blue", "spots", "red", "white", "brown", "straight")
    plain, behind = (np.asarray(look.draw(np.random.default_rng(4), scene)).astype(int) for scene in (None, flowers(np.random.default_rng(0))))
    alike = np.abs(plain - behind).max(2) == 0
    assert alike[28:36, 30:34].all() and not alike[:4, :4].any() and .15 < alike.mean() < .8


@pytest.fixture
def world():
    """Two classes and three sentences: scores are the embedding itself.

    Class 0 has sentence 0, class 1 has sentences 1 and 2."""
    concepts = Concepts(("zero", "one", "two"), torch.ones(2, 3, dtype=torch.bool), torch.eye(3), None, torch.zeros(3), torch.ones(3))
    layer = Bottleneck(concepts, ("a", "b"), torch.tensor([[1., -.5, 0.], [0., 1., 1.]]), torch.zeros(2))
    train, y = torch.tensor([[2., 0., 0.], [2., 0., 0.], [0., 2., 2.], [0., 2., 2.]]), torch.tensor([0, 0, 1, 1])
    return layer, SimpleNamespace(image_emb={"train": train}, labels={"train": y}, n_classes=2)


def test_misfiring_by_hand(world):
    layer, study = world
    new = torch.tensor([[2., 1.5, 0.], [2., .5, 0.], [0., 2., 2.]])  # sentence 1 fires on one of two images of class 0
    table = misfiring(layer, study, new, torch.tensor([0, 0, 1]))
    assert table.index[0] == 1 and table.rise.tolist() == [.5, 0., 0.] and (table.before == 0).all()
    assert table.columns.tolist() == ["text", "before", "now", "rise"] and table.text[1] == "one"


def test_a_sentence_without_weight_is_not_listed(world):
    layer, study = world
    assert misfiring(layer.without([1]), study, study.image_emb["train"], study.labels["train"]).index.tolist() == [0, 2]


def test_nothing_to_repair(world):
    layer, study = world
    same = repaired(layer, study, study.image_emb["train"], study.labels["train"])
    assert torch.equal(same.weight, layer.weight) and torch.equal(same.bias, layer.bias)


def test_mask_and_factors_by_hand(world):
    layer, study = world
    new, y = torch.tensor([[1.25, 1.5, 0.], [1.25, 1.5, 0.], [0., 2., .5], [0., 2., .5]]), torch.tensor([0, 0, 1, 1])
    fixed = repaired(layer, study, new, y)
    # sentence 1 is masked in both classes; 0 grows by 2 / 1.25; 2 by 2 / .5, at most twofold
    assert fixed.weight.tolist() == [[1.600000023841858, 0., 0.], [0., 0., 2.]]
    assert repaired(layer, study, new, y, rise=1.).weight[1].tolist() == [0., 1., 2.]
    assert repaired(layer, study, new, y, most=1.).weight.tolist() == [[1., 0., 0.], [0., 0., 1.]]


def test_a_class_without_images_keeps_its_weights(world):
    layer, study = world
    fixed = repaired(layer, study, torch.tensor([[1., 0., 0.]]), torch.tensor([0]))
    assert fixed.weight[1].tolist() == [0., 1., 1.] and fixed.weight[0, 0] == 2.


def test_labels_that_do_not_fit(world):
    layer, study = world
    with pytest.raises(ValueError, match="4 images but 1 labels"): repaired(layer, study, study.image_emb["train"], torch.tensor([0]))


def test_restandardising_undoes_a_shift_and_scale_of_all_images(world):
    layer, _ = world
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    one, two = restandardised(layer, x), restandardised(layer, 3 * x + torch.tensor([1., -2., .5]))
    torch.testing.assert_close(one.logits(x), two.logits(3 * x + torch.tensor([1., -2., .5])), atol=1e-4, rtol=1e-4)
    assert layer.concepts.mean.tolist() == [0.] * 3  # the layer itself stays
