"The explorer: what is judged comes back in the next run, hostile text is inert, and the served page is for its owner alone."
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from browsing import HOSTILE, browser
from datadesc import explore as module
from datadesc.data import ImageSet
from datadesc.describe import flagged, from_file
from datadesc.embed import load_encoder
from datadesc.explore import Explorer
from datadesc.labels import apply_corrections
from datadesc.store import read_file
from datadesc.study import Study

@pytest.fixture(scope="module")
def meadow(repo):
    "The study of the committed run of meadow."
    from datadesc.datasets import synthetic
    pool = read_file(repo / "papermill_runs" / "meadow" / "tables" / "descriptions.parquet")
    return Study.of(synthetic("meadow").images, load_encoder("meadow-clip"), pool, progress=False)


@pytest.fixture(scope="module")
def hostile():
    "A study whose class names and sentences attack the page; each class has images of a colour of its own."
    random = np.random.default_rng(0)
    def picture(c):
        return np.clip(random.normal(30 * c, 20, (48, 48, 3)), 0, 255).astype(np.uint8)
    samples = {split: [(picture(c), c) for c in range(len(HOSTILE)) for _ in range(n)] for split, n in dict(train=6, val=4, test=2).items()}
    images = ImageSet("<script>alert(2)</script> \"set\"", tuple(HOSTILE), samples)
    rows = [dict(class_id=c, component="", sample=n, text=f"{text.strip()} {n}", source=HOSTILE[0], knowledge="given")
            for c in range(len(HOSTILE)) for n, text in enumerate(HOSTILE)]
    return Study.of(images, load_encoder("meadow-clip"), flagged(rows, HOSTILE), progress=False)


BRIDGE = """async () => {
  const state = await window.state(), listeners = {};
  const take = changed => { Object.assign(state, changed); for (const name of Object.keys(changed)) (listeners[`change:${name}`] || []).forEach(f => f()); };
  const model = {get: name => state[name], on: (event, f) => (listeners[event] ??= []).push(f), send: message => window.receive(message).then(take)};
  window.explorer.render({model, el: document.body});
}"""


class Page:
    "A session's page in a browser, without Jupyter between them; what the browser complained about is in `problems`."
    def __init__(self, browser, explorer, width=1300):
        pytest.importorskip("anywidget", reason="anywidget is not installed")
        self.session, self.problems, self.dialogs = module._Session(explorer), [], []
        self.page = page = browser.new_page(viewport=dict(width=width, height=850))
        page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.expose_function("receive", self.receive)
        page.expose_function("state", self.state)
        script = self.session.page._esm.replace("export default {render}", "window.explorer = {render}")
        page.set_content(f"<!doctype html><meta charset=utf-8><style>{self.session.page._css}</style><body></body>")
        page.add_script_tag(content=script, type="module")
        page.wait_for_function("window.explorer")
        page.evaluate(BRIDGE)
        self.idle()

    def state(self):
        return {name: getattr(self.session.page, name) for name in ("facts", "page", "album", "bar", "detail", "pair", "done")}

    def receive(self, message):
        before = self.state()
        self.session._receive(message)
        return {name: value for name, value in self.state().items() if value != before[name]}

    def idle(self):
        self.page.wait_for_selector('.dd-explore[aria-busy="false"]')

    def click(self, selector):
        self.page.click(selector)
        self.idle()

    def texts(self):
        return self.page.locator(".dd-rows .dd-text").all_text_contents()

    def fine(self):
        assert not self.problems and not self.dialogs and not self.page.evaluate("window.ran")
        self.page.close()


def test_what_is_judged_comes_back_in_the_next_run(meadow, tmp_path):
    explorer = Explorer(meadow, tmp_path)
    rows = [s["t"] for s in explorer.sentences(3) if not s["flag"]]
    own = explorer.add(3, "wings with a row of dark spots", instead_of=rows[0])
    explorer.mark(rows[1], "starred")
    explorer.mark(rows[2], "rejected")
    explorer.mark(rows[3], "accepted")
    for split, i, c in (("train", 7, 4), ("val", 3, -1), ("test", 3, int(meadow.labels["test"][3]))):
        explorer.correct(split, i, c)
    saved = explorer.save()
    pool = from_file(saved[0], meadow.classes, meadow.image_set.superclass)
    there = set(pool.text[pool.class_id == 3])
    assert {meadow.pool.text[rows[1]], "wings with a row of dark spots"} <= there and not {meadow.pool.text[rows[0]], meadow.pool.text[rows[2]]} & there
    usable = set(meadow.pool.text[(meadow.pool.class_id != 3) & (meadow.pool.flag == "")])
    assert usable == set(pool.text[pool.class_id != 3])
    images, table = apply_corrections(meadow.image_set, saved[1], "meadow")
    assert set(zip(table.split, table.image, table.corrected)) == {("train", 7, 4), ("val", 3, -1), ("test", 3, int(meadow.labels["test"][3]))}
    again = Explorer(meadow, tmp_path)
    assert again.labels == explorer.labels and again.marks == explorer.marks and again.pool.text[own] == "wings with a row of dark spots"
    assert "--descriptions" in again.next_command() and "corrections=" in again.next_command()


