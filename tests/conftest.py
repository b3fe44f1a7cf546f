"What several test files need: the repository, and a small installed package whose runs take a second."
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from PIL import Image

from datadesc import cli, runs

# A shell that starts the tests in the background makes them, and all they start, deaf to Ctrl-C: the tests that send one would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPO = Path(__file__).resolve().parents[1]

PARAMETERS = '''from typing import Literal, Optional
dataset: str = ""  # folder of images
out: str = "."  # folder of the results
throws: int = 100  # how often the coin is thrown
wait: float = 0.0  # seconds between two throws
seeds: list[int] = [0]  # one series of throws each
top: Optional[int] = None  # how many to keep
bad_images: Literal["stop", "skip"] = "stop"  # what to do with a bad image
model: str = "ViT-B-32"  # encoder
checkpoint: str = ""  # its weights
form: str = "direct"  # how sentences are chosen'''

THROWS = '''import random, sys, time
for seed in seeds:
    coin, heads = random.Random(seed), 0
    for _ in range(throws):
        heads += coin.random() < .5
        time.sleep(wait)
print("bar", file=sys.stderr)'''

RESULT = '''import json, pathlib
mean = heads / throws
row = dict(protocol="zero_shot", method="coin", aggregation="mean", names="without", shots="0", mean=mean, interval=[mean, mean], seeds=len(seeds), n_test=throws)
odd = dict(name="coin", verdict="fail" if mean < .4 else "pass", figure=mean, limit=.4, sentence="It lands on heads too rarely.")
result = dict(schema_version="2", dataset=dataset, classes=["head", "tail"], raw_names=["head", "tail"], images={}, parameters=dict(form=form), versions={}, seconds={},
              accuracy=[row], conditions=[odd], chosen={"head": ["a face"], "tail": ["a number"]})
pathlib.Path(out, "result.json").write_text(json.dumps(result))'''


BENCHMARK = ['''run: str = "."  # folder of the finished run
images_at: str = ""  # where its images lie
others: int = 1  # how many other coins
out: str = "."  # folder of the results''', '''import json, pathlib
result = json.loads(pathlib.Path(run, "result.json").read_text())
assert others, "nothing to compare with"
accuracy = [result["accuracy"][0] | dict(method=f"coin {n}") for n in range(others)]
compared = [dict(sentence="One coin is like another.")]
pathlib.Path(out, "benchmark.json").write_text(json.dumps(dict(accuracy=accuracy, comparisons=compared, shared="heads" in globals(), images_at=images_at)))''']


def pictures(folder, classes=("cat", "dog"), n=3):
    "A folder of small pictures in classes, each of a colour of its own."
    for c, name in enumerate(classes):
        (Path(folder) / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (40 * c, 20 * i, 90)).save(Path(folder) / name / f"{i}.png")
    return Path(folder)


def coin_notebook():
    "A run notebook that ends in a second, or when `throws * wait` seconds are over; no throws make it fail."
    code, prose = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    return notebook_of(prose("# A coin\n\n- skip_exec: true"), code(PARAMETERS, metadata={"tags": ["parameters"]}),
                       prose("## The throws"), code(THROWS), prose("## The result"), code(RESULT))


def coins_notebook():
    "The benchmark of such a run."
    code, prose = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    return notebook_of(prose("# Coins"), code(BENCHMARK[0], metadata={"tags": ["parameters"]}), prose("## Other coins"), code(BENCHMARK[1]))


def notebook_of(*cells):
    "A notebook for this Python."
    kernel = {"name": "python3", "language": "python", "display_name": "python3"}
    return nbformat.v4.new_notebook(cells=list(cells), metadata={"kernelspec": kernel})


@pytest.fixture(scope="session")
def repo():
    "The root of the repository."
    return REPO


@pytest.fixture(scope="session")
def coin_package(tmp_path_factory):
    "A folder for PYTHONPATH: the package without its clone, with the coin as its run notebook."
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(REPO / "datadesc", site / "datadesc", ignore=shutil.ignore_patterns("__pycache__", "assets"))
    shutil.copytree(REPO / "datadesc" / "assets" / "report", site / "datadesc" / "assets" / "report")
    shutil.copytree(REPO / "datadesc" / "assets" / "datasets", site / "datadesc" / "assets" / "datasets")
    bundled = site / "datadesc" / "assets" / "runs"
    bundled.mkdir()
    nbformat.write(coin_notebook(), bundled / "describe.ipynb")
    nbformat.write(coins_notebook(), bundled / "benchmark.ipynb")
    (bundled / "coin.yaml").write_text("throws: 50\n")
    return site


@pytest.fixture
def user(coin_package, tmp_path, monkeypatch):
    "The environment of a user who has that package, an empty home, and stands in an empty folder."
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return os.environ | {"PYTHONPATH": str(coin_package), "HOME": str(tmp_path / "home")}


@pytest.fixture
def datadesc(user, coin_package, monkeypatch, capfd):
    "Calls `datadesc <arguments>` in this process; returns what it printed and its exit code."
    bundled = coin_package / "datadesc" / "assets" / "runs"
    monkeypatch.setattr(runs, "sources", lambda: (bundled, bundled))
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["datadesc", *arguments])
        try:
            code = cli.main() or 0
        except SystemExit as end:
            code = end.code or 0
        printed = capfd.readouterr()
        return SimpleNamespace(code=code, stdout=printed.out, stderr=printed.err)
    return call


@pytest.fixture
def begin(user):
    "Starts `datadesc <arguments>` as a process of its own and returns it; it is killed at the end of the test."
    begun = []
    def start(*arguments):
        command = [sys.executable, "-c", "from datadesc.cli import main; main()", *arguments]
        begun.append(subprocess.Popen(command, env=user, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return begun[-1]
    yield start
    for process in begun:
        process.kill()
        process.communicate()
