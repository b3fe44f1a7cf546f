"""Nothing of the user's is touched: random layouts of images, results and working directory, for runs that end well, fail or are killed."""
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import nbformat
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from datadesc import runs
from datadesc.folders import MARK
from datadesc.run_folder import RunFolder

PARAMETERS = '''dataset: str = ""  # folder of images
descriptions: str = ""  # file of sentences
out: str = "."  # folder of the results
fails: bool = False  # whether it stops'''
RESULT = '''import json, pathlib
assert not fails
if descriptions: pathlib.Path(descriptions).read_text()
pathlib.Path(out, "tables").mkdir()
pathlib.Path(out, "tables", "made.csv").write_text("made by a run")
pathlib.Path(out, "descriptions.json").write_text('{"cat": ["fur"], "dog": ["a wet nose"]}')
pathlib.Path(out, "result.json").write_text(json.dumps(dict(classes=["cat", "dog"])))'''


def said(images):
    "A file's worth of sentences about the classes in the folder of images."
    root = images / "train" if (images / "train").is_dir() else images
    return json.dumps({folder.name: ["fur"] for folder in root.iterdir() if folder.is_dir() and folder.name != "papermill_runs" and not (folder / MARK).exists()})


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    "A run notebook of two cells."
    code, kernel = nbformat.v4.new_code_cell, {"name": "python3", "language": "python", "display_name": "python3"}
    cells = [code(PARAMETERS, metadata={"tags": ["parameters"]}), code(RESULT)]
    file = tmp_path_factory.mktemp("notebook") / "two.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), file)
    return file


def pictures(folder, classes=("cat", "dog"), n=1):
    "A folder of classes; a file named like an image is enough for a run that does not open it."
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (folder / name / f"{i}.png").write_bytes(f"{folder.name} {name} {i}".encode())
    return folder


def snapshot(root):
    "{path: what is there} of all that lies below `root`, links not followed."
    found = {}
    for folder, inner, files in os.walk(root):
        for name in (*inner, *files):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                found[path] = "-> " + os.readlink(path)
            else:
                found[path] = "folder" if os.path.isdir(path) else Path(path).read_bytes()
    return found


def quietly(call):
    "The error that `call()` raises, or None; what it prints is kept."
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            call()
        except (ValueError, OSError, runs.RunFailed) as error:
            return error
    return None


# Layouts

IMAGES = ["photos", "Photos", "data/photos", "a/images", "b/images", "papermill_runs/photos", "papermill_runs/photos/images", "results/photos", "photos/inner/photos", "my pets/übung"]
FREE = [None, "results", "papermill_runs", "Papermill_Runs", "{images}/papermill_runs", "link/papermill_runs", "{images}/../out", "linked_out", "a"]
TAKEN = [".", "..", "{images}", "{images}/", "{images}/cat", "{images}/train", "link/cat", "link", "photos", "a file"]
BEFORE = ["nothing", "empty", "same run", "same run", "same run", "run of 0.1", "failed run", "killed run", "files of the user", "other run", "a link", "a file"]
AROUND = ["nothing", "nothing", "working copies of 0.1", "a class is a link", "a run among the classes", "files in .datadesc", "runs is a link to a class"]

layouts = st.fixed_dictionaries(dict(
    images=st.sampled_from(IMAGES), split=st.booleans(), asked=st.sampled_from(["as it is", "absolute", "by a link", "with dots", "with a slash", "from inside"]),
    out=st.sampled_from(3 * FREE + TAKEN), name=st.sampled_from([*[None] * 6, "photos", "cat", "images", "x y", "photos.failed", ".datadesc"]), cwd=st.sampled_from([".", ".", "a", "{images}", "{images}/cat"]),
    before=st.sampled_from(BEFORE), around=st.sampled_from(AROUND), descriptions=st.sampled_from(["none", "none", "beside", "in the run's folder", "of the run before", "of the killed run"]),
    end=st.sampled_from(["well", "well", "failing", "killed"]), after=st.floats(0.05, 1.2)))


