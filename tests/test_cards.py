"Cards parse as what they claim to be, hostile text in them stays text, and what nobody stated is not stated."
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from datadesc import results
from datadesc.cards import write_cards
from datadesc.run_folder import RunFolder

HOSTILE = ['<script>alert("1")</script>', "a: b", "- [x](javascript:alert) `z` **b**", "=SUM(A1) | a | b", "\u202eright to\u2069 left", "\N{BUTTERFLY} " + "wing " * 400, "1. don't \"quote\"",
           "{{7*7}} $x$ &lt;b&gt;", "# head\n## next\n---\n- item", "https://example.org www.example.org @someone", "yes", "\u05d0\u05d1\u05d2", "![i](x.png)", "a\\*b"]
LINE = dict(method="set", protocol="zero_shot", mean=.9, n_test=100, interval=(.85, .95))


def run_of(folder, names=("cat", "dog"), url="https://en.wikipedia.org/wiki/Cat", articles=True, **changes):
    "A finished run of these classes, each with its own name as a sentence."
    parameters = dict(form="set", model="ViT-B-32", superclass=None, knowledge="text", descriptions=None) | changes.pop("parameters", {})
    facts = dict(dataset="photos", classes=list(names), raw_names=list(names), images=dict(train=60, val=20, test=20), parameters=parameters, accuracy=[LINE],
                 chosen={name: [name, f"it is {name}"] for name in names}, suspects=3, sources=["gpt-4o-mini"], versions=dict(datadesc="0.1.0"), seconds={})
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    results.Result(**facts | changes).write(folder)
    rows = [dict(source="en.wikipedia.org", page=name, revision=i, url=url, passages=["text"] if i != 1 else []) | {"class": name} for i, name in enumerate(names)]
    if articles: pd.DataFrame(rows).to_parquet(folder / "tables" / "articles.parquet")
    return folder


