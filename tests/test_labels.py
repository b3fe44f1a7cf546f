"Suspects go out in four forms that their tools take, corrections come back without touching a file, and each thing that can be wrong with them has one clear error."
import base64
import csv
import hashlib
import io
import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import pictures
from PIL import Image

from datadesc import report, results
from datadesc.audit import add_label_noise, label_issues, out_of_sample_probabilities
from datadesc.checks import check
from datadesc.data import ImageSet, PackedImage
from datadesc.embed import load_encoder
from datadesc.labels import apply_corrections, image_path, read_corrections, write_label_files
from datadesc.llm import LLM
from datadesc.plan import load_images
from datadesc.runs import known_parameters
from datadesc.study import Study

HOSTILE = ['<script>alert("1")</script>', "a: b", "- [x](y) `z`", "=SUM(A1)", "\u202eright to left", "\N{BUTTERFLY} " + "wing " * 400, "don't \"quote\"", "{{7*7}}"]


def write(path, text):
    Path(path).write_text(text, encoding="utf-8")
    return str(path)


def suspects_csv(path, *rows, columns=("path", "given", "suggested", "score", "corrected", "split", "content")):
    with open(path, "w", newline="", encoding="utf-8") as file: csv.writer(file).writerows([columns, *rows])
    return str(path)


@pytest.fixture
def photos(tmp_path):
    "A folder of six photographs of two classes, as an image set."
    folder = pictures(tmp_path / "photos", n=9)
    return folder, ImageSet.from_files(folder)


def label_of(images, folder, path):
    "The class of the image at the path, or None."
    places = {image_path(images, split, i, folder): label for split in images.samples for i, (_, label) in enumerate(images.samples[split])}
    return images.classes[places[path]] if path in places else None


def test_corrections_change_labels_in_memory_and_nothing_on_the_disk(photos, tmp_path):
    folder, images = photos
    def state(): return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), os.stat(path).st_mtime_ns) for path in sorted(folder.rglob("*.png"))}
    before = state()
    file = suspects_csv(tmp_path / "s.csv", ("cat/0.png", "cat", "dog", 2.1, "dog", "", ""), ("cat/1.png", "cat", "dog", 2, "(Leave out)", "", ""),
                        ("cat/2.png", "cat", "dog", 2, "cat", "", ""), ("cat/3.png", "cat", "dog", 1, "", "", ""))
    corrected, table = apply_corrections(images, file, folder)
    assert [label_of(corrected, folder, f"cat/{i}.png") for i in range(4)] == ["dog", None, "cat", "cat"] and label_of(images, folder, "cat/0.png") == "cat"
    assert table.decision.tolist() == ["dog", "(leave out)", "cat"] and len(corrected) == len(images) - 1 and state() == before
    splits = {image_path(s, split, i, folder): split for s in (images, corrected) for split in s.samples for i in range(len(s.samples[split]))}
    assert all(splits[image_path(corrected, split, i, folder)] == split for split in corrected.samples for i in range(len(corrected.samples[split])))
    assert "1 image left out (cat/1.png)" in corrected.notes[-1] and corrected.digests.keys() == images.digests.keys()
    assert [len(d) for d in corrected.digests.values()] == [len(s) for s in corrected.samples.values()]


@pytest.mark.parametrize("text", ["\ufeffpath;corrected\ncat/0.png;dog\n", "Path\tcorrected\n cat/0.png\tDOG \n", "corrected,note,path\ndog,\"a, b\",cat/0.png\n,,\n"])
def test_what_spreadsheets_make_of_it(photos, tmp_path, text):
    folder, images = photos
    assert label_of(apply_corrections(images, write(tmp_path / "s.csv", text), folder)[0], folder, "cat/0.png") == "dog"


