"The command line as a user meets it: its output and its exit code."
import contextlib
import json
import os
import re
import subprocess
import sys

import pytest

from conftest import pictures


def said(done):
    "The one line of a process that ended with an error a user can mend."
    assert done.code == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[0].startswith("datadesc: "), done.stderr
    return done.stderr


def test_help_imports_nothing_heavy(repo):
    program = "import sys, datadesc.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=repo, capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "numpy", "papermill", "nbformat", "nbconvert", "open_clip", "openai", "matplotlib"} & set(loaded)


def test_help_names_every_option(datadesc):
    shown = datadesc("run", "--help").stdout
    for option in ("-p", "--kernel", "--model", "--checkpoint", "--descriptions", "--llm-base-url", "--llm-model", "--llm", "--llm-gguf", "--on-bad-image", "--benchmark", "--strict", "--out", "--force"):
        assert option in shown


def test_run_tells_what_was_found_and_where(datadesc):
    done = datadesc("run", "coin")
    assert done.code == 0, done.stderr
    assert "head\n  - a face\ntail\n  - a number\n" in done.stdout and "method" not in done.stdout
    assert done.stdout.rstrip().endswith(f"Report: {os.path.join('papermill_runs', 'coin', 'report.html')}")
    assert "1/2  The throws" in done.stdout


def test_a_finished_run_is_read(datadesc):
    datadesc("run", "coin")
    before = os.stat("papermill_runs/coin/report.ipynb").st_mtime_ns
    again = datadesc("run", "coin")
    assert again.code == 0 and "The throws" not in again.stdout and "Report:" in again.stdout
    assert os.stat("papermill_runs/coin/report.ipynb").st_mtime_ns == before
    other = datadesc("run", "coin", "-p", "throws=51")
    assert "throws: 50 -> 51" in other.stdout and "The throws" in other.stdout
    assert "The throws" in datadesc("run", "coin", "-p", "throws=51", "--force").stdout


def test_out_moves_the_runs(datadesc):
    done = datadesc("run", "coin", "--out", "elsewhere/demo")
    assert "Report: elsewhere/demo/coin/report.html" in done.stdout
    assert sorted(os.listdir()) == ["elsewhere"]
    assert "done" in datadesc("status", "--out", "elsewhere/demo").stdout


def test_other_images_are_another_run(datadesc):
    pictures("photos")
    assert "The throws" in datadesc("run", "photos").stdout
    assert "nothing to run" in datadesc("run", "photos").stdout
    os.utime("photos/cat/0.png", (0, 0))
    assert "nothing to run" in datadesc("run", "photos").stdout, "a copy of the same picture is no change"
    pictures("photos", ("owl", "cat"), n=1)
    changed = datadesc("run", "photos").stdout
    assert "run with other files" in changed and "photos/cat/0.png' is another file now" in changed and "The throws" in changed
    assert "nothing to run" in datadesc("run", "photos").stdout


def test_the_first_line_comes_before_a_kernel(datadesc):
    pictures("photos")
    lines = datadesc("run", "photos").stdout.splitlines()
    assert lines[0] == "./photos: 6 images of 2 classes: cat, dog"
    assert datadesc("run", "coin", "-p", "dataset=meadow").stdout.splitlines()[0] == "meadow: 2,400 images (960 train, 480 val, 960 test) of 24 classes"


def test_strict_ends_with_one_if_a_condition_failed(datadesc):
    assert datadesc("run", "coin", "--strict").code == 0
    done = datadesc("run", "coin", "--strict", "-p", "throws=1", "-p", "seeds=0")
    assert done.code == 1 and "conditions failed" in done.stderr and "Failed: coin." in done.stdout, done.stdout
    assert datadesc("run", "coin", "-p", "throws=1", "-p", "seeds=0").code == 0 and os.path.exists("papermill_runs/coin/report.html")


