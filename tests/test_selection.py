"Every form of the score by its own definition, ranks, precision, fall-backs, and every input a user can get wrong."
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.head import HeadOptions, center, common_part, train_head
from datadesc.influence import influence, influence_matrix
from datadesc.selection import (FORMS, Evidence, ift, precision_at, precision_by_class, proponent_images, top_texts)

C, D = 4, 8


def cloud(per_class, seed, gap):
    "Unit vectors round one centre a class, all shifted by the modality's `gap`, and their classes."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(C).repeat_interleave(per_class)
    return F.normalize(torch.eye(C, D)[y] + .4 * torch.randn(len(y), D, generator=g) + gap, dim=1), y


class World:
    def __init__(self):
        gap = torch.tensor([0, 0, 0, 0, 1., -1, 2, 0])
        (self.train, self.y), (self.val, self.w), (self.text, self.t) = cloud(9, 0, gap), cloud(5, 1, gap), cloud(6, 2, -gap)
        self.descriptions = pd.DataFrame(dict(text_id=range(len(self.t)), class_id=self.t.numpy()))
        self.head = train_head(center(self.train), self.y, C, HeadOptions(epochs=10, batch_size=8))

    @property
    def args(self): return self.text, self.train, self.y, self.val, self.w, self.head

    def ift(self, form, **options): return ift(form, self.descriptions, *self.args, **options)

    @property
    def evidence(self): return Evidence(self.text, self.t, self.train, self.y, self.val, self.w, self.head)


@pytest.fixture
def world(): return World()


def numbers(values): return torch.tensor(values.to_numpy(), dtype=torch.float32)


def test_clip_is_the_mean_cosine_to_the_classs_images(world):
    cosine = center(world.text) @ center(world.train).T
    want = torch.stack([row[world.y == c].mean() for row, c in zip(cosine, world.t)])
    torch.testing.assert_close(numbers(world.ift("clip").ift), want)


def test_printed_is_equation_two(world):
    mean = common_part(world.train)
    S = influence_matrix(center(world.train), world.y, center(world.val, mean), world.w, world.head)
    cosine = world.text @ world.train.T
    want = torch.stack([(S + row[:, None]).mean() for row in cosine])
    torch.testing.assert_close(numbers(world.ift("printed").ift), want)


def test_proponent_and_weighted_pair_by_pair(world):
    S = influence_matrix(center(world.train), world.y, center(world.val, common_part(world.train)), world.w, world.head)
    cosine = center(world.text) @ center(world.train).T
    near, chosen, weighted = [], [], []
    for row, c in zip(cosine, world.t):
        own = S[:, world.w == c]
        pairs = [(own[z, v], row[z]) for v in range(own.shape[1]) for z in own[:, v].topk(3).indices if own[z, v] > 0]
        near.append(sum(p[1] for p in pairs) / len(pairs)), chosen.append(sum(p[0] for p in pairs) / len(pairs))
        weighted.append((own.clamp(min=0) * row[:, None]).sum() / own.clamp(min=0).sum())
    scores = world.ift("proponent", top_m=3)
    torch.testing.assert_close(numbers(scores.clip_part), torch.stack(near))
    torch.testing.assert_close(numbers(scores.influence_part), torch.stack(chosen))
    torch.testing.assert_close(numbers(world.ift("weighted").ift), torch.stack(weighted))


def test_direct_treats_the_text_as_a_train_image(world):
    S = influence_matrix(center(world.text), world.t, center(world.val, common_part(world.train)), world.w, world.head)
    own = torch.stack([row[world.w == c].mean() for row, c in zip(S, world.t)])
    torch.testing.assert_close(numbers(world.ift("direct").ift), S.mean(1))
    torch.testing.assert_close(numbers(world.ift("direct_own").ift), own)
    assert world.ift("influence").ift.equals(world.ift("direct").ift)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_a_whole_table(world, form):
    scores = world.ift(form, top_k=2)
    assert list(scores) == ["text_id", "class_id", "form", "ift", "influence_part", "clip_part", "rank", "proponent"]
    assert scores.notna().all().all() and (scores.form == form).all()
    assert scores.groupby("class_id")["rank"].apply(sorted).tolist() == [[1, 2, 3, 4, 5, 6]] * C
    assert (scores.proponent == (scores["rank"] <= 2)).all()
    if form != "random": assert (scores.ift == scores.influence_part + scores.clip_part).all()


@pytest.mark.parametrize("form", FORMS)
def test_an_uncentered_head_is_scored_uncentered(world, form):
    world.head = train_head(world.train, world.y, C, HeadOptions(epochs=10, batch_size=8))
    assert world.ift(form, centered=False).ift.notna().all()


def test_rows_in_any_order_get_the_same_rank(world):
    turn = torch.randperm(len(world.t), generator=torch.Generator().manual_seed(3))
    turned = ift("clip", world.descriptions.iloc[turn.tolist()], world.text[turn], *world.args[1:])
    assert turned["rank"].sort_index().equals(world.ift("clip")["rank"])


def test_ties_go_by_text_id(world):
    world.text = world.text[world.t * 6]  # the same sentence six times a class
    scores = ift("clip", world.descriptions.assign(text_id=range(100, 76, -1)), *world.args)
    for _, rows in scores.groupby("class_id"):
        if rows.ift.nunique() == 1: assert rows.sort_values("rank").text_id.is_monotonic_increasing


def test_more_top_k_than_texts_keeps_all(world):
    assert world.ift("clip", top_k=99).proponent.all()
    assert len(top_texts(world.ift("clip"), 99)) == len(world.t)


