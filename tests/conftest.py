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
row = dict(protocol="zero_shot", method="coin", aggregation="mean", names="without", shots="0", mean=mean, interval=[mean, mean], seeds=seeds, n_test=throws)
result = dict(dataset=dataset, classes=["head", "tail"], parameters=dict(form=form), accuracy=[row])
pathlib.Path(out, "result.json").write_text(json.dumps(result))'''


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
    cells = [prose("# A coin\n\n- skip_exec: true"), code(PARAMETERS, metadata={"tags": ["parameters"]}),
             prose("## The throws"), code(THROWS), prose("## The result"), code(RESULT)]
    kernel = {"name": "python3", "language": "python", "display_name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


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
    (site / "datadesc" / "assets" / "datasets").mkdir()
    shutil.copy(REPO / "datadesc" / "assets" / "datasets" / "sources.csv", site / "datadesc" / "assets" / "datasets")
    bundled = site / "datadesc" / "assets" / "runs"
    bundled.mkdir()
    nbformat.write(coin_notebook(), bundled / "dataset.ipynb")
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