def test_corrections_of_the_run_stay_in_the_next_file(meadow, tmp_path):
    first = Explorer(meadow, tmp_path / "first")
    first.correct("train", 7, 4)
    file = first.save()[1]
    images, _ = apply_corrections(meadow.image_set, file, "meadow")
    study = Study(meadow.classes, meadow.image_emb, {split: images.labels(split) for split in meadow.labels}, meadow.pool, meadow.embed)
    study.image_set, study.encoder = images, meadow.encoder
    second = Explorer(study, tmp_path / "second", corrections=str(file))
    second.correct("train", 9, 5)
    _, table = apply_corrections(meadow.image_set, second.save()[1], "meadow")
    assert set(zip(table.image, table.corrected)) == {(7, 4), (9, 5)}


def test_a_class_without_sentences_is_not_saved(meadow, tmp_path):
    explorer = Explorer(meadow, tmp_path)
    for s in explorer.sentences(3):
        explorer.mark(s["t"], "rejected")
    with pytest.raises(ValueError, match="rejected: keep one"):
        explorer.save()
    assert not list(tmp_path.iterdir())


def test_a_sentence_has_the_score_that_it_would_have_in_the_pool(meadow, tmp_path):
    explorer = Explorer(meadow, tmp_path)
    choice = explorer.choice("set")
    for s in explorer.sentences(5):
        if s["flag"] or s["rank"]:
            continue
        for form in explorer.forms:
            explorer.make_scores(form)
            tried = explorer.try_text(5, s["text"], form)
            expected = choice.score[s["t"]] if form == "set" else meadow.scores(form).ift[s["t"]]
            assert tried["score"] == pytest.approx(expected, abs=2e-4, rel=1e-3) and tried["flag"] == "the class has it already"


def test_held_out_accuracy_reads_no_test_image(meadow, tmp_path):
    explorer = Explorer(meadow, tmp_path)
    images = meadow.image_emb | {"test": torch.roll(meadow.image_emb["test"], 100, 0)}
    other = Study(meadow.classes, images, meadow.labels, meadow.pool, meadow.embed, logit_scale=meadow.logit_scale)
    other.image_set = meadow.image_set
    same = Explorer(other, tmp_path)
    for form, k in (("set", 3), ("direct", 5)):
        assert explorer.held_out(form, k) == same.held_out(form, k)
    for seen, held in explorer._half_studies:  # and each half is chosen for without it
        assert len(seen.labels["val"]) + len(held) == len(meadow.labels["val"])
        assert not torch.isin(meadow.image_emb["val"][held][:, 0], seen.image_emb["val"][:, 0]).any()


def test_a_file_that_is_no_explorers_is_named(meadow, tmp_path):
    (tmp_path / "sentences.json").write_text("{}x")
    with pytest.raises(ValueError, match="sentences.json' is not what the explorer writes"):
        Explorer(meadow, tmp_path)


