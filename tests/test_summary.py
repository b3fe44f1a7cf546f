"The summary of all runs: our figures and the paper's published ones in the same tables, and never under each other's name."
import json

import pandas as pd
import pytest

from datadesc import runs
from datadesc.run_folder import RunFolder
from datadesc.summary import _COUNTERPARTS, _PUBLISHED, counterpart, _find_line, knowledge_pairs, measured, published, styled

FORMS = ("direct", "clip", "weighted")


def line(method, protocol, mean, names="with", shots="all", aggregation="none", **more):
    "One line of a `result.json`."
    return dict(method=method, protocol=protocol, aggregation=aggregation, names=names, shots=shots, k=0 if names == "none" else 5, weighting="none", mean=mean, mean_per_class=mean,
                seeds=2, n_test=100, interval=[mean - .01, mean + .03]) | more


def compared(gain, over="images only", significant=False):
    "What a line says of its difference from the row it has to beat."
    return dict(over=over, gain=gain, p_holm=.01 if significant else .5, significant=significant, gain_interval=[gain - .02, gain + .02])


def lines(base):
    "The lines of a small run: three forms and two baselines, everywhere."
    methods = {m: base + i/1000 for i, m in enumerate((*FORMS, "menon", "cupl", "whole pool"))}
    rows = [line("class names", "zero_shot", base, "only", "0", a, **compared(0., "class names")) for a in ("mean", "mean_embedding")]
    for i, (m, mean) in enumerate(methods.items()):
        rows += [line(m, "zero_shot", mean + .1*(names == "with") + .01*(a == "mean_embedding"), names, "0", a, **(compared(.01*i, "class names") if names == "without" else {}))
                 for names in ("without", "with") for a in ("mean", "mean_embedding")]
    for protocol, shots in (("transfer", "1"), ("paper", "all")):
        rows += [line("images only", protocol, base, "none", shots)] + [line(m, protocol, mean + .2, "without" if protocol == "transfer" else "with", shots, **compared(.2, significant=i == 0)) for i, (m, mean) in enumerate(methods.items())]
    return rows + [line("Tip-Adapter: direct", "adapter", base + .05, "without", "1", **compared(.05))]


def write_run(root, name, dataset, base=.5, accuracy=None, **parameters):
    "A finished run with hand-written figures, in the layout of a true one."
    selection = {"selection": [dict(form=f, world=dataset, precision_at_5=.8, precision_at_10=.7, chance=.4, ceiling=1.) for f in FORMS]} if dataset in ("meadow", "heath") else {}
    made_by = dict(dataset=dataset, model="tiny-clip", checkpoint=None, knowledge="text", form="direct", seeds=2) | parameters
    (root/name).mkdir(parents=True)
    (root/name/"result.json").write_text(json.dumps(dict(dataset=dataset, classes=["a", "b"], parameters=made_by, versions={}, images=dict(train=8, val=4, test=100), repeated_across_splits=0, sources=["some writer"],
                                                         seconds={"data": 1.}, accuracy=lines(base) if accuracy is None else accuracy) | selection))
    RunFolder(root/name).write_mark(name)


@pytest.fixture
def root(tmp_path):
    "Three finished runs: one of a synthetic dataset, and one of a dataset that the paper has, with an encyclopaedia and without."
    write_run(tmp_path, "meadow", "meadow", .3)
    write_run(tmp_path, "sat", "eurosat", .4)
    write_run(tmp_path, "sat_memory", "eurosat", .35, knowledge="none", form="clip")
    return tmp_path


def ours(mean): return f"{100*mean:.1f} ± 2.0"


def test_every_figure_is_there_with_its_run(root):
    names = runs.finished(root)
    table = measured(root, names)
    assert names == ["meadow", "sat", "sat_memory"] and len(table) == 3*len(lines(0.))
    assert set(table.source) == {"measured"} and not table[["run", "dataset", "encoder", "knowledge", "form"]].isna().any().any()
    for name in names:
        said, kept = json.loads((root/name/"result.json").read_text())["accuracy"], table[table.run == name].to_dict("records")
        for one, row in zip(said, kept, strict=True):
            assert [row["low"], row["high"]] == one["interval"] and all(row[key] == one[key] for key in ("method", "protocol", "aggregation", "names", "shots", "mean"))
            assert pd.isna(row["gain_low"]) if "gain" not in one else [row["gain_low"], row["gain_high"], row["gain"]] == one["gain_interval"] + [one["gain"]]


def test_a_run_that_is_not_there(root):
    with pytest.raises(ValueError, match="No finished run 'sun'.*datadesc run sun"): measured(root, ["meadow", "sun"])


def test_a_counterpart_takes_the_authors_score_and_the_papers_protocol(root):
    table = measured(root, ["sat"])
    zero, taught = (counterpart(name, table).loc["eurosat", "run sat"] for name in ("zero-shot", "transfer"))
    assert zero["clip"] == ours(.4) and zero["proponent texts"] == ours(.5) and zero["menon"] == ours(.503) and zero["cupl"] == ours(.514), "names in the texts, CuPL by the mean embedding"
    assert taught["images only"] == ours(.4) and taught["proponent texts"] == ours(.6) and taught["menon"] == ours(.603)
    assert zero["labo"] == zero["vdt"] == taught["labo"] == "", "what a run has not measured stays empty"


