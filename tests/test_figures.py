"Figures hold together with words, classes and tables that the chapter does not show."
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from fontTools.subset import Subsetter
from fontTools.ttLib import TTFont
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from datadesc import figures
from datadesc.data import ImageSet
from datadesc.figures import (_PALETTE, _STYLE, _WIDTH, accuracy_bars, accuracy_curves, accuracy_table, as_typed, checkpoint_bars, confusable_gallery, gain_bars, image_rows, proponent_gallery, _pushed_apart, selections_compared,
                              label_issue_gallery, text_class_heatmap, tsne_figure, typed_table, _wrapped)
from datadesc.kernel import report_html

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
    boxes, _ = drawn(tsne_figure(x, y, {"sentences": (torch.randn(24, 8), torch.arange(12).repeat_interleave(2))}, [f"a class with number {i}" for i in range(12)]), tmp_path)
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
        xy = _pushed_apart(rng.random((12, 2)) * 4, size)
        gap = np.abs(xy[:, None] - xy[None])
        assert ((gap >= size - 1e-3).any(-1) | np.eye(12, dtype=bool)).all()


def test_methods_need_not_be_in_every_panel(tmp_path):
    lines = pd.DataFrame([dict(method=m, shots=s, mean=.5, low=.4, high=.6) for m, s in [("a", "1"), ("b", "1"), ("a", "all")]])
    drawn(accuracy_bars(lines, over="a"), tmp_path)
    drawn(accuracy_bars(lines[:1]), tmp_path)


def some_gains(methods, datasets):
    "Gains that are clear for the first method only."
    return pd.DataFrame([dict(dataset=d, method=m, gain=.01 - .02 * i, low=-.03, high=.02, significant=i == 0) for d in datasets for i, m in enumerate(methods)])


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
    fig = accuracy_curves(some_lines(), over="b")
    drawn(fig, tmp_path)
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["1", "2", "16", "all"]
    assert fig.axes[0].get_lines()[0].get_ydata() == pytest.approx([60, 80, 70, 50])


def test_a_row_without_steps_goes_straight_across(tmp_path):
    lines = pd.concat([some_lines((1, 5, 10), "a"), some_lines((0,), "z")]).rename(columns={"shots": "k"})
    line = accuracy_curves(lines, "k", over="z").axes[0].get_lines()[1]
    assert list(line.get_xdata()) == [0, 2] and line.get_ydata() == pytest.approx([50, 50])
    drawn(accuracy_curves(lines, "k", methods=["a"]), tmp_path)
    drawn(accuracy_curves(some_lines(("0",))), tmp_path)


def test_lines_at_the_same_place_are_refused():
    with pytest.raises(ValueError, match="Several lines for method 'a', shots 'all'"): accuracy_curves(some_lines(("all", "all"), "a"))
    with pytest.raises(ValueError, match="Several lines"): accuracy_table(some_lines(("all", "all"), "a"))


def test_the_table_tells_above_below_and_noise():
    lines = some_lines(("1", "all"), "abcz")
    gains = pd.DataFrame([dict(method=m, shots="1", gain=g, significant=c) for m, g, c in [("a", .1, True), ("b", -.1, True), ("c", .1, False)]])
    table = accuracy_table(lines, gains, over="z")
    assert table.data["1"].to_dict() == {"a": "50.0 ± 15.0 ▴", "b": "50.0 ± 15.0 ▾", "c": "50.0 ± 15.0", "z": "50.0 ± 15.0"}
    page = table.to_html()
    assert "above z" in page and page.count(_PALETTE[0]) == 1


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
    fig = text_class_heatmap(m, torch.tensor([0, 0, 2, 2, 1, 1]), list("abcdef"), CLASSES, n_texts=9)
    drawn(fig, tmp_path)
    assert len(fig.axes[0].get_yticks()) == 6 and "no image" in fig.axes[1].get_ylabel()


def test_a_row_carries_the_sentence_that_helps_its_class_most(tmp_path):
    m = torch.tensor([[1., -3.], [2., 1.], [-3., 1.]])
    fig = text_class_heatmap(m, torch.tensor([0, 0, 1]), ["few", "most", "other"], ["one", "two"])
    drawn(fig, tmp_path)
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == ["one: most", "two: other"]
    (minus,) = [c for c in fig.axes[0].collections if len(c.get_offsets())]
    assert np.asarray(minus.get_offsets()).tolist() == [[0, 1]]  # "other" harms class one


