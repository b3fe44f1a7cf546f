"Sentences chosen together: exactness against brute force, what a choice may see, and inputs at the edge."
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.selection import ChoiceOptions
from datadesc.sets import set_influence
from datadesc.study import Study

SCALE = 20.
FLOAT32 = 5e-6  # rounding of logits up to 20


def problem(n_classes=4, per_class=6, images=9, dim=8, seed=0):
    "Images, labels, texts and their classes, all around a direction per class."
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(n_classes, dim, generator=draw)
    def around(n, spread): return F.normalize(means.repeat_interleave(n, 0) + spread * torch.randn(n_classes * n, dim, generator=draw), dim=1)
    classes = torch.arange(n_classes)
    return around(images, 1.), classes.repeat_interleave(images), around(per_class, 1.5), classes.repeat_interleave(per_class)


def loss(x, y, texts, of, chosen, normalised=False, scale=SCALE):
    "Cross-entropy, every class with the same weight, of the classifier of these rows."
    vectors = torch.stack([texts[[i for i in chosen if of[i] == c]].double().mean(0) for c in of.unique()])
    if normalised: vectors = F.normalize(vectors, dim=1)
    weight = 1 / (len(y.unique()) * y.bincount()[y])
    return (weight * F.cross_entropy(scale * x.double() @ vectors.T, y, reduction="none")).sum().item()


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_hardly_any_exchange_lowers_the_loss_of_a_finished_set(seed, normalised):
    x, y, texts, of = problem(seed=seed)
    place, _ = set_influence(x, y, texts, of, SCALE, 3, normalised)
    chosen = place.nonzero()[:, 0].tolist()
    mine = loss(x, y, texts, of, chosen, normalised)
    exchanged = [loss(x, y, texts, of, [j for j in chosen if j != out] + [new], normalised)
                 for out in chosen for new in range(len(of)) if new not in chosen and of[new] == of[out]]
    assert sum(e < mine - 1e-6 for e in exchanged) <= 2  # two rounds of exchanges may leave some


@pytest.mark.parametrize("normalised", [False, True])
def test_marginal_influence_is_the_change_of_the_loss(normalised):
    x, y, texts, of = problem()
    place, influence = set_influence(x, y, texts, of, SCALE, 3, normalised)
    chosen = place.nonzero()[:, 0].tolist()
    whole = loss(x, y, texts, of, chosen, normalised)
    for i in set(range(len(of))) - set(chosen):
        assert influence[i].item() == pytest.approx(whole - loss(x, y, texts, of, [*chosen, i], normalised), abs=FLOAT32)
    for i in (place == 3).nonzero()[:, 0].tolist():  # the last of each set is what leaving it out costs
        assert influence[i].item() == pytest.approx(loss(x, y, texts, of, [j for j in chosen if j != i], normalised) - whole, abs=FLOAT32)


@pytest.mark.parametrize("scale", [1., 100., 300.])
def test_high_scales_lose_no_digits(scale):
    "Where one class has nearly all of the softmax, the other classes' part must not be lost."
    x, y, texts, of = problem()
    place, influence = set_influence(x, y, texts, of, scale, 2)
    chosen = place.nonzero()[:, 0].tolist()
    whole, other = loss(x, y, texts, of, chosen, scale=scale), next(i for i in range(len(of)) if i not in chosen)
    expected = whole - loss(x, y, texts, of, [*chosen, other], scale=scale)
    assert influence.isfinite().all() and influence[other].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_class_decides_by_itself_and_each_sentence_lowers_the_loss():
    x, y, texts, of = problem(per_class=14)
    place, influence = set_influence(x, y, texts, of, SCALE, "auto")
    counts = torch.stack([(place[of == c] > 0).sum() for c in range(4)])
    assert counts.min() >= 1 and counts.max() <= 10
    chosen = place.nonzero()[:, 0].tolist()
    whole = loss(x, y, texts, of, chosen)
    for i in chosen:
        if counts[of[i]] > 1: assert loss(x, y, texts, of, [j for j in chosen if j != i]) > whole - 1e-5
    assert (influence[place == 0] <= 1e-3).all()


def test_equal_texts_go_by_their_order_and_a_repetition_adds_nothing():
    x, y, texts, of = problem()
    twice = torch.cat([texts, texts]), torch.cat([of, of])
    place, influence = set_influence(x, y, *twice, SCALE, 1)
    assert (place[len(of):] == 0).all()  # the first of two equal texts
    repeated = (place[:len(of)] > 0).nonzero()[:, 0] + len(of)
    assert influence[repeated].abs().max() < 1e-6


def test_more_than_there_are_and_classes_without_images_or_texts():
    x, y, texts, of = problem()
    place, influence = set_influence(x, y, texts, of, SCALE, 99)
    assert (place > 0).all()
    seen = y != 2
    place, influence = set_influence(x[seen], y[seen], texts, of, SCALE, 2)
    assert place[of == 2].tolist() == [1, 2, 0, 0, 0, 0] and influence[of == 2].isnan().all() and influence[of != 2].isfinite().all()
    with pytest.raises(ValueError, match="No text for class 3"): set_influence(x, y, texts[of != 3], of[of != 3], SCALE, 2)


def study_of(top_k=2, seed=0, **options):
    x, y, texts, of = problem(images=12, seed=seed)
    pool = pd.DataFrame(dict(text_id=np.arange(len(of)), class_id=of.numpy(), component="", text=[f"t{i}" for i in range(len(of))], flag=""))
    part = torch.arange(len(y)) % 3
    splits = dict(train=part == 0, val=part == 1, test=part == 2)
    def embed(names): return torch.stack([texts[int(name[1:])] for name in names])
    return Study("abcd", {s: x[at] for s, at in splits.items()}, {s: y[at] for s, at in splits.items()}, pool, embed,
                 ChoiceOptions(top_k=top_k, **options), logit_scale=SCALE)


def test_a_choice_sees_no_test_image_and_an_episode_only_its_shots():
    study = study_of()
    few = study.few_shot(2, seed=1)
    before, of_few = study.chosen(), few.chosen()
    study = study_of()
    study.image_emb["test"] = -study.image_emb["test"]
    others = torch.ones(len(study.labels["train"]), dtype=torch.bool)
    others[few.split.train] = False
    changed = study_of()
    changed.image_emb["train"][others] *= -1
    pd.testing.assert_frame_equal(study.chosen(), before)
    pd.testing.assert_frame_equal(changed.few_shot(2, seed=1).chosen(), of_few)
    assert not changed.chosen().ift.equals(before.ift)


def test_flagged_sentences_are_neither_chosen_nor_in_the_reference():
    study = study_of()
    best = study.chosen().query("proponent").index[0]
    flagged = study_of()
    flagged.pool.loc[best, "flag"] = "a stock phrase"
    table = flagged.chosen()
    assert not table.proponent[best] and table.why_not[best] == "a stock phrase" and np.isnan(table.ift[best])
    assert (table.groupby("class_id").proponent.sum() == 2).all()


@pytest.mark.parametrize("wrong, message", [(dict(diversity=.2), "diversity and near_duplicate are for scores"), (dict(near_duplicate=.9), "near_duplicate"),
                                            (dict(top_k=0), "at least one text"), (dict(top_k="all"), "or 'auto'"), (dict(form="sets"), "expected set")])
def test_options_that_cannot_be_right(wrong, message):
    with pytest.raises(ValueError, match=message): ChoiceOptions(**wrong)