WRONG = {
    "path,corrected\ncat/0.png,dgo\n": "Line 2 .* corrects 'cat/0.png' to 'dgo', which is no class of the dataset, did you mean 'dog'",
    "path,corrected\ncat/99.png,dog\n": "Line 2 .* no image 'cat/99.png' in the dataset",
    "path,corrected,content\ncat/99.png,dog,00ff\n": "no image 'cat/99.png' in the dataset, and none of that content",
    "path,corrected,content\ncat/0.png,dog,00ff\n": "'cat/0.png' is another picture than the one that was judged",
    "path,corrected\ncat/0.png,dog\ncat/1.png,dog\ncat/0.png,cat\n": "Line 4 .* is about 'cat/0.png' again, as is line 2",
    "path,given,corrected\ncat/0.png,bird,dog\n": None,
    "path,given,corrected\ndog/0.png,cat,(leave out)\n": "'dog/0.png' is labelled 'dog' in the dataset, and the file says that it was 'cat'",
    "path,verdict\ncat/0.png,dog\n": "No column 'corrected'",
}


@pytest.mark.parametrize("text", WRONG)
def test_one_clear_error_each(photos, tmp_path, text):
    folder, images = photos
    file = write(tmp_path / "s.csv", text)
    with pytest.raises(ValueError, match=WRONG[text] or "is labelled 'cat' in the dataset, and the file says that it was 'bird'"): apply_corrections(images, file, folder)


def test_a_split_cannot_lose_all_its_images(photos, tmp_path):
    folder, images = photos
    rows = [(image_path(images, "val", i, folder), "(leave out)") for i in range(len(images.samples["val"]))]
    with pytest.raises(ValueError, match="leaves out every val image"): apply_corrections(images, suspects_csv(tmp_path / "s.csv", *rows, columns=("path", "corrected")), folder)


def test_an_image_that_has_moved_is_known_by_its_content(photos, tmp_path):
    folder, images = photos
    split, i = next((split, i) for split in images.samples for i in range(len(images.samples[split])) if image_path(images, split, i, folder) == "cat/0.png")
    file = suspects_csv(tmp_path / "s.csv", ("cat/0.png", "cat", "dog", 1, "dog", split, images.digests[split][i]))
    (folder / "dog" / "was a cat.png").write_bytes((folder / "cat" / "0.png").read_bytes())
    (folder / "cat" / "0.png").unlink()
    moved = ImageSet.from_files(folder)
    assert label_of(apply_corrections(moved, file, folder)[0], folder, "dog/was a cat.png") == "dog"
    (folder / "cat" / "again.png").write_bytes((folder / "dog" / "was a cat.png").read_bytes())
    with pytest.raises(ValueError, match="several images .* hold the same content"): apply_corrections(ImageSet.from_files(folder), file, folder)


def test_a_run_looks_at_the_file_before_it_starts(photos, tmp_path):
    folder, _ = photos
    params = {"dataset": str(folder), "model": "meadow-clip", "corrections": str(tmp_path / "none.csv")}
    with pytest.raises(ValueError, match="corrections: .*none.csv"): check(params)
    with pytest.raises(ValueError, match="which is no class"): check(params | {"corrections": write(tmp_path / "s.csv", "path,corrected\ncat/0.png,bird\n")})
    check(params | {"corrections": write(tmp_path / "s.csv", "path,corrected\ncat/0.png,dog\n")})


def annotated(path, *choices, cancelled=False, **facts):
    "A task as Label Studio exports it, with an annotation per choice."
    results = [dict(result=[dict(type="choices", from_name="label", to_name="image", value=dict(choices=[choice]))], was_cancelled=cancelled) for choice in choices]
    return dict(id=1, data=dict(path=path, image="data:", **facts), annotations=results)