def test_a_benchmark_with_the_run(datadesc):
    done = datadesc("run", "coin", "--benchmark", "-p", "others=2")
    assert done.code == 0, done.stderr
    assert "One coin is like another." in done.stdout and done.stdout.rstrip().endswith("Benchmark: papermill_runs/coin/benchmark.html")
    facts = json.load(open("papermill_runs/coin/benchmark.json"))
    assert len(facts["accuracy"]) == 2 and facts["shared"], "it goes on in the kernel of the report"
    assert "nothing to run" in datadesc("run", "coin", "--benchmark", "-p", "others=2").stdout
    again = datadesc("run", "coin", "--benchmark", "-p", "others=3").stdout
    assert "others: 2 -> 3" in again and "The throws" not in again
    assert "nothing to run" in datadesc("run", "coin").stdout and os.path.exists("papermill_runs/coin/benchmark.json")
    datadesc("run", "coin", "-p", "throws=51")
    assert not os.path.exists("papermill_runs/coin/benchmark.json")


def test_a_benchmark_of_a_finished_run(datadesc, monkeypatch, tmp_path):
    assert "No finished run 'coin'" in said(datadesc("benchmark", "coin"))
    pictures("photos")
    datadesc("run", "photos")
    before = {name: os.stat(f"papermill_runs/photos/{name}").st_ino for name in os.listdir("papermill_runs/photos")}
    with open("papermill_runs/photos/notes.txt", "w") as file:
        file.write("mine")
    monkeypatch.chdir(tmp_path)
    done = datadesc("benchmark", "here/papermill_runs/photos", "-p", "others=2")
    assert done.code == 0, done.stderr
    place = tmp_path / "here" / "papermill_runs" / "photos"
    facts = json.loads((place / "benchmark.json").read_text())
    assert len(facts["accuracy"]) == 2 and not facts["shared"] and os.path.samefile(facts["images_at"], "here/photos")
    assert all(os.stat(place / name).st_ino == inode for name, inode in before.items() if name != ".datadesc-run") and (place / "notes.txt").read_text() == "mine"
    assert {"benchmark.json", "result.json"} <= set(json.loads((place / ".datadesc-run").read_text())["files"])
    assert "nothing to run" in datadesc("benchmark", "here/papermill_runs/photos").stdout, "its parameters are those of the one that is there"
    pictures("here/photos", ("owl",))
    assert "was run with other files" in said(datadesc("benchmark", "here/papermill_runs/photos", "-p", "others=3"))
    assert "No parameter 'throws'" in said(datadesc("benchmark", "here/papermill_runs/photos", "-p", "throws=3"))


def test_a_benchmark_that_fails_leaves_the_report(datadesc):
    message = said(datadesc("run", "coin", "--benchmark", "-p", "others=0"))
    assert "'coin' stopped under 'Other coins': AssertionError: nothing to compare with" in message and "benchmark.ipynb" in message
    assert os.path.exists("papermill_runs/coin/report.html") and not os.path.exists("papermill_runs/coin/benchmark.json")
    assert "coin  done   its benchmark stopped under 'Other coins'" in datadesc("status").stdout
    assert datadesc("run", "coin").code == 0
    assert re.search(r"^coin +done", datadesc("status").stdout, re.M)


def test_params_are_those_of_both_notebooks(datadesc):
    shown = datadesc("params").stdout
    assert "throws: int = 100" in shown and "others: int = 1" in shown and "benchmark: bool = false" in shown and "images_at" not in shown


