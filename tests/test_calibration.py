"""Published figures beside planted results, and what `datadesc verify` says of a run whose files were changed."""
import json, subprocess, sys
from pathlib import Path

import pytest

from datadesc.calibration import calibrate, verify
from datadesc.results import with_hashes
from datadesc.run_folder import RunFolder

CIFAR = json.loads((Path(__file__).parents[1]/"datadesc"/"assets"/"clip_benchmark.json").read_text())["datasets"]["cifar10"]["templates"]
OPENAI = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"  # SHA-256 of the file that OpenAI published


@pytest.fixture
def planted(tmp_path):
    "A function: the calibration of a run and its benchmark, written as files and read back"
    def calibration(accuracy=.8982, n_test=10_000, templates=CIFAR, inputs={}, k=18, **params):
        params = dict(dataset="cifar10", split="official", model="ViT-B-32-quickgelu", checkpoint=None) | params
        row = dict(method="clip_templates", protocol="zero_shot", aggregation="mean_embedding", names="only", k=k, n_test=n_test, mean=accuracy)
        rows = [row, row | dict(aggregation="mean", mean=.1), row | dict(method="set", mean=.2)]
        (tmp_path/"result.json").write_text(json.dumps(dict(parameters=params, images=dict(train=1, test=n_test), inputs=inputs)))
        (tmp_path/"benchmark.json").write_text(json.dumps(dict(templates=templates, accuracy=rows)))
        return calibrate(*(json.loads((tmp_path/name).read_text()) for name in ("result.json", "benchmark.json")))
    return calibration


def test_a_run_that_agrees(planted):
    same = planted()
    assert (same.reason, same.published, same.ours, same.is_off) == ("", .8982, .8982, False) and "89.82 %" in same.sentence and "Usual reasons" not in same.sentence
    assert planted(model="ViT-B-32") == planted(checkpoint="openai") == planted(templates=CIFAR[::-1]) == same
    assert planted(.5575, 1880, json.loads(json.dumps([f"a photo of {a} {{c}} {n}." for a in ("a", "the") for n in ("texture", "pattern", "thing", "object")])),
                   k=8, dataset="dtd", model="ViT-B-32", checkpoint="laion2b_s34b_b79k").published == pytest.approx(.5574468)


@pytest.mark.parametrize("accuracy, off", [(.8982 - .015, True), (.8982 + .015, True), (.8982 - .0101, True), (.8882, False), (.9082, False)])
def test_more_than_one_point_is_a_warning(planted, accuracy, off):
    calibration = planted(accuracy)
    assert calibration.is_off == off and ("Usual reasons: class names in another order" in calibration.sentence) == off


@pytest.mark.parametrize("changed, reason", [
    (dict(dataset="cub"), "none for this dataset"), (dict(dataset="photos"), "none for this dataset"), (dict(dataset="food101"), "none for this dataset"),
    (dict(split="paper_sizes"), "another split"), (dict(dataset="eurosat", n_test=5400), "another split"),
    (dict(n_test=500), "10,000 test images, this run on 500"), (dict(n_test=9_999), "this run on 9,999"),
    (dict(model="meadow-clip"), "none for this encoder"), (dict(model="offline"), "none for this encoder"), (dict(model="ViT-B-32", checkpoint="laion400m_e31"), "none for this encoder"),
    (dict(model="ViT-B-32-quickgelu", checkpoint="laion2b_s34b_b79k"), "none for this encoder"),
    (dict(checkpoint="clip.pt", inputs={"clip.pt": "0" * 64}), "unknown content"), (dict(checkpoint="openai", inputs={"openai": "0" * 64}), "unknown content"),
    (dict(model="ViT-L-14", checkpoint="clip.pt", inputs={"clip.pt": OPENAI}), "unknown content"),
    (dict(templates=["a photo of a {c}."]), "other prompts"), (dict(templates=[]), "other prompts"), (dict(k=5), "no row of the class names in all"),
])
def test_no_published_figure(planted, changed, reason):
    calibration = planted(**changed)
    assert reason in calibration.sentence and calibration.sentence.startswith("No published figure") and not calibration.is_off


def test_openais_own_file_is_known_by_its_content(planted):
    assert planted(checkpoint="usb/any name.pt", inputs={"usb/any name.pt": OPENAI}).published == .8982


def test_before_a_benchmark(planted):
    run = dict(parameters=dict(dataset="pets", split="official", model="ViT-L-14", checkpoint=None), images=dict(test=3669))
    assert calibrate(run).ours is None and "1 prompt: 93.08 %" in calibrate(run).sentence and "compares" in calibrate(run).sentence


