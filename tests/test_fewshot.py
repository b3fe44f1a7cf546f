"Few images of every class: how many, which, and what is held out of them."
import pytest
import torch

from datadesc.fewshot import _draw_shots, take_shots

LABELS = torch.tensor([1, 0, 1, 0, 1, 0])


def test_as_many_of_every_class_and_others_with_another_seed():
    assert LABELS[_draw_shots(LABELS, 2)].tolist() == [0, 0, 1, 1]
    assert _draw_shots(LABELS, 1, seed=1).tolist() == _draw_shots(LABELS, 1, seed=1).tolist()
    assert len({tuple(_draw_shots(LABELS, 1, seed=seed).tolist()) for seed in range(20)}) > 3
    with pytest.raises(ValueError, match="Class 0 has 3 images: too few for 4 shots"): _draw_shots(LABELS, 4)


def test_more_shots_hold_the_fewer():
    assert set(_draw_shots(LABELS, 2).tolist()) < set(_draw_shots(LABELS, 3).tolist())


@pytest.mark.parametrize("shots", [2, 3, "3"])
def test_validation_images_come_out_of_the_shots(shots):
    split = take_shots(dict(train=LABELS, val=LABELS[:2]), shots, seed=5)
    fit, val = set(split.fit.tolist()), set(split.val.tolist())
    assert split.shots == str(shots) and not fit & val and fit | val == set(split.train.tolist()) and split.val_from == "train"


def test_one_shot_is_both_and_all_leave_the_validation_split_alone():
    one, everything = (take_shots(dict(train=LABELS, val=LABELS[:2]), shots) for shots in (1, "all"))
    assert torch.equal(one.fit, one.val) and len(one.train) == 2
    assert torch.equal(everything.train, torch.arange(6)) and torch.equal(everything.val, torch.arange(2)) and everything.val_from == "val"
