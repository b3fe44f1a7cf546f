"""Runs that are killed at random moments and resumed, full and read-only disks, clocks that jump, two runs at once.

`make crash` kills twenty times (CRASHES), and a run with its benchmark. The seed is printed: CRASH_SEED=<seed> repeats the moments."""
import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image

from datadesc import kernel, store
from datadesc.cache import Cache
from datadesc.llm import LLM, LLMError
from datadesc.run_folder import RunFolder
from datadesc.store import digest, read_file, write_file
from llm_server import llm_server

CRASHES, AT_ONCE = int(os.environ.get("CRASHES", 4)), 4
SEED = int(os.environ.get("CRASH_SEED", time.time_ns() % 10**6))
BENCHMARK = ["--benchmark", "-p", "shots=[2]", "-p", "paper_shots=[]", "-p", "seeds=1", "-p", "baselines=[]"] * (CRASHES > 4)
WORDS = "round small pale dark striped glossy feathered long short curved bright dull spotted smooth narrow broad".split()


def photos(folder):
    "A few small pictures of four classes, each of a colour of its own."
    rng = np.random.default_rng(0)
    for name, colour in {"red owl": (200, 40, 40), "green fox": (40, 180, 60), "blue hen": (50, 60, 200), "grey cat": (120, 120, 120)}.items():
        (folder/name).mkdir(parents=True)
        for i in range(12): Image.fromarray(rng.normal(colour, 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)).save(folder/name/f"{i}.png")
    return folder


def question(chat): return json.dumps(chat, sort_keys=True)

def answer(chat):
    "Parts, or a line that depends on the question alone; it takes a moment, so that a kill finds some in flight."
    time.sleep(.05)
    if "Name 3" in chat["messages"][-1]["content"]: return "- head\n- tail\n- back"
    return " ".join(random.Random(zlib.crc32(question(chat).encode())).sample(WORDS, 3))


@pytest.fixture(scope="module")
def server():
    with llm_server(answer) as (url, server): yield SimpleNamespace(url=url, chats=server.chats)


class World:
    "A folder with a store, a folder of runs and a folder for temporary files, in which the same run may be begun again and again."
    def __init__(self, server):
        self.home = Path(tempfile.mkdtemp(prefix="crash-"))  # short: sockets lie in it
        self.store, self.out, self.tmp, self.images, self.server = self.home/"store", self.home/"runs", self.home/"tmp", photos(self.home/"photos"), server
        self.tmp.mkdir()

    def begin(self, *more, name="photos", **environment):
        "The run as a process of its own, with a log."
        (self.home/"logs").mkdir(exist_ok=True)
        log = self.home/"logs"/f"{len(os.listdir(self.home/'logs'))}.txt"
        command = [sys.executable, "-c", "from datadesc.cli import main; main()", "run", str(self.images), "--out", str(self.out), "--name", name,
                   "-p", "model=meadow-clip", "-p", "knowledge=none", "-p", "parts=3", "-p", "samples=2", "-p", "llm_model=m",
                   "-p", f"llm_base_url={self.server.url}", "-p", f"llm_concurrency={AT_ONCE}", *BENCHMARK, *more]
        env = os.environ | {"DATADESC_STORE": str(self.store), "TMPDIR": str(self.tmp), "OMP_NUM_THREADS": "1"} | environment
        with open(log, "wb") as file: process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, cwd=self.home, start_new_session=True)
        process.log = log
        return process

    def end(self, process):
        "What the run printed; it must come to its end."
        code = process.wait(timeout=300)
        assert code == 0, process.log.read_text()
        return process.log.read_text()

    def files(self, folder):
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir())


@pytest.fixture(scope="module")
def world(server):
    "Makes worlds, and removes them at the end."
    worlds = []
    def make():
        worlds.append(World(server))
        return worlds[-1]
    yield make
    for one in worlds: shutil.rmtree(one.home, ignore_errors=True)

@pytest.fixture(scope="module")
def undisturbed(world, server):
    "A run that nobody has disturbed."
    one, begun = world(), time.monotonic()
    one.end(one.begin())
    one.seconds, one.questions = time.monotonic() - begun, [question(chat) for chat in server.chats]
    assert len(set(one.questions)) == len(one.questions) > 20
    return one