def test_the_last_column_is_the_form_of_the_run(root):
    table = measured(root, ["sat_memory"])
    assert _find_line(table, _COUNTERPARTS["transfer"]["proponent texts"]).method == "clip"
    assert counterpart("transfer", table).loc["eurosat", "run sat_memory"]["proponent texts"] == counterpart("selection", table).loc["eurosat", "run sat_memory"]["clip score"] == ours(.551)


def test_printed_figures_stand_in_rows_of_their_own(root):
    "Change every figure of ours: the published rows stay. Leave the published row of another dataset out: it is nowhere."
    table, printed = measured(root, runs.finished(root)), published()
    for name in _COUNTERPARTS:
        both, other = counterpart(name, table), counterpart(name, table.assign(mean=table["mean"]/2, low=table.low/2, high=table.high/2))
        assert [list(rows.index) for rows in (both, other)] == [list(both.index)]*2 and set(both.index) == {("meadow", "run meadow"), ("eurosat", "run sat"), ("eurosat", "run sat_memory"), ("eurosat", _PUBLISHED)}
        pd.testing.assert_series_equal(both.loc[("eurosat", _PUBLISHED)], other.loc[("eurosat", _PUBLISHED)])
        quoted = printed[(printed.table == name) & (printed.dataset == "eurosat")].set_index("method").value
        assert both.loc[("eurosat", _PUBLISHED)].to_dict() == quoted.map("{:.2f}".format).reindex(both.columns).to_dict()
        measured_rows = both[both.index.get_level_values("source") != _PUBLISHED]
        assert all("±" in cell or cell == "" for cell in measured_rows.to_numpy().ravel()) and (measured_rows != other.loc[measured_rows.index]).any(axis=None)


def test_only_printed_rows_are_grey(root):
    table = counterpart("transfer", measured(root, runs.finished(root)))
    styler = styled(table)
    styler._compute()
    grey = {row for (row, _), style in styler.ctx.items() if ("font-style", "italic") in style}
    assert [table.index[row] for row in sorted(grey)] == [("eurosat", _PUBLISHED)]
    assert all(("font-style", "italic") in styler.ctx[row, column] for row in grey for column in range(table.shape[1]))


def test_tables_without_any_benchmark_are_empty(root):
    for table in ("zero-shot", "transfer", "selection"): assert "<td" not in styled(counterpart(table, measured(root, []))).to_html()


def test_knowledge_is_compared_between_two_runs_of_one_dataset(root):
    write_run(root, "sat_memory_direct", "eurosat", .36, knowledge="none")
    pairs = knowledge_pairs(measured(root, ["meadow", "sat", "sat_memory_direct"]))
    assert [source == _PUBLISHED for _, source in pairs.index] == [False, True] and set(pairs.index.get_level_values("dataset")) == {"eurosat"}
    assert pairs.iloc[0].to_dict() == {"without Wikipedia": ours(.56), "with Wikipedia": ours(.6)}
    assert not len(knowledge_pairs(measured(root, ["meadow", "sat"])))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    "The folder of the summary of two finished runs, one of a synthetic dataset and one of a dataset that the paper has."
    root = tmp_path_factory.mktemp("root")
    write_run(root, "meadow", "meadow", .3)
    write_run(root, "eurosat", "eurosat", .4, model="meadow-clip")
    return runs.summarise(root=root)


def test_the_page_of_all_runs(page):
    assert {".datadesc-run", "report.ipynb", "report.html", "result.json", "results.csv", "figures"} == {f.name for f in page.iterdir()}
    assert json.loads((page/"result.json").read_text()) == dict(runs=["eurosat", "meadow"], lines=2*len(lines(0.)))
    text = (page/"report.html").read_text()
    assert _PUBLISHED in text and ours(.6) in text and "figures without meaning" in text and "some writer" in text
    assert runs.finished(page.parent) == ["eurosat", "meadow"], "the summary is no run"


def test_one_table_of_every_figure(page):
    table = pd.read_csv(page/"results.csv")
    assert set(table.source) == {"measured", "published"}
    own, printed = (table[table.source == source].dropna(axis=1, how="all") for source in ("measured", "published"))
    assert len(own) == 2*len(lines(0.)) and own.run.notna().all() and not {"value", "table"} & set(own)
    pd.testing.assert_frame_equal(printed.drop(columns="source").reset_index(drop=True)[list(published())], published())
    assert not {"run", "mean", "encoder"} & set(printed)


def test_a_summary_needs_finished_runs(tmp_path):
    with pytest.raises(ValueError, match="No finished run in .*datadesc run meadow makes one"): runs.summarise(root=tmp_path)
    write_run(tmp_path, "meadow", "meadow")
    with pytest.raises(ValueError, match="No finished run 'sun'"): runs.summarise(["meadow", "sun"], root=tmp_path)
    assert not (tmp_path/"summary").exists()
