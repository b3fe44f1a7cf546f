"Figures hold together with words, classes and tables that chapter 80 does not show."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from datadesc.data import ImageSet
from datadesc.figures import STYLE, WIDTH, accuracy_bars, image_rows, proponent_gallery, pushed_apart, selections_compared, text_class_heatmap, tsne_figure

torch.set_num_threads(1)
CLASSES = ("Ash & Oak", "$5 or $6", "Ünder_score", "a rather long name of a class")


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return ImageSet("toy", CLASSES, {"train": [(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8), c) for c in range(4) for _ in range(6)], "val": [], "test": []})


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    words = "broad $narrow$ under_score 50% wing {brace} ^hat of the".split()
    table = pd.DataFrame([dict(class_id=c, text=" ".join(rng.choice(words, rng.integers(1, 60)))) for c in range(4) for _ in range(6)])
    table["ift"] = rng.normal(size=len(table))
    table["rank"] = table.groupby("class_id").ift.rank(ascending=False).astype(int)
    return table


def drawn(fig, tmp_path):
    "The figure drawn to a file, and the boxes of its words in pixels."
    assert isinstance(fig, Figure)
    fig.savefig(tmp_path / "figure.png")
    boxes = [t.get_window_extent() for ax in fig.axes for t in ax.texts if t.get_text().strip()]
    return boxes, fig.bbox


def clashes(boxes):
    "Pairs of boxes that overlap by more than a pixel."
    return [(a, b) for i, a in enumerate(boxes) for b in boxes[:i]
            if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1]


def test_long_sentences_do_not_overlap_in_the_gallery(images, texts, tmp_path):
    boxes, page = drawn(proponent_gallery(images, {c: range(6 * c, 6 * c + 4) for c in range(4)}, texts), tmp_path)
    assert not clashes(boxes)
    assert all(b.x1 <= page.x1 + 1 for b in boxes)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_long_sentences_do_not_overlap_in_columns(texts, n, tmp_path):
    texts["truth"] = ["visible", "wrong", "generic", "invisible", "refusal", "visible"] * 4
    boxes, page = drawn(selections_compared({f"form {c}": texts[texts.class_id == c] for c in range(n)}, CLASSES[1]), tmp_path)
    assert not clashes(boxes)
    assert all(b.x1 <= page.x1 + 1 for b in boxes)


def test_class_names_do_not_overlap_in_the_map(tmp_path):
    x, y = torch.randn(60, 8), torch.arange(12).repeat_interleave(5)
    boxes, _ = drawn(tsne_figure(x, y, torch.randn(24, 8), torch.arange(12).repeat_interleave(2), [f"a class with number {i}" for i in range(12)]), tmp_path)
    assert len(boxes) == 12 and not clashes(boxes)


def test_captions_stand_below_their_pictures(images, tmp_path):
    fig = image_rows([[(images.images("train")[i], CLASSES[i % 4]) for i in range(n)] for n in (6, 2)])
    boxes, page = drawn(fig, tmp_path)
    assert len(boxes) == 8 and all(b.y0 >= -1 for b in boxes)
    assert all(t.get_window_extent().y1 <= ax.get_window_extent().y0 + 1 for ax in fig.axes for t in ax.texts)


def test_truth_is_optional(images, texts, tmp_path):
    drawn(proponent_gallery(images, {0: [0, 1]}, texts), tmp_path)
    drawn(selections_compared({"only": texts[texts.class_id == 0]}, "x"), tmp_path)


def test_a_class_without_a_good_sentence(images, texts, tmp_path):
    "Scores that are negative, zero or missing rows still make a figure."
    drawn(proponent_gallery(images, {0: [0]}, texts.assign(ift=-1.)), tmp_path)
    drawn(proponent_gallery(images, {0: [0]}, texts.assign(ift=0.)), tmp_path)
    drawn(proponent_gallery(images, {0: [0], 1: []}, texts[texts.class_id == 0]), tmp_path)


def test_boxes_end_up_apart():
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = np.tile([[3., 1.]], (12, 1))
        xy = pushed_apart(rng.random((12, 2)) * 4, size)
        gap = np.abs(xy[:, None] - xy[None])
        assert ((gap >= size - 1e-3).any(-1) | np.eye(12, dtype=bool)).all()


def test_methods_need_not_be_in_every_panel(tmp_path):
    lines = pd.DataFrame([dict(method=m, shots=s, mean=.5, low=.4, high=.6) for m, s in [("a", "1"), ("b", "1"), ("a", "all")]])
    drawn(accuracy_bars(lines, over="a"), tmp_path)
    drawn(accuracy_bars(lines[:1]), tmp_path)


def test_heatmap_with_texts_of_some_classes_only(tmp_path):
    m = torch.randn(6, 4)
    m[:, 3] = float("nan")  # a class without validation images
    drawn(text_class_heatmap(m, torch.tensor([0, 0, 2, 2, 1, 1]), CLASSES), tmp_path)


def test_figures_leave_matplotlib_as_it_was(texts, tmp_path):
    before, open_before = dict(plt.rcParams), plt.get_fignums()
    fig = selections_compared({"one": texts[:3]}, "x")
    assert dict(plt.rcParams) == before and plt.get_fignums() == open_before
    assert fig.get_figwidth() == WIDTH and STYLE["figure.dpi"] == 90
