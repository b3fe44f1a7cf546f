"Explanations, edits and the sentence classifier: the arithmetic, the file, the commands on a small run."
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from bs4 import BeautifulSoup
from safetensors.torch import load_file, save_file

from datadesc import cli, explain, meadow, runs
from datadesc.bottleneck import Bottleneck, Concepts
from datadesc.explain import Edit, SentenceClassifier, deletions, edit_effect, edited
from datadesc.explore import Explorer

from test_report import TEXTS, findings_of

NAMES = ("Ash", "Elm & Oak", "<b>Yew</b>")


def bottleneck_of(residual=False, k=7, d=6, seed=0):
    "A layer of random weights, some of them zero, on random directions."
    g = torch.Generator().manual_seed(seed)
    def noise(*shape): return torch.randn(*shape, generator=g)
    owner = torch.zeros(3, k, dtype=torch.bool)
    owner[torch.arange(k) % 3, torch.arange(k)] = True
    concepts = Concepts(tuple(f"sentence {i}" for i in range(k)), owner, F.normalize(noise(k, d), dim=1), .1 * noise(d), .1 * noise(k), noise(k).abs() + .5)
    weight = noise(3, k) * (torch.rand(3, k, generator=g) > .3)
    return Bottleneck(concepts, NAMES, weight, noise(3), noise(3, d) if residual else None), F.normalize(noise(40, d), dim=1)


