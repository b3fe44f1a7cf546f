"The decoy test: what may be mixed in, whose share is counted, and what a random or class-blind choice gives."
import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from datadesc.decoys import decoy_pool, decoy_precision, decoy_summary
from datadesc.results import Result
from datadesc.run_folder import RunFolder
from datadesc.selection import ChoiceOptions
from datadesc.study import Study
from datadesc.summary import measured

C, D, EACH = 12, 24, 8
CENTRES = F.normalize(torch.randn(C, D, generator=torch.Generator().manual_seed(0)), dim=1)


def near(labels, spread, seed):
    "Rows of length one around the centres of their classes."
    return F.normalize(CENTRES[labels] + spread * torch.randn(len(labels), D, generator=torch.Generator().manual_seed(seed)) / D ** .5, dim=1)


def pool_of(texts):
    "A pool of these texts by class."
    rows = [dict(class_id=c, text=text) for c, of in texts.items() for text in of]
    return pd.DataFrame(rows).assign(text_id=lambda t: range(len(t)), scored_text=lambda t: t.text, flag="", source="file")


def study_of(pool, about=None, options=ChoiceOptions("clip"), labels=None, **more):
    "A study whose encoder knows what each text was written about."
    about = dict(zip(pool.text, pool.class_id)) if about is None else about
    labels = labels or {split: torch.arange(C).repeat_interleave(n) for split, n in dict(train=6, val=4).items()}
    emb = {split: near(torch.arange(C).repeat_interleave(n), .8, n) for split, n in dict(train=6, val=4).items()}

    def embed(texts): return torch.stack([near(torch.tensor([about[t]]), .8, sum(map(ord, t)))[0] for t in texts])
    return Study(tuple(f"class {c}" for c in range(C)), emb, labels, pool, embed, options, **more)


@pytest.fixture
def pool(): return pool_of({c: [f"about {c} number {i}" for i in range(EACH)] for c in range(C)})


def test_as_many_decoys_as_own_and_each_from_another_class(pool):
    mixed = decoy_pool(pool, 1)
    assert (mixed.groupby("class_id").own.mean() == .5).all() and len(mixed) == 2 * len(pool)
    assert (mixed.from_class[mixed.own] == mixed.class_id[mixed.own]).all() and (mixed.from_class[~mixed.own] != mixed.class_id[~mixed.own]).all()
    assert mixed.text_id.tolist() == list(range(len(mixed))) and mixed.index.equals(pd.RangeIndex(len(mixed)))
    assert 0 < mixed.own.head(len(pool)).mean() < 1, "own sentences do not stand first, where ties would choose them"
    assert not decoy_pool(pool, 2).equals(mixed)


def test_flagged_sentences_and_names_that_stand_in_are_neither_own_nor_decoys(pool):
    pool.loc[pool.class_id == 0, "flag"] = ["refusal"] * 5 + [""] * 3
    pool.loc[pool.class_id == 1, "source"] = "class name"
    mixed = decoy_pool(pool)
    assert 1 not in set(mixed.class_id) | set(mixed.from_class)
    assert mixed[mixed.class_id == 0].own.tolist().count(True) == 3 == mixed[mixed.class_id == 0].own.tolist().count(False)
    assert (mixed.flag == "").all()


def test_the_same_words_are_no_decoy_even_where_the_own_sentence_is_flagged(pool):
    pool.loc[pool.text == "about 1 number 0", ["text", "scored_text"]] = "Red wings."
    pool.loc[pool.text == "about 2 number 0", ["text", "scored_text"]] = "red  wings"
    pool.loc[pool.class_id == 2, "flag"] = pool.flag.mask(pool.text == "red  wings", "duplicate")
    for seed in range(8):
        mixed = decoy_pool(pool, seed)
        assert not ((mixed.class_id == 2) & (mixed.text == "Red wings.")).any()
        assert not mixed.duplicated(["class_id", "scored_text"]).any()


def test_fewer_decoys_than_asked_for_are_counted():
    pool = pool_of({0: [f"about 0 number {i}" for i in range(10)], 1: ["about 1 number 0", "about 1 number 1", "about 1 number 2"]})
    shares = decoy_precision(study_of(pool)).set_index("class_id")
    assert set(shares.loc[0].decoys) == {3} and set(shares.loc[0].chance) == {10 / 13} and set(shares.loc[0]["first"]) == {5}
    assert set(shares.loc[1].candidates) == {3} and set(shares.loc[1]["first"]) == {3}, "as many as the class has of its own"


