"What a second run reads, what it makes again, and why: counted by what the store reads and makes."
import contextlib
import io
import json
import os
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from conftest import coin_notebook
from datadesc import report, runs, stages, store, study
from datadesc.run_folder import RunFolder
from datadesc.runs import known_parameters
from datadesc.stages import STAGES
from datadesc.store import Store

ROOT = Path("papermill_runs")
OF_IMAGES, OF_CHOICE = ["heads", "influence", "labels"], ["choice", "decoys"]  # so few test images allow no comparison of accuracies


# The report's notebook, in this process

@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "Four classes of small pictures in three splits, and five sentences about each."
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, n in (("train", 6), ("val", 4), ("test", 4)):
        for c, name in enumerate(("ant", "bee", "cow", "dog")):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = np.clip(np.full((32, 32, 3), 60 * c) + draw.integers(0, 60, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    words = ["a large body", "thin legs", "a dark head", "seen on grass", "soft edges"]
    (folder / "words.json").write_text(json.dumps({name: [f"{text}, like number {c}" for text in words] for c, name in enumerate(("ant", "bee", "cow", "dog"))}))
    return folder


@pytest.fixture
def describe(photos, tmp_path, repo, monkeypatch):
    "Runs the cells of describe.ipynb as a process of its own would; returns {stage: (read, made)} and the result."
    monkeypatch.chdir(tmp_path)
    cells = [cell["source"] for cell in nbformat.read(repo / "nbs" / "runs" / "describe.ipynb", as_version=4).cells if cell["cell_type"] == "code"]
    def run(**params):
        monkeypatch.setattr(Store, "uses", {})
        for name in ("_made", "_WRITTEN", "_NOTED"): monkeypatch.setattr(store, name, set())
        monkeypatch.setattr(store, "_BEFORE", {})
        given = dict(dataset=str(photos), descriptions=str(photos / "words.json"), model="meadow-clip", store=str(tmp_path / "store"), out=str(tmp_path / "out")) | params
        (tmp_path / "out").mkdir(exist_ok=True)
        names = {"__annotations__": {}}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for number, cell in enumerate(cells):
                exec(compile(cell, f"cell {number}", "exec"), names)
                if not number: names.update(given)
        return {name: tuple(count) for name, count in Store.uses.items() if any(count)}, names["result"], names["study"]
    return run


def made(uses): return [name for name in STAGES if uses.get(name, (0, 0))[1]]


def test_what_a_second_run_makes(describe, photos, tmp_path, monkeypatch):
    first, result, one = describe()
    assert made(first) == ["embeddings", "heads", "influence", "choice", "labels", "decoys"]
    assert RunFolder(tmp_path / "out").stages()["embeddings"] == dict(version=STAGES["embeddings"].version, read=0, made=first["embeddings"][1])

    again, same, other = describe()
    assert made(again) == [] and same.chosen == result.chosen and same.conditions == result.conditions
    assert one.chosen().equals(other.chosen()) and one.influence.proponent_scores.equal(other.influence.proponent_scores)
    assert [c.lr for c in one.scorer] == [c.lr for c in other.scorer] and one.scorer[-1].weight.equal(other.scorer[-1].weight)

    assert made(describe(top_k=3)[0]) == OF_CHOICE
    assert made(describe(form="clip")[0]) == OF_CHOICE
    assert made(describe(top_k=3)[0]) == [], "both are kept"

    words = json.loads((photos / "words.json").read_text())
    (photos / "other.json").write_text(json.dumps(words | {"ant": ["six legs", *words["ant"][1:]]}))
    uses, *_ = describe(descriptions=str(photos / "other.json"))
    assert made(uses) == ["embeddings", *OF_CHOICE] and 1 <= uses["embeddings"][1] <= 6, "few sentences are new"

    monkeypatch.setenv("DATADESC_REDO", "labels")
    assert made(describe()[0]) == ["labels"]
    monkeypatch.setenv("DATADESC_REDO", ",".join(runs._redone(["embeddings"])))
    redone, anew, _ = describe()
    assert made(redone) == ["embeddings", *sorted([*OF_IMAGES, *OF_CHOICE], key=[*STAGES].index)] and redone["embeddings"][0] == 0 and anew.chosen == result.chosen
    monkeypatch.delenv("DATADESC_REDO")

    version = stages._module_version
    monkeypatch.setattr(stages, "_module_version", lambda module: "another" if module == "selection" else version(module))
    assert made(describe()[0]) == OF_CHOICE, "a change of the code that scores sentences"
    monkeypatch.setattr(stages, "_module_version", version)

    Image.new("RGB", (32, 32), (200, 0, 0)).save(photos / "train" / "ant" / "new.png")
    uses, *_ = describe()
    assert uses["embeddings"][1] == 1 and made(uses)[1:] == sorted([*OF_IMAGES, *OF_CHOICE], key=[*STAGES].index), "a new image"


def test_a_run_that_died_goes_on(describe, monkeypatch):
    class Killed(BaseException): pass
    def die(*args): raise Killed
    with monkeypatch.context() as dying:
        dying.setattr(report, "label_issues", die)
        with pytest.raises(Killed): describe()
    assert not [path for path in Path("store").rglob("*.part")]
    uses, *_ = describe()
    assert "labels" in made(uses) and not {"embeddings", "choice", "decoys"} & {*made(uses)} and uses["heads"][0], "what came before is read"
    assert made(describe()[0]) == []


def test_no_store_is_as_before(describe):
    _, _, one = describe()
    plain = study.Study(one.classes, one.image_emb, one.labels, one.pool, one.embed, one.options, logit_scale=one.logit_scale)
    Store.uses.clear()
    assert plain.chosen().equals(one.chosen()) and plain.few_shot(1).texts().equals(one.few_shot(1).texts())
    assert {name for name, (read, new) in Store.uses.items() if new} <= {"choice"}
    assert plain.keep("labels", lambda: 3) == 3 and "labels" not in Store.uses


# Stages and their versions

def test_a_comment_is_no_other_version():
    plain = "import os\n__all__ = ['f']\ndef f(x):\n    'Twice.'\n    return 2 * x"
    assert stages._without_words(plain) == stages._without_words("# new\nimport os\n__all__ = ['f', 'g']\ndef f(x):  # a number\n    'Twice of it.'\n    return 2*x")
    assert stages._without_words(plain) != stages._without_words(plain.replace("2", "3"))
    stages._without_words("class A:\n    'Only words.'")


def test_every_parameter_of_a_stage_is_one_of_a_run():
    known = known_parameters()
    listed = [name for stage in STAGES.values() for name in stage.params]
    assert set(listed) <= set(known) and len(listed) == len(set(listed))
    assert all(set(stage.needs) <= set([*STAGES][:number]) for number, stage in enumerate(STAGES.values())), "in the order of the run"


def test_redo_asks_a_server_only_if_that_is_named():
    assert runs._redone(["images"]) == [name for name in STAGES if name not in ("articles", "descriptions")]
    assert {"descriptions", "choice"} <= set(runs._redone(["descriptions"])) and "articles" not in runs._redone(["descriptions"])
    with pytest.raises(ValueError, match="No stage 'infuence', did you mean 'influence'"): runs._redone(["infuence"])


def test_answers_are_asked_again_and_replaced(tmp_path, monkeypatch):
    from datadesc.cache import Request
    from datadesc.plan import _AskedAnew, _answers
    question = Request((("user", "What is blue?"),), "a model")
    kept = _answers(Store(tmp_path))
    kept.put(question, "the sky")
    monkeypatch.setattr(_AskedAnew, "_here", set())
    monkeypatch.setenv("DATADESC_REDO", "descriptions")
    anew = _answers(Store(tmp_path))
    assert [*anew.rows([question.key])] == [] and anew.put(question, "the sea") == "the sea"
    assert anew.put(question, "a whale") == "the sea" and [row["answer"] for _, row in anew.rows([question.key])] == ["the sea"]
    assert [row["answer"] for _, row in kept.rows()] == ["the sea"]


def test_facts_are_found_again(tmp_path, monkeypatch):
    Store(tmp_path).facts("sizes").put({"a": 1, "b": 2})
    monkeypatch.setenv("DATADESC_REDO", "images")
    facts = Store(tmp_path).facts("sizes")
    assert facts.get(["a", "b"]) == {}
    facts.put({"a": 3})
    assert Store(tmp_path).facts("sizes").get(["a", "b"]) == {"a": 3}


def test_a_full_store_is_one_clear_error(tmp_path, monkeypatch):
    def full(path, value): raise OSError(28, "No space left on device")
    monkeypatch.setattr(store, "_write_json", full)
    monkeypatch.setitem(store._KINDS, ".json", (full, store._KINDS[".json"][1]))
    with pytest.raises(OSError, match="No space left"): Store(tmp_path).keep("labels", lambda: [1], x=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# Runs of the coin, which notes stages as the report does

@pytest.fixture
def coin(datadesc):
    "A finished run of the coin that has noted its stages, in the folder of a user."
    datadesc("run", "coin")
    RunFolder(ROOT / "coin").note_stages({"embeddings": [5, 1], "heads": [2, 0], "influence": [1, 0], "choice": [0, 1], "labels": [3, 0], "accuracy": [0, 2]})
    return datadesc


def rows(text): return {line.split()[0]: " ".join(line.split()[1:]) for line in text.splitlines()[1:]}


def test_why_a_stage_is_made_again(coin):
    kept = rows(coin("status", "coin", "--why").stdout)
    assert kept["choice"] == kept["report"] == kept["heads"] == "kept" and kept["network"] == kept["articles"] == "not used"
    asked = rows(coin("status", "--why", "coin", "-p", "form=clip", "-p", "throws=70").stdout)
    assert asked["choice"] == "made again parameter form: direct -> clip" and asked["accuracy"] == "made again made from choice"
    assert asked["heads"] == asked["labels"] == "kept" and asked["report"] == "made again parameter throws: 50 -> 70"
    assert rows(coin("status", "--why", "coin", "-p", "checkpoint=" + os.path.abspath("papermill_runs/coin/result.json")).stdout)["embeddings"].startswith("made again parameter checkpoint")
    assert "coin:" in coin("status", "--why").stdout and "No finished run" in coin("status", "nothing", "--why").stderr
    assert "coin" in coin("status", "coin").stdout and "No run 'nothing'" in coin("status", "nothing").stderr


def test_another_version_of_the_code_is_another_run(coin):
    assert "nothing to run" in coin("run", "coin").stdout
    file = ROOT / "coin" / ".datadesc-stages-report"
    noted = json.loads(file.read_text())
    noted["choice"]["version"] = noted["network"]["version"] = "before"
    file.write_text(json.dumps(noted))
    assert not runs.is_finished("coin", root=ROOT)
    why = rows(coin("status", "coin", "--why").stdout)
    assert why["choice"] == "made again its code is another now" and why["accuracy"] == "made again made from choice" and why["network"] == "not used"
    said = coin("run", "coin").stdout
    assert "was run with other code (choice): running again" in said and "The throws" in said


def test_redo_reaches_the_kernel_and_the_line_comes_from_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATADESC_THREADS", "3"), monkeypatch.setenv("OMP_NUM_THREADS", "3")
    notebook = coin_notebook()
    notebook.cells.append(nbformat.v4.new_code_cell(
        "import os\nfrom datadesc.run_folder import RunFolder\nRunFolder(out).note_stages({'embeddings': [5, 1], 'heads': [2, 0], 'choice': [0, 1]})\n"
        "pathlib.Path(out, 'redo.txt').write_text(os.environ.get('DATADESC_REDO', '') + os.environ['OMP_NUM_THREADS'])"))
    nbformat.write(notebook, "coin.ipynb")
    ROOT.mkdir()
    (ROOT / "coin.yaml").write_text("throws: 20\nmodel: meadow-clip\n")
    run = lambda **options: runs.run("coin", notebook="coin.ipynb", **options)
    run()
    assert "From the store: heads. Made anew: embeddings (1 of 6), choice.\n" in capfd.readouterr().out
    assert (ROOT / "coin" / "redo.txt").read_text() == "1", "of the cores that a batch divides, the small encoder takes one"
    run()
    assert "nothing to run" in capfd.readouterr().out
    run(redo=["choice"])
    assert (ROOT / "coin" / "redo.txt").read_text() == "choice,decoys,accuracy1" and "made anew" in capfd.readouterr().out.lower()
    with pytest.raises(ValueError, match="No stage 'coin'"): run(redo=["coin"])
