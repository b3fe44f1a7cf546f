"A long tail through the whole method: classes with one, two or three images, and classes that a split lacks. It ends, complete classes keep their numbers, and what cannot be said is NaN or left out."
import re
import zlib

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.accuracy import accuracy, confusion, correct
from datadesc.adapters import adapted, adapters
from datadesc.audit import auc_of_scores, confusable_pairs, separating_texts, label_issues, label_issue_scores
from datadesc.benchmark import benchmark, chosen_by, controls
from datadesc.stats import chance_interval, _correct_matrix, gain, summary
from datadesc.data import ImageSet
from datadesc.fewshot import take_shots
from datadesc.figures import accuracy_table, image_rows, proponent_gallery, label_issue_gallery, text_class_heatmap, tsne_figure
from datadesc.head import center
from datadesc.influence import text_influence
from datadesc.network import NetworkOptions, Network
from datadesc.selection import FORMS, ChoiceOptions, lacking_images, proponent_images
from datadesc.study import Study
from datadesc.transfer import transfer
from datadesc.zeroshot import class_scores, zero_shot

torch.set_num_threads(1)
COUNTS = {"whole": (30, 10, 12), "three": (1, 1, 1), "two": (1, 0, 1), "one": (1, 0, 0), "no train": (0, 6, 6), "no test": (8, 4, 0), "test only": (0, 0, 5)}  # train, val, test
CLASSES = tuple(COUNTS)
C, WIDTH = len(CLASSES), 16
COMPLETE, NO_VAL, NO_TRAIN, UNSEEN = (0, 1, 5), (2, 3), (4,), (6,)
READ_A_CLASS = [form for form in ("set", *FORMS) if form not in ("eq2", "random")]


def vector(word):
    "A direction of its own for every word."
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(zlib.crc32(word.encode())))


def embed(texts):
    "Texts as the sums of their words, all shifted one way."
    return F.normalize(torch.stack([sum(map(vector, re.findall(r"\w+", text))) for text in texts]) + 2 * vector("text"), dim=1)


class World:
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.labels = {split: torch.arange(C).repeat_interleave(torch.tensor([n[s] for n in COUNTS.values()])) for s, split in enumerate(("train", "val", "test"))}
        centre = torch.stack([vector(f"looks{c}") for c in range(C)])
        self.images = {split: F.normalize(centre[y] + torch.randn(len(y), WIDTH, generator=g) + 2 * vector("image"), dim=1) for split, y in self.labels.items()}
        rows = [dict(class_id=c, text=f"looks{c} {part} {kind}") for c in range(C) for part in ("head", "legs", "tail") for kind in ("long", "round")]
        self.pool = pd.DataFrame(rows).assign(text_id=range(len(rows)), flag="", scored_text=lambda t: t["text"])
        self.study = self.with_val(slice(None))
        self.texts, self.owner = self.study.text_emb, self.study.text_class
        self.train, self.val, self.head, self.found = self.study.features["train"], self.study.features["val"], self.study.scorer, self.study.influence

    def with_val(self, some, **more):
        "The study with some of the validation images."
        images, labels = (of | {"val": of["val"][some]} for of in (self.images, self.labels))
        return Study(CLASSES, images, labels, self.pool, embed, ChoiceOptions(top_k=3), **more)

    def ift(self, form, val=slice(None), **more): return self.with_val(val, **more).scores(form)

    @property
    def chosen(self): return {"pool": (self.texts, self.owner, None)}


@pytest.fixture(scope="module")
def world(): return World()


def test_the_head_learns_what_it_is_shown(world):
    last = world.head[-1]
    assert all(c.weight.isfinite().all() for c in world.head) and last.weight.shape == (C, WIDTH)
    assert correct(world.train @ last.weight.T, world.labels["train"])[:30].float().mean() > .9


def test_influence_by_class_is_not_known_without_validation_images(world):
    unknown = torch.tensor([c in NO_VAL + UNSEEN for c in range(C)])
    for table in (world.found.by_class, world.found.positive_by_class, world.found.class_proponents()[1], world.found.class_opponents()[1]):
        assert (table.isnan().all(1) == unknown).all() and table[~unknown].isfinite().all()
    matrix = text_influence(center(world.texts), world.owner, world.val, world.labels["val"], world.head)
    assert (matrix.isnan().all(0) == unknown).all() and matrix[:, ~unknown].isfinite().all()
    added = proponent_images(world.study)[1]
    assert (added[torch.isin(world.owner, torch.tensor(NO_VAL + UNSEEN))] == 0).all()


