"Runs that are killed, interrupted, repeated and run beside each other; the report as a file."
import io
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from conftest import coin_notebook, pictures
from datadesc import runs
from datadesc.kernel import report_html
from datadesc.run_folder import RunFolder

ROOT = Path("papermill_runs")


@pytest.fixture
def coin(tmp_path, monkeypatch):
    "Runs the coin with some parameters, in an empty folder."
    monkeypatch.chdir(tmp_path)
    nbformat.write(coin_notebook(), "coin.ipynb")
    ROOT.mkdir()
    (ROOT / "coin.yaml").write_text("throws: 20\n")
    return lambda given=None, **kwargs: runs.run("coin", given, notebook="coin.ipynb", **kwargs)


def until(condition, seconds=120):
    "Waits for `condition()`."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def in_the_throws(name="coin"):
    "Whether a run of `name` has come to its second cell."
    return RunFolder(ROOT / name).is_running and runs._state(ROOT, name) == ("running", "under 'The throws'")


def children(process):
    "The processes that `process` has started and that live."
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def test_a_run_leaves_its_files_and_nothing_else(coin):
    place = coin()
    assert sorted(file.name for file in place.iterdir()) == [".datadesc-run", "report.html", "report.ipynb", "result.json"]
    assert sorted(file.name for file in ROOT.iterdir()) == [".datadesc", "coin", "coin.yaml"]
    assert [file.name for file in (ROOT / ".datadesc").rglob("*") if not file.is_dir()] in ([], ["coin.lock"])


def test_report_is_clean(coin):
    place = coin({"seeds": "0,1", "top": "3"})
    text = (place / "report.ipynb").read_text()
    report = nbformat.reads(text, as_version=4)
    nbformat.validate(report)
    assert report.metadata.papermill.parameters == dict(throws=20, seeds=[0, 1], top=3, out="papermill_runs/coin")
    assert report.metadata.papermill.exception is None
    for trace in ("skip_exec", '"stderr"', ".datadesc/work", os.getcwd(), sys.prefix):
        assert trace not in text


