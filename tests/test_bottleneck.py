"Bottlenecks: the solver's minimum, what a cut, an edit and a refit keep, and data that a chapter would not show."
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from datadesc import bottleneck as module
from datadesc.bottleneck import (Bottleneck, Concepts, concept_matrix_search, hybrid, label_free, labo, posthoc, refitted, sparse_cbm,
                                 sparse_layer)
from datadesc.study import Study

C, D = 6, 24
CENTRES = F.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(0)), dim=1)
FITTERS = (sparse_layer, label_free, concept_matrix_search, posthoc, hybrid, labo, sparse_cbm)


def near(labels, spread, seed):
    "Rows of length one around the centres of their classes."
    return F.normalize(CENTRES[labels] + spread * torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed)) / D ** .5, dim=1)


def study_of(classes=C, per_class=12, sentences=3, shared=False):
    "A study of images and sentences near their class; its first sentence is that of all classes if `shared`."
    labels = {split: torch.arange(classes).repeat_interleave(n) for split, n in (("train", per_class), ("val", 4), ("test", 8))}
    emb = {split: near(y, 1.2, seed) for seed, (split, y) in enumerate(labels.items())}
    texts = [f"sentence {i} of class {c}" if i or not shared else "the same" for c in range(classes) for i in range(sentences)]
    class_id = np.repeat(np.arange(classes), sentences)
    at = {text: near(torch.tensor([c]), .8, 100 + i)[0] for i, (text, c) in enumerate(zip(texts, class_id))}
    pool = pd.DataFrame(dict(class_id=class_id, text=texts, text_id=range(len(texts)), flag="", source="file"))
    def embed(asked): return torch.stack([at[text] if text in at else CENTRES[int(text.split()[-1])] for text in asked])
    return Study([f"kind {c}" for c in range(classes)], emb, labels, pool, embed)


@pytest.fixture(scope="module")
def study(): return study_of()


@pytest.fixture(scope="module")
def concepts(study): return Concepts.of(study, study.pool)


@pytest.mark.parametrize("n, k", [(80, 12), (20, 30)])  # more images than sentences, and fewer
@pytest.mark.parametrize("ratio", [.99, .5, 0.])
def test_the_solver_finds_the_minimum_of_scikit_learn(n, k, ratio):
    draw = torch.Generator().manual_seed(n)
    y = torch.arange(n) % 4
    x = torch.randn(n, k, generator=draw) @ torch.randn(k, k, generator=draw) / k ** .5 + F.one_hot(y, k)
    problem = module._Softmax(x, y, 4)
    strength = problem.strongest / 6
    weight, bias = problem.fit(torch.zeros(4, k), torch.zeros(4), ratio * strength, (1 - ratio) * strength, steps=5000, tolerance=1e-4)
    saga = LogisticRegression(solver="saga", l1_ratio=ratio, C=1 / (n * strength), max_iter=50_000, tol=1e-5).fit(x.numpy(), y.numpy())

    def objective(w, b):
        penalty = ratio * w.abs().sum() + (1 - ratio) / 2 * (w ** 2).sum()
        return float(F.cross_entropy(x @ w.T + b, y) + strength * penalty)
    assert objective(weight, bias) == pytest.approx(objective(torch.tensor(saga.coef_).float(), torch.tensor(saga.intercept_).float()), abs=1e-4)
    assert torch.allclose(weight, torch.tensor(saga.coef_).float(), atol=.02)


def test_at_the_strongest_no_sentence_has_a_weight_and_just_below_one_has(study, concepts):
    x, y = concepts.scores(study.image_emb["train"]), study.labels["train"]
    problem, zero = module._Softmax(x, y, C), (torch.zeros(C, len(concepts)), torch.zeros(C))
    assert not problem.fit(*zero, 1.001 * problem.strongest, 0., steps=3000)[0].any()
    assert problem.fit(*zero, .97 * problem.strongest, 0., steps=3000)[0].any()


@pytest.mark.parametrize("fit", FITTERS)
def test_every_layer_beats_chance_by_far_and_its_parts_add_up(study, concepts, fit):
    layer, images, y = fit(study, concepts), study.image_emb["test"], study.labels["test"]
    logits = layer.logits(images)
    assert (logits.argmax(1) == y).double().mean() > .6  # chance is one in six
    c, against = logits.topk(2, 1).indices.T
    rest = (layer.bias[c] - layer.bias[against])
    if layer.residual is not None: rest = rest + ((layer.residual[c] - layer.residual[against]) * study.features["test"]).sum(1)
    both = logits.gather(1, torch.stack([c, against], 1))
    assert torch.allclose(layer.contributions(images, c, against).sum(1) + rest, both[:, 0] - both[:, 1], atol=1e-3)


@pytest.mark.parametrize("fit", [posthoc, labo, sparse_cbm])  # those that draw
def test_the_same_call_gives_the_same_layer(study, concepts, fit):
    assert torch.equal(fit(study, concepts).weight, fit(study, concepts).weight)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_no_class_decides_by_more_sentences_than_asked_for(study, concepts, n):
    layer = sparse_layer(study, concepts, n)
    assert layer.used.max() <= n
    assert layer.used.float().mean() > .7 * n


def test_more_sentences_than_there_are_is_all_of_them(study, concepts):
    assert sparse_layer(study, concepts, 10_000).used.max() <= len(concepts)


def test_a_refit_keeps_the_sentences_and_a_residual(study, concepts):
    both = hybrid(study, concepts)
    again = refitted(study, both.strongest(2))
    assert torch.equal(again.weight != 0, both.strongest(2).weight != 0)
    assert torch.equal(again.residual, both.residual)
    y = study.labels["test"]
    assert (again.logits(study.image_emb["test"]).argmax(1) == y).double().mean() > .6


def test_a_sentence_of_two_classes_is_one_concept_and_every_fitter_takes_it():
    study = study_of(shared=True)
    concepts = Concepts.of(study, study.pool)
    assert concepts.owner.sum(0)[concepts.texts.index("the same")] == C
    for fit in FITTERS: assert torch.isfinite(fit(study, concepts).logits(study.image_emb["test"])).all()


@pytest.mark.parametrize("fit", FITTERS)
def test_two_classes(fit):
    study = study_of(classes=2)
    layer = fit(study, Concepts.of(study, study.pool))
    assert layer.weight.shape[0] == 2
    assert (layer.logits(study.image_emb["test"]).argmax(1) == study.labels["test"]).double().mean() > .8


@pytest.mark.parametrize("fit", FITTERS)
def test_one_image_per_class(fit):
    few = study_of().few_shot(1)
    assert torch.isfinite(fit(few, Concepts.of(few, few.pool)).logits(few.image_emb["train"])).all()


def test_a_layer_that_turns_sentences_scores_new_images_as_it_was_trained(study, concepts):
    mixing = torch.eye(len(concepts)) + .1 * torch.randn(len(concepts), len(concepts), generator=torch.Generator().manual_seed(3))
    turned, factor = module._turned(study, concepts, mixing)
    train = study.image_emb["train"]
    expected = concepts.scores(train) @ mixing.T  # mean 0 on the training images, like scores themselves
    assert torch.allclose(turned.scores(train) * factor, expected, atol=1e-3)


def test_an_edit_leaves_the_other_sentences_alone(study, concepts):
    layer = sparse_layer(study, concepts, 4)
    edited = layer.without([0, 3])
    assert not edited.weight[:, [0, 3]].any()
    assert torch.equal(edited.weight[:, [1, 2]], layer.weight[:, [1, 2]])
    assert isinstance(edited, Bottleneck) and not torch.equal(edited.weight, layer.weight)