@pytest.fixture
def run(tmp_path):
    "A run with a benchmark that wrote one of its tables anew, and one input"
    folder = tmp_path/"papermill_runs"/"pond"
    (folder/"tables").mkdir(parents=True)
    (tmp_path/"words.json").write_text("{}")
    for name in ("classes.md", "tables/ift.parquet", "tables/accuracies.parquet", "report.html", "report.ipynb"): (folder/name).write_text(name)
    (folder/"result.json").write_text(json.dumps(with_hashes(dict(dataset="pond", inputs={}), folder)))
    facts = json.loads((folder/"result.json").read_text()) | with_hashes({}, inputs=[str(tmp_path/"words.json")])
    (folder/"result.json").write_text(json.dumps(with_hashes(facts)))
    (folder/"tables"/"accuracies.parquet").write_text("more rows")
    (folder/"benchmark.json").write_text(json.dumps(with_hashes(dict(accuracy=[.1, 1e-7, 3]), folder)))
    RunFolder(folder).write_mark("pond")
    return folder


def test_as_written(run):
    assert verify(run) == (6, [], [])


def change_a_byte(file): file.write_bytes(b"x" + file.read_bytes()[1:])


@pytest.mark.parametrize("change, line", [
    (lambda run: change_a_byte(run/"tables"/"ift.parquet"), "tables/ift.parquet differs"),
    (lambda run: (run/"tables"/"ift.parquet").unlink(), "tables/ift.parquet is missing"),
    (lambda run: (run/"tables"/"more.parquet").write_bytes(b""), "tables/more.parquet was added"),
    (lambda run: change_a_byte(run/"classes.md"), "classes.md differs"),
    (lambda run: (run/"result.json").write_text((run/"result.json").read_text().replace("pond", "lake")), "result.json differs"),
    (lambda run: (run/"benchmark.json").write_text((run/"benchmark.json").read_text().replace("0.1", "0.9")), "benchmark.json differs"),
    (lambda run: change_a_byte(run.parents[1]/"words.json"), "words.json (read by the run) differs"),
])
def test_each_change_is_one_line(run, change, line):
    change(run)
    assert [said[-len(line):] for said in verify(run)[1]] == [line]


def test_a_benchmark_that_is_gone(run):
    (run/"benchmark.json").unlink()
    assert verify(run)[1] == ["benchmark.json is missing", "tables/accuracies.parquet differs"]


def test_pages_and_hidden_files_are_nobodys_business(run):
    (run/"report.html").write_text("read and annotated")
    (run/"notes.txt").write_text("mine")
    (run/"tables"/".DS_Store").write_text("")
    assert verify(run)[1] == []


def test_inputs_that_are_elsewhere_are_named(run):
    (run.parents[1]/"words.json").unlink()
    n, lines, away = verify(run)
    assert (n, lines) == (5, []) and len(away) == 1 and away[0].endswith("words.json (read by the run) is not here and was not compared")


def test_results_that_cannot_be_checked(run):
    (run/"result.json").write_text('{"dataset": "pond"}')
    with pytest.raises(ValueError, match="notes no hashes.*earlier version.*datadesc run pond --force"): verify(run)
    (run/"result.json").write_text("half a f")
    with pytest.raises(ValueError, match="expected a JSON object"): verify(run)


def test_the_command(run, tmp_path):
    "Exit code 0 and one line; 1 and a line for each difference; nothing heavy is imported"
    program = "import sys; from datadesc.cli import main\ntry: main()\nfinally: print(sorted({'torch', 'pandas', 'open_clip'} & set(sys.modules)), file=sys.stderr)"
    verified = lambda: subprocess.run([sys.executable, "-c", program, "verify", "pond"], cwd=tmp_path, capture_output=True, text=True)
    good = verified()
    assert (good.returncode, good.stdout, good.stderr) == (0, "6 files as written in papermill_runs/pond\n", "[]\n")
    (run/"classes.md").unlink()
    bad = verified()
    assert (bad.returncode, bad.stdout) == (1, "classes.md is missing\n5 files as written in papermill_runs/pond, 1 not\n")


def test_the_benchmarks_page_compares_its_own_row(tmp_path):
    "From the lines that a benchmark has measured, with the templates that it used"
    import pandas as pd
    from types import SimpleNamespace
    from datadesc.benchmark_page import BenchmarkPage
    params = dict(dataset="cifar10", split="official", model="ViT-B-32-quickgelu", checkpoint=None)
    page = BenchmarkPage(SimpleNamespace(labels=dict(test=range(10_000))), params, None, tmp_path, tmp_path)
    page.templates = list(CIFAR)
    row = dict(method="clip_templates", protocol="zero_shot", aggregation="mean_embedding", names="only", k=18, n_test=10_000, mean=.88)
    page.lines = pd.DataFrame([row, row | dict(method="set", k=5), row | dict(aggregation="mean", mean=.5)])
    assert page.calibration().is_off and page.calibration().ours == .88
    (tmp_path/"clip.pt").write_bytes(b"somebody's weights")
    page.params = params | dict(checkpoint=str(tmp_path/"clip.pt"))
    assert "unknown content" in page.calibration().sentence