def test_of_many_classes_those_shown_are_drawn(tmp_path):
    names = [f"class {c}" for c in range(40)]
    assert len(text_class_heatmap(torch.randn(40, 40), torch.arange(40), names, names).axes[0].get_xticks()) == 24
    fig = text_class_heatmap(torch.randn(40, 40), torch.arange(40), names, names, shown=[30, 3])
    assert [label.get_text() for label in fig.axes[0].get_xticklabels()] == ["class 30", "class 3"]


def test_a_sentence_near_to_its_own_class_is_counted():
    x, y = torch.eye(3).repeat_interleave(5, 0) + .01 * torch.randn(15, 3), torch.arange(3).repeat_interleave(5)
    fig = tsne_figure(x, y, {"right": (torch.eye(3), torch.arange(3)), "wrong": (torch.eye(3), torch.tensor([1, 2, 0]))}, "abc")
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["right: 3 of 3", "wrong: 0 of 3"]
    assert "right 3 of 3, wrong 0 of 3" in fig.get_label()


def test_the_reason_stands_below_the_sentence(texts, tmp_path):
    rows = texts[:3].assign(why_not=["", "others rank higher", None])
    fig = selections_compared({"one": texts[:3].drop(columns="rank"), "two": rows}, "x")
    boxes, _ = drawn(fig, tmp_path)
    (reason,) = [t for t in fig.findobj(Text) if t.get_text() == "↳ others rank higher"]
    assert not clashes(boxes)


@pytest.mark.parametrize("n", [4, 5, 6])
def test_many_selections_go_into_rows(texts, n, tmp_path):
    fig = selections_compared({f"form {c}": texts[texts.class_id == c % 4] for c in range(n)}, "x")
    boxes, page = drawn(fig, tmp_path)
    assert not clashes(boxes) and all(b.x1 <= page.x1 + 1 for b in boxes)
    assert len({ax.get_position().y0 for ax in fig.axes if ax.get_visible()}) == 2


def some_pairs(text):
    "Two pairs: sentences on both sides, and on none."
    return pd.DataFrame([dict(a=0, b=1, confusion=.4, a_text=text, a_auc=.9, b_text=text, b_auc=.8), dict(a=2, b=3, confusion=.1, a_text=None, a_auc=None, b_text=None, b_auc=None)])


def test_pairs_stand_apart(images, tmp_path):
    fig = confusable_gallery(images, some_pairs("a long sentence " * 13), {c: 6 * c for c in range(3)})  # none of class 3
    drawn(fig, tmp_path)
    boxes = [t.get_window_extent() for t in fig.texts]
    assert len(boxes) == 10 and not clashes(boxes) and all(b.x1 <= fig.bbox.x1 and b.y0 >= 0 for b in boxes)
    assert len(fig.axes) == 3 and sum(t.get_text() == "no sentence separates it" for t in fig.texts) == 2
    drawn(confusable_gallery(images, some_pairs("x")[:0], {}), tmp_path)


def some_shares(schedules=("cosine",), n=5):
    "Equal shares of `n` checkpoints."
    return pd.DataFrame([{"schedule": s, "epoch": e + 1, "influence": 1 / n, "learning rate": 1 / n} for s in schedules for e in range(n)])


@pytest.mark.parametrize("n", [1, 3, 60])
def test_each_checkpoint_has_its_bar(n, tmp_path):
    fig = checkpoint_bars(some_shares("ab", n))
    drawn(fig, tmp_path)
    assert [len(ax.patches) for ax in fig.axes] == [n, n] and all(1 <= len(ax.get_xticks()) <= 12 for ax in fig.axes)


def test_no_letter_is_smaller_than_seven_points_on_a_page_seven_inches_wide(images, texts):
    for words in all_figures(images, texts, CLASSES): assert min(word.get_fontsize() for word in words) * 7 / _WIDTH >= 7


def test_a_figure_has_its_alternative_text(images, texts):
    fig = image_rows([[(image, name) for image, name in zip(images.images("train"), CLASSES)]])
    assert fig.get_label() == "Images: Ash & Oak, $5 or $6, Ünder_score, a rather long name of a class"
    data, metadata = InteractiveShell.instance().display_formatter.format(fig)
    assert data["text/plain"] == metadata["image/png"]["alt"] == fig.get_label()


def test_every_figure_is_png_and_svg(images, texts, tmp_path):
    for fig in the_figures(images, texts.assign(text="<script>alert(1)</script> & " + texts.text), ("<b>", "نمر و أسد", "🦋 " + SNOW, "x" * 300)):
        assert fig.get_label()
        for kind in ("png", "svg"): fig.savefig(tmp_path/f"figure.{kind}", metadata={"Title": fig.get_label()})
        tree = ElementTree.parse(tmp_path/"figure.svg").getroot()
        assert next(e for e in tree.iter() if e.tag.endswith("title")).text == fig.get_label()
        assert not any(e.tag.endswith("script") for e in tree.iter())


