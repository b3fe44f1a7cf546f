"Large datasets: blocks change nothing beyond rounding, and no stage makes a table of images and classes."
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import datadesc.influence
import datadesc.transfer
from datadesc.accuracy import accuracy_row
from datadesc.decoys import decoy_pool
from datadesc.fewshot import rows_by_class
from datadesc.head import Checkpoint, HeadOptions, center, modality_mean, row_blocks, train_head
from datadesc.influence import influence
from datadesc.sets import set_influence
from datadesc.transfer import TransferOptions, batches, train_stage, transfer
from datadesc.zeroshot import AGGREGATIONS, class_scores, zero_shot
from two_modalities import CLASSES, WIDTH, two_modalities

torch.set_num_threads(1)
QUICK = TransferOptions(image=HeadOptions(lr=1., epochs=6, batch_size=16), text=HeadOptions(lr=.3, epochs=3, batch_size=16, schedule="constant"),
                        rates=(.1,))


@pytest.fixture(scope="module")
def world(): return two_modalities(1.5)


@pytest.fixture
def small_blocks(monkeypatch):
    "Blocks of a few rows in every module, once called."
    def of_few_rows(n, width, memory_mb=64, bytes_each=4): return row_blocks(n, 1, 7 * 4 / 2 ** 20)
    def shrink():
        for name in ("head", "influence", "sets", "transfer", "zeroshot"): monkeypatch.setattr(f"datadesc.{name}.row_blocks", of_few_rows)
    return shrink


def test_blocks_cover_all_rows_once_and_fit_the_budget():
    for n, width, mb in ((1000, 300, .05), (7, 10 ** 9, 1), (0, 5, 1), (64, 1, 64)):
        rows = list(row_blocks(n, width, mb))
        assert [i for b in rows for i in range(b.start, b.stop)] == list(range(n))
        assert all(b.stop - b.start == 1 or (b.stop - b.start) * width * 4 <= mb * 2 ** 20 for b in rows)


def test_rows_by_class_are_those_of_a_search(world):
    labels = torch.tensor([4, 1, 4, 0, 1, 4])
    for c, rows in enumerate(rows_by_class(labels, 7)): assert torch.equal(rows, (labels == c).nonzero()[:, 0])
    assert len(rows_by_class(labels, 7)) == 7 and len(rows_by_class(labels[:0], 3)) == 3


def test_features_and_losses_in_blocks(world, small_blocks):
    images, labels, _ = world
    def values():
        x = center(images["train"])
        layer = train_head(x, labels["train"], CLASSES, HeadOptions(epochs=3))[-1]
        return modality_mean(images["train"]), x, layer.weight, torch.tensor(layer.mean_loss(x, labels["train"]))
    whole = values()
    small_blocks()
    for a, b in zip(whole, values()): assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_storage_only(world, dtype):
    images, labels, _ = world
    stored = images["train"].to(dtype)
    x = center(stored)
    assert x.dtype == dtype and modality_mean(stored).dtype == torch.float32
    assert torch.allclose(x.float(), center(stored.float()), atol=1e-2)
    options = HeadOptions(epochs=5)
    a, b = (train_head(features, labels["train"], CLASSES, options)[-1] for features in (x, x.float()))
    assert a.weight.dtype == torch.float32 and torch.equal(a.weight, b.weight)


def test_zero_shot_in_blocks(world, small_blocks):
    images, labels, texts = world
    def table(): return zero_shot({"texts": texts}, images["test"], labels["test"], CLASSES, AGGREGATIONS)
    whole = table()
    small_blocks()
    pd.testing.assert_frame_equal(table(), whole)
    scores = class_scores(images["test"], *texts[:2], CLASSES)
    in_blocks, at_once = (pd.DataFrame([accuracy_row(s, labels["test"], method="texts")]) for s in (scores.split(9), scores))
    pd.testing.assert_frame_equal(in_blocks, at_once)
    with pytest.raises(ValueError, match="expected one label per image"): accuracy_row(scores.split(9), labels["test"][:-1])
    with pytest.raises(ValueError, match="expected one label per image"): accuracy_row(scores.split(9)[:-1], labels["test"])


def test_transfer_in_blocks(world, small_blocks, monkeypatch):
    images, labels, texts = world
    def table(): return transfer(images, labels, {"texts": texts}, QUICK, shots=(4, "all"), seeds=range(2), zero_shot_start=["texts"], joint=["texts"])
    whole = table()
    small_blocks()
    monkeypatch.setattr(datadesc.transfer, "_BATCHES_MB", 0)
    pd.testing.assert_frame_equal(table(), whole)


@pytest.mark.parametrize("portion", [1, 3, 5, 100])
def test_batches_drawn_in_portions_are_those_drawn_at_once(portion):
    rows, weight = batches(n=10, steps=20, size=4, seed=5)
    draw = datadesc.transfer._Batches(10, 4, 5)
    parts = [draw.take(min(portion, 20 - i)) for i in range(0, 20, portion)]
    assert torch.equal(torch.cat([r for r, _ in parts]), rows) and torch.equal(torch.cat([w for _, w in parts]), weight)
    order = torch.Generator().manual_seed(5)
    laid_out = [row for _ in range(7) for row in torch.randperm(10, generator=order).split(4)]
    assert all(torch.equal(r[:len(o)], o) for r, o in zip(rows, laid_out))