def test_pick_sort_click_edit_and_save(browser, meadow, tmp_path):
    explorer = Explorer(meadow, tmp_path)
    for form in ("direct", "clip"):
        explorer.make_scores(form)
    page = Page(browser, explorer)
    page.page.select_option(".dd-pick", "3")
    page.idle()
    assert meadow.classes[3] in page.page.inner_text(".dd-panel:nth-child(2) h3")
    before = page.texts()
    page.page.select_option("select[aria-label='Order of sentences']", "clip")
    rows = (meadow.pool.class_id == 3) & (meadow.pool.flag == "")
    scores = dict(zip(meadow.pool.text[rows], meadow.scores("clip").ift[rows]))
    values = [scores[text] for text in page.texts()]
    assert page.texts() != before and values == sorted(values, reverse=True)
    page.click(".dd-rows .dd-row:nth-child(2)")
    assert page.page.inner_text(".dd-detail h3") == "Sentence" and page.page.locator(".dd-detail .dd-tile").count() >= 12
    page.page.keyboard.press("ArrowDown")  # the list has the focus now
    page.idle()
    third = page.texts()[2]
    assert page.page.inner_text(".dd-quote") == third
    page.page.keyboard.press("r")
    page.idle()
    rejected = page.page.locator(".dd-rows .dd-rejected")
    assert rejected.count() == 1 and third in rejected.inner_text()
    page.click(".dd-images .dd-image:nth-child(4)")
    assert page.page.inner_text(".dd-detail h3") == "Image"
    page.page.select_option("select[aria-label='The right class']", "5")
    page.click("text=Correct the label")
    assert page.page.locator(".dd-badge.dd-done").count() == 1
    page.page.fill("textarea", "wings with dark spots")
    page.page.wait_for_selector(".dd-tried:has-text('marginal influence')")
    page.click("text=Add")
    assert page.page.locator(".dd-rows :text('yours')").count() == 1 and page.page.input_value("textarea") == ""
    page.page.select_option("select[aria-label='How sentences are chosen']", "direct")
    page.idle()
    assert page.page.inner_text(".dd-accuracy b") == f"{100 * explorer.held_out('direct', 5):.1f} %"
    page.click("text=Compare two classes")
    assert page.page.locator(".dd-two section").count() == 2
    page.click(".dd-save")
    assert "datadesc run" in page.page.inner_text(".dd-message code") and page.page.inner_text(".dd-save") == "Saved"
    kept = from_file(tmp_path / "sentences.json", meadow.classes)
    assert third not in set(kept.text[kept.class_id == 3]) and "wings with dark spots" in set(kept.text[kept.class_id == 3])
    assert meadow.classes[5] in (tmp_path / "suspects.csv").read_text()
    page.fine()


def test_hostile_text_is_inert_and_legible(browser, hostile, tmp_path):
    explorer = Explorer(hostile, tmp_path / "<b>out</b>")
    page = Page(browser, explorer)
    for c, name in enumerate(HOSTILE):
        page.page.select_option(".dd-pick", str(c))
        page.idle()
        shown = page.texts()
        assert len(shown) >= 4 and set(shown) <= set(hostile.pool.text)
        assert " ".join(name.split())[:20].strip() in " ".join(page.page.inner_text(".dd-panel:nth-child(2) h3").split())
        for at in range(1, 4):
            page.click(f".dd-rows .dd-row:nth-child({at})")
        page.click(".dd-images .dd-image:nth-child(1)")
    page.page.fill("textarea", HOSTILE[0])
    page.page.wait_for_selector(".dd-tried:has-text('influence')")
    page.click("text=Add")
    page.click("text=Compare two classes")
    page.click(".dd-save")
    assert page.page.evaluate("document.querySelectorAll('.dd-explore script, .dd-explore a, .dd-explore [onerror], .dd-explore [onfocus]').length") == 0
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 1300
    pool = from_file(tmp_path / "<b>out</b>" / "sentences.json", hostile.classes)
    assert HOSTILE[0] in set(pool.text)
    page.fine()


def test_nothing_moves_and_all_of_it_fits_a_phone(browser, meadow, tmp_path):
    page = Page(browser, Explorer(meadow, tmp_path))
    where = "[...document.querySelectorAll('.dd-bar, .dd-tabs, .dd-images, .dd-rows, .dd-own')].map(e => Math.round(e.getBoundingClientRect().top)).join()"
    before = page.page.evaluate(where)
    for at in (1, 3, 5):
        page.click(f".dd-rows .dd-row:nth-child({at})")
        page.click(f".dd-images .dd-image:nth-child({at})")
        page.page.select_option(".dd-pick", str(at))
        page.idle()
        assert page.page.evaluate(where) == before
    page.page.set_viewport_size(dict(width=390, height=844))
    page.click(".dd-rows .dd-row:nth-child(1)")
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.page.locator(".dd-sheet").bounding_box()
    assert box["y"] + box["height"] == pytest.approx(844, abs=1)
    page.click(".dd-close")
    assert not page.page.locator(".dd-detail").is_visible()
    page.fine()