def test_figures_leave_matplotlib_as_it_was(texts, tmp_path):
    before, open_before = dict(plt.rcParams), plt.get_fignums()
    fig = selections_compared({"one": texts[:3]}, "x")
    assert dict(plt.rcParams) == before and plt.get_fignums() == open_before
    assert fig.get_figwidth() == _WIDTH and _STYLE["figure.dpi"] == 100


# Names as people have them

SNOW = "雪豹"
NASTY = ("<b>bold</b> & <script>alert(1)</script>", "[link](http://evil.example) ![i](http://evil.example/x.png)", "*a* _b_ `c` | ~d~ # e", "$x_1$ or $x$ and \\frac",
         "$unbalanced", "- a\n- b", "&amp; &#42; http://evil.example www.evil.example a@evil.example", "1. one\n\n> two\n\n    three", "long " * 60)


def the_figures(images, texts, names):
    "Every figure with these four names in it."
    images, columns = ImageSet("toy", names, images.samples), dict(zip(names, [texts[texts.class_id == c] for c in range(4)]))
    suspects = pd.DataFrame(dict(image=range(24), given=np.repeat(range(4), 6), suggested=[1] * 24))
    lines = pd.DataFrame([dict(method=m, shots=s, mean=.5, low=.4, high=.6) for m in names for s in ("1", "all")])
    figs = [image_rows([[(image, name) for image, name in zip(images.images("train"), names)]]), label_issue_gallery(images, suspects), proponent_gallery(images, {c: [c] for c in range(4)}, texts),
            selections_compared(columns, names[0]), selections_compared({name: rows.assign(why_not=name) for name, rows in columns.items()}, names[0]),
            tsne_figure(torch.randn(24, 8), torch.arange(4).repeat(6), {name: (torch.randn(8, 8), torch.arange(4).repeat(2)) for name in names}, names),
            accuracy_bars(lines.assign(panel=names[0]), by="panel"), gain_bars(some_gains(names, names[:2])), accuracy_curves(lines), text_class_heatmap(torch.randn(8, 4), torch.arange(4).repeat(2), [names[c] for c in (0, 0, 1, 1, 2, 2, 3, 3)], names),
            confusable_gallery(images, some_pairs(texts.text.iloc[0]), {c: 6 * c for c in range(4)}), checkpoint_bars(some_shares(names))]
    return figs


def all_figures(images, texts, names):
    "Every figure with these four names in it, drawn; the words of each."
    figs = the_figures(images, texts, names)
    for fig in figs: fig.draw_without_rendering()
    return [[word for word in fig.findobj(Text) if word.get_text()] for fig in figs]


@pytest.mark.parametrize("names", [NASTY[:4], (NASTY[4], NASTY[5], NASTY[6], "x" * 300)])
def test_names_are_drawn_as_typed(images, texts, names, tmp_path, recwarn):
    texts["text"] = [names[c] for c in texts.class_id]
    for words in all_figures(images, texts, names):
        assert not any(word.get_parse_math() for word in words)
        shown = " ".join(" ".join(word.get_text().split()) for word in words)
        assert any(" ".join(name.split())[:6] in shown for name in names)
    assert not recwarn.list


def test_long_names_leave_room_for_the_figure(images, texts, tmp_path):
    names = ("x" * 300, "many words " * 30, "雪" * 300, "short")
    fig = text_class_heatmap(torch.randn(8, 4), torch.arange(4).repeat(2), list("abcdefgh"), names)
    drawn(fig, tmp_path)
    assert fig.axes[0].get_position().width > .5 and fig.axes[0].get_position().height > .5
    boxes, page = drawn(proponent_gallery(ImageSet("toy", names, images.samples), {0: [0], 1: [1]}, texts), tmp_path)
    assert not clashes(boxes)
    words = selections_compared({names[0]: texts[:3], names[1]: texts[3:6]}, names[1]).findobj(Text)
    assert max(len(word.get_text()) for word in words) < 1000


@pytest.mark.parametrize("width", [1, 7, 30])
def test_wrapping_loses_no_letter(width):
    texts = ["x" * 100, "one two  three\nfour", "雪豹" * 30 + " and more", "", "a-b-c " * 20, "  led by blanks"]
    lines, begin = _wrapped(texts, width)
    assert ["".join(line.split()) for line in lines] == ["".join(text.split()) for text in texts]
    assert len(begin) == len(texts) + 1