@pytest.mark.parametrize("form", ["set", *FORMS])
def test_every_form_ranks_every_sentence(world, form):
    table = world.study.scores(form)
    assert all(sorted(r) == [1, 2, 3, 4, 5, 6] for _, r in table.groupby("class_id")["rank"])
    assert table.ift.isna().equals(table.class_id.isin(UNSEEN) & (form in READ_A_CLASS))
    if form in READ_A_CLASS: assert table["rank"][table.class_id == UNSEEN[0]].tolist() == [1, 2, 3, 4, 5, 6]
    chosen = world.study.chosen(form)
    assert (chosen.groupby("class_id").proponent.sum() == 3).all()


def test_a_set_takes_the_first_sentences_of_a_class_without_images(world):
    for top_k, most in ((3, 3), ("auto", 6)):
        study = world.study.with_options(top_k=top_k)
        chosen, n = study.chosen("set"), study.n_chosen
        unseen = chosen[chosen.class_id == UNSEEN[0]]
        assert unseen.proponent.tolist() == [True] * most + [False] * (6 - most) and set(unseen.why_not) <= {"", "no image to rank it by"}
        assert set(chosen.why_not[~chosen.class_id.isin(UNSEEN)]) <= {"", "others add more", "would raise the loss"}
        assert n.tolist() == [3] * C if top_k == 3 else n.between(1, 6).all()
        assert study.few_shot(1).n_chosen.min() >= 1 and study.few_shot("all").n_chosen.equals(n)


@pytest.mark.parametrize("form", ["clip", "proponent", "weighted", "direct_own", "direct_normalised"])
def test_complete_classes_keep_their_scores_when_others_lose_their_images(world, form):
    kept = world.labels["val"] != 4
    some, everything = world.ift(form, kept).ift, world.ift(form).ift
    complete = world.pool.class_id.isin(COMPLETE).to_numpy()
    np.testing.assert_allclose(some[complete], everything[complete], rtol=1e-4, atol=1e-6)


def test_direct_scores_complete_classes_by_validation_images_alone(world):
    seen = world.pool.class_id.isin(COMPLETE + NO_TRAIN).to_numpy()
    alone = text_influence(center(world.texts), world.owner, world.val, world.labels["val"], world.head, on="all")
    np.testing.assert_allclose(world.ift("direct").ift[seen], alone[torch.tensor(seen)], rtol=1e-4, atol=1e-6)
    assert not np.allclose(world.ift("direct").ift[world.pool.class_id == 2], alone[world.owner == 2], rtol=1e-3)


def test_the_reader_is_told(world):
    notes = lacking_images(world.labels, CLASSES)
    assert len(notes) == 4
    for note, names in zip(notes, ("two, one;", "no train;", "test only:", "three, two, one is")): assert f"of {names}" in note
    assert lacking_images({split: torch.arange(C).repeat(2) for split in ("train", "val")}, CLASSES) == []


def test_accuracies_leave_out_what_is_not_tested(world):
    scores, y = class_scores(world.images["test"], world.texts, world.owner, C), world.labels["test"]
    by_class = accuracy(scores, y, per_class=True)
    assert by_class.isnan().tolist() == [c in (3, 5) for c in range(C)]
    (row,) = zero_shot(world.chosen, world.images["test"], y, C).to_dict("records")
    assert row["mean_per_class"] == pytest.approx(np.nanmean(by_class)) and row["accuracy"] == pytest.approx(accuracy(scores, y))
    assert confusion(scores.argmax(1), y, C).sum(1).tolist() == [n[2] for n in COUNTS.values()]
    assert 0 <= chance_interval(scores, y)[0] <= chance_interval(scores, y)[1] <= 1


def test_shots_come_from_the_classes_that_have_images(world):
    split = take_shots(world.labels, 1)
    assert world.labels["train"][split.train].tolist() == [0, 1, 2, 3, 5]
    assert len(take_shots(world.labels, "all").train) == len(world.labels["train"])
    with pytest.raises(ValueError, match="has 1 images: too few for 4 shots"): take_shots(world.labels, 4)


@pytest.mark.parametrize("protocol", ["transfer", "paper"])
def test_transfer_ends(world, protocol):
    table = transfer(world.images, world.labels, world.chosen, shots=[1, "all"], seeds=range(2), zero_shot_start=["pool"], joint=["pool"], options=protocol)
    assert set(table.shots) == {"1", "all"} and table.accuracy.notna().all() and table.mean_per_class.notna().all()
    known = table[(table.method == "images only") & (table.shots == "all")]
    rights = _correct_matrix(known)[:, (world.labels["test"] == 6).numpy()]
    assert not rights.any(), "no image of this class was ever shown"


