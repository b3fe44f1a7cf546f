"A published dataset, an encyclopaedia and a language model on loopback: the whole way, with its cost estimate, its budget, its cache and its key"
import json
import os
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datadesc.catalogue import published
from llm_server import completion, llm_server
from wiki_server import page, wiki_server

KEY = "sk-this-key-may-be-found-nowhere"
PARTS = ("colour", "texture", "edges")
SMALL = [word for value in ("benchmark=true", "shots=[1]", "paper_shots=[]", "seeds=1", "baselines=menon", "influence_model=linear", "samples=1", "top_k=2") for word in ("-p", value)]


def tree(root):
    "EuroSAT's layout with a few noisy pictures of each class."
    rng = np.random.default_rng(0)
    for n, folder in enumerate(published()["eurosat"].classes):
        (root/"eurosat"/"2750"/folder).mkdir(parents=True)
        for i in range(10): Image.fromarray(rng.integers(10*n, 10*n + 120, (64, 64, 3), dtype=np.uint8)).save(root/"eurosat"/"2750"/folder/f"{folder}_{i}.jpg")


def answer(chat):
    "A list of parts, of features, or a line made of what is quoted, with the tokens it took."
    question = chat["messages"][-1]["content"]
    said = "\n".join(f"{n}. {part}" for n, part in enumerate(PARTS, 1)) if "Part:" not in question else f"{question.split('Part: ')[1].split()[0]} like {abs(hash(question)) % 1000} stones"
    return completion(said) | {"usage": dict(prompt_tokens=1000 + len(question)//4, completion_tokens=len(said)//4, total_tokens=0)}


def article(asked):
    return page(asked["titles"], f"{asked['titles']} is a kind of land.\n\n== Appearance ==\nIts colour is dull. Its texture is rough.", revision=4711)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    "A folder with the images, and a function that calls `datadesc <arguments>` there, with a key, a store and both servers."
    folder = tmp_path_factory.mktemp("sources")
    tree(folder/"data")
    with llm_server(answer) as (llm, asked), wiki_server(article) as (wiki, read):
        def datadesc(*arguments, store="store", **env):
            clean = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI", "HF_", "DATADESC"))}
            (folder/"home").mkdir(exist_ok=True)
            return subprocess.run([sys.executable, "-c", "from datadesc.cli import main; main()", *map(str, arguments)], cwd=folder, capture_output=True, text=True,
                                  env=clean | dict(HOME=str(folder/"home"), DATADESC_STORE=str(folder/store), NO_PROXY="127.0.0.1") | env)
        run = ["run", "eurosat", "--data-root", "data", "--llm-base-url", llm, "--wiki-host", wiki, "--model", "meadow-clip", *SMALL]
        yield SimpleNamespace(folder=folder, datadesc=datadesc, run=run, asked=asked.chats, headers=asked.headers, read=read.asked)


@pytest.fixture(scope="module")
def estimate(here):
    "What a dry run prints."
    done = here.datadesc(*here.run, "--dry-run", OPENAI_API_KEY=KEY)
    assert not here.asked and not here.read and not (here.folder/"papermill_runs").exists() and not (here.folder/"store"/"answers.sqlite").exists()
    return done


@pytest.fixture(scope="module")
def stopped(here, estimate):
    "A run whose budget is too small, and how many questions had reached the server when it ended."
    done = here.datadesc(*here.run, "--budget", "0.002", OPENAI_API_KEY=KEY)
    return SimpleNamespace(code=done.returncode, said=done.stderr, asked=len(here.asked))


@pytest.fixture(scope="module")
def result(here, stopped):
    "The folder of the run that came after it, with money enough."
    done = here.datadesc(*here.run, "--budget", "1", OPENAI_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    return here.folder/"papermill_runs"/"eurosat"


def test_a_dry_run_asks_nothing_and_names_the_price(estimate):
    assert estimate.returncode == 0 and "describe" in estimate.stdout and "$" in estimate.stdout and "gpt-4o-mini" in estimate.stdout, estimate.stdout + estimate.stderr
    assert re.search("describe +100 +0 ", estimate.stdout), estimate.stdout
    assert "10 per superclass are assumed" in estimate.stdout and re.search("total +111 +0 ", estimate.stdout)


def test_a_budget_stops_the_run_cleanly(here, stopped, result):
    assert stopped.code == 1 and "Traceback" not in stopped.said and "budget of $0.002" in stopped.said and "--budget" in stopped.said, stopped.said
    assert 0 < stopped.asked < len(here.asked), "something was asked before, and the rest after"


def test_no_question_was_asked_twice(here, result):
    questions = [json.dumps([chat["messages"], chat["seed"]]) for chat in here.asked]
    assert len(questions) == len(set(questions)) == 1 + 3*10 + 10, "parts of a satellite image, three parts of ten classes, and one of Menon's lists a class"


def test_the_costs_add_up(here, stopped, result):
    facts = json.loads((result/"result.json").read_text())
    report, benchmark = (pd.DataFrame(page["asked"]).set_index("stage") for page in (facts, json.loads((result/"benchmark.json").read_text())))
    assert report.calls["total"] + benchmark.calls["total"] + stopped.asked == len(here.asked) and report.cached["total"] == stopped.asked
    assert benchmark.calls["total"] == 10 and benchmark.cached["total"] == 0, "each page counts its own questions"
    for asked in (report, benchmark):
        assert asked.cost["total"] > 0 and np.isclose(asked.cost.drop("total").sum(), asked.cost["total"]) and not asked.estimated.any()
    assert not facts["unanswered"]
    assert "$" in (result/"report.html").read_text()


def test_articles_are_kept_with_their_revision(here, result):
    articles = pd.read_parquet(result/"tables"/"articles.parquet")
    assert list(articles["class"]) == list(published()["eurosat"].classes.values()) and set(articles.revision) == {4711} and set(articles.how) == {"table"} and articles.url.str.startswith("http").all()
    assert len(here.read) == 10, "each article was fetched once, though the run was started twice"
    assert any("Its texture is rough." in chat["messages"][-1]["content"] for chat in here.asked)


def test_the_division_of_the_images_can_be_repeated(result):
    splits = pd.read_parquet(result/"tables"/"splits.parquet")
    assert splits.split.value_counts().to_dict() == dict(train=70, val=20, test=10) and splits.path.str.startswith("eurosat/2750/").all()


def test_the_key_is_in_no_byte_left_behind(here, stopped, result):
    assert all(headers["authorization"] == f"Bearer {KEY}" for headers in here.headers)
    files = [file for file in here.folder.rglob("*") if file.is_file()]
    assert len(files) > 100 and not [file for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in stopped.said


@pytest.fixture(scope="module")
def repeated(here, result):
    "The same run by somebody else, who has the published answers and articles, and neither key nor server."
    done = here.datadesc("cache", "export", "eurosat.jsonl.gz", "--run", "eurosat")
    assert done.returncode == 0, done.stderr
    before = len(here.asked), len(here.read)
    command = shlex.split(done.stdout.split("To repeat the run: datadesc ")[1])
    again = here.datadesc(*command, "--data-root", "data", "--out", "elsewhere", store="other")
    assert again.returncode == 0, again.stderr
    assert before == (len(here.asked), len(here.read))
    return done.stdout, here.folder/"elsewhere"/"eurosat"


def test_others_repeat_the_run_without_a_key(result, repeated):
    said, place = repeated
    assert "41 answers" in said and "10 articles" in said and "-p answers=eurosat.jsonl.gz -p wiki_file=eurosat.articles.jsonl.gz" in said
    assert "datadesc run eurosat" in said and "-p model=meadow-clip" in said and "-p samples=1" in said and "127.0.0.1" not in said
    first, second = (pd.read_parquet(folder/"tables"/"descriptions.parquet") for folder in (result, place))
    pd.testing.assert_frame_equal(first, second)
    assert pd.DataFrame(json.loads((place/"result.json").read_text())["asked"]).calls.sum() == 0


def test_a_dry_run_knows_what_is_cached(here, result):
    done = here.datadesc(*here.run, "--dry-run")
    assert re.search("total +0 +41 ", done.stdout), done.stdout + done.stderr


def test_answers_move_between_machines(here, result):
    for expected in ("41 answers added, 0 were cached", "0 answers added, 41 were cached"):
        done = here.datadesc("cache", "import", "eurosat.jsonl.gz", store="third")
        assert done.returncode == 0 and expected in done.stdout, done.stdout + done.stderr
    (here.folder/"torn.jsonl").write_text('{"key": "a", "answer": "b"}\n{"key": ')
    done = here.datadesc("cache", "import", "torn.jsonl", store="third")
    assert done.returncode == 1 and "torn.jsonl" in done.stderr and "line 2" in done.stderr and "Traceback" not in done.stderr
