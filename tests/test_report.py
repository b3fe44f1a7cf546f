"The page for the owner: every class, every caption, nothing that says nothing, other people's text as text, one file without scripts."
import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from bs4 import BeautifulSoup

from datadesc import report, results, runs
from datadesc.data import ImageSet
from datadesc.describe import flagged
from datadesc.llm import LLM
from datadesc.selection import ChoiceOptions
from datadesc.store import Store
from datadesc.study import Study
from datadesc.zeroshot import names_only

REPO = Path(__file__).parents[1]
D, TEXTS = 24, 6


class Tokenizer:
    context_length = 77
    def __call__(self, texts, context_length=77): return torch.zeros(len(texts), context_length, dtype=torch.long)


def findings_of(names, tmp_path, spread=.6, counts=(10, 8, 12), model="toy-clip", texts=None, silent=(), flags={}, form="set", top_k=4):
    "Findings on made-up images of these classes, `spread` wide around their centres."
    n, g = len(names), torch.Generator().manual_seed(0)
    def noise(*shape): return torch.randn(*shape, generator=g)
    centres = F.normalize(noise(n, D), dim=1)
    labels = {split: torch.arange(n).repeat_interleave(k) for split, k in zip(("train", "val", "test"), counts)}
    emb = {split: F.normalize(centres[y] + spread * noise(len(y), D) / D ** .5, dim=1) for split, y in labels.items()}
    about = torch.arange(n).repeat_interleave(TEXTS)
    text_emb = F.normalize(centres[about] + (.4 + .6 * (torch.arange(n * TEXTS) % 2))[:, None] * noise(n * TEXTS, D) / D ** .5, dim=1)
    texts = texts or [f"sentence {i} of class {c}" for i, c in enumerate(about.tolist())]
    pool = pd.DataFrame(dict(text_id=range(n * TEXTS), class_id=about.numpy(), text=texts, flag=["not described" if c in silent else "" for c in about.tolist()],
                             names_class=False, source="file", component="", sample=0, knowledge="none")).assign(scored_text=texts)
    for row, flag in flags.items(): pool.loc[row, "flag"] = flag
    pool = report._with_names_for_silent(pool, names)
    known = dict(zip(pool.scored_text, torch.cat([text_emb, centres]))) | dict(zip(names_only(names), centres))
    def embed(asked): return torch.stack([known[t] if t in known else F.normalize(noise(D), dim=0) for t in asked])
    study = Study(names, emb, labels, pool, embed, ChoiceOptions(form, top_k))
    def picture(i): return np.full((30, 40, 3), 37 * i % 255, dtype=np.uint8)
    study.image_set = ImageSet("toy <i>", tuple(names), {split: [(picture(i), c) for i, c in enumerate(y.tolist())] for split, y in labels.items()}, skipped=("bad.jpg: <no> image",))
    study.encoder = SimpleNamespace(name="toy-clip", device="cpu", dim=D, tokenizer=Tokenizer(), preprocess="none", model=torch.nn.Linear(2, 2),
                                    centre_images=False, fingerprint="toy")
    params = dict(dataset="toy", model=model, form=form, data_root=None, store="/secret")
    return report.Findings(study, report._Sentences(pool, LLM("nobody")), params, tmp_path)


def sections(findings):
    "All sections as one page, parsed."
    parts = [report.Findings.first_screen, report.Findings.class_section, report.Findings.label_section, report.Findings.pair_section]
    return BeautifulSoup("".join(part(findings).data for part in parts) + findings.provenance({"images": 1.}).data, "html.parser")


NAMES = [f"kind {i}" for i in range(5)]


def test_every_class_has_a_card_and_every_image_its_class(tmp_path):
    findings = findings_of(NAMES, tmp_path)
    page = sections(findings)
    assert findings.withheld == {} and len(page.select("details.card[open]")) == 5
    for c, name in enumerate(NAMES):
        card = page.select_one(f"#class-{c}")
        captions = [figure.figcaption.text for figure in card.select(".strip figure")]
        assert len(captions) == 6 and captions[0] == f"{name}, typical" and set(captions[1:]) == {"typical", "atypical"}
        assert [li.select_one(".sentence").text for li in card.select("ol li")][0] == findings.chosen[findings.chosen.class_id == c].text.iloc[0]
    assert all(any(name in image["alt"] for name in NAMES) for image in page.select("img"))
    assert {link["href"] for link in page.select("nav a")} >= {"#classes", "#provenance", *(f"#class-{c}" for c in range(5))}


def test_images_and_sentences_come_from_one_head(tmp_path):
    findings = findings_of(NAMES, tmp_path)
    sections(findings)
    assert "scorer" in vars(findings.study._heads)
    typical, odd = report._images_of_class(findings, 1)
    own = findings.study.influence.positive_by_class[1][findings.study.labels["train"] == 1]
    assert typical[0] == 10 + int(own.argmax()) and not set(typical) & set(odd)


