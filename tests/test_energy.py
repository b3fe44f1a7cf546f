"Energy: probabilities against the list of all combinations, training against frequencies, corrections and errors."
from itertools import product
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from datadesc.bottleneck import Concepts
from datadesc.energy import EnergyModel, energy_model, pseudo_labels

C, K, D, NAN = 3, 4, 5, float("nan")


def concepts_of(k=K, d=D, seed=0):
    direction = F.normalize(torch.randn(k, d, generator=torch.Generator().manual_seed(seed)), dim=1)
    return Concepts(tuple(map(str, range(k))), torch.ones(C, k, dtype=torch.bool), direction, None, torch.zeros(k), torch.ones(k))


@pytest.fixture
def model():
    draw = torch.Generator().manual_seed(1)
    def normal(*size): return torch.randn(size, generator=draw)
    return EnergyModel(concepts_of(), ("a", "b", "c"), normal(C, D), normal(C), normal(K), normal(K), 2 * normal(C, K))


@pytest.fixture
def images(): return F.normalize(torch.randn(6, D, generator=torch.Generator().manual_seed(2)), dim=1)


def listed(model, x, known):
    "Class and concept probabilities of one image, by the energies of all combinations that agree with what is known."
    rows = [(c, y) for *c, y in product(*[(0., 1.)] * K, range(C)) if all(k != k or k == value for k, value in zip(known, c))]
    present, y = torch.tensor([c for c, _ in rows]), torch.tensor([y for _, y in rows])
    share = (-model.energy(x.expand(len(rows), -1), present, y)).softmax(0)
    return torch.stack([share[y == c].sum() for c in range(C)]), share @ present


@pytest.mark.parametrize("known", [[NAN] * K, [1., NAN, NAN, NAN], [NAN, 0., 1., NAN], [1., 0., 0., 1.]])
def test_predictions_are_sums_over_all_combinations(model, images, known):
    classes, present = model.predict(images, torch.tensor([known]).expand(len(images), -1))
    for i in range(len(images)):
        of_classes, of_concepts = listed(model, images[i:i + 1], known)
        torch.testing.assert_close(classes[i], of_classes, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(present[i], of_concepts, atol=1e-5, rtol=1e-4)


def test_nothing_known_is_no_correction(model, images):
    for plain, told in zip(model.predict(images), model.predict(images, torch.full((len(images), K), NAN))): assert torch.equal(plain, told)


def test_many_images_are_predicted_block_by_block(model, images, monkeypatch):
    whole = model.predict(images)
    monkeypatch.setattr("datadesc.energy.row_blocks", lambda n, width: (slice(i, i + 1) for i in range(n)))
    for a, b in zip(whole, model.predict(images)): torch.testing.assert_close(a, b)


def test_a_correction_reaches_what_goes_with_it(images):
    shared = torch.tensor([[6., 6., -6., -6.], [-6., -6., 6., 6.], [-6., -6., -6., -6.]])
    model = EnergyModel(concepts_of(), ("a", "b", "c"), torch.zeros(C, D), torch.zeros(C), torch.zeros(K), torch.zeros(K), shared)
    known = torch.tensor([[1., NAN, NAN, NAN]]).expand(len(images), -1)
    classes, present = model.predict(images, known)
    assert (classes.argmax(1) == 0).all() and (present[:, 1] > .95).all() and (present[:, 2:] < .05).all()


def test_conditionals_are_those_of_the_joint_distribution(model, images):
    table = model.conditionals(images)
    joint, pairs, of_class = torch.zeros(C, K), torch.zeros(K, K), torch.zeros(C)
    for x in images[:, None]:
        rows = [(c, y) for *c, y in product(*[(0., 1.)] * K, range(C))]
        present, y = torch.tensor([c for c, _ in rows]), torch.tensor([y for _, y in rows])
        share = (-model.energy(x.expand(len(rows), -1), present, y)).softmax(0)
        for c in range(C): joint[c] += share[y == c] @ present[y == c]; of_class[c] += share[y == c].sum()
        pairs += present.T @ (share[:, None] * present)
    torch.testing.assert_close(table.concept_given_class, joint / of_class[:, None], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(table.class_given_concept, (joint / joint.sum(0)).T, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(table.concept_given_concept, pairs / joint.sum(0)[:, None], atol=1e-5, rtol=1e-4)


def small_study(n=90, seed=3):
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    x = F.normalize(torch.randn(C, D, generator=draw)[y] + .3 * torch.randn(n, D, generator=draw), dim=1)
    return SimpleNamespace(features={"train": x}, image_emb={"train": x}, labels={"train": y}, classes=("a", "b", "c"), n_classes=C)


def test_training_recovers_the_table_of_concepts():
    study, has = small_study(), torch.tensor([[1., 1., 0., 0.], [0., 1., 1., 0.], [0., 0., 0., 1.]])
    y = study.labels["train"]
    model = energy_model(study, concepts_of(), has[y])
    assert (model.predict(study.image_emb["train"])[0].argmax(1) == y).float().mean() > .9
    table = model.conditionals(study.image_emb["train"])
    assert (table.concept_given_class - has).abs().mean() < .06
    assert (table.class_given_concept - (has / has.sum(0)).T).abs().mean() < .06


def test_without_class_energy_the_embedding_has_no_weight():
    study = small_study()
    assert not energy_model(study, concepts_of(), class_energy=False, steps=5).class_weight.any()
    assert energy_model(study, concepts_of(), steps=5).class_weight.any()


def test_training_leaves_the_study_as_it_was_and_repeats():
    study = small_study()
    before = study.image_emb["train"].clone()
    a, b = (energy_model(study, concepts_of(), steps=5) for _ in range(2))
    assert torch.equal(a.shared, b.shared) and torch.equal(study.image_emb["train"], before) and not a.shared.requires_grad


@pytest.mark.parametrize("present", [torch.zeros(89, K), torch.zeros(90, K - 1), torch.full((90, K), .5), torch.full((90, K), NAN)])
def test_labels_that_do_not_fit(present):
    with pytest.raises(ValueError, match="present: expected a table of 90 training images and 4 concepts"): energy_model(small_study(), concepts_of(), present)


def test_pseudo_labels():
    assert pseudo_labels(torch.tensor([[.9, 1.1], [-3., 2.]])).tolist() == [[0., 1.], [0., 1.]]
    assert pseudo_labels(torch.tensor([[.9, 1.1]]), .5).tolist() == [[1., 1.]]