def parts(folder):
    "(metadata, Markdown, Croissant) of the card."
    write_cards(folder)
    _, head, body = (folder / "card" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(head), body, json.loads((folder / "card" / "croissant.json").read_text(encoding="utf-8"))


def rendered(body):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    from bs4 import BeautifulSoup
    return BeautifulSoup(markdown.render(body), "html.parser")


def plain(text): return " ".join(text.split())


def shown(element): return plain(re.sub("[\u2068\u2069]", "", element.get_text()))


def test_the_hub_can_read_the_metadata(tmp_path):
    metadata, body, _ = parts(run_of(tmp_path))
    assert metadata["task_categories"] == ["image-classification"] and metadata["size_categories"] == ["n<1K"] and metadata["language"] == ["en"]
    assert metadata["dataset_info"]["splits"] == [dict(name=name, num_examples=n) for name, n in (("train", 60), ("validation", 20), ("test", 20))]
    assert "license" not in metadata and "the licence of the images" in body
    hub = pytest.importorskip("huggingface_hub")
    card = hub.DatasetCard.load(tmp_path / "card" / "README.md")
    assert card.data.task_categories == ["image-classification"] and card.data.pretty_name == "photos"


def test_the_classes_are_those_of_a_hub_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    metadata, _, _ = parts(run_of(tmp_path, HOSTILE))
    info = datasets.DatasetInfo._from_yaml_dict(metadata["dataset_info"])
    assert info.features["label"].names == HOSTILE and isinstance(info.features["image"], datasets.Image)


def test_hostile_text_is_inert_and_legible(tmp_path):
    _, body, croissant = parts(run_of(tmp_path, HOSTILE, dataset=HOSTILE[0], warning=HOSTILE[2]))
    page, expected = rendered(body), [plain(name).replace("\u2069", "") for name in HOSTILE]
    assert [shown(head) for head in page.select("h3")] == expected and shown(page.h1) == expected[0]
    assert [shown(item) for item in page.h3.find_next("ul").select("li")] == [expected[0], f"it is {expected[0]}"]
    items = [shown(item) for item in page.select("li")]
    assert all(name in items for name in expected)
    assert not page.select("script, img, b, em, code, hr, li li, blockquote") and {strong.text for strong in page.select("strong")} == {expected[2]}
    assert {link["href"] for link in page.select("a")} == {"https://en.wikipedia.org/wiki/Cat"}
    assert len(page.select("h1")) == 1 and {shown(head) for head in page.select("h2")} == {"Classes and their descriptions", "How the descriptions were made", "Accuracy", "Labels", "Limits"}
    texts = [row["descriptions/text"] for row in croissant["recordSet"][0]["data"]]
    assert texts[::2] == HOSTILE
    assert "\u202e" in body and "\u202e" not in re.sub("\u2068[^\u2069]*\u2069", "", body)


def test_github_makes_no_links_of_names(tmp_path):
    pytest.importorskip("linkify_it", reason="linkify-it-py is not installed")
    from bs4 import BeautifulSoup
    from markdown_it import MarkdownIt
    _, body, _ = parts(run_of(tmp_path, HOSTILE, articles=False))
    assert not BeautifulSoup(MarkdownIt("gfm-like").render(body), "html.parser").select("a")


def test_an_address_that_is_none_makes_no_link(tmp_path):
    for url in ("javascript:alert(1)", "https://x.org/> <script>", ""):
        _, body, _ = parts(run_of(tmp_path, url=url))
        page = rendered(body)
        assert not page.select("a, script") and "not stated" in page.text


def test_provenance_names_revisions_licences_and_models(tmp_path):
    _, body, croissant = parts(run_of(tmp_path, ("cat", "dog", "fox")))
    rows = [[shown(cell) for cell in row.select("td")] for row in rendered(body).table.select("tr")[1:]]
    assert rows == [["cat", "cat", "not stated", "en.wikipedia.org", "CC BY-SA 4.0"], ["fox", "fox", "2", "en.wikipedia.org", "CC BY-SA 4.0"]]
    assert "Language model: gpt-4o-mini" in body and "Encoder that chose them: ViT-B-32" in body
    assert [row["articles/licence"] for row in croissant["recordSet"][1]["data"]] == ["CC BY-SA 4.0"] * 2
    other = parts(run_of(tmp_path / "other", url="https://wiki.example.org/Cat"))[1]
    assert "CC BY-SA" not in other
    brought = parts(run_of(tmp_path / "file", articles=False, parameters=dict(descriptions="/home/somebody/mine.json")))
    assert "mine.json" in brought[1] and "somebody" not in json.dumps(brought) and "Language model" not in brought[1] and "language" not in brought[0]


def test_what_is_withheld_is_not_published(tmp_path):
    condition = dict(name="classifier", verdict="fail", figure=.1, limit=.2, sentence="Nothing is learned.")
    _, body, croissant = parts(run_of(tmp_path, suspects=None, conditions=[condition], withheld={part: "Nothing is learned." for part in ("sentences", "labels", "accuracy")}))
    assert "it is cat" not in body and "Labels were not judged. Nothing is learned." in body and "Failed condition of the report: classifier" in body and "90.0 %" not in body
    assert [records["name"] for records in croissant["recordSet"]] == ["articles"] and json.loads((tmp_path / "card" / "descriptions.json").read_text()) == {}


def test_limits_hold_the_decoy_test_where_there_is_one(tmp_path):
    folder = run_of(tmp_path)
    assert "Decoy" not in parts(folder)[1]
    line = dict(form="set", own=.8, low=.7, high=.9, chance=.5, chance_high=.6, classes=2, seeds=3)
    assert "80.0 % (70.0 % to 90.0 %) of the first five chosen" in parts(run_of(tmp_path / "other", decoys=[line]))[1]


def test_mlcroissant_finds_no_fault(tmp_path):
    mlc = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    folder = run_of(tmp_path, HOSTILE)
    write_cards(folder)
    dataset = mlc.Dataset(jsonld=str(folder / "card" / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    warned = " ".join(dataset.metadata.ctx.issues.warnings)
    assert set(re.findall(r'/(\w+)" is recommended', warned)) == {"citeAs", "datePublished", "license", "version"}, "what a run cannot know"
    records = list(dataset.records("descriptions"))
    as_text = lambda value: value.decode() if isinstance(value, bytes) else value
    assert [as_text(record["descriptions/text"]) for record in records][::2] == HOSTILE and records[1]["descriptions/rank"] == 2


def test_a_run_without_a_result_has_no_card(tmp_path):
    with pytest.raises(ValueError, match="No result"): write_cards(tmp_path)


def test_the_command_writes_a_card_and_the_next_run_replaces_it(datadesc, tmp_path, monkeypatch):
    folder = run_of(Path("papermill_runs") / "photos")
    RunFolder(folder).write_mark("../../photos")
    done = datadesc("card", "photos")
    assert done.code == 0 and str(Path("papermill_runs/photos/card/README.md")) in done.stdout
    assert {"card/README.md", "card/croissant.json", "card/descriptions.json"} <= set(RunFolder(folder).mark["files"])
    assert "No finished run 'none'" in datadesc("card", "none").stderr
    assert "has no list of label issues" in datadesc("labels", "photos").stderr