@pytest.mark.parametrize("command", [["list"], ["status"], ["run", "photos"], ["show", "photos"], ["params"]])
def test_what_is_asked_often_imports_little(repo, coin_package, datadesc, command):
    pictures("photos")
    datadesc("run", "photos")
    program = "import sys; from datadesc.cli import main; sys.argv[1:] = %r\ntry: main()\nexcept BaseException: pass\nprint(*{name.partition('.')[0] for name in sys.modules})" % command
    loaded = subprocess.run([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": str(coin_package)}, capture_output=True, text=True, check=True).stdout.splitlines()[-1].split()
    assert not {"torch", "pandas", "papermill", "nbformat", "nbconvert", "jupyter_client", "open_clip", "openai", "matplotlib"} & set(loaded)


@pytest.mark.parametrize("arguments, words", [
    (["run", "coyn"], "did you mean 'coin'"),
    (["run", "nowhere/photos"], "'nowhere/photos' is no dataset and no folder"),
    (["run", "coin", "-p", "thros=3"], "did you mean 'throws'"),
    (["run", "coin", "-p", "throws=many"], "Parameter 'throws' is int"),
    (["run", "coin", "-p", "throws=2.5"], "Parameter 'throws' is int"),
    (["run", "coin", "-p", "throws"], "expected name=value"),
    (["run", "coin", "-p", "out=x"], "No parameter 'out'"),
    (["run", "coin", "-p", "bad_images=shrug"], "should be 'stop' or 'skip'"),
    (["run", "coin", "--kernel", "cobol"], "No kernel 'cobol'"),
    (["run", "coin", "--checkpoint", "clip.pt"], "checkpoint: clip.pt"),
    (["run", "coin", "--descriptions", "words.json"], "No parameter 'descriptions'"),
    (["show", "coin"], "No finished run 'coin'"),
])
def test_what_a_user_can_mend(datadesc, arguments, words):
    assert words in said(datadesc(*arguments))
    assert not os.path.exists("papermill_runs")


def test_parameter_files_that_cannot_be_read(datadesc):
    os.makedirs("papermill_runs")
    for name, text, words in [("torn", "throws: [1, 2", "torn.yaml is not YAML"), ("bare", "- 1", "one 'name: value' a line"),
                              ("typo", "thros: 3", "did you mean 'throws'"), ("ill", "throws: many", "Parameter 'throws' is int"),
                              ("gone", "dataset: photos", "dataset: photos")]:
        with open(f"papermill_runs/{name}.yaml", "w") as file:
            file.write(text)
        assert words in said(datadesc("run", name))


def test_a_folder_is_named_after_itself(datadesc):
    pictures("photos/my cats")
    done = datadesc("run", os.path.abspath("photos/my cats") + "/")
    assert done.code == 0, done.stderr
    assert json.load(open("papermill_runs/my cats/result.json"))["dataset"] == os.path.join(".", "photos", "my cats")
    with open("BIRDS.CSV", "w") as file:
        file.write("path,label\nphotos/my cats/cat/0.png,wren\nphotos/my cats/dog/0.png,robin\n")
    assert datadesc("run", "BIRDS.CSV").code == 0
    assert json.load(open("papermill_runs/BIRDS/result.json"))["dataset"] == "./BIRDS.CSV"


def test_a_name_wins_over_a_folder_unless_it_looks_like_one(datadesc):
    pictures("coin")
    datadesc("run", "coin")
    assert json.load(open("papermill_runs/coin/result.json"))["dataset"] == ""
    assert "a run of 'coin', and this one is of" in said(datadesc("run", "./coin"))
    datadesc("run", "./coin", "--name", "folder")
    result = json.load(open("papermill_runs/folder/result.json"))
    assert result["dataset"] == "./coin" and result["accuracy"][0]["n_test"] == 100


def test_no_place_to_write(datadesc):
    with open("papermill_runs", "w") as file:
        file.write("a file in the way")
    assert "papermill_runs" in said(datadesc("run", "coin"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without permissions")
def test_no_permission_to_write(datadesc, coin_package, tmp_path, monkeypatch):
    monkeypatch.setattr("datadesc.kernel.started", lambda *a, **options: contextlib.nullcontext())  # this Python lies in root's home
    for folder in (coin_package, tmp_path, *list(tmp_path.parents)[:3]):
        os.chmod(folder, 0o755)
    os.seteuid(65534)
    try:
        done = datadesc("run", "coin")
    finally:
        os.seteuid(0)
    assert "Cannot write in 'papermill_runs'" in said(done)


def test_a_run_that_stops_says_where(datadesc):
    message = said(datadesc("run", "coin", "-p", "throws=0"))
    assert "'coin' stopped under 'The result': ZeroDivisionError: division by zero" in message
    assert "papermill_runs/coin/report.ipynb" in message
    assert "failed  stopped under 'The result'" in datadesc("status").stdout


def test_list_and_status(datadesc):
    assert datadesc("list").stdout.splitlines() == ["dataset  needs", "coin     nothing"]
    assert "coin  never" in datadesc("status").stdout
    datadesc("run", "coin")
    assert "coin  done" in datadesc("status").stdout


def test_a_failed_attempt_is_forgotten_once_the_finished_run_is_asked_for_again(datadesc):
    datadesc("run", "coin")
    assert datadesc("run", "coin", "-p", "throws=0").code == 1
    assert re.search(r"^coin +failed", datadesc("status").stdout, re.M)
    assert "nothing to run" in datadesc("run", "coin").stdout
    assert re.search(r"^coin +done", datadesc("status").stdout, re.M)


def test_what_chooses_the_sentences_is_checked_before_a_run(repo):
    from datadesc.checks import check
    from datadesc.parameters import check_parameters
    from datadesc.runs import known_parameters
    known = known_parameters(repo / "nbs" / "runs" / "describe.ipynb")
    assert (known["form"].default, known["top_k"].default) == ("set", 5)
    assert [check_parameters({"top_k": typed}, known)["top_k"] for typed in ("5", "auto", 5)] == [5, "auto", 5]
    assert check_parameters({"form": "influence"}, known) == {"form": "direct"}
    with pytest.raises(ValueError, match=r"Parameter 'top_k' is int \| Literal\['auto'\] .*got 'many'"): check_parameters({"top_k": "many"}, known)
    with pytest.raises(ValueError, match="Parameter 'form' is .*'set', 'eq2', 'clip', .*got 'sets'"): check_parameters({"form": "sets"}, known)
    for wrong, words in ((dict(top_k=0), "top_k=0: expected at least one text per class, or 'auto'"), (dict(diversity=.3), "such as form='direct'"),
                         (dict(form="set", near_duplicate=.9), "form='set' avoids repetition by itself"), (dict(form="direct", diversity=2.), "diversity=2.0: expected 0")):
        with pytest.raises(ValueError, match=words): check(dict(dataset="meadow") | wrong)
    for right in (dict(top_k=5), dict(form="direct", top_k="auto", diversity=.3, near_duplicate=.9)): assert check(dict(dataset="meadow") | right) is None


def test_sets_are_shown_as_sets_and_a_sentence_without_an_image_has_no_figure():
    from datadesc.cli import _as_csv, _as_json, _as_markdown, _as_text
    texts = [{"class": "frog", "text": text, "ift": ift, "rank": rank} for rank, (text, ift) in enumerate([("wide mouth", .024), ("loud", None)], 1)]
    facts = dict(dataset="pond", classes=["frog", "newt"], parameters=dict(form="set"))
    assert "\n".join(_as_text(texts, facts)) == ("pond: the sentences chosen for 1 of 2 classes, chosen together, each behind its marginal influence\n\n"
                                                "frog\n  0.0240  wide mouth\n          loud")
    assert "| marginal influence | sentence |" in "".join(_as_markdown(texts, facts)) and "| score | sentence |" in "".join(_as_markdown(texts, facts | dict(parameters=dict(form="clip"))))
    assert "".join(_as_csv(texts, facts)).splitlines()[1:] == ["frog,1,0.024,wide mouth", "frog,2,,loud"] and json.loads("".join(_as_json(texts, facts)))[1]["score"] is None
