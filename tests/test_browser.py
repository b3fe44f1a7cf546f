"""Report, benchmark, judge's page, summary, card and site in a real browser: what they offer works, they fit a phone, nothing is asked of the network, and
hostile text is inert and legible on all of them. The explorer has its own tests."""
import csv
import json
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

from browsing import HOSTILE, WIDTHS, Watched, browser, one_line
from datadesc import kernel, report, runs
from datadesc.cards import write_cards
from llm_server import llm_server
from test_report import findings_of

GROCERY = Path(__file__).resolve().parents[2] / "shared" / "data" / "grocery"
FILES = ['<img src=x onerror="window.ran = 1">', "'\"&amp; $x$ **b** [l](javascript:window.ran=1)", "🦋 ‮ right", "n" * 200, "<script>window.ran = 1<", "`{{7*7}}`"]
SET = '<img src=x onerror="window.ran = 1"> $x$'
MODEL, KIND, RUN = "<b>model</b>", "<u>thing</u>", "<b>run $x$"


# -- the runs that are looked at --

@pytest.fixture(scope="module")
def here(tmp_path_factory):
    "A folder of its own that all runs below are made in, by one kernel."
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with kernel.started(one_thread=True) as manager:
            @contextmanager
            def shared(*args, **options): yield manager
            patch.setattr(kernel, "started", shared)
            yield folder


