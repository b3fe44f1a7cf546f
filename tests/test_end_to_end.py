"The whole way, from images to report, as `datadesc run` goes it."
import json
import os
import runpy
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datadesc import runs
from datadesc.hub import import_library
from llm_server import llm_server

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
QUICK = ["--benchmark", "-p", "shots=[2]", "-p", "paper_shots=[]", "-p", "seeds=1"]
MINE = """def thin(study):
    assert set(study.labels) == {"train", "val"}
    return {name: [f"a {name} with thin wings"] for name in study.classes}"""


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    "The folder of a finished run on meadow with its benchmark, smaller than the usual in shots and seeds only, with a method of the user's own."
    folder = tmp_path_factory.mktemp("runs")
    (folder/"mine.py").write_text(MINE)
    return runs.run("meadow", dict(benchmark=True, shots=[2], paper_shots=[2], seeds=2, methods=[f"mine={folder/'mine.py'}:thin"], store=str(folder/"store")), root=folder/"here")


@pytest.fixture(scope="module")
def facts(result):
    return json.loads((result/"result.json").read_text())


@pytest.fixture(scope="module")
def benchmarked(result):
    return json.loads((result/"benchmark.json").read_text())


@pytest.fixture(scope="module")
def lines(benchmarked):
    return pd.DataFrame(benchmarked["accuracy"])


def test_everything_is_there(result):
    page = {f"{page}.{kind}" for page in ("report", "benchmark") for kind in ("ipynb", "html")} | {"result.json", "benchmark.json"}
    assert page | {".datadesc-inputs-benchmark", ".datadesc-run", ".datadesc-stages-benchmark", ".datadesc-stages-report", "descriptions.json", "suspects.csv", "classes.md", "sentence_classifier.safetensors", "tables", "figures"} == {f.name for f in result.iterdir()}
    tables = {"descriptions", "articles", "questions", "benchmark_questions", "ift", "accuracies", "suspects"}
    assert {f.name for f in (result/"tables").iterdir()} == {f"{name}.parquet" for name in tables}
    for figure in (result/"figures").glob("*.png"):
        assert Image.open(figure).size[0] > 600
    assert len(list((result/"figures").glob("*.png"))) >= 2


def test_two_pages_from_one_study(result, benchmarked):
    "The benchmark goes on in the kernel of the report; its first answers are the two named comparisons."
    assert [row["over"] for row in benchmarked["comparisons"]] == ["class names", "images only"] and all("Holm" in row["sentence"] for row in benchmarked["comparisons"])
    assert {"accuracy", "comparison"} & set(benchmarked["conditions"][0]["rests"]) and benchmarked["parameters"]["seeds"] == 2
    notebook = json.loads((result/"benchmark.ipynb").read_text())["cells"]
    assert max(cell["execution_count"] or 0 for cell in notebook if cell["cell_type"] == "code") > len(notebook), "its cells count on from those of the report"


def test_result(facts):
    assert facts["dataset"] == "meadow" and len(facts["classes"]) == 24 and facts["sources"]
    assert facts["images"] == dict(train=960, val=480, test=960) and facts["repeated_across_splits"] == 0
    assert {"dataset", "model", "form", "top_k", "knowledge", "llm_budget"} <= set(facts["parameters"])
    assert {"datadesc", "torch", "open_clip_torch"} <= set(facts["versions"])
    assert all(s >= 0 for s in facts["seconds"].values()) and {"images", "sentences", "embeddings", "report"} <= set(facts["seconds"])


def test_accuracies_are_fractions_with_intervals(benchmarked, lines):
    assert set(lines.columns) == {"protocol", "method", "aggregation", "names", "shots", "k", "weighting", "mean", "mean_per_class", "top5", "interval", "seeds", "n_test",
                                  "over", "gain", "p_holm", "significant", "gain_interval"}
    assert set(lines.protocol) == {"zero_shot", "transfer", "paper", "adapter"}
    for row in benchmarked["accuracy"]:
        assert 0 <= row["interval"][0] <= row["mean"] <= row["interval"][1] <= 1 and row["n_test"] == 960
        assert row["mean"] <= row["top5"] <= 1 and abs(row["mean_per_class"] - row["mean"]) < 1e-6, "meadow's classes have equally many test images"


