"result.json is read in both versions, refused clearly otherwise, and its closing lines say what a person needs first."
import json
import subprocess
import sys
from pathlib import Path

import pytest

from datadesc import results, runs
from datadesc.results import AccuracyLine, _ConditionLine, PairLine, Result

REPO = Path(__file__).parents[1]


@pytest.fixture
def result():
    names = [f"class {i}" for i in range(24)]
    return Result(dataset="toy", classes=names, raw_names=names, images=dict(train=4, val=2, test=2), parameters=dict(form="direct"),
                  accuracy=[AccuracyLine(method="direct", protocol="zero_shot", mean=.5, n_test=2, interval=(.1, .9))], versions={}, seconds={},
                  chosen={name: [f"{name} has mark {i}" for i in range(10)] for name in names}, suspects=3,
                  pairs=[PairLine(a="class 0", b="class 1", confusion=.3)])


def test_committed_run_is_read():
    found = results.Result.read(REPO / "papermill_runs" / "meadow")
    assert found.dataset == "meadow" and len(found.classes) == 24 and found.accuracy and found.conditions
    texts = runs.FinishedRun(REPO / "papermill_runs", "meadow").chosen_texts()
    assert {row["class"]: row["text"] for row in reversed(texts)} == {name: sentences[0] for name, sentences in found.chosen.items()}


def test_a_result_of_0_1_is_read(tmp_path):
    line = dict(protocol="zero_shot", method="direct", aggregation="mean", names="without", shots="0", mean=.9, interval=[.88, .92], seeds=1, n_test=960, k=10, clear=True)
    old = dict(dataset="meadow", classes=["a", "b"], parameters=dict(form="direct"), asked=[], answers_cost=0.0, unanswered=[], versions=dict(datadesc="0.1.0"),
               images=dict(train=4, val=2, test=2), repeated_across_splits=0, sources=["author"], seconds=dict(data=1.0), accuracy=[line])
    (tmp_path / "result.json").write_text(json.dumps(old))
    found = results.Result.read(tmp_path)
    assert found.accuracy[0].mean == .9 and found.accuracy[0].significant and found.raw_names == ["a", "b"] and found.conditions == []


@pytest.mark.parametrize("content, message", [
    ("{", "is not JSON"), ("[]", "no result of a run"), ('{"a": 1}', "expected dataset, classes and accuracy"),
    ('{"schema_version": "9"}', "schema version 9"), ('{"schema_version": "2", "dataset": 3}', "cannot be read")])
def test_other_files_are_refused_by_name(tmp_path, content, message):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=message): results.Result.read(tmp_path)


def test_missing_result_is_named(tmp_path):
    with pytest.raises(ValueError, match="No result in"): results.Result.read(tmp_path)


def test_round_trip(tmp_path, result):
    result.write(tmp_path)
    assert results.Result.read(tmp_path) == result
    assert json.loads((tmp_path / "result.json").read_text())["schema_version"] == "2"


def test_three_sentences_of_the_first_classes(tmp_path, result):
    result.write(tmp_path)
    lines = results.closing_lines(tmp_path)
    assert sum(line.startswith("  - ") for line in lines) == 18 and "... and 18 more" in lines
    assert any("class 0 and class 1 (30%)" in line for line in lines) and any("Likely label issues: 3" in line for line in lines)
    assert lines[-1].endswith("report.html")


def test_warnings_failures_and_reasons_are_said(tmp_path, result):
    failed = _ConditionLine(name="classifier", verdict="fail", figure=.1, limit=.2, sentence="It guesses.")
    changed = result.model_copy(update=dict(warning="The encoder knows butterflies only.", conditions=[failed], suspects=None,
                                            withheld={"labels": "The classifier guesses.", "sentences": "Nothing fits."}))
    changed.write(tmp_path)
    text = "\n".join(results.closing_lines(tmp_path))
    assert text.startswith("Warning: The encoder knows butterflies only.") and "Failed: classifier. It guesses." in text
    assert "not judged. The classifier guesses." in text and "has mark" not in text


def test_formulas_and_markup_stay_text(tmp_path, result):
    rows = [("a,b.jpg", "=SUM(A1)", "<b>", 1.), ("c.jpg", "-1", "d\ne", .5)]
    text = results.write_suspects(tmp_path, rows).read_text()
    assert '"a,b.jpg",\'=SUM(A1),<b>,1' in text and "'-1" in text
    odd = result.model_copy(update=dict(chosen={"# *x*": ["<script>\n# head"]}))
    assert "## \\# \\*x\\*" in (page := odd.write_classes(tmp_path).read_text()) and "- \\<script\\> \\# head" in page


def test_reading_imports_nothing_heavy():
    program = "import sys; from datadesc import results; sys.exit(bool({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPO).returncode == 0