def lay_out(disk, layout):
    "Makes the layout on an empty disk; returns (what to ask for, folder of the runs or None, name, folder of this run, parameters)."
    at = lambda text: text.format(images=layout["images"])
    images = disk / layout["images"]
    for split in ("train", "test") if layout["split"] else ("",):
        pictures(images / split)
    pictures(disk / "b" / "images", ("owl", "eel"))
    (disk / "a").mkdir(exist_ok=True)
    (disk / "a file").write_text("in the way")
    (disk / "real_out").mkdir()
    os.symlink("real_out", disk / "linked_out")
    os.symlink(layout["images"], disk / "link")
    if layout["around"] == "a class is a link":
        pictures(disk / "elsewhere", ("heron",))
        os.symlink(disk / "elsewhere" / "heron", images / ("train" if layout["split"] else "") / "heron")
    if layout["around"] == "runs is a link to a class":
        os.symlink("cat", images / "papermill_runs")
    if layout["around"] == "a run among the classes":
        made(images / "rat", "nowhere")
    cwd = disk / at(layout["cwd"])
    cwd.mkdir(parents=True, exist_ok=True)
    os.chdir(cwd)
    asked = dict(zip(["as it is", "absolute", "by a link", "with dots", "with a slash", "from inside"],
                     [os.path.relpath(images), str(images), str(disk / "link"), os.path.join(os.path.relpath(images), "..", images.name), str(images) + os.sep, "."]))[layout["asked"]]
    if layout["asked"] == "from inside":
        os.chdir(images)
    out = None if layout["out"] is None else str(disk / at(layout["out"]))
    name = layout["name"] or os.path.basename(os.path.realpath(images))
    place = Path(os.path.relpath(out or "papermill_runs")) / name
    around(disk, place, layout)
    before(disk, place, layout, images)
    return asked, out, layout["name"], place, sentences(disk, place, layout, images)


def made(folder, source, words="{}"):
    "A finished run, as one that ended well leaves it."
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text('{"old": true}')
    (folder / "descriptions.json").write_text(words)
    nbformat.write(nbformat.v4.new_notebook(metadata=dict(papermill=dict(parameters=dict(dataset="", out=str(folder))))), folder / "report.ipynb")
    RunFolder(folder).write_mark(source)


def before(disk, place, layout, images):
    "What lies in the folder of the run beforehand, if it can lie there."
    kind, source = layout["before"], RunFolder(place).source_of(images)
    if kind == "nothing" or os.path.lexists(place):
        return
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        if kind == "a file":
            place.write_text("mine")
        elif kind == "a link":
            os.symlink(pictures(disk / "linked"), place)
        elif kind == "killed run":
            work = RunFolder(place).beside("work").path
            made(work, source, said(images))
            (work / "result.json").unlink()
        else:
            place.mkdir()
        if kind == "files of the user":
            pictures(place, ("report", "result"))
            (place / "result.json").write_text("mine")
        if kind in ("same run", "failed run"):
            made(place, source, said(images))
            (place / "notes.txt").write_text("mine")
            (place / "tables").mkdir()
            (place / "tables" / "mine.csv").write_text("mine")
            os.symlink(disk / "b", place / "to b")
        if kind == "failed run":
            (place / "result.json").unlink()
        if kind == "other run":
            made(place, RunFolder(place).source_of(disk / "b" / "images"))
        if kind == "run of 0.1":
            made(place, source, said(images))
            (place / MARK).unlink()
            report = nbformat.read(place / "report.ipynb", as_version=4)
            report.metadata["papermill"] = dict(parameters=dict(dataset=os.path.join(".", os.path.relpath(images)), out=str(place)))
            nbformat.write(report, place / "report.ipynb")


def around(disk, place, layout):
    "Files of the user where a run might work."
    with contextlib.suppress(OSError):
        if layout["around"] == "working copies of 0.1":
            for folder in (f"{place}.failed", f"{place}.old", place.parent / ".running" / place.name):
                pictures(Path(folder))
        if layout["around"] == "files in .datadesc":
            for kind in ("work", "failed", "replaced"):
                pictures(RunFolder(place).beside(kind).path)