def mislabelled(tmp_path, **options):
    "Findings where the first training image of class 0 is one of class 1."
    findings = findings_of(NAMES, tmp_path, **options)
    findings.study.image_emb["train"][0] = F.normalize(findings.study.image_emb["train"][10:14].mean(0), dim=0)
    return findings


def test_a_doubtful_label_is_never_typical(tmp_path):
    findings = mislabelled(tmp_path)
    assert 0 in findings.suspects.image.tolist()
    for spread in (.6, 1.5, 60.):
        findings = mislabelled(tmp_path, spread=spread)
        assert findings.doubtful and not any(findings.doubtful & set(report._images_of_class(findings, c)[0]) for c in range(5))
        sections(findings)


def test_doubtful_labels_between_classes_that_are_not_separated_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_NOT_SEPARATED", report._CONFUSED)
    findings = mislabelled(tmp_path, spread=1.2)
    n = len(findings.unjudged)
    rest = findings.suspects[:0]
    vars(findings)["suspects"] = rest
    page = sections(findings)
    assert n and "Not listed: " in page.select_one("#labels").find_next("p").text
    assert f"and {n} between classes that the classifier does not separate" in page.select_one(".tiles").text and page.select_one('nav a[href="#labels"]')
    findings.result({}).write(tmp_path)
    assert f"Likely label issues: 0, and {n} between classes that the classifier does not separate" in results.closing_lines(tmp_path)


def test_paths_are_those_of_the_dataset(tmp_path):
    findings = findings_of(NAMES, tmp_path)
    (tmp_path/"real").mkdir()
    (tmp_path/"real"/"1.jpg").touch()
    (tmp_path/"set").mkdir()
    (tmp_path/"set"/"a.jpg").symlink_to(tmp_path/"real"/"1.jpg")
    (tmp_path/"set"/"list.csv").touch()
    findings.study.image_set.samples["train"][0] = (str(tmp_path/"set"/"a.jpg"), 0)
    for dataset in (tmp_path/"set", tmp_path/"set"/"list.csv"):
        findings.params["dataset"] = str(dataset)
        assert report._path(findings, "train", 0) == "a.jpg"