IGNORED = {"seconds", "asked", "sha256"}  # what took how long, what was asked and paid for now, and the hash over all of it

# What must be so after a kill, and after a run that was resumed

def facts(folder):
    "What the results say, each with the way to it, but for times and for what was asked or read from the cache."
    def flat(way, value):
        if isinstance(value, (dict, list)) and value:
            for name, inner in value.items() if isinstance(value, dict) else enumerate(value): yield from flat(f"{way}/{name}", inner)
        else: yield way, value
    found = [flat(name, json.loads((folder/name).read_text())) for name in ("result.json", "benchmark.json") if (folder/name).exists()]
    return {way: value for pairs in found for way, value in pairs if not IGNORED & set(way.split("/"))}

def same_results(one, other):
    "Fails where two runs differ in a file, in a table, or in a fact."
    names = lambda folder: {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}
    assert names(one) == names(other)
    for table in (one/"tables").glob("*.parquet"): pd.testing.assert_frame_equal(read_file(table), read_file(other/"tables"/table.name), obj=table.name)
    for name in ("descriptions.json", "classes.md"): assert (one/name).read_bytes() == (other/name).read_bytes(), name
    had, has = facts(one), facts(other)
    assert not (different := {way: (had.get(way), has.get(way)) for way in had.keys() | has.keys() if had.get(way) != has.get(way)}), different

def whole_store(folder):
    "Fails where a value cannot be read or a database is damaged."
    for file in folder.rglob("*"):
        if file.suffix in (".parquet", ".safetensors", ".json") and ".part" not in str(file): read_file(file)
    for file in folder.glob("*.sqlite"):
        with closing(sqlite3.connect(file)) as db: assert db.execute("pragma integrity_check").fetchall() == [("ok",)], file

def nothing_left(one, undisturbed, name="photos"):
    "Fails where a temporary file, a lock that is held, or a value that no undisturbed run makes has stayed."
    assert one.files(one.tmp) == [] and one.files(one.store) == undisturbed.files(undisturbed.store)
    assert [file for file in one.files(one.out/".datadesc") if not file.startswith("locks")] == []
    assert not RunFolder(one.out/name).is_running

def alive(process):
    try: return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False

def until(condition, seconds, process=None):
    "Whether the condition became true before the time was over or the process had ended."
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end and (process is None or process.poll() is None): time.sleep(.002)
    return true

def known(one): return {key for key, _ in Cache(one.store/"answers.sqlite").rows()}

def kill(one, process, alone):
    "Kills the run with its kernel, or alone, in which case the kernel has to notice; fails where one of them lives on."
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    for pid in [process.pid] + [child.pid for child in family] * (not alone):
        try: os.kill(pid, signal.SIGKILL)
        except ProcessLookupError: pass
    process.wait()
    assert until(lambda: not any(map(alive, family)), 20), "a kernel outlives its run"


# Kills

MOMENTS = {  # name: whether it has come, by what the run has written so far
    "start": lambda one, log: True,
    "kernel": lambda one, log: any(one.tmp.rglob("kernel-ipc-*")),
    "images": lambda one, log: "  1/" in log,
    "sentences": lambda one, log: "  2/" in log and (one.store/"answers.sqlite").exists(),
    "embeddings": lambda one, log: (one.store/"image_embeddings").exists(),
    **{name: lambda one, log, name=name: (one.store/name).exists() for name in ("heads", "influence", "choice", "labels", "decoys")},
    "findings": lambda one, log: "  4/" in log,
    "files": lambda one, log: any((one.out/".datadesc"/"work").glob("*/result.json")),
    "page": lambda one, log: any((one.out/".datadesc"/"work").glob("*/report.html")),
    "replaced": lambda one, log: (one.out/"photos").exists(),
    **({"benchmark": lambda one, log: "  3/7" in log, "accuracy": lambda one, log: (one.store/"accuracy").exists(),
        "second page": lambda one, log: any((one.out/".datadesc"/"work").glob("*/benchmark.html"))} if BENCHMARK else {})}

