"The whole way, from images to report, as `datadesc run` goes it."
import json
import os
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
from datadesc.embed import open_clip
from llm_server import llm_server

SHARED = Path(__file__).resolve().parents[2]/"shared"/"data"
QUICK = dict(shots=[2], seeds=2)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    "The folder of a finished run on meadow, smaller than the usual in shots and seeds only."
    folder = tmp_path_factory.mktemp("runs")
    return runs.run("meadow", QUICK | dict(store=str(folder/"store")), root=folder/"here")


@pytest.fixture(scope="module")
def facts(result):
    return json.loads((result/"result.json").read_text())


def test_everything_is_there(result):
    assert {"report.ipynb", "report.html", "result.json", "tables", "figures"} == {f.name for f in result.iterdir()}
    assert {f.name for f in (result/"tables").iterdir()} == {"descriptions.parquet", "ift.parquet", "accuracies.parquet", "suspects.parquet"}
    for figure in (result/"figures").glob("*.png"):
        assert Image.open(figure).size[0] > 600
    assert len(list((result/"figures").glob("*.png"))) >= 7


def test_result(facts):
    assert facts["dataset"] == "meadow" and len(facts["classes"]) == 24
    assert {"dataset", "model", "form", "top_k", "shots", "seeds", "knowledge"} <= set(facts["parameters"])
    assert {"datadesc", "torch", "open_clip_torch"} <= set(facts["versions"])
    assert all(s >= 0 for s in facts["seconds"].values()) and {"describe", "embed", "influence", "transfer"} <= set(facts["seconds"])


def test_accuracies_are_fractions_with_intervals(facts):
    rows = pd.DataFrame(facts["accuracy"])
    assert set(rows.columns) == {"protocol", "method", "aggregation", "names", "shots", "k", "weighting", "mean", "interval", "seeds", "n_test"}
    assert set(rows.protocol) == {"zero_shot", "transfer"}
    for row in facts["accuracy"]:
        assert 0 <= row["interval"][0] <= row["mean"] <= row["interval"][1] <= 1 and row["n_test"] == 960
    assert {"images only", "images only, same steps", "class names", "random words", "whole pool"} <= set(rows[rows.protocol == "transfer"].method)


def test_accuracies_can_be_counted_again(result, facts):
    "A mean in result.json is the mean of the rights and wrongs kept in the table."
    table = pd.read_parquet(result/"tables"/"accuracies.parquet")
    for row in facts["accuracy"][:10]:
        same = table[(table.method == row["method"]) & (table.protocol == row["protocol"]) & (table.aggregation == row["aggregation"]) & (table.names == row["names"])
                     & (table.shots == row["shots"])]
        right = [np.unpackbits(np.frombuffer(bits, np.uint8), count=960).mean() for bits in same.correct]
        assert np.isclose(np.mean(right), row["mean"])


def test_selection_is_scored_on_both_worlds(facts):
    rows = pd.DataFrame(facts["selection"])
    assert set(rows.world) == {"meadow", "heath"} and set(rows.columns) == {"form", "world", "precision_at_5", "precision_at_10", "chance", "ceiling"}
    mean = rows.groupby("form").precision_at_5.mean()
    assert np.allclose(rows.chance, .4) and (rows.ceiling == 1).all()
    assert min(mean["clip"], mean["weighted"], mean["direct"]) > mean["random"]


def test_words_that_are_true_classify(facts):
    rows = pd.DataFrame(facts["accuracy"]).query("protocol == 'zero_shot' and aggregation == 'mean'").set_index("method")["mean"]
    assert rows["true sentences"] > rows["whole pool"] > rows["printed"]


def test_tables(result):
    texts, ift = (pd.read_parquet(result/"tables"/f"{name}.parquet") for name in ("descriptions", "ift"))
    assert {"text_id", "class_id", "component", "text", "source", "knowledge", "refusal", "duplicate", "names_class"} <= set(texts.columns)
    assert {"text_id", "class_id", "form", "ift", "influence_part", "clip_part", "rank", "proponent"} <= set(ift.columns)
    assert (ift[ift.proponent].groupby(["form", "class_id"]).size() == 10).all()
    assert (ift.why_not[ift.proponent] == "").all() and (ift.why_not[~ift.proponent] != "").all()
    refused = set(texts.text_id[texts.refusal])
    assert refused and not refused & set(ift.text_id[ift.proponent])


def test_suspects(result):
    suspects = pd.read_parquet(result/"tables"/"suspects.parquet")
    assert sorted(suspects.image) == list(range(960)) and suspects.suspicion.is_monotonic_decreasing and (suspects.given != suspects.suggested).all()


