"A store on an S3 server, and the stages on a Ray cluster of this machine: as one machine does them, and whatever dies on the way"
import os, socket, subprocess, sys, tempfile, time
from importlib.util import find_spec
from pathlib import Path

import pandas as pd, pytest, torch

from datadesc.files import local_root
from datadesc.store import Store, read_file, write_file

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def s3():
    "The address of an S3 server on loopback, with a bucket; made-up credentials are in the environment."
    for package in ("moto", "s3fs", "flask", "flask_cors"): pytest.importorskip(package, reason=f"needs {package}: make test installs it")
    from moto.server import ThreadedMotoServer
    with pytest.MonkeyPatch.context() as patch:
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        address = "http://%s:%s" % server.get_host_and_port()
        for name, value in dict(AWS_ENDPOINT_URL=address, AWS_ACCESS_KEY_ID="made-up", AWS_SECRET_ACCESS_KEY="made-up",
                                AWS_DEFAULT_REGION="us-east-1", AWS_MAX_ATTEMPTS="1", AWS_EC2_METADATA_DISABLED="true").items():
            patch.setenv(name, value)
        import boto3
        boto3.client("s3").create_bucket(Bucket="bucket")
        yield server
        server.stop()


def objects():
    "Every key in the bucket."
    import boto3
    return sorted(row["Key"] for row in boto3.client("s3").list_objects_v2(Bucket="bucket").get("Contents", []))


def test_tables_and_tensors_lie_in_a_bucket_as_they_lie_in_a_folder(s3, tmp_path):
    values = {"t.parquet": pd.DataFrame({"a": [[1], [2, 3]]}), "x.safetensors": {"x": torch.arange(6.).reshape(2, 3)}, "r.json": {"n": 1}}
    for name, value in values.items():
        write_file(f"s3://bucket/files/{name}", value)
        write_file(tmp_path/name, value)
    import boto3
    for name in values:
        kept = boto3.client("s3").get_object(Bucket="bucket", Key=f"files/{name}")["Body"].read()
        assert kept == (tmp_path/name).read_bytes()
    assert read_file("s3://bucket/files/t.parquet")["a"].tolist() == [[1], [2, 3]]
    assert torch.equal(read_file("s3://bucket/files/x.safetensors")["x"], values["x.safetensors"]["x"])


def test_a_value_in_a_bucket_is_computed_once(s3):
    made, store = [], Store("s3://bucket/once")
    def make():
        made.append(1)
        return torch.ones(3)
    for _ in range(2): assert torch.equal(Store("s3://bucket/once").keep("ones", make, n=3), torch.ones(3))
    assert made == [1] and store.local == local_root()
    with pytest.raises(ZeroDivisionError): store.keep("broken", lambda: 1 / 0, n=3)
    assert not [key for key in objects() if "broken" in key]


def test_rows_in_a_bucket_are_found_by_all(s3):
    keys = [f"{i:032x}" for i in range(5000)]
    rows = Store("s3://bucket/rows").rows("emb", encoder="toy")
    rows.put(keys[:4000], torch.arange(4000.)[:, None])
    other = Store("s3://bucket/rows").rows("emb", encoder="toy")
    assert other.missing(keys) == keys[4000:]
    rows.put(keys[4000:], torch.arange(4000., 5000)[:, None])
    assert torch.equal(torch.cat(list(other.get(keys).values())), torch.arange(5000.))


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(OSError, match="Cannot write 's3://nobody/x.json'.*credentials right"): write_file("s3://nobody/x.json", {})


def test_a_server_that_is_gone_is_one_clear_error(s3, monkeypatch):
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    import s3fs
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match=r"Cannot read 's3://bucket/once.*Is its server up\?"): Store("s3://bucket/once").keep("ones", None, n=3)
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_is_missing_is_one_line(datadesc, monkeypatch):
    ended = datadesc("run", "coin", "--address", "127.0.0.1:9")
    assert ended.code == 1 and ended.stderr == "datadesc: --address is that of a Ray cluster: give --engine ray as well\n"
    for name in ("ray", "ray.data"): monkeypatch.setitem(sys.modules, name, None)
    ended = datadesc("run", "coin", "--engine", "ray")
    assert ended.code == 1 and ended.stderr == "datadesc: --engine ray needs the package ray: pip install 'datadesc[ray]'\n"


def test_a_cluster_that_does_not_answer_is_named_at_once(datadesc):
    if not find_spec("ray"): pytest.skip("needs ray: make test installs it")
    ended = datadesc("run", "coin", "--engine", "ray", "--address", "127.0.0.1:9")
    assert ended.code == 1 and ended.stderr.startswith("datadesc: No Ray cluster at '127.0.0.1:9'") and ended.stderr.count("\n") == 1


# On a Ray cluster of two nodes

