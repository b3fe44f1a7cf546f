"Planted mistakes are found and marked, pairs and separating sentences by their own definition, small and lopsided datasets, and every input a user can get wrong."
from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.audit import _label_noise, _mean_probabilities, _trajectory, auc_of_scores, confusable_pairs, add_label_noise, separating_texts, label_issues, label_issue_scores
from datadesc.data import ImageSet
from datadesc.figures import label_issue_gallery
from datadesc.head import center
from datadesc.influence import influence, _influence_matrix
from datadesc.study import Study

torch.set_num_threads(1)
C, D = 4, 8
SCORES = ["label_issue", "mean_loss", "self_influence", "harm", "early_loss", "last_loss", "1 - confidence"]


def cloud(per_class, seed, n_classes=C):
    "Unit vectors round one centre a class, and their classes."
    y = torch.arange(n_classes).repeat_interleave(per_class)
    return F.normalize(torch.eye(n_classes, D)[y] + .2 * torch.randn(len(y), D, generator=torch.Generator().manual_seed(seed)), dim=1), y


def study_of(train, labels, val, val_labels, n_classes=C, pool=None, emb=None, **more):
    "The study of these embeddings; sentence `text i` of the pool has row i of `emb`."
    def embed(texts): return emb[[int(t.split()[1]) for t in texts]]
    return Study("abcd"[:n_classes], dict(train=train, val=val), dict(train=labels, val=val_labels), pd.DataFrame() if pool is None else pool, embed, **more)


class World:
    "Two clouds of images, and the study of the labels that they are given."
    def __init__(self, per_class=12, n_classes=C):
        (self.raw, self.y), (self.raw_val, self.v), self.n_classes = cloud(per_class, 0, n_classes), cloud(5, 1, n_classes), n_classes
        self.fit(self.y)

    def fit(self, labels, **more):
        self.given, self.study = labels, study_of(self.raw, labels, self.raw_val, self.v, self.n_classes, **more)
        self.train, self.val, self.head = self.study.features["train"], self.study.features["val"], self.study.classifier

    @property
    def args(self): return self.train, self.given, self.val, self.v, self.study.scorer

    def but(self, c):
        "The study without the validation images of a class."
        some = self.v != c
        return study_of(self.raw, self.y, self.raw_val[some], self.v[some], self.n_classes)


@pytest.fixture
def world(): return World()


@pytest.mark.parametrize("share, n", [(.05, 2), (.1, 5), (.5, 24), (.99, 48), (.001, 1)])
def test_as_many_labels_are_spoilt_as_asked_for(world, share, n):
    given = add_label_noise(world.y, share, seed=3)
    assert (given != world.y).sum() == n and given.min() >= 0 and given.max() < C
    assert torch.equal(given, add_label_noise(world.y, share, seed=3))


def test_another_seed_spoils_others(world):
    assert not torch.equal(add_label_noise(world.y, .3, seed=0), add_label_noise(world.y, .3, seed=1))


def test_likeness_decides_the_mistake(world):
    only_next = torch.eye(C).roll(1, dims=1)
    given = add_label_noise(world.y, .5, transition=only_next)
    wrong = given != world.y
    assert torch.equal(given[wrong], (world.y[wrong] + 1) % C)
    assert only_next.sum() == C  # what was handed in is left alone


def test_the_labels_handed_in_are_left_alone(world):
    before = world.y.clone()
    add_label_noise(world.y, .5), add_label_noise(world.y, .5, transition=torch.ones(C, C))
    assert torch.equal(world.y, before)


def test_likeness_is_left_alone_on_its_diagonal(world):
    likeness = torch.ones(C, C)
    add_label_noise(world.y, .5, transition=likeness)
    assert torch.equal(likeness, torch.ones(C, C))


@pytest.mark.parametrize("share", [0, 1, -.1, 5, float("nan")])
def test_a_share_is_a_fraction(world, share):
    with pytest.raises(ValueError, match="expected a fraction between 0 and 1"): add_label_noise(world.y, share)


def test_trajectory_by_its_definition(world):
    t, rate = _trajectory(world.study), torch.tensor([c.lr for c in world.head])
    p = torch.stack([c.logits(world.train).softmax(1) for c in world.head])
    loss, path, own = -p[:, range(48), world.given].log(), torch.einsum("k,knc->nc", rate / rate.sum(), p), F.one_hot(world.given, C).bool()
    torch.testing.assert_close(t.mean_loss, (loss * rate[:, None]).sum(0) / rate.sum())
    torch.testing.assert_close(t.early_loss, loss[0]), torch.testing.assert_close(t.last_loss, loss[-1])
    torch.testing.assert_close(t.confidence, p[-1].amax(1)), torch.testing.assert_close(t.given, path[own])
    assert torch.equal(t.suggested, path.masked_fill(own, -1).argmax(1)) and (t.suggested != world.given).all()


def test_harm_is_minus_the_influence_on_the_own_class(world):
    S = _influence_matrix(*world.args)
    want = [-S[z, world.v == world.given[z]].mean().item() for z in range(48)]
    np.testing.assert_allclose(label_issue_scores(world.study).harm, want, atol=1e-5)