def test_the_hash_of_images_is_one_of_their_content(tmp_path):
    one, same, other = (findings_of(NAMES, tmp_path).study for _ in range(3))
    other.image_set.samples["train"][0] = (np.full((30, 40, 3), 9, dtype=np.uint8), 0)
    hashes = [report._hashes(study)["images"] for study in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_command_can_be_copied_and_the_page_is_linked_once_it_is_there(tmp_path):
    (out := tmp_path / "my cats").mkdir()
    findings = findings_of(NAMES, out, spread=.3)
    line = BeautifulSoup(report._benchmark_line(findings), "html.parser")
    assert line.code.text == "datadesc benchmark 'my cats'" and line.a is None
    (out / "benchmark.html").touch()
    assert BeautifulSoup(report._benchmark_line(findings), "html.parser").a["href"] == "benchmark.html"


def test_near_chance_nothing_is_accused(tmp_path):
    findings = findings_of(NAMES, tmp_path, spread=60.)
    page = sections(findings)
    assert {"labels", "pairs", "sentences"} <= set(findings.withheld) and findings.suspects is None
    assert not page.select(".suspect, .pair, ul.alike") and "Labels are not judged" in page.text
    assert "classifier" in page.select_one(".failed").text
    result = findings.result({})
    findings.write_files(result)
    assert result.suspects is None and not result.pairs and not (tmp_path / "suspects.csv").exists()


def test_the_warning_about_the_encoder_stands_everywhere(tmp_path):
    findings = findings_of(NAMES, tmp_path, model="meadow-clip")
    for section in (report.Findings.first_screen, report.Findings.class_section, report.Findings.label_section, report.Findings.pair_section):
        assert "was trained on rendered butterflies only" in section(findings).data
    result = findings.result({})
    result.write(tmp_path)
    assert "was trained on rendered butterflies" in " ".join(results.closing_lines(tmp_path))


def test_other_peoples_text_is_text(tmp_path):
    names = ["<script>alert(1)</script>", 'a "quoted" & name', "$x$ *y* [z](w)", "\u202eright to left"]
    texts = [f"<img src=x onerror=alert({i})> & more" for i in range(4 * TEXTS)]
    findings = findings_of(names, tmp_path, texts=texts)
    page = sections(findings)
    assert not page.select("script") and not [image for image in page.select("img") if not image["src"].startswith("data:image/webp;base64,")]
    assert names[1] in page.select_one("#class-1").find_parent("details").h3.text and "<img src=x" in page.select_one("#class-0 .sentence").text
    assert "<" not in report.title(findings.study.image_set).data


def test_a_silent_class_has_no_sentence(tmp_path):
    findings = findings_of(NAMES, tmp_path, silent=(2,))
    page = sections(findings)
    card = page.select_one("#class-2")
    assert f"can be chosen: not described ({TEXTS})." in card.text and not card.select("ol")
    assert f"{TEXTS} of {5 * TEXTS + 1} sentences cannot be chosen: not described ({TEXTS})." in page.text
    result = findings.result({})
    findings.write_files(result)
    assert NAMES[2] not in result.chosen and NAMES[2] not in json.loads((tmp_path / "descriptions.json").read_text())


def test_what_cannot_be_chosen_is_shown_with_its_reason(tmp_path):
    findings = findings_of(NAMES, tmp_path, flags={0: "too long (95 tokens of 77)", 1: "duplicate", 7: "too <short>"})
    page = sections(findings)
    card = page.select_one("#class-0")
    assert "2 excluded" in card.text and [item.em.text for item in card.select("details > ul > li")] == ["too long (95 tokens of 77)", "duplicate"]
    assert not {"sentence 0 of class 0", "sentence 1 of class 0"} & {said.text.split(" +")[0] for said in card.select(".sentence")}
    assert "3 of 30 sentences cannot be chosen: too long (1), repeats another (1), too <short> (1)." in page.text
    findings.write_files(findings.result({}))
    assert len(json.loads((tmp_path/"descriptions.json").read_text())[NAMES[0]]) == TEXTS - 2
    assert set(pd.read_parquet(tmp_path/"tables"/"descriptions.parquet").flag) == {"", "too long (95 tokens of 77)", "duplicate", "too <short>"}


def test_a_class_with_nothing_but_a_paragraph_goes_by_its_name(monkeypatch):
    class Words:
        "Stands for an encoder that reads three words."
        context_length = 3
        def __call__(self, texts, context_length=3): return torch.tensor([([1] * len(t.split()) + [0] * context_length)[:context_length] for t in texts])
    said = ["blue wings", "wings as long as those of a large bird"]
    rows = [dict(class_id=c, component="wings", sample=0, text=text, source="somebody", knowledge="none") for c, text in enumerate(said)]
    for name, value in dict(describe=flagged(rows, ["moth", "bird"]), find_articles=None, language_model=None).items():
        monkeypatch.setattr(report, name, lambda *args, value=value, **options: value)
    params = dict.fromkeys(("descriptions", "superclass", "knowledge", "samples", "article_tokens", "parts")) | dict(dataset="toy")
    pool = report.candidate_sentences(params, SimpleNamespace(classes=["moth", "bird"], superclass=None), SimpleNamespace(tokenizer=Words())).pool
    assert pool.flag.tolist() == ["", "too long (9 tokens of 3)", ""] and pool.text[2] == "bird" and pool.source[2] == "class name"


def test_a_sentence_at_chance_is_not_called_separating(tmp_path):
    findings = findings_of(NAMES, tmp_path, spread=1.5)
    for pair in findings.pairs.itertuples():
        found = findings.separating(pair.a, pair.b)
        assert found is None or found[1] > .5


def test_a_picture_with_two_labels_and_one_in_two_splits_are_listed(tmp_path):
    findings = findings_of(NAMES, tmp_path)
    emb = findings.study.image_emb
    emb["train"][12], emb["test"][0] = emb["train"][3], emb["train"][1]
    page = sections(findings)
    rows = [row.text for row in page.select(".suspect") if "train image 3" in row.text and "train image 12" in row.text]
    assert len(rows) == 1 and "kind 0" in rows[0] and "kind 1" in rows[0]
    assert "test image 0 (test) shows the same picture as train image 1" in page.text


def test_nothing_is_drawn_where_nothing_is_to_say(tmp_path):
    findings = findings_of(NAMES, tmp_path, spread=.2)
    assert findings.withheld == {} and len(findings.pairs) == len(findings.suspects) == 0
    assert findings.pair_section().data == findings.label_section().data == ""
    assert not {"#pairs", "#labels"} & {link["href"] for link in sections(findings).select("nav a")}


def test_many_classes_fold_and_very_many_go_to_pages(tmp_path):
    findings = findings_of([f"kind {i}" for i in range(30)], tmp_path, counts=(3, 2, 2), spread=.2)
    assert len(sections(findings).select("details.card:not([open])")) == 30
    findings = findings_of([f"kind {i}" for i in range(210)], tmp_path, counts=(2, 1, 1), spread=.05)
    page = sections(findings)
    assert not page.select("details.card") and page.select_one('nav a[href="classes/3.html#class-205"]')
    beside = [BeautifulSoup((tmp_path / "classes" / f"{i}.html").read_text(), "html.parser") for i in (1, 2, 3)]
    assert [len(part.select("details.card")) for part in beside] == [100, 100, 10]
    assert "default-src 'none'" in beside[0].select_one("meta[http-equiv]")["content"]


@pytest.mark.parametrize("form", ["set", "direct"])
def test_files_to_use(tmp_path, form):
    findings = findings_of(NAMES, tmp_path, spread=1.2, form=form)
    result = findings.result({"images": 1.})
    result.write(tmp_path)
    findings.write_files(result)
    assert results.Result.read(tmp_path) == result and "store" not in result.parameters and "/secret" not in (tmp_path / "result.json").read_text()
    assert json.loads((tmp_path / "descriptions.json").read_text())["kind 0"][0] == "sentence 0 of class 0"
    assert (tmp_path / "left_out.txt").read_text() == "bad.jpg: <no> image\n"
    assert len((tmp_path / "suspects.csv").read_text().splitlines()) == 1 + result.suspects
    assert [row["text"] for row in runs.FinishedRun(tmp_path.parent, tmp_path.name).chosen_texts()][:4] == result.chosen["kind 0"]
    assert ("were chosen together" in (tmp_path / "classes.md").read_text()) == (form == "set")


@pytest.mark.parametrize("top_k", ["auto", 2])
def test_a_set_is_said_to_be_one(tmp_path, top_k):
    findings = findings_of(NAMES, tmp_path, spread=1., top_k=top_k)
    page, n = sections(findings), findings.study.n_chosen
    shown = {score["title"] for score in page.select(".card .score[title]")}
    assert shown == {"marginal influence, in nats"} and "form set" not in page.text and "score (form" not in page.text
    assert "The sentences of a class are chosen together: each for what it adds to the others." in page.text
    many = f"{n.min()} to {n.max()}" if n.min() < n.max() else f"{n.max()}"
    words = f"{n.sum()} are chosen together, each for what it adds to the others: {many} per class"
    assert words + ", as many as lower the loss of zero-shot classification; left out: " * (top_k == "auto") in page.text and (top_k == "auto" or words + "; left out: " in page.text)
    reasons = set(findings.study.chosen().why_not) - {""}
    assert reasons <= {"would raise the loss", "others add more"} and all(reason in page.text for reason in reasons)
    by_method = {line.method: line for line in findings.result({}).accuracy}
    assert by_method["set"].k == by_method["random choice"].k == n.max()


def test_scores_of_single_sentences_are_called_scores(tmp_path):
    page = sections(findings_of(NAMES, tmp_path, spread=1., form="direct"))
    assert "its score (form direct; positive if it fits the class) and the training images that add most to it." in page.text
    assert "20 are chosen by their score, form direct; left out: " in page.text and "together" not in page.text
    assert {score["title"] for score in page.select(".card .score[title]")} == {"score (IFT)"}


def test_influence_of_a_network_leaves_the_logit_scale(monkeypatch, tmp_path):
    from datadesc import network
    study = findings_of(NAMES, tmp_path).study
    study.logit_scale = 12.
    few = SimpleNamespace(train=lambda *args: SimpleNamespace(checkpoints=[]), influence=lambda *args: study.influence)
    monkeypatch.setattr(network.Network, "load", lambda *args, **options: few)
    monkeypatch.setattr(report, "key_of", lambda **facts: "key")
    other = report.with_influence_of(study, dict(influence_model="net", influence_epochs=1, device="cpu"), Store(tmp_path))
    assert other is not study and other.logit_scale == 12. and other.chosen().equals(study.chosen())


def test_text_is_legible_on_a_phone():
    style = (REPO / "datadesc" / "assets" / "report" / "report.css").read_text()
    sizes = [float(size) * 16 for size in re.findall(r"(?:font|font-size):[^;}]*?(\d*\.?\d+)rem", style)]
    assert sizes and min(sizes) >= 9 and ".scroll { overflow-x: auto; }" in style


def test_the_notebook_is_short_and_folded_once(tmp_path):
    notebook = nbformat.read(REPO / "nbs" / "runs" / "describe.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])]
    lines = [line for cell in code for line in cell.source.splitlines() if line.strip()]
    assert len(lines) <= 60 and max(map(len, lines)) <= 140
    code[1].outputs = [nbformat.v4.new_output("execute_result", {"text/markdown": "# Ash &#38; Oak"}, execution_count=1)]
    from nbconvert import HTMLExporter
    page = BeautifulSoup(HTMLExporter(template_name="report", extra_template_basedirs=[str(REPO / "datadesc" / "assets")]).from_notebook_node(notebook)[0], "html.parser")
    assert page.title.text == "Ash & Oak" and page.h1.text.startswith("Ash & Oak")
    assert len(page.select("details.code")) == 1 and not page.select("script")
    assert not page.find(string=lambda text: "skip_exec" in text and text.find_parent("details") is None)