def test_bars_reach_a_terminal(coin, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    coin()
    assert terminal.getvalue() == "bar\n"


def test_page_fetches_nothing(coin):
    page = (coin() / "report.html").read_text()
    assert re.search(r"default-src 'none'", page)
    assert not re.search(r"<(script|link|iframe|object|embed)\b|@import|url\(|src=[\"'](?!data:)", page, re.I)


def test_pictures_are_in_the_page():
    picture = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="})
    cell = nbformat.v4.new_code_cell("draw()", outputs=[picture])
    page = report_html(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Pictures & words"), cell]))
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in page
    assert "<title>Pictures &amp; words</title>" in page


def test_user_kernels_do_not_hide_this_python(coin, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(json.dumps(dict(argv=["/bin/false", "{connection_file}"], display_name="Another", language="python")))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert KernelSpecManager().get_kernel_spec("python3").display_name == "Another"
    assert (coin() / "result.json").exists()
    with pytest.raises(runs.RunFailed, match="lost its kernel"):
        coin(kernel="python3", force=True)


def test_a_named_kernel_runs_it(coin, tmp_path, monkeypatch):
    spec = tmp_path / "jupyter" / "kernels" / "mine"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps(dict(argv=command, display_name="Mine", language="python", env={"MINE": "yes"})))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    notebook = coin_notebook()
    notebook.cells.append(nbformat.v4.new_code_cell("import os; assert os.environ['MINE'] == 'yes'"))
    nbformat.write(notebook, "coin.ipynb")
    assert (coin(kernel="mine") / "result.json").exists()


def test_a_failure_keeps_the_old_result(coin):
    place = coin()
    old = (place / "result.json").read_text()
    with pytest.raises(runs.RunFailed, match="ZeroDivisionError"):
        coin({"throws": 0})
    assert (place / "result.json").read_text() == old
    failed = ROOT / ".datadesc" / "failed" / "coin"
    report = nbformat.read(failed / "report.ipynb", as_version=4)
    assert report.metadata.papermill.exception is True and report.metadata.papermill.parameters.out == str(failed)
    assert runs._state(ROOT, "coin")[0] == "failed"
    coin(force=True)
    assert not failed.exists() and runs._state(ROOT, "coin")[0] == "done"


def test_a_first_failure_can_be_read(coin):
    with pytest.raises(runs.RunFailed, match="ZeroDivisionError"):
        coin({"throws": 0})
    assert sorted(file.name for file in (ROOT / "coin").iterdir()) == [".datadesc-run", "report.ipynb"]
    assert "division by zero" in next(row["note"] for row in runs.status() if row["run"] == "coin")
    coin()
    assert runs._state(ROOT, "coin")[0] == "done"


def test_no_result_is_a_failure(coin):
    notebook = coin_notebook()
    notebook.cells.pop()
    nbformat.write(notebook, "coin.ipynb")
    with pytest.raises(runs.RunFailed, match="without writing result.json"):
        coin()
    assert runs._state(ROOT, "coin")[0] == "failed"


def test_a_kernel_that_dies(coin):
    notebook = coin_notebook()
    notebook.cells[3].source = "import os; os._exit(1)"
    nbformat.write(notebook, "coin.ipynb")
    with pytest.raises(runs.RunFailed, match="lost its kernel"):
        coin()
    assert runs._state(ROOT, "coin")[0] == "failed"


def test_a_killed_run_has_failed(datadesc, begin):
    datadesc("run", "coin")
    process = begin("run", "coin", "-p", "wait=5")
    until(in_the_throws)
    assert "running  under 'The throws'" in datadesc("status").stdout
    kernels = children(process)
    process.kill()
    process.wait()
    assert runs._state(ROOT, "coin") == ("failed", "stopped under 'The throws': interrupted or killed")
    assert (ROOT / "coin" / "result.json").exists()
    until(lambda: not any(Path(f"/proc/{kernel}/cmdline").exists() and Path(f"/proc/{kernel}/cmdline").read_bytes() for kernel in kernels))
    assert "Report:" in datadesc("run", "coin", "--force").stdout
    assert runs._state(ROOT, "coin")[0] == "done"


def test_ctrl_c_is_clean(begin):
    process = begin("run", "coin", "-p", "wait=5")
    until(in_the_throws)
    kernels = children(process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in errors
    assert "'coin' stopped under 'The throws': " in errors
    assert runs._state(ROOT, "coin")[0] == "failed" and (ROOT / "coin" / "report.ipynb").exists()
    assert not any(Path(f"/proc/{kernel}").exists() for kernel in kernels)


def test_the_same_run_twice_at_once(datadesc, begin):
    begin("run", "coin", "-p", "wait=5")
    until(in_the_throws)
    second = datadesc("run", "coin")
    assert second.code == 1 and "'coin' is running already" in second.stderr


def test_runs_beside_each_other(datadesc, begin):
    for name in "abc":
        pictures(f"photos/{name}")
    processes = [begin("run", f"photos/{name}") for name in "abc"]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert datadesc("status").stdout.count("done") == 3


def test_chosen_texts_come_best_first(coin):
    pandas = pytest.importorskip("pandas")
    place = coin()
    (place / "tables").mkdir()
    pandas.DataFrame(dict(text_id=[0, 1, 2], text=["two faces", "an edge", "a number"])).to_parquet(place / "tables" / "descriptions.parquet")
    pandas.DataFrame(dict(text_id=[0, 1, 2, 1], class_id=[0, 0, 1, 0], form=["direct"] * 3 + ["clip"], ift=[0.1, 0.2, 0.3, 0.9],
                          rank=[2, 1, 1, 1], proponent=[True] * 4)).to_parquet(place / "tables" / "ift.parquet")
    rows = runs.FinishedRun(ROOT, "coin").chosen_texts()
    assert [row["text"] for row in rows] == ["an edge", "two faces", "a number"]
    assert [row["class"] for row in rows] == ["head", "head", "tail"]
