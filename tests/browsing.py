"What browser tests share: Debian's chromium, a page that keeps what the browser complained about, and text that attacks a page."
import re
import shutil

import pytest

CHROMIUM = shutil.which("chromium")
HOSTILE = ["<script>window.ran = 1; alert(1)</script>", "\"><img src=x onerror=\"window.ran = 1\">", "**bold** [link](javascript:window.ran=1) `code` $x$",
           "🦋 emoji 👩🏽‍🔬", "‏עברית ‮ right to left", "long " * 400, "' onfocus='window.ran = 1", "&lt;b&gt; &amp; {{ 7 * 7 }} ${7*7}"]
WIDTHS = (1280, 390)  # a desktop, a phone


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


# Elements that no page of ours has, or that the page has only where text has become markup.
INJECTED = "iframe, object, embed, u, [onerror], [onfocus], [onclick], [onload], a[href^='javascript' i], img:not([src^='data:']), script"
# What reaches over the right edge of the page, and no box around it scrolls.
OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(e => {
  if (e.getBoundingClientRect().right <= innerWidth + 1 || !e.getClientRects().length) return false;
  for (let box = e; box; box = box.parentElement) if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(box).overflowX)) return false;
  return true;
}).map(e => e.outerHTML.slice(0, 200))"""
# Text that its box cuts off, out of reach.
CUT = """inside => [...document.querySelectorAll(`${inside} *`)].filter(e => e.getClientRects().length && !e.matches('.visually-hidden')
  && ['hidden', 'clip'].includes(getComputedStyle(e).overflowX) && e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML.slice(0, 200))"""
WIDEST = "() => Math.max(0, ...[...document.querySelectorAll('td, th')].map(e => e.getBoundingClientRect().width))"
HEADINGS = "() => [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(h => +h.tagName[1])"
DEAD = """() => [...document.querySelectorAll('a[href^="#"]:not(.anchor-link)')].map(a => decodeURIComponent(a.getAttribute('href').slice(1)))
  .filter(name => name && !document.getElementById(name))"""


def one_line(text):
    "The text without runs of blanks and without the signs that only set its direction."
    return " ".join(re.sub("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", text).split())


class Watched:
    "A page of the browser. `problems` are errors, `dialogs` what has been opened, `requests` what was asked of any other place than `at`."
    def __init__(self, browser, url, width=WIDTHS[0], at="file:", **options):
        self.problems, self.dialogs, self.requests = [], [], []
        self.page = page = browser.new_page(viewport=dict(width=width, height=900), **options)
        page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: request.url.startswith((at, "data:", "blob:")) or self.requests.append(request.url))
        page.set_default_timeout(30_000)
        page.goto(url)

    def __enter__(self): return self

    def __exit__(self, *error):
        if error == (None, None, None):
            assert (self.problems, self.dialogs, self.requests, self.page.evaluate("window.ran")) == ([], [], [], None)
        self.page.close()

    def unfold(self): self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")

    def text(self): return one_line(self.page.inner_text("body"))

    def fits(self, inside="body"):
        "Nothing is wider than the page, nothing `inside` is cut off, and nothing that scrolls has a cell wider than a desktop."
        evaluate = self.page.evaluate
        assert evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert evaluate(OUTSIDE) == [] and evaluate(CUT, inside) == [] and evaluate(WIDEST) <= WIDTHS[0]

    def is_sound(self):
        "Pictures are drawn and have a text, headings come in order, links inside the page lead somewhere."
        evaluate = self.page.evaluate
        evaluate("for (const image of document.images) image.loading = 'eager'")
        self.page.wait_for_function("[...document.images].every(image => image.complete)")
        assert evaluate("[...document.images].filter(image => !image.naturalWidth || !image.alt.trim()).map(image => image.outerHTML.slice(0, 300))") == []
        levels = evaluate(HEADINGS)
        assert levels[:1] == [1] and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:])), levels
        assert evaluate(DEAD) == []

    def injected(self, but=""): return self.page.evaluate(f"[...document.querySelectorAll(`{INJECTED}`)].filter(e => !e.matches(`{but or 'nothing'}`)).map(e => e.outerHTML.slice(0, 200))")