def test_rows_that_every_table_has(lines):
    methods = {protocol: set(rows.method) for protocol, rows in lines.groupby("protocol")}
    everywhere = {"set", "direct", "class names", "whole pool", "random choice", "random words", "set, shuffled", "menon", "cupl", "labo", "vdt", "mine"}
    for protocol in ("zero_shot", "transfer", "paper"): assert everywhere <= methods[protocol]
    assert {"images only", "images only, same steps", "zero-shot start: set", "joint: set"} <= methods["transfer"]
    assert methods["adapter"] == {"Tip-Adapter: class names", "Tip-Adapter: set", "Tip-Adapter-F: set", "LaBo: labo", "VDT-Adapter: vdt", "logistic regression"}


def test_gains_stand_beside_what_they_are_over(benchmarked, lines):
    "A gain is the difference of two accuracies of the same protocol, and clear only where the corrected p says so."
    assert set(lines[lines.gain.notna() & (lines.protocol == "zero_shot")].over) == {"class names"} and set(lines[lines.gain.notna() & (lines.protocol != "zero_shot")].over) == {"images only"}
    base = lines[lines.method.isin(["images only", "class names"])].set_index(["protocol", "method", "aggregation"])["mean"]
    for row in benchmarked["accuracy"]:
        if "gain" not in row: continue
        over = base["transfer" if row["protocol"] == "adapter" else row["protocol"], row["over"], row["aggregation"]]
        assert np.isclose(row["gain"], row["mean"] - over) and row["significant"] == (row["p_holm"] < .05)
        assert row["gain_interval"][0] <= row["gain"] <= row["gain_interval"][1]
    assert lines[lines.method == "images only"].gain.isna().all() and lines[(lines.protocol != "zero_shot") & (lines.method == "mine")].gain.notna().all()


def test_accuracies_can_be_counted_again(result, lines):
    "A mean in benchmark.json is the mean of the rights and wrongs kept in the table."
    table = pd.read_parquet(result/"tables"/"accuracies.parquet")
    key = ["method", "protocol", "aggregation", "names", "shots"]
    counted = table.assign(right=[np.unpackbits(np.frombuffer(bits, np.uint8), count=960).mean() for bits in table.correct]).groupby(key).right.mean()
    assert not lines.duplicated(key).any() and np.allclose(lines.set_index(key)["mean"], counted.loc[pd.MultiIndex.from_frame(lines[key])])


def test_selection_is_scored_on_the_runs_own_world(benchmarked):
    rows = pd.DataFrame(benchmarked["selection"])
    assert set(rows.world) == {"meadow"} and set(rows.columns) == {"form", "world", "precision", "precision_at_5", "precision_at_10", "chance", "ceiling"} and not rows.form.duplicated().any()
    at_5 = rows.set_index("form").precision_at_5
    assert np.allclose(rows.chance, .4) and (rows.ceiling == 1).all()
    assert min(at_5["clip"], at_5["weighted"], at_5["direct"]) > at_5["random"]
    assert rows.precision.notna().all() and rows.set_index("form").precision["set"] > .9 and at_5.index[at_5.isna()].tolist() == ["set"]


def test_words_that_are_true_classify(lines):
    mean = lines.query("protocol == 'zero_shot' and aggregation == 'mean' and names == 'without'").set_index("method")["mean"]
    assert mean["oracle selection"] > mean["whole pool"] > mean["set, shuffled"] and mean["mine"] < .1, "one sentence for all classes tells none from another"


def test_tables(result):
    texts, ift = (pd.read_parquet(result/"tables"/f"{name}.parquet") for name in ("descriptions", "ift"))
    assert {"text_id", "class_id", "component", "text", "source", "knowledge", "flag", "names_class"} <= set(texts.columns)
    assert {"text_id", "class_id", "form", "ift", "influence_part", "clip_part", "rank", "proponent"} <= set(ift.columns)
    assert set(ift.form) == {"set"} and ift.groupby("class_id").proponent.sum().between(1, 10).all()
    assert (ift.why_not[ift.proponent] == "").all() and (ift.why_not[~ift.proponent] != "").all()
    flagged = set(texts.text_id[texts.flag != ""])
    assert flagged and not flagged & set(ift.text_id[ift.proponent])


def test_suspects(result):
    suspects = pd.read_parquet(result/"tables"/"suspects.parquet")
    assert not suspects.duplicated(["split", "image"]).any() and set(suspects.image) <= set(range(960)) and suspects.score.is_monotonic_decreasing and (suspects.given != suspects.suggested).all()


