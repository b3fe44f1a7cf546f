"A store on an S3 server, and the stages on a Ray cluster of this machine: as one machine does them, and whatever dies on the way"
import os, socket, subprocess, sys, time
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
