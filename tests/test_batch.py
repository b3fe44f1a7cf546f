"Several runs at once: what is a point of a grid, who gets which device, what a failure, Ctrl-C and a second start do."
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import pictures
from datadesc import batch, runs
from datadesc.batch import Point, device_slots, grid_points, run_batch
from datadesc.run_folder import RunFolder

ROOT = Path("papermill_runs")


def until(condition, seconds=60):
    "Waits for `condition()`."
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def alive(pid):
    "Whether the process runs: it is neither gone nor a zombie."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def python(program):
    "A launcher whose runs are Python programs; `{name}` in it is the run's."
    class Program(batch._Process):
        def __init__(self, point, arguments, environment, log):
            with open(log, "wb") as file:
                command = [sys.executable, "-c", program.replace("{name}", point.name)]
                super().__init__(command, env=os.environ | environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    return Program


@pytest.fixture
def unchecked(monkeypatch, tmp_path):
    "Points that need no dataset, in an empty folder."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "is_finished", lambda *args, **options: False)
    return lambda *names: [Point(name, name, {}) for name in names]


# The points

@pytest.mark.parametrize("text, values", [
    ("a,b", ["a", "b"]), ("5", ["5"]), ("[1,4],[16]", ["[1,4]", "[16]"]), ('"a,b",c', ['"a,b"', "c"]), ('{"x": 1, "y": 2},{}', ['{"x": 1, "y": 2}', "{}"]),
    ("hf-hub:owner/name,ViT-B-32", ["hf-hub:owner/name", "ViT-B-32"]), ('["a=b,c=d"],[]', ['["a=b,c=d"]', "[]"])])
def test_values_are_split_at_commas_outside_of_brackets(text, values): assert batch._split_values(text) == values


def test_names_are_folder_names_and_differ_where_values_do():
    values = ["hf-hub:owner/name", "hf-hub:owner_name", "hf-hub_owner_name", "a" * 500, "a" * 501, "[1, 4]", "[1,4]", "ViT-B-32", "..", "é", "0.5"]
    points = grid_points(["meadow"], {}, ["model=" + ",".join(values)])
    assert len({point.name for point in points}) == len(values) and [point.params["model"] for point in points] == values
    for point in points: RunFolder.named(ROOT, point.name)
    assert points[7].name == "meadow@model=ViT-B-32" and points[10].name == "meadow@model=0.5"


def test_a_grid_in_another_order_means_the_same_runs():
    one = grid_points(["meadow", "heath"], {}, ["top_k=3,5", "model=offline,meadow-clip"])
    other = grid_points(["heath", "meadow"], {}, ["model=meadow-clip,offline", "top_k=5,3"])
    assert {point.name: point.params for point in one} == {point.name: point.params for point in other} and len(one) == 8


@pytest.mark.parametrize("arguments, words", [
    (dict(grid=["model"]), "expected name=value,value"), (dict(grid=["model=a,,b", "model=c"]), "given twice"), (dict(grid=["form=set"], params={"form": "set"}), "given twice"),
    (dict(datasets=["meadow", "heath"], name="x"), "--name x"), (dict(datasets=["medow"]), "did you mean 'meadow'")])
def test_what_is_no_grid(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)): grid_points(**dict(datasets=["meadow"]) | arguments)


def test_two_datasets_of_one_name_are_not_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a/images", "b/images"): pictures(folder)
    with pytest.raises(ValueError, match="a/images and b/images would both be the run 'images'"): grid_points(["a/images", "b/images"])
    assert [point.name for point in grid_points(["a/images"], grid=["top_k=3"], name="mine")] == ["mine@top_k=3"]


# The devices