def sentences(disk, place, layout, images):
    "The parameters of the run."
    file = {"none": None, "beside": disk / "said.json", "in the run's folder": place / "mine.json", "of the run before": place / "descriptions.json",
            "of the killed run": RunFolder(place).beside("work") / "descriptions.json"}[layout["descriptions"]]
    if file and not file.exists():
        with contextlib.suppress(OSError):
            file.write_text(said(images))
    return dict(fails=layout["end"] == "failing") | (dict(descriptions=str(file)) if file and file.exists() else {})


# What has to hold

def do(asked, out, name, params, notebook, layout):
    "Runs it; the error, or None. A run that is to be killed has a process of its own."
    call = lambda: runs.run(asked, params, **({} if out is None else {"root": out}), name=name, notebook=notebook, force=True)
    if layout["end"] != "killed":
        return quietly(call)
    child = os.fork()
    if not child:
        quietly(call)
        os._exit(0)
    time.sleep(layout["after"])
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def belongs_to_the_run(path, place):
    "Whether a run may have made or changed what is at `path`."
    work = os.path.realpath(place.parent / ".datadesc")
    return path == work or path.startswith(work + os.sep) or path == os.path.realpath(place) or path.startswith(os.path.realpath(place) + os.sep)


def check(disk, layout, notebook):
    "One layout, one run; every byte outside of its folder compared."
    asked, out, name, place, params = lay_out(disk, layout)
    place = Path(os.path.abspath(place))
    was_a_run, was = bool(RunFolder(place).mark), snapshot(disk)
    work = RunFolder(place).beside("work")
    of_the_user_at_work = work.path.exists() and not work.mark
    error = do(asked, out, name, params, notebook, layout)
    now = snapshot(disk)
    for path, content in was.items():
        theirs = not belongs_to_the_run(path, place) or (path.startswith(os.path.realpath(place)) and not was_a_run) or of_the_user_at_work and path.startswith(os.path.realpath(work))
        if theirs:
            assert now.get(path) == content, f"{path} was changed"
    for path in set(now) - set(was):
        leads_there = now[path] == "folder" and os.path.realpath(place).startswith(path + os.sep)
        assert belongs_to_the_run(path, place) or leads_there, f"{path} is new"
    if was_a_run and layout["before"] == "same run":
        notes = [Path(place, "notes.txt"), RunFolder(place).beside("replaced") / "notes.txt"]
        assert any(file.exists() and file.read_text() == "mine" for file in notes), "notes were lost"
        assert any(file.with_name("to b").is_symlink() for file in notes)
    if isinstance(error, ValueError):
        assert now == was, "refused, and yet something was written"
        assert place.name in str(error) or "A run cannot be called" in str(error) or "class" in str(error), error
    if layout["end"] == "well" and error is None:
        assert json.loads((place / "result.json").read_text()) == dict(classes=["cat", "dog"])
        assert (place / "tables" / "made.csv").exists()
        if was_a_run and layout["before"] == "same run":
            assert (place / "notes.txt").read_text() == (place / "tables" / "mine.csv").read_text() == "mine"
    return "refused" if isinstance(error, ValueError) else layout["end"]


@pytest.fixture(autouse=True)
def back_home():
    "The folder that the tests stand in."
    home = os.getcwd()
    yield
    os.chdir(home)