@pytest.fixture
def snow_font(tmp_path, monkeypatch):
    "A font on this machine, and nowhere else, that has two Chinese characters."
    font = TTFont(font_manager.findfont("DejaVu Sans"))
    subsetter = Subsetter()
    subsetter.populate(text="AB")
    subsetter.subset(font)
    for table in font["cmap"].tables: table.cmap = {ord(c): glyph for c, glyph in zip(SNOW, table.cmap.values())}
    for name in font["name"].names: name.string = "Snow"
    font.save(tmp_path/"snow.ttf")
    before = list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_: [str(tmp_path/"snow.ttf"), str(tmp_path/"gone.ttf")])
    yield
    font_manager.fontManager.ttflist = before


@pytest.fixture
def no_font(monkeypatch):
    "This machine has matplotlib's own fonts and no others."
    own = [font for font in font_manager.fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_: [])


@pytest.fixture(autouse=True)
def forget_fonts():
    "No test knows the fonts of another."
    for known in (figures._families, figures._fonts_here): known.cache_clear()
    yield
    for known in (figures._families, figures._fonts_here): known.cache_clear()


def test_a_font_of_the_system_draws_what_ours_has_not(images, texts, snow_font, tmp_path, recwarn):
    assert figures._font_note([SNOW]) == ""
    for words in all_figures(images, texts.assign(text=SNOW), (SNOW, "eel " + SNOW, "cod", "ray")):
        wide = [word for word in words if "雪" in word.get_text()]
        assert wide and all(word.get_fontfamily() == ["DejaVu Sans", "Snow"] for word in wide)
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_without_a_font_boxes_are_drawn_and_said(images, texts, no_font, tmp_path, recwarn):
    note = figures._font_note(["cod", SNOW, "เสือ"])
    assert note.startswith("No font here has the characters ") and "雪" in note and "they are boxes in the figures, and right in the tables" in note
    for words in all_figures(images, texts.assign(text=SNOW), (SNOW, "eel " + SNOW, "cod", "ray")):
        assert any("□□" in word.get_text() for word in words) and not any("雪" in word.get_text() for word in words)
    assert not recwarn.list


def test_fonts_are_looked_for_only_where_one_is_missing(images, texts, monkeypatch, tmp_path):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda *_: pytest.fail("looked for"))
    all_figures(images, texts, ("Größe", "нерпа", "نمر", "eel\u200b"))
    assert figures._font_note(["Größe", "нерпа", "نمر", "✓ ≈"]) == ""


def page_of(*outputs):
    "The report's HTML of a cell with these outputs, as a soup."
    displayed = [nbformat.v4.new_output("display_data", data=data) for data in outputs]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A page"), nbformat.v4.new_code_cell("", outputs=displayed)])
    return BeautifulSoup(report_html(notebook), "html.parser").find(class_="output")


@pytest.mark.parametrize("name", NASTY)
def test_markup_in_a_name_stays_text_in_the_report(name):
    typed = " ".join(name.split())
    for cell in (f"{as_typed(name)} is a class.", f"**{as_typed(name)}**: a class", f"- {as_typed(name)}\n- another", f"[{as_typed(name)}](<http://ours.example>) is one"):
        page = page_of({"text/markdown": cell})
        assert {tag.name for tag in page.find_all(True)} <= {"div", "p", "strong", "ul", "li", "a", "span"} and {span.text for span in page.find_all("span")} <= {"", "$", "\\"}
        assert [a["href"] for a in page.find_all("a")] == ["http://ours.example"] * cell.startswith("[")
        assert typed in page.get_text()


@pytest.mark.parametrize("name", NASTY)
def test_markup_in_a_name_stays_text_in_a_table(name):
    table = pd.DataFrame({name: [name], "x": [1.5]}, index=pd.Index([name], name=name))
    for style in (typed_table(table), typed_table(table.style.format("{:.1f}", subset=["x"]).format(escape="html", subset=[name]))):
        page = page_of({"text/html": style.hide(subset=[], axis=0).to_html()})
        assert {tag.name for tag in page.find_all(True)} <= {"div", "style", "table", "thead", "tbody", "tr", "th", "td"}
        assert page.get_text().count(name.strip()) == 4
    lines = pd.DataFrame([dict(method=name, shots=s, mean=.5, low=.4, high=.6) for s in ("1", "all")])
    page = page_of({"text/html": accuracy_table(lines, over=name).to_html()})
    assert not page.find_all(["b", "a", "script", "img", "em"]) and name.strip() in page.get_text()