def test_top_texts_come_best_first(world):
    best = top_texts(world.ift("clip"), 2)
    assert best["rank"].tolist() == [1, 2] * C and best.class_id.is_monotonic_increasing


def test_no_positive_influence_falls_back_to_clip(world):
    S = -torch.ones(len(world.val), len(world.y))
    S[world.w != 2] *= -1  # only class 2 has no train image that helps it
    e = world.evidence
    found = influence(e.train, e.train_class, e.val, e.val_class, world.head)
    positive = torch.stack([S[world.w == c].clamp(min=0).mean(0) for c in range(C)])
    mean = F.normalize(positive, p=1, dim=1) @ e.train
    none = replace(found, proponent_scores=torch.where((world.w == 2)[:, None], -1., 1.).expand_as(found.proponent_scores), positive_by_class=positive,
                   positive_mean=mean.index_fill(0, torch.tensor([2]), torch.nan))
    clip_scores = world.ift("clip")
    for form in ("proponent", "weighted"):
        scores = world.ift(form, image_influence=none)
        lost = scores.class_id == 2
        assert (scores.influence_part[lost] == 0).all()
        assert (scores.ift[lost] == clip_scores.ift[lost]).all()
        assert (scores.ift[~lost] != clip_scores.ift[~lost]).all()


def test_proponent_images_add_up_to_the_weighted_score(world):
    e = world.evidence
    index, added = proponent_images(e.text, e.text_class, e.train, e.images, top_k=len(world.y))
    torch.testing.assert_close(added.sum(1), numbers(world.ift("weighted").ift))
    few, most = proponent_images(e.text, e.text_class, e.train, e.images, top_k=3)
    assert torch.equal(few, index[:, :3]) and (most[:, 0] >= most[:, 2]).all()


def test_precision_by_hand():
    scores = pd.DataFrame(dict(text_id=range(6), class_id=[0, 0, 0, 1, 1, 1], rank=[1, 2, 3, 3, 2, 1]))
    truth = pd.Series(["visible", "wrong", "visible", "generic", "wrong", "visible"])
    found = precision_by_class(scores, truth, 2)
    assert found.precision.tolist() == [.5, .5] and found.chance.tolist() == [2 / 3, 1 / 3] and found.ceiling.tolist() == [1, .5]
    assert precision_at(scores, truth, 2) == pytest.approx(dict(precision=.5, chance=.5, ceiling=.75))
    assert precision_at(scores, truth, 9)["precision"] == pytest.approx(.5)  # more than there are: all of them


def lengthened(x): return x * 2


def holed(x): return x.index_fill(0, torch.tensor([1]), torch.nan)


@pytest.mark.parametrize("change, message", [
    (dict(text_emb=lengthened), r"text_emb: row 0 has length 2, expected L2-normalised embeddings; use torch"),
    (dict(train_emb=lengthened), "train_emb: row 0 has length 2"),
    (dict(val_emb=holed), "val_emb: 1 of 20 rows hold NaN or infinity, the first is row 1"),
    (dict(text_emb=lambda x: x[:-1]), "descriptions has 24 rows and text_emb 23"),
    (dict(form=lambda _: "cosine"), "form='cosine': expected one of printed, clip"),
    (dict(checkpoints=lambda c: [*c, *train_head(torch.zeros(5, D), torch.arange(5), 5, HeadOptions(epochs=1))]), "checkpoints: number 10 has a weight of shape"),
    (dict(train_labels=lambda y: y + 1), "train: labels from 1 to 4"),
])
def test_bad_input_is_named(world, change, message):
    names = ("form", "descriptions", "text_emb", "train_emb", "train_labels", "val_emb", "val_labels", "checkpoints")
    given = dict(zip(names, ("proponent", world.descriptions, *world.args)))
    with pytest.raises(ValueError, match=message): ift(**{k: change[k](v) if k in change else v for k, v in given.items()})


@pytest.mark.parametrize("options, message", [(dict(top_k=0), "top_k=0: expected at least one"), (dict(top_m=0), "top_m=0: expected at least one")])
def test_bad_options_are_named(world, options, message):
    with pytest.raises(ValueError, match=message): world.ift("proponent", **options)


@pytest.mark.parametrize("form", ["proponent", "weighted", "direct_own", "direct_normalised"])
def test_class_without_validation_image(world, form):
    some = world.w != 3
    world.val, world.w = world.val[some], world.w[some]
    with pytest.raises(ValueError, match=f"form='{form}' scores a text by the validation images of its class, but class 3 has none"): world.ift(form)
    assert world.ift("direct").ift.notna().all() and world.ift("printed").ift.notna().all()


def test_class_without_train_image(world):
    some = world.y != 1
    world.train, world.y = world.train[some], world.y[some]
    world.head = train_head(center(world.train), world.y, C, HeadOptions(epochs=2))
    with pytest.raises(ValueError, match="form='clip' scores a text by the train images of its class, but class 1 has none"): world.ift("clip")


def test_image_influence_that_keeps_too_few_proponents(world):
    e = world.evidence
    few = influence(e.train, e.train_class, e.val, e.val_class, world.head, top_k=3)
    with pytest.raises(ValueError, match="top_m=5, but image_influence keeps 3 proponents"): world.ift("proponent", top_m=5, image_influence=few)


def test_truth_must_match_the_scores(world):
    with pytest.raises(ValueError, match="truth: its index differs"): precision_at(world.ift("clip"), pd.Series(["visible"]), 5)