def test_all_of_it_by_keyboard(browser, meadow, tmp_path):
    explorer = Explorer(meadow, tmp_path)
    page = Page(browser, explorer)
    press, focus = page.page.keyboard.press, "(() => { const e = document.activeElement; return e.getAttribute('aria-label') || e.textContent; })()"
    def reach(label):
        for _ in range(60):
            press("Tab")
            if page.page.evaluate(focus) == label:
                return
        raise AssertionError(f"Tab does not reach {label!r}")
    def key(*names):
        for name in names:
            press(name)
            page.idle()
        return page.page.evaluate(focus)
    reach("Class")
    assert key("ArrowDown", "ArrowDown") == "Class" and meadow.classes[2] in page.page.inner_text(".dd-panel:nth-child(2) h3")
    reach("Images")
    assert key("ArrowDown", "k") == "Images" and len(explorer.labels) == 1, "the label is right, and the next image is shown"
    assert key("o") == "Images" and list(explorer.labels.values()) == [2, -1]
    assert key("c") == "The right class"
    key("End")
    reach("Correct the label")
    assert key("Enter") == "Correct the label" and list(explorer.labels.values()) == [2, -1, meadow.n_classes - 1]
    assert key("Escape") == "Images"
    reach("Candidate sentences")
    assert key("ArrowDown", "a", "r", "s") == "Candidate sentences" and list(explorer.marks.values()) == ["accepted", "rejected", "starred"]
    assert key("e") == "A sentence of your own"
    page.page.keyboard.type(" indeed")
    page.page.wait_for_selector(".dd-tried:has-text('marginal influence')")
    assert key("Enter") == "A sentence of your own" and explorer.pool.own.sum() == 1
    reach("★ Star")
    assert key("Enter") == "★ Star"
    page.page.focus(".dd-detail .dd-tile")
    key("Enter")
    assert page.page.inner_text(".dd-detail h3") == "Image" and page.page.evaluate("document.activeElement.className").startswith("dd-panel dd-detail")
    reach("‹ back")
    key("Enter")
    assert page.page.inner_text(".dd-detail h3") == "Sentence"
    page.page.focus("text=Compare two classes")
    key("Enter")
    page.page.focus(".dd-pairs button:nth-of-type(2)")
    assert " / " in key("Enter")
    page.page.focus(".dd-save")
    assert key("Enter") == "Saved" and explorer.unsaved == 0
    page.fine()


def test_an_image_of_the_comparison_opens(browser, meadow, tmp_path):
    page = Page(browser, Explorer(meadow, tmp_path))
    page.click("text=Compare two classes")
    page.click(".dd-two section:nth-child(2) .dd-tile:nth-child(3)")
    assert page.page.inner_text(".dd-detail h3") == "Image"
    assert page.page.inner_text(".dd-one b") in page.page.inner_text(".dd-panel:nth-child(2) h3")
    page.fine()


def test_two_pages_that_save(browser, meadow, tmp_path):
    one, two = (Page(browser, Explorer(meadow, tmp_path)) for _ in range(2))
    for page, row in ((one, 2), (two, 4)):
        page.click(f".dd-rows .dd-row:nth-child({row})")
        page.click(".dd-detail :text('Reject')")
    where = "[...document.querySelectorAll('.dd-tabs, .dd-rows')].map(e => Math.round(e.getBoundingClientRect().top)).join()"
    before = one.page.evaluate(where)
    one.click(".dd-save")
    assert one.page.evaluate(where) == before, "the message has its place"
    first = (tmp_path / "sentences.json").read_bytes()
    two.click(".dd-save")
    assert "another page has changed the files" in two.page.inner_text(".dd-message") and (tmp_path / "sentences.json").read_bytes() == first
    assert two.page.inner_text(".dd-save") == "Save 1 change"
    two.click("text=Read them, drop mine")
    assert two.session.explorer.marks == one.session.explorer.marks and two.page.inner_text(".dd-save") == "Saved"
    assert two.page.locator(".dd-rows .dd-rejected").count() == 1
    for page in (one, two):
        page.click(".dd-rows .dd-row:nth-child(5)")
        page.click(".dd-detail :text('Star')")
    one.click(".dd-save")
    two.click(".dd-save")
    two.click("text=Write mine over them")
    assert two.page.inner_text(".dd-save") == "Saved" and "datadesc run" in two.page.inner_text(".dd-message code")
    assert Explorer(meadow, tmp_path).marks == two.session.explorer.marks
    for page in (one, two):
        page.fine()


def test_files_that_changed_are_not_overwritten(meadow, tmp_path):
    first, second = Explorer(meadow, tmp_path), Explorer(meadow, tmp_path)
    row = next(s["t"] for s in first.sentences(3) if not s["flag"])
    first.mark(row, "starred")
    second.mark(row, "accepted")
    first.save()
    with pytest.raises(ValueError, match="another page has changed the files in"):
        second.save()
    assert Explorer(meadow, tmp_path).marks == first.marks and second.unsaved == 1
    second.save(overwrite=True)
    assert Explorer(meadow, tmp_path).marks == second.marks