def hostile_images(folder):
    "A list of images whose names and labels attack a page; each class has a colour of its own, and one image that is another's."
    random, rows = np.random.default_rng(0), []
    (folder / "<b>pictures<b>").mkdir()
    def picture(c): return Image.fromarray(np.clip(random.normal(30 * c, 20, (48, 48, 3)), 0, 255).astype(np.uint8))
    for c, name in enumerate(HOSTILE):
        for i, split in enumerate(("train",) * 4 + ("val",) * 2 + ("test",) * 2):
            file = folder / "<b>pictures<b>" / f"{FILES[i % len(FILES)]} {c} {i}.png"
            picture((c + (i == 0)) % len(HOSTILE)).save(file)
            rows.append((file.relative_to(folder), name, split))
    broken = folder / "<b>pictures<b>" / "broken <i>.png"
    broken.touch()
    with open(folder / f"{SET}.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows, (broken.relative_to(folder), HOSTILE[0], "train")])


def hostile_answer(chat, n):
    "What a language model says that repeats hostile text: parts, sentences, and as a judge that the first text is the best."
    question = chat["messages"][-1]["content"]
    if "visible parts" in question: return "- <b>head</b>\n- wings\n- $x$"
    if isinstance(question, str): return f"{HOSTILE[n % len(HOSTILE)].strip()} {n}"
    letters = re.findall(r"^([A-Z]): ", question[-1]["text"], re.M)
    return json.dumps(dict.fromkeys(("helpful", "informative", "relevant"), dict(best=letters[:1], ranking=[letters])))


@pytest.fixture(scope="module")
def hostile(here):
    "The folder of a run with benchmark, judge and card, and beside it the summary: everything that others wrote attacks the page."
    hostile_images(here)
    rows = [{"class": name, "page": name, "source": "<b>wiki</b>", "revision": 7, "url": "javascript:window.ran=1", "passages": [f"{text} about it." for text in HOSTILE]}
            for name in HOSTILE[:6]]
    (here / "articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "mine.json").write_text(json.dumps({name if n else f"{name} the": ["<b>mine</b>"] for n, name in enumerate(HOSTILE)}))
    with llm_server(lambda chat: hostile_answer(chat, len(server.chats))) as (url, server):
        runs.run(f"{SET}.csv", dict(
            llm_base_url=url, llm_model=MODEL, model="meadow-clip", wiki_file="articles.jsonl", samples=2, superclass=KIND, bad_images="skip", store="store",
            benchmark=True, shots=[1], paper_shots=[], seeds=1, methods=["<b>own</b>=mine.json"]), name=RUN)
        run = runs.FinishedRun.at(RUN)
        run.judge(dict(judges=[MODEL], judge_base_url=url, judge_cases=1, judge_orders=1))
    runs.summarise([RUN])
    write_cards(run.folder)
    return run.folder.resolve()


@pytest.fixture(scope="module")
def grocery(here):
    "The folder of a run on four photographs each of 26 kinds of groceries, more than a report unfolds."
    if not GROCERY.is_dir(): pytest.skip("no ../shared/data/grocery")
    folders = [folder for folder in sorted(GROCERY.glob("dataset/train/**/")) if len([*folder.glob("*.jpg")]) >= 4][:26]
    with open(here / "grocery.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(photo, folder.name, split) for folder in folders for photo, split in zip(sorted(folder.glob("*.jpg")), ("train", "train", "val", "test"))]
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    (here / "said.json").write_text(json.dumps({folder.name: [folder.name.replace("-", " "), "round fruit with shiny skin", f"a carton of {folder.name}"] for folder in folders}))
    return runs.run("grocery.csv", dict(descriptions="said.json", model="meadow-clip", store="store")).resolve()


@pytest.fixture(scope="module")
def meadow(here):
    "The folder of a run on meadow, without its benchmark."
    return runs.run("meadow", dict(store="store")).resolve()


def comes_into_view(element):
    "Waits until the top of the element is on the screen: the browser goes to a place, and unfolds it, a moment after the click."
    top = "e => { const top = e.getBoundingClientRect().top; return e.getClientRects().length && -1 < top && top < innerHeight; }"
    element.page.wait_for_function(top, arg=element.element_handle(), timeout=5000)


def fits_everywhere(watched):
    "Folded and unfolded, on a desktop and on a phone."
    for width in WIDTHS:
        watched.page.set_viewport_size(dict(width=width, height=900))
        watched.fits()
    watched.unfold()
    watched.fits()
    watched.page.set_viewport_size(dict(width=WIDTHS[0], height=900))
    watched.fits()


def files_are_there(watched, folder):
    "Links to files beside the page lead to files."
    links = watched.page.evaluate("[...document.links].map(a => a.getAttribute('href')).filter(href => !/^(#|[a-z]+:)/.test(href))")
    assert [link for link in links if not (folder / link.split("#")[0]).is_file()] == []
    return links


# -- what a page offers --

@pytest.mark.parametrize("page", ["meadow/benchmark", "summary/report"])
def test_committed_pages(browser, repo, tmp_path, page):
    notebook = repo / "papermill_runs" / f"{page}.ipynb"
    (tmp_path / "page.html").write_text(kernel.report_html(nbformat.read(notebook, as_version=4)), encoding="utf-8")
    with Watched(browser, (tmp_path / "page.html").as_uri()) as watched:
        watched.is_sound()
        files_are_there(watched, notebook.parent)
        fits_everywhere(watched)


def test_report_of_meadow(browser, meadow):
    with Watched(browser, (meadow / "report.html").as_uri()) as watched:
        page = watched.page
        watched.is_sound()
        assert {"suspects.csv", "descriptions.json", "classes.md"} <= set(files_are_there(watched, meadow))
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === [...document.querySelectorAll('main a, main summary')].find(e => e.offsetParent)")  # the first of the page
        for target, link in {"#labels": "text=The list", "#pairs": "nav >> text=pairs", "#provenance": "nav >> text=How this was made"}.items():
            page.click(link)
            comes_into_view(page.locator(target))
            assert page.url.endswith(target)
        name = page.locator("nav .names a").nth(7)
        words = name.inner_text()
        name.click()
        card = page.locator("details.card", has=page.locator(page.url[page.url.index("#"):]))
        comes_into_view(card)
        assert card.locator("h3").inner_text() == words
        card.locator(":scope > summary").click()
        assert not card.locator(".strip").is_visible()
        page.keyboard.press("Enter")  # the heading has the focus
        assert card.locator(".strip").is_visible()
        page.keyboard.press("Space")
        assert not card.locator(".strip").is_visible()
        page.click("text=Conditions of this report")
        assert page.locator("td.pass").first.is_visible()
        page.click("text=The notebook that made this page")
        assert page.locator("details.code").get_by_text("load_images(params)").is_visible()
        page.emulate_media(media="print")
        assert not page.locator("details.code").is_visible()
        page.emulate_media(media="screen")
        fits_everywhere(watched)


@pytest.mark.parametrize("beside", [False, True])
def test_a_link_unfolds_a_class_here_and_on_the_pages_beside(browser, tmp_path, monkeypatch, beside):
    if beside:
        for name, n in dict(_ON_THIS_PAGE=29, _PER_PAGE=12).items(): monkeypatch.setattr(report, name, n)
    findings = findings_of([f"kind {i}" for i in range(30)], tmp_path, counts=(2, 1, 1), spread=.2)
    sections = [findings.first_screen(), findings.class_section(), findings.label_section(), findings.decision_section(), findings.pair_section(),
                findings.provenance({"images": 1.})]
    (tmp_path / "report.html").write_text(report._page("toy", "<h1>toy</h1>" + "".join(section.data for section in sections)), encoding="utf-8")
    with Watched(browser, (tmp_path / "report.html").as_uri(), width=WIDTHS[1]) as watched:
        page, card = watched.page, watched.page.locator("details.card[open]")
        watched.is_sound()
        page.locator("nav").get_by_role("link", name="kind 29", exact=True).click()
        comes_into_view(card.locator("h3"))
        assert card.count() == 1 and card.locator("h3").inner_text() == "kind 29" and card.locator(".strip").is_visible()
        assert page.url.endswith(f"{'classes/3' if beside else 'report'}.html#class-29")
        watched.is_sound()
        watched.fits()
        if beside:
            page.click("main > p a")
            assert page.url.endswith("report.html")


def test_photographs(browser, grocery):
    with Watched(browser, (grocery / "report.html").as_uri()) as watched:
        watched.is_sound()
        files_are_there(watched, grocery)
        page = watched.page
        assert page.locator("details.card").count() == 26 and page.locator("details.card[open]").count() == 0
        page.click("nav .names a >> nth=20")
        comes_into_view(page.locator("details.card[open] > div"))
        fits_everywhere(watched)
        assert page.evaluate("Math.min(...[...document.querySelectorAll('.strip img')].map(image => image.naturalWidth))") > 60


# -- hostile text --

def wanted_on(page):
    "Hostile texts that a reader finds on the page of this name."
    always = {"report": [*HOSTILE, SET, KIND, MODEL, "<b>wiki</b>", *FILES[:1], "broken <i>.png"], "benchmark": [SET, "<b>own</b>", f"{HOSTILE[0]} the"], "judge": [SET, MODEL, "<b>own</b>"],
              "summary": [SET, RUN, MODEL]}
    return [one_line(text) for text in always[page]]


def pages_of(hostile):
    return {name: hostile / f"{name}.ipynb" for name in ("report", "benchmark", "judge")} | {"summary": hostile.parent / "summary" / "report.ipynb"}


@pytest.mark.parametrize("page", ["report", "benchmark", "judge", "summary"])
def test_hostile_text_is_inert_and_legible(browser, hostile, page):
    file = pages_of(hostile)[page].with_suffix(".html")
    with Watched(browser, file.as_uri()) as watched:
        watched.is_sound()
        fits_everywhere(watched)
        shown = watched.text()
        assert [text for text in wanted_on(page) if text not in shown] == [] and watched.injected() == []
        assert files_are_there(watched, file.parent) or page != "report"


@pytest.mark.parametrize("page", ["report", "benchmark", "judge", "summary"])
def test_hostile_text_in_a_notebook_that_others_render(browser, hostile, tmp_path, page):
    "As nbconvert's own template has it, which has no policy against scripts; the libraries that it wants from the network are not there."
    from nbconvert import HTMLExporter
    (tmp_path / "page.html").write_text(HTMLExporter().from_notebook_node(nbformat.read(pages_of(hostile)[page], as_version=4))[0], encoding="utf-8")
    tab = browser.new_page()
    tab.route("http*://**", lambda route: route.abort())
    dialogs = []
    tab.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    tab.goto((tmp_path / "page.html").as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    shown = one_line(tab.inner_text("body"))
    assert not dialogs and tab.evaluate("window.ran") is None and [text for text in wanted_on(page) if text not in shown] == []
    inside = ".jp-OutputArea :is(script, iframe, u, [onerror], [onfocus], a[href^=javascript], img:not([src^='data:']))"
    assert tab.evaluate(f"[...document.querySelectorAll(`{inside}`)].map(e => e.outerHTML.slice(0, 200))") == []
    formulas = """() => { const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walk.nextNode()) if (walk.currentNode.data.includes('$x$') && !walk.currentNode.parentElement.closest('.mathjax_ignore, pre, code, title')) found.push(walk.currentNode.data);
      return found; }"""
    assert tab.evaluate(formulas) == []
    tab.close()


def test_hostile_text_in_a_card(browser, hostile, tmp_path):
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True}).enable("table")
    body = (hostile / "card" / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    style = "<meta charset=utf-8><style>body { overflow-wrap: anywhere }</style>"  # as the hub has it
    (tmp_path / "card.html").write_text(f"<!doctype html>{style}<body>{markdown.render(body)}</body>", encoding="utf-8")
    with Watched(browser, (tmp_path / "card.html").as_uri()) as watched:
        watched.is_sound()
        shown = watched.text()
        assert [text for text in map(one_line, [*HOSTILE[:6], SET, MODEL]) if text not in shown] == [] and watched.injected() == []
        fits_everywhere(watched)


# -- the site --

CHAPTERS = ["1_method/10_describe", "2_evidence/10_stats", "3_looking/20_audit", "4_pages/58_cards", "5_sources/14_names", "bench/asking", "index", "tour"]


@pytest.fixture(scope="module")
def site(repo, hostile, tmp_path_factory):
    "The address of a site with a few chapters, and with the hostile notebooks as chapters and as stored runs. The whole site takes 20 seconds to build."
    for library in ("mkdocs", "material", "mkdocstrings", "latex2mathml"): pytest.importorskip(library, reason="needs the extra site")
    root = tmp_path_factory.mktemp("site")
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"): shutil.copy(repo / name, root)
    shutil.copytree(repo / "tools", root / "tools")
    shutil.copytree(repo / "nbs" / "images", root / "nbs" / "images")
    (root / "datadesc").symlink_to(repo / "datadesc")
    for name in CHAPTERS:
        (root / "nbs" / name).parent.mkdir(exist_ok=True)
        shutil.copy(repo / "nbs" / f"{name}.ipynb", root / "nbs" / f"{name}.ipynb")
    (root / "nbs" / "runs").mkdir()
    for name, notebook in pages_of(hostile).items(): shutil.copy(notebook, root / "nbs" / "runs" / f"{name}.ipynb")
    shutil.copytree(hostile, root / "papermill_runs" / "meadow")
    shutil.copytree(hostile.parent / "summary", root / "papermill_runs" / "summary")
    built = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet"], cwd=root, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root / "site"))
    threading.Thread(target=server.serve_forever, args=[.05], daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def test_clicking_through_the_site(browser, site):
    with Watched(browser, site + "index.html", at=site) as watched:
        page = watched.page
        watched.is_sound()
        page.click(".md-tabs >> text=The method")
        page.wait_for_url("**/1_method/10_describe.html")
        watched.is_sound()
        assert page.locator("article img").count() and page.locator("article math").count() + page.locator("article pre").count() > 5
        page.click(".md-sidebar--secondary a >> nth=2")
        comes_into_view(page.locator(page.evaluate("'#' + CSS.escape(decodeURIComponent(location.hash.slice(1)))")))
        page.click(".md-footer__link--next")
        page.wait_for_url("**/2_evidence/10_stats.html")
        page.click(".md-tabs >> text=API")
        page.wait_for_url("**/api/index.html")
        page.click("article >> text=datadesc.stats")
        page.wait_for_selector("article .doc-heading >> nth=4")
        page.click(".md-tabs >> text=Looking at a dataset")
        page.wait_for_url("**/3_looking/20_audit.html")
        watched.is_sound()
        assert page.locator("article img[alt^='Images: labelled']").count() == 2
        watched.fits("article")
        page.set_viewport_size(dict(width=WIDTHS[1], height=900))
        watched.fits("article")


def typed(page, text):
    "`text` in place of what stands in the site's search, key by key: the search listens to keys."
    page.focus(".md-search__input")
    page.keyboard.press("Control+A")
    page.keyboard.type(text)


def test_the_site_is_searched_and_darkened(browser, site):
    with Watched(browser, site + "index.html", at=site) as watched:
        page = watched.page
        page.keyboard.press("/")
        typed(page, "Krippendorff")
        page.click(".md-search-result__link[href*='#']")
        page.wait_for_selector("article mark")
        assert "Krippendorff" in page.inner_text("article")
        ground = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(ground)
        page.click("label[title='Dark']")
        page.wait_for_function(f"{ground} !== '{before}'")
        page.reload()
        assert page.evaluate(ground) != before  # remembered


@pytest.mark.parametrize("page", ["report", "benchmark", "judge", "summary"])
def test_hostile_text_on_the_site(browser, site, page):
    with Watched(browser, f"{site}runs/{page}.html", at=site) as watched:
        watched.unfold()
        shown = watched.text()
        assert [text for text in wanted_on(page) if text not in shown] == []
        inside = "article :is(iframe, object, embed, u, script, [onerror], [onfocus], a[href^=javascript], img[src=x])"
        assert watched.page.evaluate(f"[...document.querySelectorAll(`{inside}`)].map(e => e.outerHTML.slice(0, 200))") == []
        watched.fits("article")
        watched.page.set_viewport_size(dict(width=WIDTHS[1], height=900))
        watched.fits("article")
    with Watched(browser, f"{site}papermill_runs/{'summary/report' if page == 'summary' else f'meadow/{page}'}.html", at=site) as watched:
        watched.is_sound()
        assert watched.injected() == []


def test_hostile_text_on_the_site_is_found_by_search(browser, site):
    with Watched(browser, site + "index.html", at=site) as watched:
        page = watched.page
        page.keyboard.press("/")
        for text in ("onerror", "<script>window.ran = 1; alert(1)</script>", "onerror"):
            typed(page, text)
            page.wait_for_timeout(600)
        page.wait_for_selector(".md-search-result__link")
        assert page.evaluate("document.querySelectorAll('.md-search-result :is(script, iframe, img, [onerror])').length") == 0