@pytest.mark.parametrize("texts", [{0: ["about 0 a", "about 0 b"]}, {c: ["a thing", "one more"] for c in range(C)}])
def test_nothing_to_mix_in_gives_no_row(texts):
    pool = pool_of(texts)
    shares = decoy_precision(study_of(pool, about=dict.fromkeys(pool.text, 0)))
    assert shares.empty and decoy_summary(shares).empty


def test_a_class_without_images_is_left_out(pool):
    keep = {split: torch.arange(C).repeat_interleave(n) for split, n in dict(train=6, val=4).items()}
    keep = {split: y.where(y != 3, torch.tensor(4)) for split, y in keep.items()}
    for form in ("set", "clip", "direct"):
        assert set(decoy_precision(study_of(pool, labels=keep), [form]).class_id) == set(range(C)) - {3}


def test_a_choice_that_sees_the_class_is_far_above_chance_and_others_at_it(pool):
    study = study_of(pool, logit_scale=10.)
    lines = decoy_summary(decoy_precision(study, ["set", "clip", "direct", "random"], range(5))).set_index("form")
    assert (lines.loc[["set", "clip", "direct"], "low"] > .8).all() and abs(lines.own["random"] - .5) < .1
    rng = np.random.default_rng(0)
    blind = study_of(pool, about={t: int(rng.integers(C)) for t in pool.text})  # an encoder to which texts mean anything
    line = decoy_summary(decoy_precision(blind, ["clip"], range(5))).iloc[0]
    assert line.own < .65 and line.own < lines.low["clip"]


def test_images_of_a_few_shot_episode_and_other_options(pool):
    study = study_of(pool).with_options(diversity=.2, near_duplicate=.99)
    assert len(decoy_precision(study.few_shot(4), ["set", "clip"], [0])) == 2 * C


def test_random_stays_below_its_upper_end():
    "A random choice of classes of several sizes: the closed form against draws."
    rng, sizes = np.random.default_rng(0), [(20, 20, 5), (4, 4, 4), (9, 3, 5), (6, 6, 5)]
    rows = [dict(form="random", seed=0, class_id=c, first=k, own=.5, chance=a / (a + b), candidates=a, decoys=b) for c, (a, b, k) in enumerate(sizes)]
    line = decoy_summary(pd.DataFrame(rows)).iloc[0]
    drawn = np.mean([rng.hypergeometric(a, b, k, 20_000) / k for a, b, k in sizes], axis=0)
    assert line.chance == pytest.approx(drawn.mean(), abs=.005) and .005 < (drawn > line.chance_high).mean() < .04


def write_run(root, name, **more):
    facts = dict(schema_version="2", dataset=name, classes=["a"], raw_names=["a"], images=dict(train=1, val=1, test=1), accuracy=[], versions={}, seconds={},
                 parameters=dict(form="set", model="tiny", checkpoint=None, knowledge="text"))
    (root/name).mkdir(parents=True)
    (root/name/"result.json").write_text(json.dumps(facts | more))
    RunFolder(root/name).write_mark(name)


def test_results_of_before_are_read_and_new_ones_keep_it(tmp_path):
    line = dict(form="set", own=.8, low=.7, high=.9, chance=.5, chance_high=.6, classes=24, seeds=3)
    write_run(tmp_path, "before")
    write_run(tmp_path, "now", decoys=[line])
    assert Result.read(tmp_path/"before").decoys == [] and Result.read(tmp_path/"now").decoys[0].own == .8
    rows = measured(tmp_path, ["before", "now"], "decoys")
    assert rows[["run", "protocol", "method", "mean", "low", "high", "chance"]].values.tolist() == [["now", "decoys", "set", .8, .7, .9, .5]]
    (tmp_path/"now"/"benchmark.json").write_text(json.dumps(dict(decoys=[line, line | dict(form="clip", own=.9)])))
    assert list(measured(tmp_path, ["now"], "decoys").method) == ["set", "clip"], "a benchmark has all forms"