def test_adapters_end(world):
    table = adapted(world.images, world.labels, world.chosen, adapters(10.), shots=[1, "all"], seeds=range(2))
    assert len(table) == 5 * 2 * 2 and table.accuracy.between(0, 1).all()
    probe = _correct_matrix(table[(table.method == "logistic regression")])
    assert not probe[:, torch.isin(world.labels["test"], torch.tensor([4, 6])).numpy()].any(), "the probe knows classes by their images alone"


def test_the_audit_says_what_it_can(world):
    suspects = label_issues(world.study)
    assert len(suspects) == len(world.train)
    alone = suspects.given.isin([1, 2, 3])
    assert suspects.score.isna().equals(alone) and not suspects.likely[alone].any() and alone.iloc[-3:].all()
    scores = label_issue_scores(world.study)
    marks = auc_of_scores(scores, torch.arange(len(world.train)) == 0)
    assert np.isnan(marks.auc["harm"]) and marks.auc.drop("harm").notna().all()
    pairs = confusable_pairs(world.study)
    assert set(pairs.a) | set(pairs.b) == {0, 1, 4, 5} and pairs.notna().all().all()
    table = separating_texts(world.study, 2, 0)
    assert table.gap.notna().all() and table.auc.isna().all() and not table.separates.any()


@pytest.mark.parametrize("shots, paper", [((1, "all"), ("all",)), ((), ("all",)), ((), ())])
def test_the_benchmark_ends(world, shots, paper):
    methods = {form: chosen_by(form) for form in READ_A_CLASS} | controls(world.study)
    table = benchmark(world.study, methods, shots, paper, range(2), start=["set", "direct"], joint=["set", "direct"],
                      adapters={name: (adapter, ["set", "direct"]) for name, adapter in adapters(10.).items()})
    assert table.accuracy.notna().all() and table.mean_per_class.notna().all()
    assert set(table.protocol) == {"zero_shot"} | ({"transfer", "adapter"} if shots else set()) | ({"paper"} if paper else set())
    lines, trained = summary(table), table[table.protocol.isin(["transfer", "adapter"])]
    gains = gain(trained, over="images only", within=["shots"])
    assert lines["mean"].notna().all() and (len(gains) > 0) == bool(shots)
    assert list(gains.columns) == ["shots", "method", "gain", "low", "high", "p", "p_holm", "significant"]
    if shots: accuracy_table(lines[lines.protocol.isin(["transfer", "adapter"])], gains)


def test_a_network_is_trained_on_what_there_is(world, tmp_path):
    rng = np.random.default_rng(0)
    samples = {split: [(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), int(c)) for c in y] for split, y in world.labels.items()}
    images, network = ImageSet("tail", CLASSES, samples), Network.load("resnet10t", C, side=32, device="cpu")
    training = network.train(images, tmp_path, NetworkOptions(epochs=1, n_checkpoints=1), progress=False)
    found = network.influence(training.checkpoints, images, world.train)
    assert found.by_class.isnan().all(1).tolist() == [c in NO_VAL + UNSEEN for c in range(C)]
    for form in ("proponent", "weighted"): assert world.ift(form, image_influence=found).ift.isna().equals(world.pool.class_id.isin(UNSEEN))


def test_figures_show_what_there_is(world, tmp_path, recwarn):
    rng = np.random.default_rng(0)
    images = ImageSet("tail", CLASSES, {split: [(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8), int(c)) for c in y] for split, y in world.labels.items()})
    matrix = text_influence(center(world.texts), world.owner, world.val, world.labels["val"], world.head)
    scores = world.ift("direct").join(world.pool["text"])
    teachers = {c: [] if c in NO_VAL + UNSEEN else world.found.class_proponents(3)[0][c].tolist() for c in range(C)}
    suspects = label_issues(world.study)
    heat = text_class_heatmap(matrix, world.owner, list(world.pool.text), CLASSES)
    cloud = tsne_figure(world.images["test"], world.labels["test"], {"sentences": (world.texts, world.owner)}, CLASSES)
    for fig in (heat, cloud, proponent_gallery(images, teachers, scores), label_issue_gallery(images, suspects, n=2), image_rows([[(images.images("test")[0], "one")]])): fig.savefig(tmp_path/"figure.png")
    assert "grey: no image" in heat.axes[-1].get_ylabel()
    assert sorted(t.get_text() for t in cloud.axes[0].texts) == sorted(CLASSES)
    assert not [w for w in recwarn if issubclass(w.category, (RuntimeWarning, UserWarning))]