def test_label_studios_export_comes_back(tmp_path):
    tasks = [annotated("a.png", "dog", given="cat"), annotated("b.png"), annotated("c.png", "dog", cancelled=True), annotated("d.png", "cat", "cat"), annotated("e.png", "(leave out)")]
    rows = read_corrections(write(tmp_path / "export.json", json.dumps(tasks)), ("cat", "dog"))
    assert [(row["path"], row["class_id"]) for row in rows] == [("a.png", 1), ("d.png", 0), ("e.png", -1)]
    for wrong, words in {json.dumps([annotated("a.png", "cat", "dog")]): "Task 1 .* different annotations, cat and dog", "[{}]": "Task 1 .* has no data.path", "{": "is not JSON", "{}": "no list of tasks"}.items():
        with pytest.raises(ValueError, match=words): read_corrections(write(tmp_path / "export.json", wrong), ("cat", "dog"))


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_hostile_names_go_out_and_come_back(tmp_path, suffix):
    rows = [(f"{name[:40]}/=1.png", name, "", 1., name) for name in HOSTILE]
    if suffix == "csv": file = results.write_suspects(tmp_path, rows)
    else: file = write(tmp_path / "export.json", json.dumps([annotated(path, name) for path, _, _, _, name in rows]))
    back = read_corrections(file, HOSTILE)
    assert [row["class_id"] for row in back] == list(range(len(HOSTILE))) and [row["path"] for row in back] == [row[0].strip() for row in rows]


@pytest.fixture(scope="module")
def noisy():
    "A study of six hostile classes, a tenth of the labels of each split wrong, with its images; and the true labels."
    g, names = torch.Generator().manual_seed(0), HOSTILE[:6]
    centres = F.normalize(torch.randn(6, 16, generator=g), dim=1)
    true = {split: torch.arange(6).repeat_interleave(n) for split, n in (("train", 20), ("val", 10), ("test", 10))}
    emb = {split: F.normalize(centres[y] + .1 * torch.randn(len(y), 16, generator=g), dim=1) for split, y in true.items()}
    labels = {split: add_label_noise(y, .1, seed=1) for split, y in true.items()}
    pool = pd.DataFrame(dict(text_id=range(6), class_id=range(6), text="t", scored_text="t", flag="", names_class=False))
    study = Study(names, emb, labels, pool, lambda texts: centres[:len(texts)])
    def picture(i): return np.full((700, 20, 3), i % 255, dtype=np.uint8)
    study.image_set = ImageSet("toy", tuple(names), {split: [(picture(i), c) for i, c in enumerate(y.tolist())] for split, y in labels.items()})
    return study, true


def likely(study): return pd.concat([label_issues(study, split).assign(split=split) for split in study.labels]).query("likely").sort_values("score", ascending=False)


def test_every_split_is_judged_by_heads_that_have_not_seen_it(noisy):
    study, true = noisy
    for split, y in true.items():
        table, wrong = label_issues(study, split), study.labels[split] != y
        assert sorted(table.image) == list(range(len(y))) and wrong[table.image[:int(wrong.sum())]].float().mean() > .8
    other = Study(study.classes, study.image_emb, study.labels | {"test": true["test"].flip(0)}, study.pool, study.embed)
    assert label_issues(other, "val").equals(label_issues(study, "val")), "the test labels have no part in it"
    with pytest.raises(ValueError, match="expected one of train, val, test"): label_issues(study, "dev")


def test_no_image_is_judged_where_its_class_has_no_train_image(noisy):
    study, _ = noisy
    labels = study.labels | {"train": study.labels["train"].clone().masked_fill_(study.labels["train"] == 5, 4)}
    table = label_issues(Study(study.classes, study.image_emb, labels, study.pool, study.embed), "val")
    assert table.score[table.given == 5].isna().all() and not table.likely[table.given == 5].any()


def test_out_of_sample_means_out_of_sample(noisy):
    study, _ = noisy
    rows, p = out_of_sample_probabilities(study, folds=4)
    assert p.shape == (len(rows), 6) and np.allclose(p.sum(1), 1, atol=1e-4) and rows.groupby("split", sort=False).size().to_dict() == {"train": 120, "val": 60, "test": 60}
    assert (out_of_sample_probabilities(study, folds=4)[1] == p).all()
    few = torch.arange(0, 120, 5)
    def leave_one_out(labels):
        part = Study(study.classes, study.image_emb | {"train": study.image_emb["train"][few]}, study.labels | {"train": labels}, study.pool, study.embed)
        return out_of_sample_probabilities(part, folds=len(few))[1]
    labels = study.labels["train"][few]
    other = labels.clone()
    other[7] = (labels[7] + 3) % 6
    assert abs(leave_one_out(labels)[7] - leave_one_out(other)[7]).max() < .02, "an image's own label has no part in its prediction"
    with pytest.raises(ValueError, match="expected two or more"): out_of_sample_probabilities(study, folds=1)


