"""Inputs that people really have, through the command: what is found before a kernel starts, places that are full, far or closed, and five real runs beside other files."""
import json
import os
import resource
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from conftest import pictures
from datadesc import kernel, runs
from datadesc.run_folder import RunFolder
from test_run_folder import snapshot

QUICK = ["--model", "meadow-clip"]


def said(file, classes=("cat", "dog")):
    "A file of sentences."
    Path(file).write_text(json.dumps({name: [f"a {name} lying on a table", "soft fur"] for name in classes}), encoding="utf-8")
    return str(file)


# Mistakes that cost no kernel

MISTAKES = """
import contextlib, io, json, sys
from datadesc.cli import main
said = []
for line in json.loads(sys.argv[1]):
    sys.argv = ["datadesc", *line]
    errors = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")):
        try: main(); code = 0
        except SystemExit as end: code = end.code
    errors.flush()
    said.append([code, errors.buffer.getvalue().decode()])
print(json.dumps([said, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_cheap_mistakes_are_found_without_a_heavy_import(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures("photos")
    said("good.json")
    Path("torn.json").write_text('{"cat": [')
    said("typo.json", ("cat", "dgo"))
    said("half.json", ("cat",))
    Path("comma.csv").write_text("path,label\na.png,Lily, white\n")
    Path("twice.csv").write_text("path,label,Label\na.png,a,a\n")
    Path("answers.jsonl").write_text("no json\n")
    pictures("mixed/fresh", ("apple", "pear"))
    pictures("mixed/rotten", ("apple", "pear"))
    wrong = {
        ("run", "nowhere"): "'nowhere' is no dataset",
        ("run", "photos", "--descriptions", "none.json"): "descriptions: none.json",
        ("run", "photos", "--descriptions", "torn.json"): "'torn.json' cannot be read",
        ("run", "photos", "--descriptions", "typo.json"): "did you mean 'dog'",
        ("run", "photos", "--descriptions", "half.json"): "does not describe 'dog'",
        ("run", "photos", "--descriptions", "good.json", "--model", "ViT-B32"): "did you mean ViT-B-32",
        ("run", "photos", "--descriptions", "good.json", "--checkpoint", "clip.pt"): "checkpoint: clip.pt",
        ("run", "photos", "--descriptions", "good.json", "-p", "methods=mine.json"): "expected NAME=FILE.json",
        ("run", "photos", "--descriptions", "good.json", "-p", "methods=mine=torn.json"): "'torn.json' cannot be read",
        ("run", "photos", "--descriptions", "good.json", "-p", "shots=[1,every]"): "Parameter 'shots'",
        ("run", "photos", "--descriptions", "good.json", "-p", "shot=1"): "did you mean 'shots'",
        ("run", "photos", "-p", "answers=answers.jsonl"): "'answers.jsonl' cannot be read",
        ("run", "photos", "-p", "wiki_file=none.zim"): "wiki_file: none.zim",
        ("run", "photos", "--descriptions", "good.json", "--out", "photos"): "among the images",
        ("run", "comma.csv", "--descriptions", "good.json"): "comma.csv' has 3 cells, its first line 2",
        ("look", "comma.csv"): "Line 2 of 'comma.csv'",
        ("look", "twice.csv"): "two columns 'label' and 'Label'",
        ("look", "mixed"): "class_level",
        ("look", "nowhere"): "nowhere",
    }
    lines = [list(line) for line in wrong] + [[*line, "--dry-run"] for line in wrong if line[0] == "run"]
    was = snapshot(".")
    done = subprocess.run([sys.executable, "-c", MISTAKES, json.dumps(lines)], capture_output=True, text=True, env=os.environ | {"DATADESC_STORE": str(tmp_path / "store")})
    answers, modules = json.loads(done.stdout)
    for line, (code, message) in zip(lines, answers):
        words = wrong[tuple(word for word in line if word != "--dry-run")]
        assert code == 1 and words in message and "Traceback" not in message, (line, message)
    assert not {"torch", "pandas", "numpy", "papermill", "open_clip", "sklearn"} & set(modules)
    assert snapshot(".") == was


@pytest.mark.parametrize("dataset, library", [("hf:some/name", "datasets"), ("wds:shards", "webdataset")])
def test_a_library_that_is_not_installed(datadesc, monkeypatch, dataset, library):
    from datadesc import checks
    find = checks.find_spec
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == library else find(name))
    done = datadesc("run", dataset)
    assert done.code == 1 and f"pip install {library}" in done.stderr


# What the command says

def test_what_lies_in_a_folder_is_said_before_a_run(datadesc):
    pictures("photos")
    Path("photos/cat/notes.txt").write_text("a very good cat")
    done = datadesc("run", "photos")
    assert done.stdout.startswith("./photos: 6 images of 2 classes: cat, dog\nLeft out: 1 of the files there; `datadesc look ./photos` says why.\n")
    shown = datadesc("look", "photos").stdout
    assert "cat         3" in shown and "photos/cat/notes.txt" in shown and "formats: 6 PNG" in shown


def test_names_arrive_in_one_form(datadesc):
    pictures("photos", ("café", "n"))
    shown = datadesc("look", "photos").stdout
    assert "café" in shown and unicodedata.normalize("NFD", "café") not in shown


def test_every_parameter_is_listed(repo):
    program = "from datadesc.cli import main; import sys; sys.argv = ['datadesc', 'params']; main()"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=repo, check=True).stdout
    known = runs.known_parameters(repo / "nbs" / "runs" / "describe.ipynb")
    assert {"dataset", "form", "benchmark", "shots", "baselines"} <= set(known) and not {"out", "run", "images_at"} & set(known)
    for name, parameter in known.items():
        assert f"  {name}: {parameter.annotation} = {json.dumps(parameter.default)}\n" in shown
    assert all(parameter.help in " ".join(shown.split()) for parameter in known.values())
    assert all(parameter.help and parameter.group for parameter in known.values())


def test_version(datadesc):
    from importlib.metadata import version
    assert datadesc("--version").stdout == f"datadesc {version('datadesc')}\n"


@pytest.fixture
def pond(datadesc):
    "A finished run whose sentences are hard to print."
    folder = Path("papermill_runs/pond")
    (folder / "tables").mkdir(parents=True)
    result = dict(dataset="pond", classes=["Frog|toad", "newt"], raw_names=["01 Frog|toad", "02 newt"], parameters=dict(form="direct"), accuracy=[])
    (folder / "result.json").write_text(json.dumps(result))
    texts = ["wide mouth", "a newt, *wet*", "loud at night", "<b>orange</b> belly"]
    pd.DataFrame(dict(text_id=range(4), class_id=[0, 1, 0, 1], text=texts)).to_parquet(folder / "tables" / "descriptions.parquet")
    pd.DataFrame(dict(text_id=range(4), class_id=[0, 1, 0, 1], form="direct", ift=[-0.12, 0.2, 1e-5, 12.3], rank=[2, 2, 1, 1], proponent=True)).to_parquet(folder / "tables" / "ift.parquet")
    RunFolder(folder).write_mark("pond")
    return lambda *arguments: datadesc("show", *arguments)


def test_sentences_are_shown_under_their_class_with_aligned_scores(pond):
    shown = pond("pond").stdout.splitlines()
    assert shown[0].startswith("pond: the sentences chosen for 2 of 2 classes")
    assert shown[1:] == ["", "Frog|toad", "   0.0  loud at night", "  -0.1  wide mouth", "", "newt", "  12.3  <b>orange</b> belly", "   0.2  a newt, *wet*"]
    assert pond("papermill_runs/pond/").stdout == pond(os.path.abspath("papermill_runs/pond")).stdout == pond("pond").stdout


def test_one_class_is_shown(pond):
    assert pond("pond", "--class", "NEWT").stdout.splitlines()[1:] == ["", "newt", "  12.3  <b>orange</b> belly", "   0.2  a newt, *wet*"]
    assert pond("pond", "--class", "02 newt").stdout == pond("pond", "--class", "newt").stdout
    done = pond("pond", "--class", "newts and such")
    assert done.code == 1 and "No class 'newts and such'" in done.stderr


@pytest.mark.parametrize("form", ["csv", "json"])
def test_what_is_shown_can_be_given_to_a_run(pond, form):
    from datadesc.sentences import read_sentences
    Path(f"shown.{form}").write_text(pond("pond", "--format", form).stdout)
    assert read_sentences(f"shown.{form}") == {"Frog|toad": ["loud at night", "wide mouth"], "newt": ["<b>orange</b> belly", "a newt, *wet*"]}


def test_markdown_shows_names_and_sentences_as_typed(pond):
    from nbconvert.filters import markdown2html
    page = markdown2html(pond("pond", "--format", "markdown").stdout)
    assert "Frog|toad" in page and "&lt;b&gt;orange&lt;/b&gt; belly" in page and "a newt, *wet*" in page and page.count("<tr>") == 6


# Places

def run_in(environment, *arguments, **options):
    "A run of the coin in a process of its own."
    command = [sys.executable, "-c", "from datadesc.cli import main; main()", "run", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, **options)


def test_a_long_temporary_folder(user, tmp_path):
    long = tmp_path / ("x" * 140)
    long.mkdir()
    done = run_in(user | {"TMPDIR": str(long)}, "coin")
    assert done.returncode == 0, done.stderr
    assert Path("papermill_runs/coin/result.json").exists()


def test_no_socket_folder_at_all(monkeypatch):
    monkeypatch.setattr(kernel.tempfile, "gettempdir", lambda: "/" + "x" * 140)
    monkeypatch.setattr(kernel.os, "access", lambda place, mode: False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert kernel._SocketKernelManager(kernel_name=kernel._THIS_PYTHON).transport == "tcp"


def test_a_file_may_not_grow(user):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    done = run_in(user, "coin", preexec_fn=limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "'papermill_runs/.datadesc/work/coin'" in done.stderr and "Free some room" in done.stderr and "--out" in done.stderr
    assert run_in(user, "coin").returncode == 0


def test_a_full_disk_inside_the_kernel(user, coin_package):
    import nbformat
    notebook = nbformat.read(coin_package / "datadesc" / "assets" / "runs" / "describe.ipynb", as_version=4)
    notebook.cells[3].source = "raise OSError(28, 'No space left on device')"
    nbformat.write(notebook, "full.ipynb")
    with pytest.raises(runs.RunFailed, match="No space left on device: the disk or the quota is full.*--out for results, DATADESC_STORE for the store"):
        runs.run(str(pictures("photos")), dict(throws=1), notebook="full.ipynb")


@pytest.mark.parametrize("home", [None, "/nonexistent/nowhere"])
def test_no_home(user, home):
    environment = {name: value for name, value in user.items() if name != "HOME"} | ({} if home is None else {"HOME": home}) | {"DATADESC_STORE": "store"}
    done = run_in(environment, "coin")
    assert done.returncode == 0, done.stderr


def test_a_store_that_cannot_be_written_is_found_before_a_kernel_starts(user):
    Path("store").write_text("a file in the way")
    done = run_in(user | {"DATADESC_STORE": "store"}, "coin")
    assert done.returncode == 1 and "Cannot write in 'store'" in done.stderr and "DATADESC_STORE" in done.stderr
    assert not Path("papermill_runs").exists()


def test_blanks_and_umlauts(user):
    pictures("meine Fotos/süße Tiere")
    done = run_in(user, "meine Fotos/süße Tiere", "--out", "Ergebnisse für alle")
    assert done.returncode == 0, done.stderr
    assert Path("Ergebnisse für alle/süße Tiere/report.html").exists()


# Five real runs: nothing but the run's own folder changes

def start(*arguments, cwd, **env):
    "A real run in a process of its own, which stands in `cwd`."
    command = [sys.executable, "-c", "from datadesc.cli import main; main()", "run", *map(str, arguments), *QUICK]
    return subprocess.Popen(command, cwd=cwd, env=os.environ | {"DATADESC_STORE": str(HERE_STORE), **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def disk(tmp_path, monkeypatch):
    "Stands in a folder with pictures and other files; gives a function that runs, and one that compares all that lies outside of some folders with how it was."
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pictures("photos", n=6)
    said("said.json")
    Path("photos/cat/notes.txt").write_text("a very good cat")

    def begin(*arguments, cwd=".", **env):
        command = [sys.executable, "-c", "from datadesc.cli import main; main()", "run", *arguments, *QUICK]
        return subprocess.Popen(command, cwd=cwd, env=os.environ | {"DATADESC_STORE": str(tmp_path / "store"), **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(process):
        _, errors = process.communicate(timeout=300)
        assert "Traceback" not in errors, errors
        return process.returncode, errors

    def compare(was, *but):
        inside = lambda path: any(path == name or path.startswith(name + os.sep) or name.startswith(path + os.sep) for name in (os.path.join(".", name) for name in but))
        outside = lambda content: {path: value for path, value in content.items() if not inside(path)}
        assert outside(snapshot(".")) == outside(was)

    return begin, end, compare


def earlier():
    "The folder of a finished run of the pictures; somebody deleted its report."
    place = Path("papermill_runs/photos")
    place.mkdir(parents=True)
    (place / "result.json").write_text("{}")
    RunFolder(place).write_mark("../../photos")
    return place


def test_a_real_run_of_the_folder_one_stands_in(disk):
    begin, end, compare = disk
    was = snapshot(".")
    assert end(begin(".", "--descriptions", "../said.json", cwd="photos"))[0] == 0
    compare(was, "photos/papermill_runs")
    place = Path("photos/papermill_runs/photos")
    assert json.loads((place / "result.json").read_text())["classes"] == ["cat", "dog"]
    assert json.loads((place / "descriptions.json").read_text()) == json.loads(Path("said.json").read_text())
    assert (place / "left_out.txt").read_text() == "photos/cat/notes.txt: not an image\n".replace("photos/", "")
    page = (place / "report.html").read_text()
    chosen = json.loads((place / "result.json").read_text())["chosen"]
    assert set(chosen) == {"cat", "dog"} and all(text in page for texts in chosen.values() for text in texts) and "left_out.txt" in page


def test_a_real_run_of_names_that_are_no_text_and_of_markup(disk):
    begin, end, compare = disk
    os.rename(b"photos/cat/0.png", b"photos/cat/caf\xe9.png")
    os.rename("photos/dog", "photos/[dog](http:x) <i>n")
    pictures("elsewhere", ("雪豹",), n=6)
    os.symlink("../elsewhere/雪豹", "photos/雪豹")
    said("said.json", ("cat", "[dog](http:x) <i>n", "雪豹"))
    was = snapshot(".")
    assert end(begin("photos", "--descriptions", "said.json"))[0] == 0
    compare(was, "papermill_runs")
    page = Path("papermill_runs/photos/report.html").read_text()
    assert "[dog](http:x) &lt;i&gt;n" in page and "<i>n" not in page and 'href="http:x' not in page and "雪豹" in page


def test_a_real_run_over_an_earlier_one_with_notes(disk):
    begin, end, compare = disk
    place = earlier()
    (place / "descriptions.json").write_text(Path("said.json").read_text())
    RunFolder(place).write_mark("../../photos")
    (place / "tables").mkdir()
    (place / "notes.txt").write_text("mine")
    (place / "tables" / "mine.csv").write_text("mine")
    was = snapshot(".")
    assert end(begin("photos", "--descriptions", str(place / "descriptions.json"), "-p", "top_k=1"))[0] == 0
    compare(was, "papermill_runs/photos", "papermill_runs/.datadesc")
    assert (place / "notes.txt").read_text() == (place / "tables" / "mine.csv").read_text() == "mine"
    assert json.loads((place / "result.json").read_text())["parameters"]["top_k"] == 1


def test_a_real_run_that_fails_keeps_the_result(disk):
    begin, end, compare = disk
    earlier()
    Path("said.json").write_text(json.dumps({"cat": ["fur"], "dog": ["not described"]}))
    was = snapshot(".")
    code, errors = end(begin("photos", "--descriptions", "said.json"))
    assert code == 1 and "No sentence about dog can be chosen: not described (1)" in errors
    compare(was, "papermill_runs/.datadesc")
    assert (RunFolder("papermill_runs/photos").beside("failed") / "report.ipynb").exists()


def test_a_real_run_that_is_killed(disk):
    begin, end, compare = disk
    was = snapshot(".")
    process = begin("photos", "--descriptions", "said.json")
    while not (RunFolder("papermill_runs/photos").beside("work") / "report.ipynb").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    compare(was, "papermill_runs")
    assert not Path("papermill_runs/photos").exists() and runs._state("papermill_runs", "photos")[0] == "failed"
    assert "The run would replace" in end(begin("photos", "--descriptions", "said.json", "--out", "."))[1]
    compare(was, "papermill_runs")


def test_a_benchmark_finds_the_files_of_its_run_from_another_folder(user, tmp_path, monkeypatch):
    from datadesc.runs import _from_here, _had
    pictures("photos")
    said("said.json")
    assert run_in(user, "photos", "--out", "../results").returncode == 0
    place = tmp_path / "results" / "photos"
    report = json.loads((place / "report.ipynb").read_text())
    report["metadata"]["papermill"]["parameters"]["descriptions"] = "said.json"
    (place / "report.ipynb").write_text(json.dumps(report))
    monkeypatch.chdir(tmp_path)
    assert _from_here(RunFolder(place), _had(place)) | {"out": ""} == dict(dataset="./here/photos", descriptions="here/said.json", out="")