def test_page_needs_nothing_else(result):
    page = (result/"report.html").read_text()
    assert 'src="http' not in page and "@import" not in page
    assert str(Path.home()) not in page


def few(tmp_path, of_each=(4, 2, 2)):
    "A few photographs of each class of clothing, in the layout they came in."
    if not (SHARED/"clothing").is_dir(): pytest.skip("the photographs of ../shared/data/clothing are not here")
    for split, n in zip(("train", "validation", "test"), of_each):
        for folder in (SHARED/"clothing"/split).iterdir():
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
    folder = few(tmp_path)
    torch_model = open_clip.create_model("ViT-B-32")
    import torch
    torch.save({k: v.half() for k, v in torch_model.state_dict().items()}, tmp_path/"weights.pt")
    (tmp_path/"sentences.json").write_text(json.dumps(sentences(folder)))
    done = datadesc("run", folder, "--descriptions", "sentences.json", "--model", "ViT-B-32", "--checkpoint", "weights.pt", "-p", "shots=[2]", "-p", "seeds=2", "-p", "top_k=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path/"papermill_runs"/"clothing"/"result.json").read_text())
    assert facts["parameters"]["model"] == "ViT-B-32" and len(facts["classes"]) == 10 and "selection" not in facts
    shown = datadesc("show", "clothing", cwd=tmp_path)
    assert "with long sleeves" in shown.stdout or "with two legs" in shown.stdout


def test_a_network_says_which_images_teach(tmp_path):
    folder = few(tmp_path)
    (tmp_path/"sentences.json").write_text(json.dumps(sentences(folder)))
    done = datadesc("run", folder, "--descriptions", "sentences.json", "--model", "meadow-clip", "-p", "influence_model=resnet10t", "-p", "influence_epochs=2", "-p", "form=proponent",
                    "-p", "shots=[2]", "-p", "seeds=1", "-p", "top_k=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trained, = (tmp_path/"store"/"networks").iterdir()
    assert len(list(trained.glob("*.safetensors"))) >= 2


def test_a_class_of_which_nothing_is_said_stops_the_run(tmp_path):
    folder = few(tmp_path)
    (tmp_path/"sentences.json").write_text(json.dumps(sentences(folder) | {"hat": ["I'm sorry, I cannot describe this."]}))
    done = datadesc("run", folder, "--descriptions", "sentences.json", "--model", "meadow-clip", cwd=tmp_path)
    assert done.returncode != 0 and "Every sentence about hat is a refusal" in done.stderr and "Traceback" not in done.stderr


def test_photographs_described_by_a_server(tmp_path):
    folder = few(tmp_path, (3, 1, 1))
    def answer(chat):
        question = chat["messages"][-1]["content"]
        return "- sleeves\n- collar\n- hem" if "visible parts" in question else f"plain cotton, sample {chat['seed']}"
    with llm_server(answer) as (url, server):
        done = datadesc("run", folder, "--llm-base-url", url, "--llm-model", "tiny", "--model", "meadow-clip", "-p", "superclass=garment", "-p", "samples=2", "-p", "shots=[2]", "-p", "seeds=1", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(server.chats) == 1 + 10*3*2
    texts = pd.read_parquet(tmp_path/"papermill_runs"/"clothing"/"tables"/"descriptions.parquet")
    assert len(texts) == 60 and set(texts.source) == {"tiny"}
    with sqlite3.connect(tmp_path/"store"/"answers.sqlite") as record:
        assert record.execute("select count(*) from answers").fetchone() == (len(server.chats),)


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
    if what == "class the dataset lacks": (tmp_path/"said.json").write_text(json.dumps({"cat": ["fur"], "dog": ["fur"], "emu": ["feathers"]}))
    if what == "weights out of reach": arguments = arguments[:2]
    if what == "nobody to ask": arguments = arguments[2:]
    return [folder, *arguments]


@pytest.mark.parametrize("what, words", [
    ("zero-byte image", ["0.png", "--on-bad-image"]), ("class the dataset lacks", ["emu"]), ("weights out of reach", ["--model", "--checkpoint"]),
    ("nobody to ask", ["OPENAI_API_KEY", "--llm-base-url", "--descriptions"])])
def test_one_clear_error(tmp_path, what, words):
    done = datadesc("run", *broken(tmp_path, what), cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for word in words: assert word.lower() in done.stderr.lower(), done.stderr
    assert not (tmp_path/"papermill_runs"/"pets"/"result.json").exists()


def test_bad_images_can_be_skipped(tmp_path):
    folder, *arguments = broken(tmp_path, "zero-byte image")
    done = datadesc("run", folder, *arguments, "--on-bad-image", "skip", "-p", "shots=[1]", "-p", "seeds=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0.png" in (tmp_path/"papermill_runs"/"pets"/"report.html").read_text()