def test_random_layouts(tmp_path, notebook, monkeypatch):
    monkeypatch.setenv("DATADESC_STORE", str(tmp_path / "store"))
    seen, number = {}, iter(range(10**6))

    @settings(max_examples=200, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(layouts)
    def one(layout):
        disk = tmp_path / f"disk{next(number)}"
        disk.mkdir()
        how = check(disk, layout, notebook)
        seen[how] = seen.get(how, 0) + 1
        os.chdir(tmp_path)
        shutil.rmtree(disk)

    one()
    assert set(seen) == {"refused", "well", "failing", "killed"} and min(seen.values()) >= 15, seen


# The cases that people reported

@pytest.fixture
def here(tmp_path, monkeypatch, notebook):
    "Stands in an empty folder with images in `photos`; gives a function that runs them and returns the error."
    monkeypatch.setenv("DATADESC_STORE", str(tmp_path / "store"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pictures(Path("photos"))
    return lambda asked, **options: quietly(lambda: runs.run(asked, options.pop("params", {}), notebook=notebook, **options))


@pytest.mark.parametrize("asked, out, folder", [("photos", ".", "photos"), ("papermill_runs/photos", None, "papermill_runs/photos"), ("photos", "photos", "photos/photos"), ("photos", "photos/cat", "photos/cat/photos")])
def test_images_are_never_the_folder_of_a_run(here, asked, out, folder):
    pictures(Path("papermill_runs/photos"))
    was = snapshot(".")
    for params in ({}, dict(fails=True)):
        error = here(asked, params=params, **({} if out is None else {"root": out}))
        assert isinstance(error, ValueError) and f"'{folder}'" in str(error) and f"'{asked}'" in str(error).replace("./", ""), error
    assert snapshot(".") == was


def test_two_datasets_of_one_name(here):
    for folder in ("a/images", "b/images"):
        pictures(Path(folder))
    assert here("a/images") is None
    was = snapshot(".")
    error = here("b/images")
    assert "'papermill_runs/images' holds a run of 'a/images', and this one is of 'b/images'" in str(error) and "--name" in str(error)
    assert snapshot(".") == was
    assert here("b/images", name="more") is None and here("a/images") is None
    assert sorted(name for name in os.listdir("papermill_runs") if name[0] != ".") == ["images", "more"]


def test_a_dataset_that_one_stands_in(here, monkeypatch):
    monkeypatch.chdir("photos")
    for _ in range(2):
        assert here(".", force=True) is None
    assert sorted(os.listdir()) == ["cat", "dog", "papermill_runs"]
    assert here(".", root="results") is not None and not os.path.exists("results")


def test_the_same_images_from_elsewhere_are_the_same_run(here, monkeypatch):
    assert here("photos") is None
    was = os.stat("papermill_runs/photos/result.json").st_mtime_ns
    monkeypatch.chdir("photos")
    assert here("../photos", root="../papermill_runs") is None
    assert os.stat("../papermill_runs/photos/result.json").st_mtime_ns == was, "it was finished already"


def test_sentences_of_a_run_are_input_to_the_next(here):
    assert here("photos") is None
    own = "papermill_runs/photos/descriptions.json"
    assert here("photos", params=dict(descriptions=own)) is None and Path(own).exists()
    shutil.copy(own, "papermill_runs/photos/edited.json")
    error = here("photos", params=dict(descriptions="papermill_runs/photos/edited.json"))
    assert "'papermill_runs/photos/edited.json' lies" in str(error) and Path("papermill_runs/photos/edited.json").exists()


def test_a_process_that_died_between_two_renames(here):
    assert here("photos") is None
    Path("papermill_runs/photos/notes.txt").write_text("mine")
    old = RunFolder("papermill_runs/photos").beside("replaced")
    os.rename("papermill_runs/photos", old)
    assert here("photos", params=dict(fails=True)) is not None
    assert Path("papermill_runs/photos/notes.txt").read_text() == "mine" and Path("papermill_runs/photos/result.json").exists()


@pytest.mark.parametrize("name", ["summary", ".hidden", "a/b", "..", "x" * 300])
def test_names_that_no_run_may_have(here, name):
    was = snapshot(".")
    assert "--name" in str(here("photos", name=name)) and snapshot(".") == was


def test_links_and_files_in_the_way(here):
    os.makedirs("papermill_runs")
    os.symlink("../photos", "papermill_runs/photos")
    Path("papermill_runs/linked").write_text("mine")
    was = snapshot(".")
    assert "where its images" in str(here("photos")) or "is a link" in str(here("photos"))
    assert "is a file" in str(here("photos", name="linked")) and snapshot(".") == was