class Wide(torch.nn.Module):
    "A network that says what it is given."
    def encode_image(self, x): return x.flatten(1) + 1


class Counted:
    "A preprocessing that notes each picture, and the process that decodes it, in a file."
    def __init__(self, file, wait): self.file, self.wait = file, wait

    def __call__(self, picture):
        time.sleep(self.wait)
        colour = picture.getpixel((0, 0))
        with open(self.file, "a") as file: file.write(f"{os.getpid()} {colour}\n")
        return torch.tensor(colour)[:, None, None].float()


def toy_encoder(file, wait=0.):
    from datadesc.embed import Encoder
    return Encoder(Wide(), Counted(str(file), wait), None, "toy", 3, 1., "cpu", "toy")


def noted(file): return [line.split(" ", 1) for line in Path(file).read_text().splitlines()] if Path(file).exists() else []


def counts(file):
    "(images encoded, different images encoded)"
    pictures = [picture for _, picture in noted(file)]
    return len(pictures), len(set(pictures))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    "240 pictures, each of a colour of its own, as a folder and as two shards."
    import tarfile
    from PIL import Image
    folder, shards = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("shards")
    for i in range(240):
        (folder/f"class {i % 3}").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (i, i // 2, 255 - i)).save(folder/f"class {i % 3}"/f"{i}.png")
    for shard in range(2):
        with tarfile.open(shards/f"{shard}.tar", "w") as tar:
            for i in range(shard, 240, 2):
                tar.add(folder/f"class {i % 3}"/f"{i}.png", f"{i:03}.png")
                (folder.parent/"label").write_text(f"class {i % 3}")
                tar.add(folder.parent/"label", f"{i:03}.cls")
    return folder, shards


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    "A cluster of two nodes on this machine, to which this process is connected."
    if not find_spec("ray"): pytest.skip("needs ray: make test installs it")
    from datadesc import cluster
    with pytest.MonkeyPatch.context() as patch:
        cluster.check_address("local")
        import ray
        patch.setenv("DATADESC_STORE", str(tmp_path_factory.mktemp("default")))
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        from ray.cluster_utils import Cluster as LocalCluster
        logs = tempfile.TemporaryDirectory(prefix=f"datadesc-ray-{os.getpid()}-", ignore_cleanup_errors=True)  # pytest's own folders are too long for sockets
        made = LocalCluster(initialize_head=True, head_node_args=cluster.node_options(4) | dict(temp_dir=logs.name))
        made.second = made.add_node(**cluster.node_options(4))
        yield made
        ray.shutdown()
        made.shutdown()
        logs.cleanup()


@pytest.fixture(scope="module")
def machines(nodes):
    from datadesc.cluster import Cluster
    return Cluster(nodes.address, workers=2, images_each=20, rows_each=101)


def test_shards_are_embedded_once_and_as_on_one_machine(machines, photos, tmp_path, monkeypatch):
    pytest.importorskip("webdataset", reason="needs webdataset: make test installs it")
    from datadesc import datasets
    images = datasets.load(f"wds:{photos[1]}")
    there, here, store = toy_encoder(tmp_path/"there.txt"), toy_encoder(tmp_path/"here.txt"), Store(tmp_path/"store")
    rows = there.embed_set(images, store=store, embed_into=machines.embed_into, progress=False)
    for split, expected in here.embed_set(images, progress=False).items(): assert torch.equal(rows[split], expected)
    assert counts(tmp_path/"there.txt") == (240, 240)
    there.embed_set(images, store=store, embed_into=machines.embed_into, progress=False)
    assert counts(tmp_path/"there.txt") == (240, 240), "the second time all is read"
    assert not images.repeated(store=store, progress=False).size, "and the hashes of pixels are known"
    for name, new in (("_BEFORE", {}), ("_WRITTEN", set())): monkeypatch.setattr(f"datadesc.store.{name}", new)  # as in a new process
    monkeypatch.setenv("DATADESC_REDO", "embeddings")
    again = there.embed_set(images, store=Store(tmp_path/"store"), embed_into=machines.embed_into, progress=False)
    assert counts(tmp_path/"there.txt") == (480, 240) and torch.equal(again["train"], rows["train"]), "with --redo embeddings all are made anew"


def after(n, file, act):
    "Starts a thread that acts once n images are encoded."
    import threading
    def wait():
        while len(noted(file)) < n: time.sleep(.02)
        act()
    threading.Thread(target=wait, daemon=True).start()


def test_a_worker_is_killed_and_a_node_removed(machines, nodes, photos, tmp_path):
    from datadesc.data import ImageSet
    images, file = ImageSet.from_files(photos[0]), tmp_path/"there.txt"
    def kill(): os.kill(int(noted(file)[-1][0]), 9)
    after(40, file, kill)
    after(120, file, lambda: nodes.remove_node(nodes.second, allow_graceful=False))
    there, store = toy_encoder(file, .03), Store(tmp_path/"store")
    rows = there.embed_set(images, store=store, embed_into=machines.embed_into, progress=False)
    for split, expected in toy_encoder(tmp_path/"here.txt").embed_set(images, progress=False).items(): assert torch.equal(rows[split], expected)
    total, different = counts(file)
    assert different == 240 and total <= 240 + 3 * 20, f"{total - 240} encoded again: more than three blocks in flight"
    digests = [digest for split in images.samples for digest in images.digests[split]]
    assert there.image_rows(Store(tmp_path/"store")).missing(digests) == []


def test_an_image_that_cannot_be_read_is_an_answer_and_not_tried_on_every_node(machines, tmp_path):
    import pickle
    from datadesc import cluster
    (tmp_path/"a.png").write_bytes(b"no picture")
    packed = machines.ray.put(machines.ray.cloudpickle.dumps(toy_encoder(tmp_path/"n.txt")))
    actor = getattr(cluster, "_Embedder")(packed, str(tmp_path/"store"), 64, "")
    [error] = actor({"digest": ["0" * 32], "image": [pickle.dumps(str(tmp_path/"a.png"))]})["error"]
    assert error.startswith("Cannot read image") and "a.png" in error


def test_influence_in_blocks_is_that_of_one_machine(machines):
    from datadesc import influence as here
    from datadesc.head import SCORING_HEAD, train_head
    torch.manual_seed(0)
    train, val, texts = (torch.nn.functional.normalize(torch.randn(n, 16), dim=1) for n in (200, 60, 90))
    y, z, t = torch.randint(5, (200,)), torch.randint(4, (60,)), torch.randint(4, (90,))  # no validation image of class 4
    head = train_head(train, y, 5, SCORING_HEAD)
    for by_class in (True, False):
        one, many = (where.influence(train, y, val, z, head, 7, by_class=by_class) for where in (here, machines))
        for name, value in vars(one).items():
            if value is None: assert getattr(many, name) is None
            else: torch.testing.assert_close(getattr(many, name), value, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert abs(here.mean_influence(train, y, val, z, head) - machines.mean_influence(train, y, val, z, head)) < 1e-5
    for on in ("all", "own", "class"):
        one, many = (where.text_influence(texts, t, val, z, head, on=on, normalised=True) for where in (here, machines))
        torch.testing.assert_close(many, one, rtol=1e-5, atol=1e-5, equal_nan=True)


class Slow:
    "A model that notes each question, and takes its time."
    def __init__(self, file): self.file = file

    async def __call__(self, request):
        import asyncio
        with open(self.file, "a") as file: file.write(f"{os.getpid()} {request.messages[0][1]}\n")
        await asyncio.sleep(.2)
        return f"the answer to {request.messages[0][1]}"


def test_the_owner_of_answers_keeps_one_limit_for_all_and_survives_its_death(machines, tmp_path):
    from concurrent.futures import ThreadPoolExecutor
    from datadesc.llm import LLM
    file = tmp_path/"asked.txt"
    def run(first):
        llm = machines.share(LLM("slow", client=Slow(file), cache=tmp_path/"answers.sqlite", concurrency=2, requests_per_minute=600,
                                 budget=1., prices={"slow": dict(input=1., cached=1., output=1.)}))
        return llm.ask([llm.request([("user", f"question {i}")]) for i in range(first, first + 12)], progress=False), llm
    after(8, file, lambda: os.kill(int(noted(file)[-1][0]), 9))
    with ThreadPoolExecutor(2) as pool: (first, llm), (second, _) = pool.map(run, (0, 6))
    assert first == [f"the answer to question {i}" for i in range(12)] and second == [f"the answer to question {i}" for i in range(6, 18)]
    asked = [question for _, question in noted(file)]
    assert len(set(asked)) == 18 and len(asked) <= 18 + 2, "asked again: only what was in flight"
    assert len(dict(llm.cache.rows())) == 18 and llm.costs.total("calls") > 0
    begun = time.monotonic()
    assert run(0)[0] == first and time.monotonic() - begun < 1, "the third run reads"


def test_a_budget_is_the_clusters(machines, tmp_path):
    from datadesc.llm import BudgetReached, LLM
    def run(first):
        llm = machines.share(LLM("dear", client=Slow(tmp_path/"asked.txt"), cache=tmp_path/"answers.sqlite", concurrency=1, max_tokens=10,
                                 budget=40e-6, prices={"dear": dict(input=0., cached=0., output=1.)}))
        return llm.ask([llm.request([("user", f"dear {first}")])], progress=False)
    for first in range(3): run(first)
    with pytest.raises(BudgetReached, match="of the budget"):
        for first in range(3, 9): run(first)


def test_runs_are_processes_on_nodes(machines, coin_package, tmp_path, monkeypatch):
    from datadesc import batch
    monkeypatch.chdir(tmp_path)
    ends = {"PYTHONPATH": str(coin_package)}
    points = [batch.Point("good", "coin", {}), batch.Point("bad", "coin", {"throws": 0})]
    (tmp_path/"runs").mkdir()
    (tmp_path/"runs"/"coin.yaml").write_text("throws: 50\n")
    handles = {}
    for point in points:
        given = [word for name, value in point.params.items() for word in ("-p", f"{name}={value}")]
        arguments = ["run", point.dataset, "--name", point.name, "--out", "runs", *given]
        handles[point.name] = machines.launch(point, arguments, ends, tmp_path/f"{point.name}.log")
    slow = batch.Point("slow", "coin", {"wait": 1.})
    arguments = ["run", "coin", "--name", "slow", "--out", "runs", "-p", "wait=1."]
    handles["slow"] = machines.launch(slow, arguments, ends, tmp_path/"slow.log")
    while "The throws" not in (tmp_path/"slow.log").read_text() and handles["slow"].poll() is None: time.sleep(.2)
    time.sleep(1)
    handles["slow"].interrupt()
    while any(handle.poll() is None for handle in handles.values()): time.sleep(.2)
    assert handles["slow"].poll() != 0 and (tmp_path/"runs"/"slow"/"report.ipynb").exists(), "the half notebook of an interrupted run is kept"
    assert [handles[name].poll() for name in ("good", "bad")] == [0, 1], (tmp_path/"good.log").read_text()
    assert (tmp_path/"runs"/"good"/"result.json").exists() and "The throws" in (tmp_path/"good.log").read_text()
    assert (tmp_path/"runs"/"bad"/"report.ipynb").exists() and "ZeroDivisionError" in (tmp_path/"bad.log").read_text()


def test_a_folder_that_came_from_another_disk_is_whole(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="needs ray: make test installs it")
    import io, tarfile
    from datadesc import cluster
    from datadesc.run_folder import RunFolder
    for root in ("there", "here"): (tmp_path/root).mkdir()
    monkeypatch.chdir(tmp_path)
    there = RunFolder(tmp_path/"there"/"coin")
    with there.working("coin") as work:
        (work/"result.json").write_text("{}")
        (work.path/"tables").mkdir()
        (work/"tables"/"t.csv").write_text("1")
        there.replace()
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w") as tar: tar.add(there, arcname=".")
    arrived = getattr(cluster, "_arrived")
    assert Path(arrived(tmp_path/"here", "coin", packed.getvalue())) == tmp_path/"here"/"coin"
    (tmp_path/"here"/"coin"/"notes.txt").write_text("the user's")
    arrived(tmp_path/"here", "coin", packed.getvalue())
    assert sorted(p.name for p in (tmp_path/"here"/"coin").rglob("*") if p.is_file() and p.name[0] != ".") == ["notes.txt", "result.json", "t.csv"]


DRIVER = """
import sys; sys.path.insert(0, {tests!r})
import test_cluster, pathlib
from datadesc.cluster import Cluster
from datadesc.data import ImageSet
from datadesc.store import Store
machines = Cluster({address!r}, workers=2, images_each=20)
machines.ray.cloudpickle.register_pickle_by_value(test_cluster)
test_cluster.toy_encoder({file!r}, {wait}).embed_set(ImageSet.from_files({photos!r}), store=Store({store!r}), embed_into=machines.embed_into, progress=False)
"""


def test_the_head_dies_and_the_run_goes_on_from_the_store(machines, nodes, photos, tmp_path):
    from datadesc.cluster import Cluster
    from datadesc.data import ImageSet
    file, address = tmp_path/"there.txt", machines.address
    machines.ray.shutdown()  # this process leaves; the driver is one of its own
    code = DRIVER.format(tests=str(REPO/"tests"), address=address, file=str(file), wait=.05, photos=str(photos[0]), store=str(tmp_path/"store"))
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env=os.environ | {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"})
    while len(noted(file)) < 60 and driver.poll() is None: time.sleep(.05)
    nodes.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
    assert driver.wait(timeout=120) != 0, "it ends, with an error"
    driver.communicate()
    there, images = toy_encoder(file), ImageSet.from_files(photos[0])
    before = len(noted(file))
    assert 60 <= before < 240
    with Cluster("local", workers=2, images_each=20) as anew:
        rows = there.embed_set(images, store=Store(tmp_path/"store"), embed_into=anew.embed_into, progress=False)
    for split, expected in toy_encoder(tmp_path/"here.txt").embed_set(images, progress=False).items(): assert torch.equal(rows[split], expected)
    total, different = counts(file)
    assert different == 240 and total <= 240 + 2 * 20