def test_planted_mistakes_are_found(world):
    given = add_label_noise(world.y, .1, seed=0)
    world.fit(given)
    marks = auc_of_scores(label_issue_scores(world.study), given != world.y)
    assert list(marks.index) == SCORES and list(marks) == ["auc", "found"]
    assert (marks.auc[["label_issue", "mean_loss", "self_influence"]] > .95).all()


def test_suspects_name_the_right_class(world):
    given = add_label_noise(world.y, .1, seed=0)
    world.fit(given)
    suspects, n = label_issues(world.study), int((given != world.y).sum())
    assert suspects.score.is_monotonic_decreasing and sorted(suspects.image) == list(range(48))
    assert suspects.head(n).image.isin((given != world.y).nonzero().flatten().tolist()).mean() > .7
    spoilt = suspects[(given != world.y)[suspects.image].numpy()]
    assert (spoilt.suggested == world.y[spoilt.image.tolist()].numpy()).mean() > .7
    assert (suspects.given == given[suspects.image].numpy()).all()
    assert (suspects.likely == ((suspects.p_suggested > suspects.p_given) & (suspects.p_wrong > .2))).all()


def test_probability_that_a_label_is_wrong_by_its_definition(world):
    given = add_label_noise(world.y, .1, seed=0)
    p = torch.rand(len(given), C, generator=torch.Generator().manual_seed(0)).add_(3 * F.one_hot(world.y, C)).softmax(1)
    share, tau, p_wrong = _label_noise(p, given)
    K = torch.zeros(C, C)
    for a, b in combinations(range(C), 2): K[a, b] = K[b, a] = p[given == a, b].mean() + p[given == b, a].mean()
    K /= K.sum(1, keepdim=True)
    def likelihood(share, tau):
        q = F.normalize(p ** tau, p=1, dim=1)
        right, error = (1 - share) * q[range(48), given], share * (q @ K)[range(48), given]
        return (right + error).log().sum().item(), error / (right + error)
    best, want = likelihood(share, tau)
    torch.testing.assert_close(p_wrong, want, atol=1e-4, rtol=1e-4)
    assert all(likelihood(share * a, tau * b)[0] <= best + 1e-3 for a in (.8, 1, 1.2) for b in (.9, 1, 1.1))


@pytest.mark.parametrize("share", [0, .02, .1])
@pytest.mark.parametrize("transition", [None, torch.eye(6).roll(1, dims=1)], ids=["any", "twin"])
def test_share_of_wrong_labels_is_estimated(share, transition):
    g = torch.Generator().manual_seed(1)
    y = torch.arange(6).repeat(200)
    p = (2 * torch.randn(1200, 6, generator=g)).softmax(1)  # of which classes are drawn: calibrated
    y = torch.multinomial(p, 1, generator=g)[:, 0]
    given = add_label_noise(y, share, 0, transition) if share else y
    estimate, tau, p_wrong = _label_noise(p ** .5 / (p ** .5).sum(1, keepdim=True), given)  # of a head that is too unsure
    assert abs(estimate - share) < .03 and (share > 0 or tau == pytest.approx(2, rel=.15))
    assert p_wrong.sum().item() == pytest.approx(estimate * 1200, rel=.15, abs=2)


def test_labels_that_are_right_are_not_doubted(world):
    assert label_issues(world.study).likely.sum() == 0


def test_influence_at_hand_is_used(world):
    own, found = label_issue_scores(world.study), influence(*world.args, by_class=False)
    world.fit(world.y, image_influence=found)
    pd.testing.assert_frame_equal(label_issue_scores(world.study), own)
    world.fit(world.y, image_influence=replace(found, self_influence=4 * found.self_influence))
    np.testing.assert_allclose(label_issue_scores(world.study).label_issue, 2 * own.label_issue, rtol=1e-5)


def test_marks_by_hand():
    scores = pd.DataFrame(dict(good=[3., 2, 1, 0], bad=[0., 1, 2, 3], flat=[1.] * 4))
    marks = auc_of_scores(scores, torch.tensor([True, True, False, False]))
    assert marks.auc.tolist() == [1, 0, .5] and marks.found.tolist() == [1, 0, 1]  # equal scores: in the order of the images


@pytest.mark.parametrize("wrong, message", [(torch.zeros(48), "0 of 48 labels are wrong"), (torch.ones(48), "48 of 48 labels are wrong"), (torch.ones(5), r"shape \(5,\), but there are 48 rows")])
def test_marks_need_both_kinds(world, wrong, message):
    with pytest.raises(ValueError, match=message): auc_of_scores(label_issue_scores(world.study), wrong.bool())


@pytest.mark.parametrize("per_class, n_classes", [(1, 2), (2, 2), (1, 4), (12, 2)])
def test_tiny_and_two_class_datasets(per_class, n_classes):
    world = World(per_class, n_classes)
    suspects = label_issues(world.study)
    assert suspects.drop(columns="score").notna().all().all() and len(suspects) == per_class * n_classes
    assert (suspects.score.isna() == (per_class == 1)).all() and not (suspects.score.isna() & suspects.likely).any(), "the only image of a class is not doubted"
    pairs = confusable_pairs(world.study)
    assert len(pairs) == n_classes * (n_classes - 1) // 2 and pairs.confusion.is_monotonic_decreasing