def test_cleanlab_takes_the_arrays(noisy, tmp_path):
    filters = pytest.importorskip("cleanlab.filter", reason="cleanlab is not installed")
    study, true = noisy
    write_label_files(tmp_path, study, likely(study))
    held = np.load(tmp_path / "cleanlab.npz", allow_pickle=False)
    found = filters.find_label_issues(held["labels"], held["pred_probs"], return_indices_ranked_by="self_confidence", n_jobs=1)
    wrong = np.concatenate([(study.labels[split] != y).numpy() for split, y in true.items()])
    assert wrong[found].mean() > .8 and np.isin(np.flatnonzero(wrong), found).mean() > .8
    assert held["classes"].tolist() == list(study.classes) and held["path"][0] == "train image 0"


def test_label_studio_files_by_the_documented_format(noisy, tmp_path):
    study, _ = noisy
    write_label_files(tmp_path, study, likely(study), at_most=5)
    interface, tasks = ElementTree.parse(tmp_path / "label_studio.xml").getroot(), json.loads((tmp_path / "label_studio.json").read_text())
    assert [choice.get("value") for choice in interface.iter("Choice")] == [*study.classes, "(leave out)"] and len(tasks) == 5
    control, image = interface.find("Choices"), interface.find("Image")
    for task in tasks:
        (part,) = task["predictions"][0]["result"]
        assert (part["from_name"], part["to_name"], part["type"]) == (control.get("name"), control.get("toName"), "choices") and part["to_name"] == image.get("name")
        assert set(part["value"]["choices"]) <= set(study.classes) and image.get("value") == "$image"
        kind, _, data = task["data"]["image"].partition(",")
        assert kind == "data:image/webp;base64" and max(Image.open(io.BytesIO(base64.b64decode(data))).size) == 512


def test_label_studio_files_by_its_sdk(noisy, tmp_path):
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk (390 MB with what it needs) is not installed")
    study, _ = noisy
    write_label_files(tmp_path, study, likely(study), at_most=5)
    interface = sdk.LabelInterface((tmp_path / "label_studio.xml").read_text())
    assert interface.get_control("label").labels == [*study.classes, "(leave out)"]
    for task in json.loads((tmp_path / "label_studio.json").read_text()):
        assert interface.validate_task({"data": task["data"]}) and interface.validate_prediction(task["predictions"][0], return_errors=True) == []


def test_fiftyones_documented_layout(noisy, tmp_path):
    "<dataset_dir>/data/<uuid>.<ext> and labels.json: {classes: [...], labels: {uuid: {label: target, attributes: {...}}}}."
    study, _ = noisy
    suspects = likely(study)
    write_label_files(tmp_path, study, suspects)
    listed = json.loads((tmp_path / "fiftyone" / "labels.json").read_text())
    assert {file.stem for file in (tmp_path / "fiftyone" / "data").iterdir()} == set(listed["labels"]) and len(listed["labels"]) == len(suspects)
    first, row = next(iter(listed["labels"].values())), suspects.iloc[0]
    assert listed["classes"][first["label"]] == study.classes[row.given] and first["attributes"]["suggested"] == study.classes[row.suggested]