def moments(rng, n):
    "That many moments, as different as there are, in pairs: a run is killed, resumed and killed again."
    names = [*MOMENTS]
    chosen = [name for _ in range(-(-n // len(names))) for name in rng.sample(names, len(names))][:n] if n > len(names) else \
        [names[int((i + rng.random()) * len(names) / n)] for i in range(n)]
    return [sorted(chosen[i::len(chosen) // 2 or 1][:2], key=names.index) for i in range(len(chosen) // 2 or 1)]

@pytest.mark.parametrize("chain", range(max(1, CRASHES // 2)))
def test_a_killed_run_goes_on_as_if_nothing_had_happened(world, server, undisturbed, chain):
    print(f"CRASH_SEED={SEED}")
    rng = random.Random(f"{SEED} {chain}")
    one, asked_before = world(), len(server.chats)
    for number, moment in enumerate(moments(random.Random(SEED), CRASHES)[chain]):
        process = one.begin()
        until(lambda: MOMENTS[moment](one, process.log.read_text()), 300, process)
        time.sleep(pause := rng.uniform(0, .03 * undisturbed.seconds))
        finished, alone = process.poll() is not None, (number + chain) % 2 == 1
        kill(one, process, alone)
        latest = max(one.store.rglob("*.*"), key=lambda file: file.stat().st_mtime_ns, default=None)
        print(f"killed {'alone' if alone else 'with its kernel'} {pause:.3f} s after '{moment}', latest value: {latest and latest.parent.name}; finished before: {finished}")
        whole_store(one.store)
        before, answered = len(server.chats), known(one)
    if "nothing to run" in one.end(one.begin()): kernel._sweep(one.tmp)  # it needed no kernel: as the next run does that needs one
    same_results(undisturbed.out/"photos", one.out/"photos")
    whole_store(one.store)
    nothing_left(one, undisturbed)
    asked = [question(chat) for chat in server.chats[asked_before:]]
    assert set(asked) == set(undisturbed.questions) and len(asked) <= len(set(asked)) + 2 * AT_ONCE, "only what was in flight is asked again"
    assert len(server.chats) - before == len(undisturbed.questions) - len(answered), "of what was kept nothing is asked again"


def test_a_run_killed_while_its_kernel_loads_leaves_no_kernel():
    "Even where something else than init adopts the orphan, as a desktop's session does."
    if sys.platform != "linux": pytest.skip("only Linux has subreapers")
    program = """import ctypes, os, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1)
run = '''import os, signal
from datadesc.kernel import started
with started() as manager:
    print(manager.provisioner.process.pid, manager.folder.name, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)'''
print(subprocess.run([sys.executable, "-c", run], capture_output=True, text=True).stdout, flush=True)
sys.stdin.read()"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as session:
        pid, folder = session.stdout.readline().split()
        assert until(lambda: not psutil.pid_exists(int(pid)) or not alive(psutil.Process(int(pid))), 20) and not os.path.exists(folder)
        session.stdin.close()


def test_a_write_that_was_killed_leaves_nothing_after_the_next_one(tmp_path):
    "safetensors writes into a temporary file of its own."
    program = "import sys, torch; from datadesc.store import write_file\nwhile True: write_file(sys.argv[1], torch.zeros(10_000_000))"
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path/"big.safetensors")])
    assert until(lambda: any(tmp_path.glob(".*.part/.tmp*")), 60, process)
    process.kill()
    process.wait()
    assert [*tmp_path.glob(".*.part")]
    write_file(tmp_path/"other.json", [])
    assert {file.name for file in tmp_path.iterdir()} <= {"big.safetensors", "other.json"}


# Full and read-only disks

@contextmanager
def disk(place, size):
    "A file system of that size at `place`; a function changes its options."
    place.mkdir()
    mount = lambda *words: subprocess.run(["mount", *words], capture_output=True, text=True)
    if not shutil.which("mount") or (done := mount("-t", "tmpfs", "-o", f"size={size}", "none", str(place))).returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip() if shutil.which('mount') else 'no mount'}")
    try: yield lambda options: mount("-o", f"remount,{options}", str(place)).check_returncode()
    finally: subprocess.run(["umount", "-l", str(place)], check=True)

def test_a_store_without_room_then_with_it(world, undisturbed, server):
    one, needed = world(), sum(-(-file.stat().st_size // 4096) * 4 for file in undisturbed.store.rglob("*"))
    with disk(one.store, f"{needed * 6 // 10}k") as remount:
        process = one.begin()
        assert process.wait(timeout=300) == 1
        message = (said := process.log.read_text()).rpartition("datadesc: ")[2]
        assert "Traceback" not in said and message.count("Free some room") == 1 and "DATADESC_STORE" in message and str(one.store) in message, said
        remount("size=50m")
        whole_store(one.store)
        before, answered = len(server.chats), known(one)
        one.end(one.begin())
        assert len(server.chats) - before == len(undisturbed.questions) - len(answered)
        same_results(undisturbed.out/"photos", one.out/"photos")
        whole_store(one.store)
        nothing_left(one, undisturbed)


def test_an_out_folder_without_room(user, tmp_path):
    def coin(*more):
        command = [sys.executable, "-c", "from datadesc.cli import main; main()", "run", "coin", "--out", str(tmp_path/"out"), *more]
        return subprocess.run(command, env=user, capture_output=True, text=True, timeout=120)
    with disk(tmp_path/"out", "2m"):
        assert coin().returncode == 0
        kept = {file: file.read_bytes() for file in (tmp_path/"out"/"coin").iterdir()}
        with pytest.raises(OSError), open(tmp_path/"out"/"filler", "wb", buffering=0) as filler:
            while True: filler.write(bytes(4096))
        done = coin("-p", "throws=7")
        assert done.returncode == 1 and "Traceback" not in done.stderr and done.stderr.count("Free some room") == 1, done.stderr
        assert "../out/.datadesc/work/coin" in done.stderr and "--out" in done.stderr
        assert {file: file.read_bytes() for file in (tmp_path/"out"/"coin").iterdir()} == kept
        (tmp_path/"out"/"filler").unlink()
        assert coin("-p", "throws=7").returncode == 0
        assert not [*(tmp_path/"out").rglob("*.part")] and not [file for file in (tmp_path/"out"/".datadesc").rglob("*") if not file.is_dir() and file.suffix != ".lock"]


def test_a_file_of_the_store_may_not_grow(tmp_path):
    "The same for what the store keeps one by one, where no file system can be mounted."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    llm = LLM("m", client=lambda request: "long " * 10_000, cache=tmp_path/"answers.sqlite")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for keep in (lambda: store.Store(tmp_path).keep("image_emb", lambda: torch.zeros(10_000)), lambda: store.Store(tmp_path).rows("image_emb").put([digest(b"a")], torch.zeros(1, 10_000)),
                     lambda: store.Store(tmp_path).keep("choice", lambda: pd.DataFrame({"score": np.random.rand(10_000)})),
                     lambda: store.Store(tmp_path).facts("sizes").put({f"{n}.png": [64, 64] for n in range(10_000)}), lambda: llm.ask([llm.request([("user", "?")])])):
            with pytest.raises((OSError, LLMError), match="Free some room") as caught: keep()
            assert str(tmp_path) in str(caught.value)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    whole_store(tmp_path)
    assert {file.name for file in tmp_path.rglob("*") if not file.is_dir()} <= {"facts.sqlite", "answers.sqlite", "answers.sqlite-wal", "answers.sqlite-shm", "facts.sqlite-journal"}


@contextmanager
def read_only(place, source=None):
    "A folder in which nothing may be written, with what is in `source`."
    if os.geteuid():
        shutil.copytree(source, place) if source else place.mkdir()
        folders = [place, *(inner for inner in place.rglob("*") if inner.is_dir())]
        for folder in folders: folder.chmod(0o555)
        try: yield
        finally:
            for folder in folders: folder.chmod(0o755)
    else:  # modes do not bind root
        with disk(place, "20m") as remount:
            if source: shutil.copytree(source, place, dirs_exist_ok=True)
            remount("ro")
            yield


def test_a_store_that_may_only_be_read(world, undisturbed):
    one = world()
    with read_only(one.store, undisturbed.store):
        process = one.begin()
        assert process.wait(timeout=300) == 1
        assert f"datadesc: Cannot write in '{one.store}'" in (said := process.log.read_text()) and "DATADESC_STORE" in said and "Traceback" not in said
        assert not one.out.exists()
    shutil.copytree(undisturbed.out, one.out)
    with read_only(one.home/"another"):
        assert "nothing to run" in one.end(one.begin(DATADESC_STORE=str(one.home/"another"))), "a finished run needs no store"


# Clocks

def shifted(folder, years):
    "PYTHONPATH for a Python whose clock is so many years off."
    folder.mkdir()
    (folder/"sitecustomize.py").write_text(f"import time\nnow, now_ns = time.time, time.time_ns\ntime.time = lambda: now() + {years} * 31536000\n"
                                           f"time.time_ns = lambda: now_ns() + {years} * 31536000 * 10**9\n")
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def test_a_clock_set_back_and_odd_times_of_files(world, undisturbed, server, tmp_path):
    one = world()
    for folder in ("store", "out"): shutil.copytree(getattr(undisturbed, folder), getattr(one, folder))
    for number, file in enumerate([*one.images.rglob("*.png"), *one.store.rglob("*.*")]): os.utime(file, (number % 2 * 4e9,) * 2)  # 1970 and 2096
    before = len(server.chats)
    printed = one.end(one.begin("--force", PYTHONPATH=shifted(tmp_path/"clock", -20)))
    assert "From the store: " in printed and "Made anew: nothing." in printed and len(server.chats) == before
    same_results(undisturbed.out/"photos", one.out/"photos")
    image = one.images/"red owl"/"0.png"
    data, at = bytearray(image.read_bytes()), image.stat()
    Image.fromarray(np.asarray(Image.open(image))[::-1]).save(image)
    os.utime(image, ns=(at.st_mtime_ns - 10**9,) * 2)  # another picture, with an earlier time
    assert "is another file now" in subprocess.run([sys.executable, "-c", "import sys; from datadesc.run_folder import RunFolder; print(RunFolder(sys.argv[1]).changed_inputs([sys.argv[2]]))",
                                                    str(one.out/"photos"), str(one.images)], capture_output=True, text=True).stdout


def test_limits_wait_by_a_clock_that_nobody_sets(monkeypatch, tmp_path):
    "Calls a minute, and the lock of a folder, whatever the time of day does meanwhile."
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
    llm, begun = LLM("m", client=lambda request: "ok", cache=tmp_path/"answers.sqlite", requests_per_minute=600), time.monotonic()
    assert llm.ask([llm.request([("user", str(n))]) for n in range(6)], progress=False) == ["ok"] * 6 and .4 < time.monotonic() - begun < 20
    folder = RunFolder(tmp_path/"runs"/"one")
    with folder.working("here"):
        begun = time.monotonic()
        with pytest.raises(ValueError, match="is running already"), folder.working("here"): pass
        assert .3 < time.monotonic() - begun < 20


def test_a_row_made_anew_counts_although_the_clock_was_set_back(tmp_path):
    key, other, folder = digest(b"a"), digest(b"b"), tmp_path/"rows"
    def rows(**options):
        "As a new process would open them."
        for seen in (store._BEFORE, store._WRITTEN): seen.clear()
        return store._Rows(folder, **options)
    rows().put([key, other], torch.ones(2, 1))
    for file in folder.iterdir(): os.utime(file, (4e9, 4e9))
    rows(anew=True).put([key], torch.full((1, 1), 2.))
    assert {name: row.item() for name, row in rows().get([key, other]).items()} == {key: 2, other: 1}


# Two at once

def test_two_runs_that_share_a_store(world, undisturbed, server):
    one, before = world(), len(server.chats)
    processes = [one.begin(name=name) for name in ("photos", "others")]
    for process in processes: one.end(process)
    for name in ("photos", "others"): same_results(undisturbed.out/"photos", one.out/name)
    assert sorted(question(chat) for chat in server.chats[before:]) == sorted(undisturbed.questions), "each question is asked once"
    whole_store(one.store)
    nothing_left(one, undisturbed)
    nothing_left(one, undisturbed, "others")
