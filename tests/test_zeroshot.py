"Zero-shot scores and table rows beyond what chapter 50 shows."
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import top_k_accuracy_score

from datadesc.accuracy import accuracy
from datadesc.stats import _correct_matrix, summary
from datadesc.zeroshot import AGGREGATIONS, class_scores, names_only, with_names, zero_shot


torch.set_num_threads(1)


@pytest.fixture
def world():
    g = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(50, 8, generator=g), dim=1), F.normalize(torch.randn(12, 8, generator=g), dim=1)
    return image, text, torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 3]), torch.randint(4, (50,), generator=g)


def one_by_one(image, text, ids, n, aggregation):
    "The formulas of the chapter as loops."
    out = torch.zeros(len(image), n)
    for i, x in enumerate(image):
        for c in range(n):
            own = text[ids == c]
            if aggregation == "mean": out[i, c] = sum(x @ t for t in own) / len(own)
            if aggregation == "mean_embedding": out[i, c] = F.cosine_similarity(x, own.mean(0), dim=0)
            if aggregation == "max": out[i, c] = max(x @ t for t in own)
    return out


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_scores_follow_the_formulas(world, aggregation):
    image, text, ids, _ = world
    assert torch.allclose(class_scores(image, text, ids, 4, aggregation), one_by_one(image, text, ids, 4, aggregation), atol=1e-6)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_order_of_sentences_does_not_matter(world, aggregation):
    image, text, ids, _ = world
    other = torch.randperm(len(text))
    assert torch.allclose(class_scores(image, text, ids, 4, aggregation), class_scores(image, text[other], ids[other], 4, aggregation), atol=1e-6)


def test_what_cannot_be_scored_is_named(world):
    image, text, ids, _ = world
    with pytest.raises(ValueError, match="No sentence for class 4, 5"): class_scores(image, text, ids, 6)
    with pytest.raises(ValueError, match="n_classes=3"): class_scores(image, text, ids, 3)
    with pytest.raises(ValueError, match="mean_embedding"): class_scores(image, text, ids, 4, "median")


def test_the_first_places_agree_with_scikit_learn(world):
    image, text, ids, labels = world
    scores = class_scores(image, text, ids, 4)
    for k in (1, 2, 3): assert accuracy(scores, labels, k) == pytest.approx(top_k_accuracy_score(labels, scores, k=k))
    with pytest.raises(ValueError, match="one label per image"): accuracy(scores, labels[:-1], k=2)


def test_names_may_hold_braces_and_templates_must_hold_fields():
    assert with_names(["100 % {cotton}"], [0], ["T{shirt}"]) == ["T{shirt}, 100 % {cotton}"]
    with pytest.raises(ValueError, match="{text}"): with_names(["a"], [0], ["b"], "{class}")
    with pytest.raises(ValueError): names_only(["a"], "{class} {colour}")


def test_rows_survive_parquet(world, tmp_path):
    image, text, ids, labels = world
    rows = zero_shot({"a": (text, ids), "b": (text.flip(0), ids)}, image, labels, 4, AGGREGATIONS)
    rows.to_parquet(tmp_path / "rows.parquet")
    back = pd.read_parquet(tmp_path / "rows.parquet")
    assert (_correct_matrix(back) == _correct_matrix(rows)).all()
    assert np.allclose(_correct_matrix(back).mean(1), back.accuracy)
    assert len(summary(back)) == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_on_a_gpu(world):
    image, text, ids, labels = world
    there = zero_shot({"a": (text.cuda(), ids.cuda())}, image.cuda(), labels.cuda(), 4, AGGREGATIONS)
    assert there.drop(columns="correct").equals(zero_shot({"a": (text, ids)}, image, labels, 4, AGGREGATIONS).drop(columns="correct"))