def test_heads_do_not_depend_on_the_portions(world, monkeypatch):
    "Bit for bit: the same rows in the same order."
    images, labels, (emb, y, _) = world
    sets = [dict(train=(images["train"], labels["train"]))] * 2
    texts = [[(emb, y, torch.ones(len(y))), (emb[:9], y[:9], torch.rand(9))]] * 2
    start = [Checkpoint(torch.zeros(CLASSES, WIDTH), torch.zeros(CLASSES), 0., 0, 10.)] * 4
    def layers(): return train_stage(sets, texts, start, [3, 4], 7, QUICK.text, .5).layers
    whole = layers()
    for mb in (0, 1e-3): monkeypatch.setattr(datadesc.transfer, "_BATCHES_MB", mb); assert torch.equal(layers(), whole)


def test_sets_in_blocks(world, small_blocks):
    images, labels, texts = world
    def chosen(): return set_influence(images["train"], labels["train"], *texts[:2], 300., 2)
    place, value = chosen()
    small_blocks()
    again = chosen()
    assert torch.equal(again[0], place) and torch.allclose(again[1], value)


def test_tables_by_class_are_left_out_where_they_are_too_large(world, monkeypatch):
    images, labels, _ = world
    ckpts = train_head(images["train"], labels["train"], CLASSES, HeadOptions(epochs=2))
    data = images["train"], labels["train"], images["val"], labels["val"], ckpts
    bytes_of_both = 2 * CLASSES * len(images["train"]) * 4
    for limit, by_class, there in ((bytes_of_both, None, True), (bytes_of_both - 1, None, False), (0, True, True), (1e9, False, False)):
        monkeypatch.setattr(datadesc.influence.Influence, "MOST_TABLES", limit)
        found = influence(*data, by_class=by_class)
        assert (found.by_class is not None) is there and found.positive_mean.isfinite().all()


def decoys_by_sorting(pool, seed):
    "The decoys as they were drawn before: by sorting the whole pool for each class."
    rng, words, class_id = np.random.default_rng(seed), pool.text.str.lower().factorize()[0], pool.class_id.to_numpy()
    at, drawn = np.flatnonzero(pool.flag == ""), []
    for c, n in pool.class_id[pool.flag == ""].value_counts().sort_index().items():
        others = at[~np.isin(words[at], words[class_id == c])]
        others = others[rng.permutation(len(others))]
        drawn += [(c, row) for row in others[np.sort(np.unique(words[others], return_index=True)[1])[:n]]]
    return drawn


@pytest.mark.parametrize("wordings", [3, 12, 1000])
def test_decoys_are_those_of_a_sorted_pool(wordings):
    rng = np.random.default_rng(wordings)
    pool = pd.DataFrame(dict(text_id=range(400), class_id=rng.integers(0, 20, 400), text=[f"wording {i}" for i in rng.integers(0, wordings, 400)],
                             flag=rng.choice(["", "", "odd"], 400)))
    pool["row"] = range(400)
    mixed = decoy_pool(pool, seed=7)
    decoys = mixed[~mixed.own]
    assert sorted(zip(decoys.class_id, decoys.row)) == sorted(decoys_by_sorting(pool, 7))


# Peak memory, each stage in a process of its own. Bounds are computed from the sizes: what a stage must hold, and a few blocks.
STAGES = Path(__file__).with_name("stages_of_size.py")
SIZES = dict(all=dict(n=40_000, n_classes=4_000, n_texts=8_000, width=16), set=dict(n=40_000, n_classes=500, n_texts=500, width=16))
BUDGET = 64 * 2 ** 20


@pytest.fixture(scope="module")
def peaks():
    "Bytes beyond the inputs, by stage."
    run = subprocess.run([sys.executable, STAGES, json.dumps(SIZES)], capture_output=True, text=True)
    if "cannot measure" in run.stderr: pytest.skip(run.stderr)
    assert not run.returncode, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("stage", ["center", "head", "mean_loss", "influence", "direct", "clip", "zero_shot", "transfer"])
def test_no_stage_makes_a_table_of_images_and_classes(peaks, stage):
    "Three blocks (scores, their logarithm, what is made of them), three copies of the features, some layers, the texts."
    n, n_classes, n_texts, width = SIZES["all"].values()
    bound = 3 * BUDGET + 4 * width * (3 * n + 20 * n_classes + 4 * n_texts)
    assert bound < 4 * n * n_classes / 2.5 and peaks[stage] < bound, f"{peaks[stage] / 1e6:.0f} MB, expected less than {bound / 1e6:.0f}"


def test_sets_make_no_table_of_images_and_classes(peaks):
    "All classes for 1,024 images at a time, in double precision, and two dozen numbers per image."
    n, n_classes, _, width = SIZES["set"].values()
    bound = 4 * 8 * 1024 * n_classes + n * (2 * 4 * width + 24 * 8)
    assert bound < 8 * n * n_classes / 5 and peaks["set"] < bound, f"{peaks['set'] / 1e6:.0f} MB, expected less than {bound / 1e6:.0f}"


def test_batches_of_all_epochs_are_not_laid_out(peaks):
    "200 epochs of 100,000 rows would be 240 MB, and several copies of them."
    assert peaks["batches"] < 120e6
