"The store under what a chapter cannot show: kills, rivals, and folders that refuse"
import json, os, subprocess, sys, time
from multiprocessing import get_context
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch

import datadesc.store
from datadesc.files import default_root, whole
from datadesc.store import _Rows, Store, digest, key_of, read_file, write_file


@pytest.mark.parametrize("a, b", [
    (1, 1.0), (1, True), ("1", 1), ([1, 2], [[1], 2]), ({1: 0}, {"1": 0}), (None, "null"),
    (b"wings", "wings"), (np.zeros(3), np.zeros((3, 1))), (np.float32(0.1), 0.1),
    (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)),
    (pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]})), (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1]}, index=[7])),
    ({"array": 1}, {"tensor": 1})])
def test_different_content_has_different_keys(a, b): assert key_of(value=a) != key_of(value=b)


@pytest.mark.parametrize("a, b", [
    ((1, 2), [1, 2]), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ({3, 1}, {1, 3}), (np.int64(4), 4),
    (torch.arange(6).reshape(2, 3).T, torch.arange(6).reshape(2, 3).T.contiguous()),
    (np.array(["a", "b"], object), np.array(["a", "b"], object)), (torch.tensor(1.), torch.tensor(1.))])
def test_equal_content_has_equal_keys(a, b): assert key_of(value=a) == key_of(value=b)


def test_a_key_is_the_same_in_another_process():
    parts = "options={'lr': .1, 'forms': {'clip', 'direct', 'printed'}}, table=pd.DataFrame({'a': [1., 2.], 'b': ['x', None]})"
    code = f"import pandas as pd; from datadesc.store import key_of; print(key_of({parts}))"
    key = subprocess.check_output([sys.executable, "-c", code], text=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert key.strip() == eval(f"key_of({parts})")


def test_a_folder_is_its_files(tmp_path):
    for name in ("a", "b"): write_file(tmp_path/name/"sub"/"x.json", {"wings": 2})
    assert key_of(model=tmp_path/"a") == key_of(model=tmp_path/"b")
    (tmp_path/"b"/"sub"/"x.json").rename(tmp_path/"b"/"sub"/"y.json")
    assert key_of(model=tmp_path/"a") != key_of(model=tmp_path/"b")


def test_a_module_is_its_source(tmp_path, monkeypatch):
    source = tmp_path/"stage.py"
    source.write_text("scale = 1")
    monkeypatch.setattr(datadesc.store, "__file__", str(source))
    before = key_of(code=datadesc.store)
    source.write_text("scale = 2")
    assert key_of(code=datadesc.store) != before


def test_tensors_that_share_memory_are_kept(tmp_path):
    emb = torch.randn(6, 2)
    kept = Store(tmp_path).keep("emb", lambda: {"train": emb[:4], "val": emb[4:], "scale": torch.tensor(3.)}, n=6)
    assert torch.equal(kept["val"], emb[4:]) and kept["scale"].item() == 3


def test_tables_come_back_as_they_were(tmp_path):
    table = pd.DataFrame({"text": ["wings", None], "correct": [b"\x01\x02", b""], "n": [1, 2], "passages": [["a"], []]})
    read = read_file(write_file(tmp_path/"t.parquet", table))
    assert read["passages"].tolist() == [["a"], []] and read["correct"].tolist() == table["correct"].tolist()
    assert key_of(table=read_file(write_file(tmp_path/"u.parquet", read))) == key_of(table=read)


def test_a_value_json_cannot_hold_is_named(tmp_path):
    with pytest.raises(TypeError, match="result.json.*cannot be written.*object"): write_file(tmp_path/"result.json", {"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_computation_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError): Store(tmp_path).keep("value", lambda: 1/0, x=1)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_the_default_root_is_named_by_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DATADESC_STORE", str(tmp_path))
    assert default_root() == tmp_path and Store().root == tmp_path
    monkeypatch.delenv("DATADESC_STORE")
    assert default_root().name == "datadesc"


fork = get_context("fork")

def half(target, pipe):
    with whole(target) as part:
        part.write_bytes(b"half")
        pipe.send("writing")
        time.sleep(60)

def test_a_killed_write_leaves_the_old_file(tmp_path):
    target, (here, there) = write_file(tmp_path/"result.json", "old"), fork.Pipe()
    process = fork.Process(target=half, args=(target, there))
    process.start()
    assert here.recv() == "writing"
    process.kill(); process.join()
    assert json.loads(target.read_text()) == "old" and write_file(target, "new").read_text() == '"new"\n'

def rival(root):
    for i in range(20): assert Store(root).keep("emb", lambda: torch.full((1000,), float(i)), i=i)[-1] == i

def test_rivals_share_a_store(tmp_path):
    rivals = [fork.Process(target=rival, args=(tmp_path,)) for _ in range(2)]
    for process in rivals: process.start()
    for process in rivals: process.join()
    assert [process.exitcode for process in rivals] == [0, 0] and len(list((tmp_path/"emb").iterdir())) == 20


@pytest.fixture
def closed(tmp_path):
    "A folder that refuses: one without write permission, seen by somebody who is not root"
    tmp_path.chmod(0o500)
    if os.geteuid(): yield tmp_path; return
    os.setresuid(65534, 65534, 0)
    try: yield Path("/etc")
    finally: os.setresuid(0, 0, 0)

def test_a_folder_that_refuses_is_one_clear_error(closed):
    made = []
    with pytest.raises(PermissionError, match="Cannot write in .*DATADESC_STORE"): Store(closed/"datadesc").keep("emb", lambda: made.append(1), x=1)
    with pytest.raises(PermissionError, match="Choose another"): write_file(closed/"result.json", 1)
    assert not made


def test_rows_of_several_processes(tmp_path):
    "Each writes shards of its own, also of keys that another one has; all are read, and a shard that is not finished is not"
    program = ("import sys, torch; from datadesc.store import _Rows, digest; n = int(sys.argv[2]); rows = _Rows(sys.argv[1]);\n"
               "for i in range(0, 40, 4): rows.put([digest(f'{j}'.encode()) for j in range(i + n, i + n + 4)], torch.arange(i + n, i + n + 4.)[:, None])")
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path/"rows"), str(n)]) for n in (0, 2, 4)]
    assert all(process.wait() == 0 for process in processes)
    (tmp_path/"rows"/".half.safetensors.part").write_bytes(b"half")
    keys = [digest(f"{j}".encode()) for j in range(50)]
    rows = _Rows(tmp_path/"rows")
    assert {key: row.item() for key, row in rows.get(keys).items()} == {key: float(j) for j, key in enumerate(keys[:44])} and rows.missing(keys) == keys[44:]

def test_facts_of_several_processes(tmp_path):
    program = "import sys; from datadesc.store import Store\nfor i in range(20): Store(sys.argv[1]).facts('sizes').put({f'{sys.argv[2]} {i} é': [i]})"
    processes = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path), name]) for name in "ab"]
    assert all(process.wait() == 0 for process in processes)
    keys = [f"{name} {i} é" for name in "ab" for i in range(600)]
    assert Store(tmp_path).facts("sizes").get(keys) == {f"{name} {i} é": [i] for name in "ab" for i in range(20)}