def test_devices_are_handed_out(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert device_slots(["cuda:0", "cuda:1"]) == [("cuda:0", {"CUDA_VISIBLE_DEVICES": "0"}), ("cuda:1", {"CUDA_VISIBLE_DEVICES": "1"})]
    assert len(device_slots(["cuda:0", "cuda:0"], 2)) == 2 and len(device_slots(["cuda:0", "cuda:1"], 1)) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5,7")
    assert device_slots(["cuda:1", "cuda:0"])[0][1] == {"CUDA_VISIBLE_DEVICES": "7"}
    with pytest.raises(ValueError, match="shows only 2"): device_slots(["cuda:2"])
    with pytest.raises(ValueError, match="expected cpu, or cuda:0"): device_slots(["gpu0"])
    for jobs in (0, 3):
        with pytest.raises(ValueError, match="expected 1 to 2"): device_slots(["cuda:0", "cuda:1"], jobs)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    assert [environment["OMP_NUM_THREADS"] for _, environment in device_slots(["cpu"], 4)] == ["4"] * 4
    assert device_slots(["cpu"]) == [("cpu", {"CUDA_VISIBLE_DEVICES": ""})], "one run has all cores, as without a batch"


# The course of a batch, with programs for runs

def test_no_more_at_once_than_slots_and_none_on_a_device_that_is_taken(unchecked):
    program = "import os, time; print(time.monotonic(), os.environ['WHERE'], flush=True); time.sleep(.3); print(time.monotonic(), os.environ['WHERE'])"
    logs = {}
    class Kept(python(program)):
        def __init__(self, point, arguments, environment, log): super().__init__(point, arguments, environment, log); logs[point.name] = open(log)
    rows = run_batch(unchecked(*"abcdef"), slots=[("one", {"WHERE": "one"}), ("two", {"WHERE": "two"})], launch=Kept, stream=io.StringIO())
    assert [row["state"] for row in rows] == ["done"] * 6 and not any(row["log"] for row in rows)
    spans = [[line.split() for line in log.read().splitlines()] for log in logs.values()]
    assert {span[0][1] for span in spans} == {"one", "two"}
    for where in ("one", "two"):
        times = sorted((float(span[0][0]), float(span[1][0])) for span in spans if span[0][1] == where)
        assert all(end <= start for (_, end), (start, _) in zip(times, times[1:]))


def test_a_failure_stops_no_other_and_has_a_reason(unchecked):
    program = """import os, signal, sys
if "{name}" == "bad": print("3 images\\ndatadesc: 'bad' stopped under 'The study': no class\\nThe report so far: x"); sys.exit(1)
if "{name}" == "worse": os.kill(os.getpid(), signal.SIGKILL)
if "{name}" == "odd": sys.exit("something else")"""
    said = io.StringIO()
    rows = run_batch(unchecked("bad", "good", "worse", "odd", "fine"), slots=[("cpu", {})], launch=python(program), stream=said)
    assert [row["state"] for row in rows] == ["failed", "done", "failed", "failed", "done"]
    assert rows[0]["note"] == "'bad' stopped under 'The study': no class" and "SIGKILL" in rows[2]["note"] and rows[3]["note"] == "something else"
    assert "3 images" in Path(rows[0]["log"]).read_text()
    lines = said.getvalue().splitlines()
    assert len(lines) == 10 and "2 done, 3 failed" in lines[-1] and "left" in lines[3], said.getvalue()


def test_a_launcher_that_cannot_start_is_a_failure(unchecked):
    def launch(point, *_):
        if point.name == "a": raise OSError("no process may start")
        return python("pass")(point, *_)
    assert [row["state"] for row in run_batch(unchecked("a", "b"), slots=[("cpu", {})], launch=launch, stream=io.StringIO())] == ["failed", "done"]


@pytest.mark.parametrize("program, how", [("import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: raise SystemExit(1)", "by itself"),
                                          ("import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                                           "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
                                           "print(child.pid, flush=True); time.sleep(60)", "killed")])
def test_an_interrupt_stops_all_within_seconds(unchecked, monkeypatch, program, how):
    monkeypatch.setattr(batch, "_GRACE", 1.)
    monkeypatch.setattr(batch._Batch.stop, "__defaults__", (1.,))
    begun, step = [], batch._Batch.step
    class Begun(python(program)):
        def __init__(self, *args): super().__init__(*args); begun.append(self); self.log = args[-1]
    def interrupted(self, may_start=True):
        if may_start and len(begun) == 2 and all(how == "by itself" or one.log.exists() and one.log.read_text().strip() for one in begun):
            time.sleep(.5)  # Python has to hear it
            raise KeyboardInterrupt
        return step(self, may_start)
    monkeypatch.setattr(batch._Batch, "step", interrupted)
    start = time.monotonic()
    rows = run_batch(unchecked("a", "b", "c"), slots=[("cpu", {})] * 2, launch=Begun, stream=io.StringIO())
    assert [row["state"] for row in rows] == ["stopped", "stopped", "waiting"] and time.monotonic() - start < 10
    assert not any(alive(one.pid) for one in begun)
    if how == "killed": until(lambda: not any(alive(int(one.log.read_text())) for one in begun if one.log.exists()), 5)


def test_sigterm_is_like_ctrl_c(unchecked, monkeypatch):
    before, step = signal.getsignal(signal.SIGTERM), batch._Batch.step
    monkeypatch.setattr(batch._Batch, "step", lambda self, may_start=True: step(self, may_start) if self.of("waiting") or not may_start else os.kill(os.getpid(), signal.SIGTERM))
    rows = run_batch(unchecked("a"), slots=[("cpu", {})], launch=python("import time; time.sleep(60)"), stream=io.StringIO())
    assert rows[0]["state"] == "stopped" and signal.getsignal(signal.SIGTERM) is before


def test_the_time_that_is_left():
    one = batch._Batch([Point(name, name, {}) for name in "abcd"], ".", [], [("cpu", {})] * 2, None)
    assert one.seconds_left is None
    one.rows[0].state, one.rows[0].seconds, one.rows[1].state, one.rows[1].begun = "done", 10., "running", time.monotonic() - 4
    assert one.seconds_left == pytest.approx((6 + 10 + 10) / 2, abs=.5)
    assert batch._duration(59.6) == "1 min 0 s" and batch._duration(7260) == "2 h 1 min" and batch._duration(3) == "3 s"


def test_the_table_on_a_terminal_fits_and_shows_what_runs(unchecked):
    from rich.console import Console
    one = batch._Batch(unchecked(*(f"run {i}" for i in range(100))), ".", [], [("cpu", {})], None)
    one.rows[70].state, one.rows[70].note, one.rows[80].state, one.rows[80].note = "running", "2/5  The study", "failed", "[red]no[/red] such file"
    console = Console(width=80, file=io.StringIO())
    console.print(batch._table(one, 10))
    shown = console.file.getvalue()
    assert len(shown.splitlines()) <= 13 and "run 70" in shown and "2/5  The study" in shown and "run 80" in shown and "98 waiting" in shown and "[red]no[/red]" in shown


# The command line, with real runs of the coin

def test_a_typo_in_one_point_starts_none(datadesc):
    done = datadesc("run", "coin", "--grid", "throws=20,many")
    assert done.code == 1 and "coin@throws=many" in done.stderr and "Parameter 'throws' is int" in done.stderr and not ROOT.exists()
    done = datadesc("run", "coin", "coyn")
    assert done.code == 1 and "did you mean 'coin'" in done.stderr and not ROOT.exists()
    assert "did you mean 'throws'" in datadesc("run", "coin", "--grid", "thros=1,2").stderr
    assert "--jobs and --devices are for several runs" in datadesc("run", "coin", "--jobs", "2").stderr
    assert datadesc("run").code == 2 and not ROOT.exists()


def test_a_grid_with_a_failure_then_again(user, begin, datadesc):
    batch_of = lambda *more: begin("run", "coin", "--grid", "throws=20,0", "form=direct", "--devices", "cpu", *more)
    process = batch_of()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1, out + errors
    good, bad = "coin@throws=20,form=direct", "coin@throws=0,form=direct"
    assert f"{good}: done" in out and f"datadesc: {bad}: '{bad}' stopped under 'The result': ZeroDivisionError: division by zero" in errors and len(errors.splitlines()) == 1
    log = ROOT / bad / "log.txt"
    assert str(log) in errors and "ZeroDivisionError" in log.read_text() and (ROOT / bad / "report.ipynb").exists() and not (ROOT / good / "log.txt").exists()
    status = datadesc("status").stdout
    assert re.search(rf"^{re.escape(bad)} +failed .*{re.escape(str(log))}$", status, re.M) and re.search(rf"^{re.escape(good)} +done", status, re.M)
    assert sorted(RunFolder(ROOT / bad).mark["files"]) == ["log.txt", "report.ipynb"]
    when = os.stat(ROOT / good / "result.json").st_mtime_ns
    out, errors = batch_of("--strict").communicate(timeout=120)
    assert f"{good}: finished before" in out and "1 finished before, 1 failed" in out and os.stat(ROOT / good / "result.json").st_mtime_ns == when
    assert runs.FinishedRun(ROOT, good).repeat_command() == f"datadesc run coin --name {good} -p form=direct -p throws=20"
    assert runs.reasons(good, root=ROOT)[-1]["state"] == "kept" and "throws: 20 -> 30" in runs.reasons(good, {"throws": "30"}, ROOT)[-1]["because"]


def test_ctrl_c_stops_a_batch_and_it_goes_on(user, begin, datadesc):
    process = begin("run", "coin", "--grid", "wait=5,6", "throws=50", "--jobs", "2", "--devices", "cpu")
    at_work = lambda: [name for name in RunFolder.names(ROOT) if runs._state(ROOT, name) == ("running", "under 'The throws'")]
    until(lambda: len(at_work()) == 2)
    tree = [int(pid) for task in Path("/proc").glob("[0-9]*/environ") if (pid := task.parent.name).isdigit() and f"HOME={user['HOME']}".encode() in _read(task)]
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - start < 15 and "Traceback" not in errors, errors
    assert "To go on: datadesc run coin --grid wait=5,6 throws=50 --jobs 2 --devices cpu" in errors and out.count("stopped") >= 2
    until(lambda: not any(alive(pid) for pid in tree), 5)
    assert {runs._state(ROOT, name)[0] for name in RunFolder.names(ROOT)} == {"failed"} and len(RunFolder.names(ROOT)) == 2


def _read(file):
    try: return file.read_bytes()
    except OSError: return b""


def test_a_run_that_is_executed_elsewhere_is_left_alone(datadesc, begin):
    with RunFolder(ROOT / "coin@throws=20").working("coin"):
        done = datadesc("run", "coin", "--grid", "throws=20", "--devices", "cpu")
    assert done.code == 1 and "coin@throws=20: is running already" in done.stderr


def test_all_says_what_is_left_out(datadesc, coin_package, monkeypatch):
    ROOT.mkdir()
    (ROOT / "gone.yaml").write_text("dataset: photos\n")
    seen = []
    monkeypatch.setattr(batch, "run_batch", lambda points, *args: seen.extend(point.name for point in points) or [])
    done = datadesc("run", "--all", "--devices", "cpu")
    assert done.code == 0 and "gone is left out, it needs dataset: photos" in done.stdout and seen == ["coin"], done
