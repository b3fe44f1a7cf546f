"Figures hold together with words, classes and tables that chapter 80 does not show."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from datadesc.data import ImageSet
from datadesc.figures import (PALETTE, STYLE, WIDTH, accuracy_bars, accuracy_table, gain_bars, image_rows, proponent_gallery, pushed_apart, selections_compared,
                              shots_curves, text_class_heatmap, top_k_curves, tsne_figure)

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


def some_gains(methods, datasets):
    "Gains that are clear for the first method only."
    return pd.DataFrame([dict(dataset=d, method=m, gain=.01 - .02 * i, low=-.03, high=.02, clear=i == 0) for d in datasets for i, m in enumerate(methods)])


def test_full_dots_are_the_clear_ones(tmp_path):
    fig = gain_bars(some_gains("abc", ["one"]))
    drawn(fig, tmp_path)
    (dots,) = [c for c in fig.axes[0].collections if len(c.get_offsets()) == 3 and len(c.get_sizes())]
    assert np.asarray(dots.get_offsets())[:, 0] == pytest.approx([1, -1, -3])
    assert (dots.get_facecolors()[:, :3].mean(1) == 1).tolist() == [False, True, True]


@pytest.mark.parametrize("n", [1, 5])
def test_every_dataset_has_its_panel(n, tmp_path):
    fig = gain_bars(some_gains(["a", "a method with a longer name"], [f"set {i}" for i in range(n)]))
    drawn(fig, tmp_path)
    assert [ax.get_title(loc="left") for ax in fig.axes if ax.get_visible()] == [f"dataset: set {i}" for i in range(n)]


def some_lines(shots=("all", "1", "16", "2"), methods="ab"):
    "Lines of a report, shots in no order."
    return pd.DataFrame([dict(method=m, shots=s, mean=.5 + .1 * i, low=.4, high=.7) for i, s in enumerate(shots) for m in methods])


def test_curves_go_by_number_and_end_at_all(tmp_path):
    fig = shots_curves(some_lines(), over="b")
    drawn(fig, tmp_path)
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["1", "2", "16", "all"]
    assert fig.axes[0].get_lines()[0].get_ydata() == pytest.approx([60, 80, 70, 50])


def test_a_row_without_steps_goes_straight_across(tmp_path):
    lines = pd.concat([some_lines((1, 5, 10), "a"), some_lines((0,), "z")]).rename(columns={"shots": "k"})
    line = top_k_curves(lines, over="z").axes[0].get_lines()[1]
    assert list(line.get_xdata()) == [0, 2] and line.get_ydata() == pytest.approx([50, 50])
    drawn(top_k_curves(lines, methods=["a"]), tmp_path)
    drawn(shots_curves(some_lines(("0",))), tmp_path)


def test_lines_at_the_same_place_are_refused():
    with pytest.raises(ValueError, match="Several lines for method 'a', shots 'all'"): shots_curves(some_lines(("all", "all"), "a"))
    with pytest.raises(ValueError, match="Several lines"): accuracy_table(some_lines(("all", "all"), "a"))


def test_the_table_tells_above_below_and_noise():
    lines = some_lines(("1", "all"), "abcz")
    gains = pd.DataFrame([dict(method=m, shots="1", gain=g, clear=c) for m, g, c in [("a", .1, True), ("b", -.1, True), ("c", .1, False)]])
    table = accuracy_table(lines, gains, over="z")
    assert table.data["1"].to_dict() == {"a": "50.0 ± 15.0 ▴", "b": "50.0 ± 15.0 ▾", "c": "50.0 ± 15.0", "z": "50.0 ± 15.0"}
    page = table.to_html()
    assert "above z" in page and page.count(PALETTE[0]) == 1


def test_the_table_has_a_place_for_what_was_not_run():
    table = accuracy_table(some_lines(("1", "4"), "ab")[:-1]).data
    assert list(table.columns) == ["1", "4"] and table.loc["b", "4"] == "–"


def test_rows_of_the_table_may_have_two_names():
    lines = pd.concat([some_lines(("4", "1"), "ba").assign(protocol=p) for p in ("transfer", "paper")])
    table = accuracy_table(lines, rows=("protocol", "method")).data
    assert list(table.index) == [("transfer", "b"), ("transfer", "a"), ("paper", "b"), ("paper", "a")] and list(table.columns) == ["4", "1"]


def test_heatmap_with_texts_of_some_classes_only(tmp_path):
    m = torch.randn(6, 4)
    m[:, 3] = float("nan")  # a class without validation images
    drawn(text_class_heatmap(m, torch.tensor([0, 0, 2, 2, 1, 1]), CLASSES), tmp_path)


def test_figures_leave_matplotlib_as_it_was(texts, tmp_path):
    before, open_before = dict(plt.rcParams), plt.get_fignums()
    fig = selections_compared({"one": texts[:3]}, "x")
    assert dict(plt.rcParams) == before and plt.get_fignums() == open_before
    assert fig.get_figwidth() == WIDTH and STYLE["figure.dpi"] == 90
