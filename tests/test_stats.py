"Rows, intervals and tests beyond what chapter 52 shows."
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ttest_1samp
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from datadesc.stats import chance_interval, gain, holm, interval, paired_test, _resampled_means, summary
from datadesc.accuracy import accuracy_row

torch.set_num_threads(1)


def test_a_row_agrees_with_scikit_learn():
    g = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(300, 12, generator=g), torch.cat([torch.arange(12), torch.randint(12, (288,), generator=g) ** 2 // 12])  # of unequal size
    row = accuracy_row(scores, labels)
    assert row["accuracy"] == pytest.approx((scores.argmax(1) == labels).float().mean().item())
    assert row["mean_per_class"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert row["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=range(12)))


def test_top5_is_left_open_for_five_classes():
    assert np.isnan(accuracy_row(torch.eye(5), torch.arange(5))["top5"])
    assert accuracy_row(torch.eye(6), torch.arange(6))["top5"] == 1


def test_a_class_without_test_images_counts_for_nothing():
    row = accuracy_row(torch.eye(4)[[0, 0, 2]], torch.tensor([0, 0, 3]))
    assert row["mean_per_class"] == .5


def test_a_head_that_diverged_is_not_right():
    assert accuracy_row(torch.full((3, 8), float("nan")), torch.tensor([5, 6, 7]))["accuracy"] == 0


def test_interval_of_several_seeds_covers_the_truth():
    "Accuracies of 5 seeds on 200 images, many times: the 95 % interval holds the true mean about as often as it says."
    rng, held = np.random.default_rng(0), 0
    for trial in range(100):
        skill = rng.normal(.8, .02, (5, 1))
        low, high = interval(rng.random((5, 200)) < skill, seed=trial, repeats=400)
        held += low <= .8 <= high
    assert held >= 88


def test_interval_is_the_same_every_time_and_bounds_the_mean():
    values = np.random.default_rng(1).random((3, 100)) < .7
    assert interval(values) == interval(torch.tensor(values))
    low, high = interval(values)
    assert low <= values.mean() <= high
    assert interval(np.ones(10)) == (1., 1.)


def test_chance_interval_covers_predictions_that_ignore_the_image():
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat_interleave(40)
    low, high = chance_interval(torch.rand(400, 10, generator=g), labels)
    assert low < .1 < high


def test_chance_interval_leaves_out_predictions_that_do_not():
    labels = torch.arange(10).repeat_interleave(40)
    assert chance_interval(F.one_hot(labels, 10).float(), labels)[1] < .5


def scored(right):
    "Scores (N, 2) of images of class 0 that come out right or wrong as told, and their labels."
    return F.one_hot(1 - torch.tensor(right).long(), 2), torch.zeros(len(right), dtype=torch.long)


def line(method, seed, right, protocol="transfer"):
    "A row of the accuracies table with these rights and wrongs."
    return accuracy_row(*scored(right), method=method, protocol=protocol, aggregation="none", names="without", shots="1", k=1, weighting="none", seed=seed)


def test_gain_is_paired():
    "A method that is right on one image more, always the same, is clearly better although both intervals overlap."
    hard = [True] * 150 + [False] * 50
    better = [True] * 160 + [False] * 40
    rows = pd.DataFrame([line("base", 0, hard), line("more", 0, better), line("same", 0, hard)])
    lines = summary(rows).set_index("method")
    assert lines.low["more"] < lines.high["base"]
    found = gain(rows, over="base").set_index("method")
    assert found.significant["more"] and not found.significant["same"]
    assert found.gain["more"] == pytest.approx(.05)


def test_gain_wants_the_same_seeds():
    rows = pd.DataFrame([line("base", 0, [True]), line("other", 1, [True])])
    with pytest.raises(ValueError, match="seeds"): gain(rows, over="base")
    with pytest.raises(ValueError, match="nobody"): gain(rows, over="nobody")


def test_different_test_images_are_not_mixed():
    rows = pd.DataFrame([line("a", 0, [True]), line("a", 1, [True, False])])
    with pytest.raises(ValueError, match="test images"): summary(rows)


def test_interval_holds_the_truth_however_few_seeds_disagree():
    "The plain bootstrap of 3 seeds holds it in three cases of four; ours in 95 of 100."
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        low, high = interval(rng.random((3, 100)) < rng.normal(.7, .05, (3, 1)), repeats=400)
        held += low <= .7 <= high
    assert held >= 180


def test_values_that_never_repeat_are_drawn_in_portions():
    values = np.random.default_rng(0).normal(.1, 1, 50_000)
    assert _resampled_means(values, 100).std() == pytest.approx(1 / 50_000 ** .5, rel=.2)
    assert np.allclose(_resampled_means(values, 100), _resampled_means(values, 100))


def test_interval_stays_among_the_values():
    nearly = np.ones((2, 50)); nearly[0, :9] = 0
    low, high = interval(nearly)
    assert 0 <= low and high == 1


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_seeds_that_decide_alone_give_the_t_test(seeds):
    "Where all images of a seed agree, images bring no luck of their own, and what is left is Student's test of the seeds' means."
    means = np.random.default_rng(seeds).normal(.05, .05, seeds)
    difference = np.repeat(means[:, None], 40, axis=1)
    assert paired_test(difference) == pytest.approx(ttest_1samp(means, 0).pvalue, abs=.02)


def test_a_paired_test_is_the_same_both_ways_round():
    difference = np.random.default_rng(0).integers(-1, 2, (5, 200))
    assert paired_test(difference) == pytest.approx(paired_test(-difference), abs=.02)
    assert paired_test(difference[0]) == paired_test(-difference[0])


def test_holm_rejects_as_the_definition_does():
    "Step down: go on while the smallest p left is below level / (number left)."
    rng = np.random.default_rng(0)
    for _ in range(100):
        p = rng.random(rng.integers(1, 12)) ** 3
        expected, left = np.zeros(len(p), bool), len(p)
        for i in p.argsort():
            if p[i] >= .05 / left: break
            expected[i], left = True, left - 1
        assert ((holm(p) < .05) == expected).all()
    assert len(holm([])) == 0


def test_comparisons_of_one_call_are_corrected_together():
    base, better = [True] * 150 + [False] * 50, [True] * 157 + [False] * 43
    rows = [line("base", 0, base), line("better", 0, better)]
    assert gain(pd.DataFrame(rows), over="base").significant.all()
    many = gain(pd.DataFrame(rows + [line(f"other {i}", 0, base) for i in range(9)]), over="base").set_index("method")
    assert many.p["better"] < .05 < many.p_holm["better"]
    assert many.p_holm["better"] == pytest.approx(10 * many.p["better"])
    assert not many.significant.any()


def test_words_without_a_seed_stand_beside_every_seed():
    rights = np.random.default_rng(0).random((4, 100)) < .7
    rows = pd.DataFrame([line("names", 0, rights[3], "zero_shot")] + [line("random words", s, rights[s], "zero_shot") for s in range(3)])
    assert gain(rows, over="names").gain[0] == pytest.approx(rights[:3].mean() - rights[3].mean())
    assert gain(rows, over="random words").gain[0] == pytest.approx(rights[3].mean() - rights[:3].mean())
    with pytest.raises(ValueError, match="seeds"): gain(rows.assign(protocol="transfer"), over="names")


def test_rows_that_cannot_be_told_apart_are_not_taken_for_seeds():
    rows = pd.DataFrame([line(m, 0, [True, False]) for m in ("base", "base", "other", "other")])
    with pytest.raises(ValueError, match="several rows of seed 0"): gain(rows, over="base")
    assert len(gain(rows.assign(names=["with", "without"] * 2), over="base", within=("names",))) == 2


def test_nothing_to_compare_is_an_empty_table():
    found = gain(pd.DataFrame([line("base", 0, [True, False])]), over="base")
    assert len(found) == 0 and {"p", "p_holm", "significant", "gain"} <= set(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_rows_of_scores_on_a_gpu():
    scores, labels = torch.rand(100, 8), torch.randint(8, (100,))
    assert accuracy_row(scores.cuda(), labels) == accuracy_row(scores, labels)