@pytest.mark.parametrize("residual", [False, True])
def test_the_parts_add_up_and_deleting_does_what_they_say(residual):
    b, x = bottleneck_of(residual)
    logits = b.logits(x)
    for i in range(len(x)):
        one = explain.explain(b, x[i])
        assert one.c == int(logits[i].argmax()) and one.against != one.c
        torch.testing.assert_close(one.difference, float(logits[i, one.c] - logits[i, one.against]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(float(one.table.part.sum()) + one.rest, one.difference, rtol=1e-4, atol=1e-5)
        assert one.table.part.is_monotonic_decreasing and (one.table.part != 0).all()
        for row in one.table.itertuples():
            rest = b.without([row.row]).logits(x[i][None])[0]
            torch.testing.assert_close(float(rest[one.c] - rest[one.against]), one.difference - row.part, rtol=1e-4, atol=1e-4)
    check = deletions(b, x)
    assert (check.predicted == check.measured).all() and (check.measured != check.c).any()
    np.testing.assert_allclose(check.difference - check.part, check.after, atol=1e-4)


def test_a_corrected_score_is_that_score():
    b, x = bottleneck_of(residual=True)
    i, k = 4, int(explain.explain(b, x[4]).table.row.iloc[0])
    text, own = f"sentence {k}", float(b.concepts.scores(x[i][None])[0, k])
    assert explain.explain(b, x[i], {text: own}).difference == pytest.approx(explain.explain(b, x[i]).difference, abs=1e-5)
    moved = explain.explain(b, x[i], {text: own + 3})
    assert dict(zip(moved.table.row, moved.table.score))[k] == pytest.approx(own + 3)
    logits = b.logits(x[i][None])[0] + 3 * b.weight[:, k]
    assert moved.c == int(logits.argmax()) and moved.confidence == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    with pytest.raises(ValueError, match="did you mean 'sentence 2'"): explain.explain(b, x[i], {"sentense 2": 0.})
    with pytest.raises(ValueError, match="expected another class"): explain.explain(b, x[i], against=explain.explain(b, x[i]).c)


def test_edits_are_values_and_their_effect_is_known_before():
    b, x = bottleneck_of()
    y = torch.arange(40) % 3
    edits = [Edit("sentence 0"), Edit("sentence 1", 2.5, "Ash"), Edit("sentence 3", 0., NAMES[2])]
    before, after = b.weight.clone(), edited(b, edits)
    assert torch.equal(b.weight, before), "the bottleneck itself stays"
    assert (after.weight[:, 0] == 0).all() and after.weight[0, 1] == 2.5 and torch.equal(after.weight[1:, 1], before[1:, 1]) and after.weight[2, 3] == 0
    by_class, changed = edit_effect(b, edits, x, y)
    was, now = (layer.logits(x).argmax(1) for layer in (b, after))
    assert changed.image.tolist() == (was != now).nonzero().flatten().tolist() and list(by_class.index) == list(NAMES)
    for c, name in enumerate(NAMES):
        assert by_class.before[name] == pytest.approx(float((was == y)[y == c].float().mean())) and by_class.after[name] == pytest.approx(float((now == y)[y == c].float().mean()))
        assert (by_class.gained - by_class.lost)[name] == round((by_class.after - by_class.before)[name] * by_class.images[name])
    assert edit_effect(b, [], x, y)[1].empty


def test_other_peoples_words_are_one_line_each():
    b, x = bottleneck_of()
    odd = replace(b, classes=("A\nsh", "\x1b[31mElm", "Yew"), concepts=replace(b.concepts, texts=tuple(f"a {i}\n\x1b[2Jb" for i in range(7))))
    one = explain.explain(odd, x[0])
    assert "\x1b" not in one.words() + one.brief()
    assert len(one.brief(3).splitlines()) == 4 and len(one.words().splitlines()) == 4 + sum(max(1, len(rows)) for rows in one.strongest(5))


@pytest.mark.parametrize("first, centred, residual", [(False, True, False), (True, True, True), (False, False, False), (True, False, False)])
def test_a_file_classifies_as_what_was_written(tmp_path, first, centred, residual):
    b, x = bottleneck_of(residual)
    if not centred: b = replace(b, concepts=replace(b.concepts, image_mean=None))
    made = SentenceClassifier(b, "toy", "f", "", .2 * torch.ones(6) if first else None)
    again = SentenceClassifier.read(made.write(tmp_path/"c.safetensors"))
    class Toy:
        name, fingerprint = "toy", "f"
        def embed_images(self, images, progress): return torch.stack(images)
    emb = [one.embed(Toy(), list(x)) for one in (made, again)]
    torch.testing.assert_close(made.bottleneck.logits(emb[0]), again.bottleneck.logits(emb[1]), rtol=1e-4, atol=1e-4)
    assert again.bottleneck.classes == b.classes and again.bottleneck.concepts.texts == b.concepts.texts and torch.equal(again.bottleneck.concepts.owner, b.concepts.owner)
    Toy.name = "another"
    Toy.fingerprint = "g"
    with pytest.raises(ValueError, match="reads embeddings of 'toy': expected that encoder, not 'another'"): again.embed(Toy(), list(x))


def test_a_file_that_is_no_classifier(tmp_path):
    made = SentenceClassifier(bottleneck_of()[0], "toy", "f").write(tmp_path/"c.safetensors")
    for name, content in dict(short=made.read_bytes()[:300], empty=b"", text=b"hello").items():
        (tmp_path/name).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a safetensors file"): SentenceClassifier.read(tmp_path/name)
    tensors = load_file(made)
    save_file(tensors, tmp_path/"other.safetensors")
    with pytest.raises(ValueError, match="its format is 'None'"): SentenceClassifier.read(tmp_path/"other.safetensors")
    del tensors["std"]
    save_file(tensors, tmp_path/"lacks.safetensors")
    with pytest.raises(ValueError, match="it lacks std"): SentenceClassifier.read(tmp_path/"lacks.safetensors")
    with pytest.raises(FileNotFoundError, match="expected a sentence classifier"): SentenceClassifier.read(tmp_path/"none")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder with a finished run of a folder of images, photos, whose sentences and names are not all harmless."
    place, synthetic = tmp_path_factory.mktemp("place"), meadow.load()
    names = synthetic.classes[:4]
    for split in ("train", "test"):
        images, labels = synthetic.images.images(split), synthetic.images.labels(split).tolist()
        for c, name in enumerate(names):
            (place/"photos"/name).mkdir(parents=True, exist_ok=True)
            for n, i in enumerate([i for i, label in enumerate(labels) if label == c][:12]):
                Image.fromarray(np.asarray(images[i])).save(place/"photos"/name/f"{split}{n}.png")
    row = {"text": ["bright magenta wings", "wings with blue tips", "yellow wings with a red edge", "scalloped wing edges", "ash grey body", "brown stripes on the wings",
                    "long narrow wings", "wings with a golden band"], "class": [name for name in names for _ in range(2)]}
    pd.DataFrame(row).to_csv(place/"said.csv", index=False)
    before = Path.cwd()
    os.chdir(place)
    try: runs.run("photos", dict(descriptions="said.csv", model="meadow-clip", store="store"))
    finally: os.chdir(before)
    return place


@pytest.fixture
def datadesc(place, monkeypatch, capfd):
    "Calls `datadesc <arguments>` in that folder; its exit code and what it printed."
    monkeypatch.chdir(place)
    monkeypatch.setenv("DATADESC_STORE", "store")
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["datadesc", *arguments])
        try: code = cli.main() or 0
        except SystemExit as end: code = end.code or 0
        printed = capfd.readouterr()
        return code, printed.out, printed.err
    return call


def test_classify_and_explain(datadesc, place):
    file = place/"papermill_runs"/"photos"/SentenceClassifier.FILE
    assert file.exists(), "the run has written it"
    name = next((place/"photos").iterdir()).name
    code, out, err = datadesc("classify", "photos", f"photos/{name}/test0.png", "test/0")
    lines = out.splitlines()
    assert code == 0, err
    assert lines[0].startswith(f"photos/{name}/test0.png: ") and "confidence" in lines[0] and sum(line.startswith("  ") for line in lines) <= 10
    file.unlink()
    assert datadesc("classify", "papermill_runs/photos", f"photos/{name}/test0.png", "test/0")[:2] == (0, out), "fitted again, the same"
    assert SentenceClassifier.FILE in json.loads((file.parent/".datadesc-run").read_text())["files"]
    code, said, err = datadesc("explain", "photos", "test/0")
    assert code == 0 and "What speaks for it:" in said and "(labelled " in said, err
    figure = Path(said.splitlines()[-1])
    assert figure == Path("papermill_runs/photos/explanations/test-0.png") and Image.open(figure).size[0] > 1000
    assert "explanations/test-0.png" in json.loads((file.parent/".datadesc-run").read_text())["files"]
    called = said.split("called ")[1].split(",")[0]
    other = next(path.name for path in (place/"photos").iterdir() if path.name not in (called, said.split("against ")[1].split(",")[0]))
    assert f"against {other}," in datadesc("explain", "photos", "test/0", "--against", other)[1]
    page = (file.parent/"report.html").read_text()
    assert "Why these images were called that" in page and SentenceClassifier.FILE in page


@pytest.mark.parametrize("arguments, words", [
    (("classify", "lake", "a.png"), "No finished run 'lake'"), (("explain", "lake", "test/0"), "No finished run 'lake'"),
    (("classify", "photos", "a.png"), "No image 'a.png': expected a file"), (("explain", "photos", "photos"), "No image 'photos'"),
    (("classify", "photos", "test/9999"), "No image 'test/9999': test has"), (("classify", "photos", "said.csv"), "Cannot read image"),
    (("explain", "photos", "test/0", "--against", "none"), "No class 'none'"), (("classify", "photos"), "Missing argument")])
def test_bad_input_is_one_error(datadesc, arguments, words):
    code, out, err = datadesc(*arguments)
    assert code and words in out + err and "Traceback" not in out + err


def test_a_run_without_sentences_and_a_broken_file(datadesc, place):
    folder = place/"papermill_runs"/"photos"
    file, table = folder/SentenceClassifier.FILE, folder/"tables"/"ift.parquet"
    kept, chosen = (path.read_bytes() for path in (file, table))
    try:
        file.write_bytes(kept[:99])
        assert "Delete it: `datadesc classify`" in datadesc("classify", "photos", "test/0")[2]
        file.unlink()
        pd.read_parquet(table).assign(proponent=False).to_parquet(table)
        assert "'photos' has chosen no sentence" in datadesc("explain", "photos", "test/0")[2]
    finally:
        file.write_bytes(kept)
        table.write_bytes(chosen)


def decisions(findings): return BeautifulSoup(findings.decision_section().data, "html.parser")


def test_the_section_shows_other_peoples_text_as_text(tmp_path):
    names = ["<script>alert(1)</script>", "$a$ & 'b'", "שלום", "a\nb", "x" * 90]
    texts = [f"<img src=x onerror=alert({i})> \x1b[2J “{i}” $x^{i}$" for i in range(5 * TEXTS)]
    findings = findings_of(names, tmp_path, spread=1.5, texts=texts)
    page = decisions(findings)
    assert findings.withheld == {} and {block.p.text.split(":")[0] for block in page.select(".suspect")} == {"Typical", "Atypical", "Wrong"}
    assert not page.select("script") and all(image["src"].startswith("data:image/") and image["alt"] for image in page.select("img"))
    assert "<img src=x onerror=alert(" in page.select_one(".said bdi").text
    assert all(0 <= float(bar["style"].removeprefix("width:").removesuffix("rem")) <= 3 for bar in page.select(".bar"))
    b, labels = findings.sentence_classifier.bottleneck, findings.study.labels["test"]
    right = (b.logits(findings.study.image_emb["test"]).argmax(1) == labels).float().mean()
    assert f"calls {100 * right:.0f}\N{NO-BREAK SPACE}% of the test images" in page.p.text
    for block in page.select(".suspect"):
        i = int(block.code.text.split("/")[1])
        one = explain.explain(b, findings.study.image_emb["test"][i])
        assert (block.p.text.split(":")[0] == "Wrong") == (one.c != int(labels[i]))
        assert [float(part.text) for part in block.select(".part")] == [round(part, 2) for rows in one.strongest(3) for part in rows.part]
    assert page.select_one("h2")["id"] == "decisions" and 'href="#decisions"' in findings.first_screen().data


def test_the_section_where_nothing_can_be_explained(tmp_path, monkeypatch):
    near_chance = findings_of(["a", "b", "c"], tmp_path, spread=60.)
    assert near_chance.withheld and "Decisions are not explained." in decisions(near_chance).text and 'href="#decisions"' not in near_chance.first_screen().data
    monkeypatch.setattr(explain, "_MOST_WORK", 10)
    large = findings_of([f"kind {i}" for i in range(5)], tmp_path, spread=1.5)
    assert "takes minutes and is not fitted here" in decisions(large).text and large.sentence_classifier is None
    assert SentenceClassifier.FILE not in large.provenance({}).data


def test_the_explorer_shows_the_same_explanation(tmp_path):
    study = findings_of([f"kind {i}" for i in range(5)], tmp_path, spread=1.5).study
    explorer = Explorer(study, tmp_path)
    shown, one = explorer.image("test", 3)["why"], explain.explain(SentenceClassifier.layer_of(study), study.image_emb["test"][3])
    assert (shown["called"], shown["against"]) == (one.c, one.against) and json.dumps(shown)
    assert [(row["text"], row["part"]) for row in shown["sentences"]] == [(row.text, row.part) for rows in one.strongest(4) for row in rows.itertuples()]
    assert all(study.pool.scored_text[row["t"]] == row["text"] for row in shown["sentences"])