def test_photographs(browser, tmp_path):
    shared = Path(__file__).resolve().parents[2] / "shared" / "data" / "grocery"
    if not shared.is_dir():
        pytest.skip("no ../shared/data/grocery")
    offline = pytest.importorskip("datadesc.offline")
    try:
        offline.check_offline(None)
    except ImportError as error:
        pytest.skip(str(error))
    folders = {folder.name: sorted(folder.glob("*.jpg"))[:9] for folder in sorted(shared.glob("dataset/train/*/*/")) + sorted(shared.glob("dataset/train/*/*/*/"))}
    folders = {name: files for name, files in folders.items() if len(files) == 9}
    names = list(folders)[:5]
    samples = {split: [(file, c) for c, name in enumerate(names) for file in folders[name][part]]
               for split, part in dict(train=slice(0, 5), val=slice(5, 7), test=slice(7, 9)).items()}
    rows = [dict(class_id=c, component="", sample=n, text=text, source="test", knowledge="given") for c, name in enumerate(names)
            for n, text in enumerate((f"{name.replace('-', ' ').lower()}", "round fruit with shiny skin", "a carton with printed letters"))]
    study = Study.of(ImageSet("grocery", tuple(names), samples), load_encoder("offline"), flagged(rows, names), progress=False)
    page = Page(browser, Explorer(study, tmp_path))
    page.page.select_option(".dd-pick", "2")
    page.idle()
    page.click(".dd-rows .dd-row:nth-child(1)")
    page.click(".dd-images .dd-image:nth-child(2)")
    page.click("text=Label is right")
    page.page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 40)")
    page.click(".dd-save")
    assert names[2] in (tmp_path / "suspects.csv").read_text()
    page.fine()


def fetched(url):
    "Status of a request without cookies, redirects followed."
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.url, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, url, ""


def test_served_on_loopback_behind_a_token_and_saved_across_a_reload(browser, repo, tmp_path):
    for library in ("voila", "anywidget"):
        pytest.importorskip(library, reason=f"{library} is not installed")
    shutil.copytree(repo / "papermill_runs" / "meadow", tmp_path / "runs" / "meadow")
    command = [sys.executable, "-c", "from datadesc.cli import main; main()", "explore", "meadow", "--out", "runs", "--port", "8950"]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        address = next(re.search(r"http\S+", line)[0] for line in server.stdout if "http" in line)
        port = int(re.search(r":(\d+)/", address)[1])
        listening = [line.split()[1] for table in ("/proc/net/tcp", "/proc/net/tcp6") if Path(table).exists() for line in Path(table).read_text().splitlines()[1:]
                     if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")]
        assert listening in ([], ["0100007F:%04X" % port])  # 127.0.0.1 and nothing else
        for way in ("", "voila/render/explore.ipynb", "?token=wrong", "api/kernels/00000000-0000-0000-0000-000000000000", "voila/files/explore.ipynb"):
            status, url, text = fetched(f"http://127.0.0.1:{port}/{way}")
            assert status in (401, 403, 404) or "/login" in url and "cell-output" not in text, way
        page, problems, hosts = browser.new_page(viewport=dict(width=1300, height=850)), [], set()
        page.on("console", lambda message: message.type == "error" and problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: hosts.add(re.match(r"\w+:(?://)?([^/:]*)", request.url)[1]))
        page.goto(address, timeout=60_000)
        page.wait_for_selector("[data-ready]", timeout=60_000)
        page.wait_for_selector('.dd-explore[aria-busy="false"]')
        assert page.locator("[data-mime-type='application/vnd.jupyter.stderr'], pre").count() == 0, "nothing but the page, such as a bar of progress"
        page.click(".dd-rows .dd-row:nth-child(3)")
        page.wait_for_selector(".dd-quote")
        page.click(".dd-detail :text('Reject')")
        page.wait_for_selector(".dd-rows .dd-rejected")
        page.click(".dd-save")
        page.wait_for_selector(".dd-message code")
        assert (tmp_path / "runs" / "meadow-review" / "sentences.json").exists()
        page.reload(timeout=60_000)
        page.wait_for_selector(".dd-rows .dd-rejected", timeout=60_000)
        assert not problems and hosts <= {"127.0.0.1", "http", ""}
        page.close()
        server.send_signal(signal.SIGINT)
        server.wait(20)
    finally:
        server.kill()
        server.communicate()