def test_class_without_validation_image(world):
    study = world.but(2)
    assert label_issues(study).score.notna().all()
    assert (label_issue_scores(study).harm.isna() == (world.y == 2).numpy()).all()
    pairs = confusable_pairs(study, at_most=99)
    assert 2 not in pairs[["a", "b"]].to_numpy() and len(pairs) == 3
    assert _mean_probabilities(study)[2].isnan().all()


def test_pairs_by_their_definition(world):
    p = world.head[-1].logits(world.val).softmax(1)
    q = torch.stack([p[world.v == c].mean(0) for c in range(C)])
    pairs = confusable_pairs(world.study, at_most=99)
    assert sorted(zip(pairs.a, pairs.b)) == list(combinations(range(C), 2))
    for r in pairs.itertuples():
        assert (r.a_as_b, r.b_as_a) == pytest.approx((q[r.a, r.b].item(), q[r.b, r.a].item()))
        assert r.confusion == pytest.approx((r.a_as_b + r.b_as_a) / 2)
    pd.testing.assert_frame_equal(confusable_pairs(world.study, at_most=2), pairs.head(2))


def sentences(seed=5):
    "Six sentences a class: two that may not be chosen, four that point somewhere."
    emb, c = cloud(6, seed)
    return emb, pd.DataFrame(dict(text_id=range(100, 124), class_id=c.numpy(), text=[f"text {i}" for i in range(24)], flag=["not described", "duplicate", "", "", "", ""] * 4))


def test_separating_texts_by_their_definition(world):
    emb, texts = sentences()
    world.fit(world.y, pool=texts, emb=emb)
    table = separating_texts(world.study, 1, 2, at_most=99)
    assert sorted(table.text_id) == [108, 109, 110, 111]
    cosine = center(emb) @ world.train.T
    seen = center(emb) @ world.val.T
    for r in table.itertuples():
        row, val = cosine[r.text_id - 100], seen[r.text_id - 100]
        assert r.cosine == pytest.approx(row[world.y == 1].mean().item(), abs=1e-6)
        assert r.gap == pytest.approx((row[world.y == 1].mean() - row[world.y == 2].mean()).item(), abs=1e-6)
        assert r.auc == pytest.approx((val[world.v == 1][:, None] > val[world.v == 2]).float().mean().item(), abs=1e-6)
        assert r.separates == (r.auc > .5 + 2 * (11 / 300) ** .5)  # five images of either class
    fits = table.cosine > 0
    assert fits.tolist() == sorted(fits, reverse=True) and table.gap[fits].is_monotonic_decreasing and table.gap[~fits].is_monotonic_decreasing


def test_a_text_that_fits_goes_before_one_that_separates_better(world):
    emb, texts = sentences()
    one, two = (world.train[world.y == c].mean(0) for c in (1, 2))
    emb[8] = F.normalize(-two - .8 * one, dim=0)  # far from both classes, farther from class 2
    emb[9:12] = F.normalize(torch.eye(D)[5:] + .2 * one, dim=1)  # a little like class 1
    world.fit(world.y, pool=texts, emb=emb)
    table = separating_texts(world.study, 1, 2)
    assert table.text_id.iloc[-1] == 108 and table.cosine.iloc[-1] < 0 < table.cosine.iloc[0] and table.gap.idxmax() == len(table) - 1


def test_a_class_without_sentences_gets_an_empty_table(world):
    emb, texts = sentences()
    texts["flag"] = texts.flag.mask(texts.class_id == 3, "too short")
    world.fit(world.y, pool=texts, emb=emb)
    assert separating_texts(world.study, 3, 0).empty


def test_separating_without_validation_images_says_nothing_of_them(world):
    emb, texts = sentences()
    some = world.v != 2
    table = separating_texts(study_of(world.raw, world.y, world.raw_val[some], world.v[some], pool=texts, emb=emb), 1, 2)
    assert table.auc.isna().all() and not table.separates.any() and table.gap.notna().all()


def test_bad_input_is_named(world):
    with pytest.raises(ValueError, match="class 9 has no train image"): separating_texts(world.study, 9, 2)
    with pytest.raises(ValueError, match="at_most=0"): confusable_pairs(world.study, at_most=0)


@pytest.mark.parametrize("per_class", [1, 2, 12])
def test_gallery_of_suspects(per_class, tmp_path):
    world = World(per_class)
    pixels = np.random.default_rng(0).integers(0, 255, (len(world.y), 9, 12, 3), dtype=np.uint8)
    images = ImageSet("toy", ("Ash & Oak", "$5 or $6", "Ünder_score", "a rather long name of a class that needs two lines"), {"train": list(zip(pixels, world.y.tolist())), "val": [], "test": []})
    fig = label_issue_gallery(images, label_issues(world.study), n=3)
    fig.savefig(tmp_path / "suspects.png")
    assert len(fig.axes) == 3 * (1 + min(2, per_class - 1) + min(2, per_class))