def test_no_suspects_make_files_too(noisy, tmp_path):
    study, _ = noisy
    files = write_label_files(tmp_path, study, likely(study)[:0])
    assert json.loads((tmp_path / "label_studio.json").read_text()) == [] and all(file.exists() for file in files)


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory):
    "Findings of meadow where labels of training and test are corrected."
    out = tmp_path_factory.mktemp("reviewed")
    params = {name: parameter.default for name, parameter in known_parameters().items()} | dict(dataset="meadow", model="meadow-clip", store=str(out / "store"))
    classes = load_images(params)[0].classes
    rows = [(f"train image {i}", classes[0], classes[1], 1, classes[1]) for i in range(0, 40, 4)]
    rows += [("test image 0", classes[0], "", 1, "(leave out)"), ("test image 1", classes[0], "", 1, classes[2]), ("test image 2", classes[0], "", 1, classes[0])]
    params["corrections"] = suspects_csv(out / "corrected.csv", *rows, columns=("path", "given", "suggested", "score", "corrected"))
    (image_set, synthetic), encoder = load_images(params), load_encoder("meadow-clip")
    sentences = report.candidate_sentences(params, image_set, encoder, synthetic)
    from datadesc.store import Store
    study = Study.of(image_set, encoder, sentences.pool, store=Store(params["store"]), progress=False)
    return report.Findings(study, sentences, params, out, drawn=True), classes


def test_the_report_says_what_corrections_change(reviewed):
    findings, classes = reviewed
    effects = findings.correction_effects
    assert effects["train"] == dict(changed=10, left_out=0, confirmed=0) and effects["test"] == dict(changed=1, left_out=1, confirmed=1)
    before = effects["accuracy"]["classifier"]
    assert abs(before["before"] - before["on_corrected_test"]) < .01 and before["now"] == findings.measures.accuracy("classifier")
    assert set(effects["sentences"]) <= set(classes) and all(change["before"] != change["now"] for change in effects["sentences"].values())
    section, first = findings.label_section().data, findings.first_screen().data
    assert "What the corrections change" in section and "10 training labels, 1 test label corrected" in section
    assert "<b>The test is another one now</b>" in first


def test_the_next_list_holds_every_decision_and_asks_for_none_again(reviewed, tmp_path):
    findings, classes = reviewed
    result = findings.result({})
    result.write(findings.out)
    findings.write_files(result)
    lines = "\n".join(results.closing_lines(findings.out))
    assert "The test is another one now" in " ".join(lines.split())
    rows = list(csv.DictReader(io.StringIO((findings.out / "suspects.csv").read_text())))
    decided = [row for row in rows if row["corrected"]]
    assert len(decided) == 13 and {row["path"] for row in decided}.isdisjoint(row["path"] for row in rows if not row["corrected"])
    images = load_images(findings.params | {"corrections": None})[0]
    again, table = apply_corrections(images, findings.out / "suspects.csv")
    assert [again.samples[s] == [] for s in again.samples] == [False] * 3 and len(table) == 13
    assert {s: [label for _, label in again.samples[s]] for s in again.samples} == {s: findings.study.image_set.labels(s).tolist() for s in again.samples}
    assert again.fingerprint == findings.study.image_set.fingerprint


def test_images_inside_something_larger_keep_their_names(tmp_path):
    packed = [(PackedImage(f"shard.tar/{i}", lambda i=i: np.full((4, 4, 3), i, dtype=np.uint8)), i % 2) for i in range(6)]
    images = ImageSet("packed", ("a", "b"), {"train": packed, "val": packed[:2], "test": [(np.zeros((4, 4, 3), np.uint8), 0), (np.ones((4, 4, 3), np.uint8), 1)]})
    file = suspects_csv(tmp_path / "s.csv", ("shard.tar/3", "a"), ("test image 0", "(leave out)"), columns=("path", "corrected"))
    with pytest.raises(ValueError, match="no image|leaves out"): apply_corrections(images, suspects_csv(tmp_path / "t.csv", ("test image 9", "a"), columns=("path", "corrected")))
    corrected, _ = apply_corrections(images, file)
    assert corrected.samples["train"][3][1] == 0 and str(corrected.images("test")[0]) == "test image 1" and corrected.digests["test"] == images.digests["test"][1:]
