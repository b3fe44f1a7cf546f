"What is installed, what is committed, and what the front page becomes."
import base64
import configparser
import html
import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml

import datadesc


@pytest.fixture(scope="module")
def facts(repo):
    "The settings of the project."
    settings = configparser.ConfigParser(delimiters="=")
    settings.read(repo / "settings.ini")
    return settings["DEFAULT"]


@pytest.fixture(scope="module")
def wheel(repo, tmp_path_factory):
    "A wheel built from a copy of the files that git knows or would add."
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=repo, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (repo / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(target.glob("*.whl")))


def test_wheel_holds_what_a_run_needs(repo, wheel):
    held = set(wheel.namelist())
    assets = [path.relative_to(repo).as_posix() for path in (repo / "datadesc").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert set(assets) <= held
    known = subprocess.run(["git", "ls-files", "nbs/runs/*.ipynb", "papermill_runs/*.yaml"], cwd=repo, capture_output=True, text=True, check=True).stdout.split()
    assert known and {f"datadesc/assets/runs/{Path(file).name}" for file in known} <= held
    assert not [name for name in held if name.startswith(("tests/", "nbs/", "tools/", "papermill_runs/"))]


def test_wheel_metadata_come_from_settings(wheel, facts):
    text = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    assert f"Version: {facts['version']}\n" in text and "License-Expression: Apache-2.0\n" in text
    for name in re.findall(r"^[\w-]+", facts["requirements"], re.M):
        assert f"Requires-Dist: {name}" in text


def test_unpacked_wheel_lists_meadow(wheel, tmp_path):
    wheel.extractall(tmp_path)
    program = "import datadesc, sys; from datadesc.cli import main; sys.argv = ['datadesc', 'list']; print(datadesc.__file__); main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith(str(tmp_path)) and re.search("meadow +nothing", done.stdout), done.stderr


def test_one_version(facts):
    assert datadesc.__version__ == version("datadesc") == facts["version"]


def test_constraints_pin_every_requirement(repo, facts):
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    lines = [line for line in (repo / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = {plain(line.split("==")[0]) for line in lines}
    assert {plain(re.match(r"[\w.-]+", name)[0]) for name in (facts["requirements"] + facts["dev_requirements"] + facts["site_requirements"]).split()} <= pinned


def test_what_git_keeps_of_the_runs(repo):
    ignored = lambda path: subprocess.run(["git", "check-ignore", "-q", path], cwd=repo).returncode == 0
    assert ignored("papermill_runs/demo/meadow/report.ipynb") and ignored("papermill_runs/.running/meadow.lock")
    assert not ignored("papermill_runs/meadow/report.ipynb") and not ignored("papermill_runs/meadow.yaml")


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("target", ["demo", "test", "check", "lab", "meadow-run", "meadow", "clip", "small-model", "readme", "site"])
def test_every_target_is_there(repo, target):
    shown = subprocess.run(["make", "--dry-run", target], cwd=repo, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr


def test_readme_is_the_front_page_without_its_machinery(repo, tmp_path):
    code, prose = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    drawn = lambda kind, text: nbformat.v4.new_output("display_data", {kind: base64.b64encode(b"a picture").decode(), "text/plain": text})
    picture = drawn("image/png", "<Figure>")
    table = nbformat.v4.new_output("execute_result", {"text/html": "<style scoped>\n.x {}\n</style><table></table>"}, execution_count=1)
    cells = [prose("# Title\n\n[a chapter](05_data.ipynb), [a part](05_data.ipynb#folders), [a run](../runs/report.html), [the web](https://example.org), [below](#below)\n"
                   '<img src="../runs/gallery.png">'),
             code("#| hide\nimport secret"), code("#| default_exp x"), code("#| eval: false\nshow()", outputs=[picture]),
             code("#| fig-alt: a box (and an arrow)\nbox()", outputs=[picture]),
             code("rows()", outputs=[drawn("image/jpeg", "Images: a [x](y) *z*")]), code('#| fig-alt: a "wide" box\n#| out-width: 600\nwide()', outputs=[picture]), code("#| echo: false\nunseen()", outputs=[table])]
    (tmp_path / "nbs").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    subprocess.run([sys.executable, repo / "tools" / "readme.py", "nbs/index.ipynb", "README.md"], cwd=tmp_path, check=True)
    text = (tmp_path / "README.md").read_text()
    for words in ("](nbs/05_data.ipynb)", "](nbs/05_data.ipynb#folders)", "](runs/report.html)", "](https://example.org)", "](#below)",
                  'src="runs/gallery.png"', "```python\nshow()\n```", "<table></table>"):
        assert words in text
    for words in ("secret", "#|", "default_exp", "style", "unseen"):
        assert words not in text
    pictures = dict(re.findall(r"^!\[(.*?)\]\((\S*?)\)", text, re.M))
    pictures |= {alt: file for file, alt in re.findall(r'^<img src="(\S+)" alt="(.*?)" width="600">$', text, re.M)}
    assert [*map(html.unescape, pictures)] == ["Picture: Title", "a box (and an arrow)", "Images: a [x](y) *z*", 'a "wide" box'] and {*os.listdir(tmp_path / "README_files")} == {Path(file).name for file in pictures.values()}
    assert {(tmp_path / file).read_bytes() for file in pictures.values()} == {b"a picture"}


def tool(repo, name, monkeypatch):
    "A module of tools/."
    monkeypatch.syspath_prepend(repo / "tools")
    return importlib.import_module(name)


def test_workflow_calls_what_is_there(repo):
    workflow = yaml.safe_load((repo / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    targets = re.findall(r"^([a-z-]+):", (repo / "Makefile").read_text(), re.M)
    called = [target for step in steps for target in re.findall(r"make ([a-z-]+)", step.get("run", ""))]
    assert called and set(called) <= set(targets)
    assert all(re.fullmatch(r"[\w/-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    files = [file for step in steps for file in re.findall(r"\S*tests/\S+\.py|\.ci/\S+", step.get("run", ""))]
    assert files and all((repo / file).is_file() for file in files)
    assert set(workflow["jobs"]["deploy"]["needs"]) <= set(workflow["jobs"])


def test_citation_is_of_this_version(repo, facts):
    citation = yaml.safe_load((repo / "CITATION.cff").read_text())
    assert str(citation["version"]) == facts["version"] and citation["license"] == facts["license"]
    assert [author["family-names"] for author in citation["references"][0]["authors"]] == ["Kim", "Bae", "Kim"]
    assert f"## {facts['version']}" in (repo / "CHANGELOG.md").read_text()


def test_every_breach_of_a_rule_is_found(repo, tmp_path, monkeypatch):
    rules = tool(repo, "check_rules", monkeypatch)
    monkeypatch.setattr(rules, "NAMES_ON_AVERAGE", 13)
    (tmp_path / "datadesc").mkdir()
    (tmp_path / "datadesc" / "wide.py").write_text("\n".join(f"name_{n}: int = {n}" for n in range(26)))
    (tmp_path / "datadesc" / "_modidx.py").write_text("d = {}")
    (tmp_path / "datadesc" / "other.py").write_text("from datadesc import wide\nfrom .wide import _hidden\n\ndef public(x, *, y: int): return wide._secret\n\nclass Kept:\n"
        "    def __init__(self, x: int): pass\n    def method(self, x) -> int: pass\n\ndef _private(x): pass\n\n@patch\ndef grown(self: Kept) -> int: pass\n" + "#" * 141)
    (tmp_path / "nbs" / "1_method").mkdir(parents=True)
    long, listed = "word " * 61, "\n".join(["intro", *["- " + "word " * 50] * 2])
    cells = [nbformat.v4.new_markdown_cell(text) for text in (long, listed, "```\n" + long + "\n```", "| " + long + "|", "# The end")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "nbs" / "1_method" / "10_chapter.ipynb")
    found = [(rule, place.split("#")[0]) for rule, place, _ in rules.breaches(tmp_path)]
    other, chapter = "datadesc/other.py", "nbs/1_method/10_chapter.ipynb"
    assert sorted(found) == sorted([("public names", "datadesc/wide.py"), ("all public names", "datadesc"), ("private import", f"{other}:2"),
        ("private import", f"{other}:4"), ("types", f"{other}:4"), ("types", f"{other}:8"), ("long line", f"{other}:14"),
        ("long paragraph", chapter), ("no link at the end", chapter)])


def test_site_has_a_page_for_every_notebook_and_module(repo, monkeypatch):
    pytest.importorskip("mkdocs", reason="needs the extra site")
    pages = tool(repo, "site_pages", monkeypatch)
    assert {path.name for path in (repo / "nbs").glob("[0-9]*")} == set(pages.PARTS)
    assert {name for part in pages.PARTS for name in pages.api_modules(part)} == {path.stem for path in (repo / "datadesc").glob("[a-z]*.py")}


def test_links_on_the_site(repo, monkeypatch):
    pytest.importorskip("mkdocs", reason="needs the extra site")
    pages, needed = tool(repo, "site_pages", monkeypatch), set()
    moved = lambda text, place: pages.site_links(text, repo / place, needed)
    assert moved("[a](../5_sources/25_data.ipynb#names) [b](https://example.org) [c](#here)", "nbs/1_method/x.ipynb") == "[a](../5_sources/25_data.md#names) [b](https://example.org) [c](#here)"
    assert moved("[a](../papermill_runs/meadow/report.ipynb)", "nbs/index.ipynb") == "[a](papermill_runs/meadow/report.html)"
    assert moved("[a](nbs/tour.ipynb), [b](README.md)", "CHANGELOG.md") == "[a](tour.md), [b](index.md)"
    assert moved('<img src="images/report.png">', "nbs/index.ipynb") == '<img src="images/report.png">'
    assert needed == {repo / "papermill_runs" / "meadow" / "report.ipynb", repo / "nbs" / "images" / "report.png"}


def test_formulas_are_drawn_or_named(repo, monkeypatch):
    pytest.importorskip("mkdocs", reason="needs the extra site")
    pages, page = tool(repo, "site_pages", monkeypatch), SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    drawn = pages.on_page_content(r'<p>so <span class="arithmatex">\(\big\langle a, b\big\rangle\)</span></p>', page, None, None)
    assert drawn.startswith("<p>so <math") and "arithmatex" not in drawn
    with pytest.raises(Exception, match=r"a\.md: .unknown"): pages.on_page_content(r'<div class="arithmatex">\[\unknown\]</div>', page, None, None)