def test_page_needs_nothing_else(result):
    page = (result/"report.html").read_text()
    assert 'src="http' not in page and "@import" not in page
    assert str(Path.home()) not in page


def few(tmp_path, of_each):
    "A few photographs of three classes of clothing, in the layout they came in."
    if not (SHARED/"clothing").is_dir(): pytest.skip("the photographs of ../shared/data/clothing are not here")
    for split, n in zip(("train", "validation", "test"), of_each):
        for folder in map((SHARED/"clothing"/split).joinpath, ("dress", "longsleeve", "pants")):
            (tmp_path/"clothing"/split/folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:n]: shutil.copy(image, tmp_path/"clothing"/split/folder.name)
    return tmp_path/"clothing"


def sentences(folder):
    return {c.name: [f"a {c.name} with {part}" for part in ("long sleeves", "two legs", "a round neck", "laces", "buttons")] for c in (folder/"train").iterdir()}


def datadesc(*arguments, cwd, **env):
    "What `datadesc <arguments>` says to a user without a key, a network or a filled home."
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI", "HF_"))}
    (cwd/"home").mkdir(exist_ok=True)
    return subprocess.run([sys.executable, "-c", "from datadesc.cli import main; main()", *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
                          env=clean | dict(HOME=str(cwd/"home"), DATADESC_STORE=str(cwd/"store"), HF_HUB_OFFLINE="1") | env)


def test_photographs_with_an_encoder_of_real_size(tmp_path):
    folder = few(tmp_path, (2, 1, 1))
    torch_model = import_library("open_clip").create_model("ViT-B-32")
    import torch
    torch.save({k: v.half() for k, v in torch_model.state_dict().items()}, tmp_path/"weights.pt")
    (tmp_path/"sentences.json").write_text(json.dumps({name: said[:2] for name, said in sentences(folder).items()}))
    done = datadesc("run", folder, "--descriptions", "sentences.json", "--model", "ViT-B-32", "--checkpoint", "weights.pt", *QUICK, "-p", "top_k=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path/"papermill_runs"/"clothing"/"result.json").read_text())
    assert facts["parameters"]["model"] == "ViT-B-32" and len(facts["classes"]) == 3 and facts["selection"] is None
    shown = datadesc("show", "clothing", cwd=tmp_path)
    assert "with long sleeves" in shown.stdout or "with two legs" in shown.stdout


def sample(place, of_each=8):
    "A few of the photographs of EuroSAT and what others published about its classes, in the layout they came in; lists and texts of the rest."
    if not (SHARED/"eurosat").is_dir() or not (SHARED/"peers").is_dir(): pytest.skip("the photographs and published texts of ../shared/data are not here")
    for folder in (SHARED/"eurosat"/"2750").iterdir():
        (place/"eurosat"/"2750"/folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:of_each]: shutil.copy(image, place/"eurosat"/"2750"/folder.name)
    for name in ("peers", "grocery", "clothing", "clothing_sentences.json"): (place/name).symlink_to(SHARED/name)
    return place


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory):
    "The folder of runs in which a few photographs of EuroSAT, with published files as methods, have been run and summarised."
    here = tmp_path_factory.mktemp("photographs")
    script = runpy.run_path(str(Path(__file__).resolve().parents[1]/"tools"/"photographs.py"))
    script["main"](here/"runs", sample(here/"data"))
    for command in (["run", "eurosat_sample", *QUICK, "-p", "shots=[1]", "--model", "meadow-clip"], ["summary"]):
        done = datadesc(*command, "--out", "runs", cwd=here)
        assert done.returncode == 0, done.stderr
    return here/"runs"


def test_photographs_with_published_texts_as_methods(eurosat):
    facts = json.loads((eurosat/"eurosat_sample"/"result.json").read_text())
    assert facts["dataset"] == "eurosat" and len(facts["classes"]) == 10 and sum(facts["images"].values()) == 80 and facts["selection"] is None
    k = pd.DataFrame(runs.FinishedRun(eurosat, "eurosat_sample").accuracies()).groupby("method").k.max()
    assert k["menon"] > 1 and k["vdt"] > 1 and "VDT-Adapter: vdt" in k
    assert "was trained on rendered butterflies only" in (eurosat/"eurosat_sample"/"report.html").read_text()
    page = (eurosat/"eurosat_sample"/"benchmark.html").read_text()
    assert "Only " in page and "annual crop land" in page and "was trained on rendered butterflies only" in page, "few test images, renamed classes and a foreign encoder are said"


def test_photographs_in_the_summary(eurosat):
    table = pd.read_csv(eurosat/"summary"/"results.csv", low_memory=False)
    ours = table[table.source == "measured"]
    assert set(ours.run) == {"eurosat_sample"} and set(ours.dataset) == {"eurosat"} and {"menon", "vdt", "images only"} <= set(ours.method)
    page = (eurosat/"summary"/"report.html").read_text()
    assert "figures without meaning" in page and "Kim et al. 2025, published" in page and "39.15" in page


def test_photographs_described_by_a_server_and_a_network_that_says_which_of_them_teach(tmp_path):
    folder = few(tmp_path, (3, 1, 1))
    def answer(chat):
        question = chat["messages"][-1]["content"]
        return "- sleeves\n- collar\n- hem" if "visible parts" in question else f"plain cotton, sample {chat['seed']}"
    with llm_server(answer) as (url, server):
        done = datadesc("run", folder, "--llm-base-url", url, "--llm-model", "tiny", "--model", "meadow-clip", "-p", "superclass=garment", "-p", "samples=2", "-p", "knowledge=none", *QUICK,
                        "-p", "influence_model=resnet10t", "-p", "influence_epochs=2", "-p", "form=proponent", "-p", "top_k=3", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(server.chats) == 1 + 3*3*2
    texts = pd.read_parquet(tmp_path/"papermill_runs"/"clothing"/"tables"/"descriptions.parquet")
    assert len(texts) == 18 and set(texts.source) == {"tiny"}
    with sqlite3.connect(tmp_path/"store"/"answers.sqlite") as record:
        assert record.execute("select count(*) from answers").fetchone() == (len(server.chats),)
    trained, = (tmp_path/"store"/"networks").iterdir()
    assert len(list(trained.glob("*.safetensors"))) >= 2


def picture_folder(tmp_path, classes=("cat", "dog"), n=6):
    rng = np.random.default_rng(0)
    for name in classes:
        (tmp_path/"pets"/name).mkdir(parents=True)
        for i in range(n): Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path/"pets"/name/f"{i}.png")
    (tmp_path/"said.json").write_text(json.dumps({name: ["soft fur", "a tail"] for name in classes}))
    return tmp_path/"pets"


def broken(tmp_path, what):
    "Arguments of a run that cannot end well, on a folder that is right but for `what`; the chapters' own tests hold the other ways to go wrong."
    folder, arguments = picture_folder(tmp_path), ["--descriptions", "said.json", "--model", "meadow-clip"]
    if what == "zero-byte image": (folder/"cat"/"0.png").write_bytes(b"")
    if what == "nothing said of a class": (tmp_path/"said.json").write_text(json.dumps({"cat": ["fur"], "dog": ["not described"]}))
    if what == "method that fails":
        (tmp_path/"mine.py").write_text("def f(seen): return {name: seen.labels['test'] for name in seen.classes}")
        arguments += ["--benchmark", "-p", "methods=mine=mine.py:f"]
    if what == "nobody to ask": arguments = arguments[2:]
    return [folder, *arguments]


@pytest.mark.parametrize("what, words", [
    ("nothing said of a class", ["No sentence about dog can be chosen: not described (1)"]), ("method that fails", ["'mine' failed", "KeyError: 'test'"]),
    ("nobody to ask", ["OPENAI_API_KEY", "--llm-base-url", "--descriptions"])])
def test_one_clear_error(tmp_path, what, words):
    done = datadesc("run", *broken(tmp_path, what), cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for word in words: assert word.lower() in done.stderr.lower(), done.stderr
    assert (tmp_path/"papermill_runs"/"pets"/"result.json").exists() == (what == "method that fails"), "a benchmark that fails leaves the report"


def test_bad_images_can_be_skipped(tmp_path):
    folder, *arguments = broken(tmp_path, "zero-byte image")
    done = datadesc("run", folder, *arguments, "--on-bad-image", "skip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.png" in (tmp_path/"papermill_runs"/"pets"/"report.html").read_text()
    assert all(row.get("top5") is None for row in runs.FinishedRun(tmp_path/"papermill_runs", "pets").result["accuracy"]), "of two classes, five are no answer"
