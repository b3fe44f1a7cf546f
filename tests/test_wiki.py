"Where articles come from: a wiki in trouble, the table of the nine datasets, snapshots, ZIM files; and what is quoted from them"
import gzip
import json
import random
import re
import sys
import time
from base64 import b64encode
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datadesc
from datadesc.wiki import (Snapshot, WikiError, Wikipedia, Zim, _about_four_characters, _article_of, _article_titles, _find, _lists_meanings, _plain_name, look_up,
                           _paragraphs, passages_about, _text_of_html, write_snapshot)
from wiki_server import api_error, no_proxy, page, wiki_server


def eager(url, **options):
    "A source that neither waits its turn nor long before it tries again"
    return Wikipedia(url, **({"requests_per_second": 10_000, "retry_wait": .01, "timeout": 5} | options))


class Shelf:
    "A source whose pages are in a dict: title -> text, or '-> other title'"
    name = "shelf"
    def __init__(self, **pages): self.pages, self.asked = {title.replace("_", " "): text for title, text in pages.items()}, []

    def article(self, title):
        self.asked.append(title)
        text, how = self.pages.get(title), "exact"
        if text and text.startswith("-> "): title, text, how = text[3:], self.pages[text[3:]], "redirect"
        found = text and _article_of(text, self.name, title, how=how)
        return found | {"how": "ambiguous"} if found and _lists_meanings(found) else found

    def search(self, words, limit=5): return [title for title in self.pages if set(words.lower().split()) <= set(re.findall(r"\w+", f"{title} {self.pages[title]}".lower()))]


# --- a wiki in trouble

SOON = lambda: format_datetime(datetime.now(timezone.utc) + timedelta(seconds=1.5), usegmt=True)

def stall(handler): time.sleep(1)

def drip(handler):
    "A reply that never ends, a byte at a time"
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100): handler.wfile.write(b" "); handler.wfile.flush(); time.sleep(.05)

def cut_off(handler):
    "Half of what was announced"
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(page("Robin").encode())

def not_gzip(handler):
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(b"<html>")

def hang_up(handler): handler.connection.close()


FAULTS = {"maxlag": (200, {"Retry-After": "0"}, api_error("maxlag", "Waiting for a database: 7 seconds lagged.")), "read only": (200, {"Retry-After": "0"}, api_error("readonly")),
          "429": (429, {"Retry-After": "0"}, "too many"), "429 without a time": (429, {}, "too many"), "503": (503, {}, "<html>"), "503 with a time": (503, {"Retry-After": "0"}, ""),
          "502": (502, {}, "<html>bad gateway"), "HTML": "<!DOCTYPE html><title>Error</title>", "half of the JSON": page("Robin")[:30], "no object": "[]", "empty": "",
          "cut body": cut_off, "broken gzip": not_gzip, "hung up": hang_up, "stall": stall, "drip": drip}

@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_is_not_noticed(fault):
    replies = [FAULTS[fault]]
    with wiki_server(lambda asked: replies.pop() if replies else page(asked["titles"])) as (url, server):
        assert eager(url, timeout=.3).article("Robin")["page"] == "Robin"
        assert len(server.asked) == 2


@pytest.mark.parametrize("fault, said", [
    ("maxlag", "is busy (3 tries)"), ("429", "is busy (3 tries)"), ("503", "failed with status 503 (3 tries)"), ("HTML", "does not answer like a MediaWiki (3 tries)"),
    ("cut body", "cannot be reached (3 tries)"), ("stall", "no whole answer within 0.2 s (3 tries)"), ("drip", "no whole answer within 0.2 s (3 tries)")])
def test_a_lasting_fault_is_explained(fault, said):
    with wiki_server(lambda asked: FAULTS[fault]) as (url, server):
        began = time.monotonic()
        with pytest.raises(WikiError) as error: eager(url, timeout=.2, max_retries=2).article("Robin")
        assert said in str(error.value) and url in str(error.value)
        assert len(server.asked) == 3 and time.monotonic() - began < 3


@pytest.mark.parametrize("status, headers, body, said, calls", [
    (403, {}, "", "so give a contact", 1), (404, {}, "", "check the address", 1), (429, {"Retry-After": "7200"}, "", "left alone for 7200 s", 1),
    (200, {}, api_error("badtoken", "strange token"), "refused the question (badtoken: strange token)", 1),
    (200, {}, '{"error": "no such action"}', "refused the question (no such action: )", 1), (503, {"Retry-After": "20m"}, "", "left alone for 1200 s", 1),
    (200, {}, page("Robin").replace("extract", "extrct"), "the extension TextExtracts", 1)])
def test_what_another_try_cannot_mend_is_not_tried(status, headers, body, said, calls):
    with wiki_server(lambda asked: (status, headers, body)) as (url, server):
        with pytest.raises(WikiError, match=re.escape(said)): eager(url).article("Robin")
        assert len(server.asked) == calls


def test_nobody_there():
    with wiki_server() as (url, server): pass
    with pytest.raises(WikiError, match="cannot be reached .2 tries.*wiki_file"): eager(url, max_retries=1).article("Robin")
    with pytest.raises(WikiError, match="cannot be reached") as error: eager(url.replace("//", "//me:secret@"), max_retries=0).search("Robin")
    assert "secret" not in str(error.value) and "secret" not in eager(url.replace("//", "//me:secret@")).name


def test_a_password_in_the_address_is_sent_and_never_shown():
    with wiki_server() as (url, server):
        assert eager(url.replace("//", "//me:secret@")).article("Robin")["source"] == url.split("/")[2]
        assert server.asked[0]["login"] == f"Basic {b64encode(b'me:secret').decode()}"
    with pytest.raises(WikiError, match="No wiki can be asked at 'http://wiki/'") as error: Wikipedia("http://me:secret@wiki/")
    assert "secret" not in str(error.value)


def test_a_proxy_carries_the_calls(monkeypatch):
    with wiki_server() as (proxy, server):
        monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/api.php"))
        assert eager("http://wiki.example/api.php").article("Robin")["page"] == "Robin" and len(server.asked) == 1


@pytest.mark.parametrize("headers, wait", [({"Retry-After": "1"}, 1), (lambda: {"Retry-After": SOON()}, .45)])
def test_the_time_that_the_server_names_is_waited(headers, wait):
    times = []
    def answer(asked):
        times.append(time.monotonic())
        return (429, headers() if callable(headers) else headers, "") if len(times) == 1 else page("Robin")
    with wiki_server(answer) as (url, server): eager(url).article("Robin")
    assert wait - .01 <= times[1] - times[0] < 30  # without the header: .0001


def test_a_flaky_afternoon():
    "Every third call of two hundred fails, each time in another way; all articles come, and the count of calls is that of articles and faults"
    chance, faults = random.Random(0), []
    quick = [name for name in FAULTS if name not in ("stall", "drip", "429 without a time")]
    def answer(asked):
        if chance.random() < 1/3: faults.append(chance.choice(quick)); return FAULTS[faults[-1]]
        return page(asked["titles"])
    with wiki_server(answer) as (url, server):
        names = [f"Bird {n}" for n in range(200)]
        table = look_up(names, eager(url, max_retries=12, retry_wait=.0001))
        assert table["page"].tolist() == names and set(table["how"]) == {"exact"}
        assert len(server.asked) == len(names) + len(faults) and len(faults) > 60


def test_calls_are_paced_and_signed():
    with wiki_server() as (url, server):
        source, began = eager(url, requests_per_second=50, contact="me@example.org"), time.monotonic()
        for n in range(6): source.article(f"Robin {n}")
        assert time.monotonic() - began >= 5 / 50
        assert all(asked["agent"].startswith(f"datadesc/{datadesc.__version__} (me@example.org) ") and asked["maxlag"] == "5" for asked in server.asked)


def test_an_address_that_moved_is_followed():
    with wiki_server(lambda asked: page(asked["titles"]) if asked["path"] == "/w/api.php" else (301, {"Location": f"/w/api.php?titles={asked['titles']}"}, "")) as (url, server):
        assert eager(url).article("Robin")["page"] == "Robin"


def test_the_table_speaks_english_and_the_wiki_need_not():
    german = {"Northern cardinal": "Rotkardinal", "Blue jay": None}
    def answer(asked):
        if asked["path"] == "/de/api.php": return page(asked["titles"], "Der Vogel ist rot.")
        links = [{"lang": "de", "*": german[asked["titles"]], "url": "http://wiki"}] if german[asked["titles"]] else []
        return page(asked["titles"], langlinks=links)
    with wiki_server(answer) as (url, server):
        source = Wikipedia(url.replace("/api.php", "/{language}/api.php"), "de", requests_per_second=1000)
        table = look_up(["Cardinal", "Blue Jay"], source, dataset="cub")
        assert table["page"].tolist() == ["Rotkardinal", ""] and table["how"].tolist() == ["table", "missing"]
        assert [(asked["path"], asked["titles"]) for asked in server.asked] == [("/en/api.php", "Northern cardinal"), ("/de/api.php", "Rotkardinal"), ("/en/api.php", "Blue jay")]


def test_a_wikipedia_has_the_language_of_its_host():
    for host, language, name in (("de.wikipedia.org", "de", "de.wikipedia.org"), ("zh-yue.wikipedia.org", "zh-yue", "zh-yue.wikipedia.org"), (None, "en", "en.wikipedia.org"), ("wiki.example", "en", "wiki.example")):
        source = Wikipedia(host)
        assert (source.client.language, source.name) == (language, name)


@pytest.mark.parametrize("host", ["http://localhost:8080", "https://wiki.example/wiki", "en.wikipedia.org/w", "file:///api.php", "ftp://wiki/api.php"])
def test_a_host_that_is_none(host):
    with pytest.raises(WikiError, match="full address of a wiki's api.php"): Wikipedia(host)


def test_an_address_that_is_none_and_a_contact_with_an_umlaut():
    with pytest.raises(WikiError, match="cannot be reached .1 tries"): eager("http://[::1/api.php", max_retries=0).article("Robin")
    with wiki_server() as (url, server):
        eager(url, contact="Jürgen").article("Robin")
        assert "(J?rgen)" in server.asked[0]["agent"]


# --- the right sense

def test_the_sense_of_a_name():
    bird, meanings = "It is a {} bird.".format, "{} may refer to:\n\n\n== Meanings ==\n".format
    shelf = Shelf(Jay=bird("blue"), Crane=meanings("Crane") + "Crane (bird), a tall bird\nCrane (machine), a machine", Crane__machine_="It is a machine.",
                  Turkey="It is a country.", Turkey__disambiguation_=meanings("Turkey") + "Turkey, a country\nWild turkey, a large bird\nTurkey vulture, another bird",
                  Wild_turkey=bird("brown"), Kite=meanings("Kite") + "Black kite, a raptor\nKite flying, a sport", Black_kite=bird("dark"), Kite_flying="It is a sport.",
                  Pad_thai="It is a dish of noodles.", Thai_cuisine="It is the food of Thailand.", Rook=meanings("Rook") + "Rook, a bird\nCape rook, a bird", Cape_rook=bird("black"))
    shelf.pages["Crane (bird)"], shelf.pages["Turkey (disambiguation)"] = bird("tall"), shelf.pages.pop("Turkey  disambiguation ")
    sense = lambda name, kind=None: (article := _find(name, shelf, kind)) and (article["page"], article["how"])
    assert sense("Jay", "bird") == ("Jay", "exact") and shelf.asked == ["Jay"]
    assert sense("Crane", "bird") == ("Crane (bird)", "disambiguation")
    assert sense("Crane") == ("Crane", "ambiguous")
    assert sense("Turkey", "bird") == ("Wild turkey", "disambiguation")
    assert sense("Turkey") == ("Turkey", "exact")
    assert sense("Kite", "bird") == ("Black kite", "disambiguation")
    assert sense("Pad thai", "food") == ("Pad thai", "exact")
    assert sense("Dodo", "bird") is None
    assert sense("vulture", "bird") is None # found on the list of turkeys only
    table = look_up(["Crane", "Dodo"], shelf)
    assert table["how"].tolist() == ["ambiguous", "missing"] and table["passages"].tolist() == [[], []]
    assert table["note"].tolist() == ["Crane may be Crane (bird), Crane (machine)", "shelf has no article 'Dodo'"]


def test_two_that_fit_are_not_one():
    shelf = Shelf(Robin="Robin may refer to:\nAmerican robin, a bird\nEuropean robin, a bird\nRobin Hood, an outlaw", American_robin="It is a bird.", European_robin="It is a bird.")
    assert _find("Robin", shelf, "bird")["note"] == "Robin may be American robin, European robin"
    assert _find("Robin", shelf, "bird")["passages"] == []


def test_a_disambiguation_that_lists_itself_ends():
    shelf = Shelf(Robin="Robin may refer to:\nRobin, a bird\nRobins, birds", Robins="-> Robin")
    assert _find("Robin", shelf, "bird")["how"] == "ambiguous"


def test_of_a_class_in_the_table_the_bare_name_is_not_trusted():
    church, bird = "A cardinal is a member of the clergy.", "It is a red bird."
    assert look_up(["Cardinal"], Shelf(Cardinal=church), "cub", "bird")["how"].item() == "missing"
    assert look_up(["Cardinal"], Shelf(Cardinal=church), "cub")["how"].item() == "missing"
    assert look_up(["Cardinal"], Shelf(Cardinal=bird), "cub", "bird")["how"].item() == "exact"
    assert look_up(["017.Cardinal"], Shelf(Cardinal=church, Northern_cardinal=bird), "cub")["how"].item() == "table"
    assert look_up(["blotchy"], shelf := Shelf(Blotchy=church), "dtd")["note"].item() == "no article tells how it looks" and not shelf.asked


# --- the table

@pytest.fixture(scope="module")
def classes(repo): return pd.read_csv(repo/"datadesc"/"assets"/"datasets"/"classes.csv", dtype=str, keep_default_na=False)

@pytest.fixture(scope="module")
def titles(repo): return pd.read_csv(repo/"datadesc"/"assets"/"articles.csv", dtype=str, keep_default_na=False)


def test_every_class_of_the_nine_has_its_row(classes, titles):
    assert list(titles) == ["dataset", "class", "article"] and len(titles) == 707
    assert titles[["dataset", "class"]].values.tolist() == classes[["dataset", "class"]].values.tolist()
    assert all(len(_article_titles(name)) == len(group) for name, group in titles.groupby("dataset"))
    assert _article_titles("clothing") == {}


def test_the_table_holds_titles(titles):
    named = titles[titles["article"] != ""]
    assert set(titles["dataset"][titles["article"] == ""]) == {"dtd"}
    assert not named["article"].str.contains(r"[#<>\[\]{}|_]|^\s|\s$|^[a-zß-ÿ]", regex=True).any()
    shared = named[named.duplicated(["dataset", "article"], keep=False)].groupby("dataset")["class"].agg(list).to_dict()
    assert shared == {"flowers102": ["orange dahlia", "pink-yellow dahlia"], "food101": ["beef tartare", "tuna tartare"], "dtd": ["banded", "dotted", "polka-dotted", "striped"]}


def test_names_with_another_meaning_are_not_titles(titles):
    elsewhere = {"Cardinal", "Mockingbird", "Tree sparrow", "Abyssinian", "Bengal", "Bombay", "Boxer", "Chihuahua", "Newfoundland", "Persian", "Pomeranian", "Samoyed", "Siamese", "Sphynx",
                 "Ray", "Seal", "Keyboard", "Table", "Plate", "Can", "Lamp", "Orange", "Holster", "Clog (shoe)", "Snorkel", "Chime", "Dalmatian", "Malamute", "Bird of paradise", "Bishop of llandaff",
                 "Fire lily", "Lotus", "Daffodil", "Columbine", "Mallow", "Grid", "Scaly", "Braided", "Interlaced", "Marbled", "Gauzy", "Paisley", "Scale", "Check"}
    assert not elsewhere & set(titles["article"])


# --- snapshots

STRANGE = pd.DataFrame([_article_of("Vögel — 鳥 \u2028 fliegen.\n\n\n== Merkmale ==\nRot & \"blau\" <b>.", "w", "Vogel", 3, "http://w/Vogel") | {"class": "bird"},
                        _article_of("", "w", "", how="missing", note="w has no article 'fish'") | {"class": "fish"}])

def test_a_snapshot_is_the_table(tmp_path):
    plain, packed = (write_snapshot(STRANGE, tmp_path/name) for name in ("a.jsonl", "a.jsonl.gz"))
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes() and len(plain.read_text(encoding="utf-8").split("\n")) == 3
    first = packed.read_bytes()
    assert write_snapshot(STRANGE, packed).read_bytes() == first
    for path in (plain, packed):
        again = look_up(["bird", "fish"], Snapshot(path))
        assert again.iloc[0].to_dict() == STRANGE.iloc[0].to_dict() and again["how"].tolist() == ["exact", "missing"]


def test_a_snapshot_knows_its_classes(tmp_path):
    "A title of the table may redirect elsewhere; the class is found all the same, and a class named like another's page is not mixed up with it"
    rows = [_article_of("It is red.", "w", "Cardinalis cardinalis", how="table") | {"class": "Cardinal"}, _article_of("It is a saint.", "w", "Cardinal") | {"class": "Pope"}]
    kept = Snapshot(write_snapshot(pd.DataFrame(rows), tmp_path/"a.jsonl"))
    table = look_up(["017.Cardinal", "Pope"], kept, "cub", "bird")
    assert table["passages"].tolist() == [["It is red."], ["It is a saint."]] and table["how"].tolist() == ["table", "exact"]


@pytest.mark.parametrize("written, asked", [("cafe\u0301", "caf\u00e9"), ("caf\u00e9", "cafe\u0301"), ("n02085620-Chihuahua", "Chihuahua"), ("Black_footed-Albatross", "black footed albatross")])
def test_a_snapshot_finds_a_class_in_either_form(written, asked, tmp_path):
    "One form of Unicode, and the numbers and WordNet ids that runs of 0.1 kept in the class."
    other = "n02085782-Japanese_spaniel" if written.startswith("n0") else "dog"
    rows = [_article_of("It is small.", "w", "Elsewhere") | {"class": written}, _article_of("It barks.", "w", "Dog") | {"class": other}]
    kept = Snapshot(write_snapshot(pd.DataFrame(rows), tmp_path/"a.jsonl"))
    assert look_up([asked], kept)["passages"].item() == ["It is small."]


def test_numbers_before_names_are_not_looked_up():
    names = ["n02085620-Northern_cardinal", "n02085782-Church"]
    shelf = Shelf(Northern_cardinal="A bird.", Church="A house.")
    table = look_up(names, shelf)
    assert table["class"].tolist() == names and table["passages"].tolist() == [["A bird."], ["A house."]]


@pytest.mark.parametrize("line", ["", "[]", "{", '{"page": "A"}', '{"passages": []}', '{"page": "A", "passages": "text"}', '{"page": "A", "passages": [1]}',
                                  '{"page": 1, "passages": ["a"]}', '{"page": "A", "passages": ["a"], "revision": "7"}', '{"page": "A", "passages": ["a"], "url": {}}'])
def test_a_line_that_is_no_article_is_named(line, tmp_path):
    (tmp_path/"a.jsonl").write_text('{"page": "A", "passages": ["a"]}\n' + line + "\n")
    with pytest.raises(WikiError, match="Line 2 of snapshot '.*a.jsonl' is no article"): Snapshot(tmp_path/"a.jsonl")


def test_a_file_that_is_no_snapshot(tmp_path):
    with pytest.raises(WikiError, match="No snapshot"): Snapshot(tmp_path/"none.jsonl")
    (tmp_path/"a.jsonl.gz").write_bytes(write_snapshot(STRANGE, tmp_path/"b.jsonl.gz").read_bytes()[:60])
    (tmp_path/"c.jsonl").write_bytes(b"\xff\xfe")
    for name in ("a.jsonl.gz", "c.jsonl"):
        with pytest.raises(WikiError, match="Line 1 of snapshot"): Snapshot(tmp_path/name)


# --- ZIM

HTML = """<html><head><title>{0}</title><style>p {{}}</style></head><body><div class="hatnote"><p>For others, see others.</p></div><h1>{0}</h1><table class="infobox"><tr><td><p>Size</p></td></tr></table>
<p>The <i>{0}</i>&nbsp;is a bird.<sup class="reference">[1]</sup></p><h2>Description<span class="mw-editsection">[edit]</span></h2><p>Red
and blue.</p><h3>Bill</h3><ul><li><p>long</p></li><li>thin</li></ul><h2>References</h2><ol><li>A book.</li></ol></body></html>"""

@pytest.fixture(scope="module")
def zim(tmp_path_factory):
    "A ZIM file of four entries and a redirect"
    writer = pytest.importorskip("libzim.writer", reason="libzim is not installed: pip install 'datadesc[zim]'")
    class Entry(writer.Item):
        def __init__(self, title, content, kind="text/html"): super().__init__(); self.title, self.content, self.kind = title, content, kind
        def get_path(self): return self.title.replace(" ", "_")
        def get_title(self): return self.title
        def get_mimetype(self): return self.kind
        def get_contentprovider(self): return writer.StringProvider(self.content)
        def get_hints(self): return {writer.Hint.FRONT_ARTICLE: True}
    path = tmp_path_factory.mktemp("zim")/"birds.zim"
    with writer.Creator(path).config_indexing(True, "eng") as creator:
        for title in ("Crimson rosella", "Ñandú"): creator.add_item(Entry(title, HTML.format(title)))
        creator.add_item(Entry("Rosella", "<p>Rosella may refer to:</p><ul><li>Crimson rosella, a bird</li><li>Rosella (plant), a plant</li></ul>"))
        creator.add_item(Entry("Notes", "bird", "text/plain"))
        creator.add_redirection("Red_lory", "Red lory", "Crimson_rosella", {writer.Hint.FRONT_ARTICLE: True})
        for name, value in {"Date": "2026-11-01", "Source": "en.wikipedia.org"}.items(): creator.add_metadata(name, value)
    return path


def test_an_encyclopaedia_in_a_file(zim):
    source = Zim(zim)
    table = look_up(["crimson rosella", "Red lory", "Ñandú", "rosella", "Notes", "Dodo", "a|b"], source, superclass="bird")
    assert table["how"].tolist() == ["exact", "redirect", "exact", "disambiguation", "missing", "missing", "missing"]
    assert table["passages"][0] == ["The Crimson rosella is a bird.", "Red and blue.", "long", "thin"]
    assert table["sections"][0] == ["", "Description", "Description / Bill", "Description / Bill"]
    assert table["url"][2] == "https://en.wikipedia.org/wiki/%C3%91and%C3%BA" and table["source"][0] == "birds.zim 2026-11-01"
    assert source.search("blue rosella") == ["Crimson rosella"]


def test_files_that_are_no_zim(zim, tmp_path, monkeypatch):
    with pytest.raises(WikiError, match="No file"): Zim(tmp_path/"none.zim")
    for content in (b"", b"no zim", zim.read_bytes()[:2000]):
        (tmp_path/"a.zim").write_bytes(content)
        with pytest.raises(WikiError, match="is no ZIM file, or not all of one"): Zim(tmp_path/"a.zim")
    monkeypatch.setitem(sys.modules, "libzim.reader", None)
    with pytest.raises(WikiError, match="pip install libzim"): Zim(zim)


# --- passages

def test_sections_of_other_languages_and_odd_pages():
    assert _paragraphs("") == [] and _paragraphs("== Only ==") == [] and _text_of_html("") == ""
    assert _paragraphs("a = b == c\n== A ==\n==== Deep ====\nx\n== Einzelnachweise ==\ny\n=== Z ===\nz\n== B ==\nw") == [("", "a = b == c"), ("A / Deep", "x"), ("B", "w")]


ROBIN = _article_of("""The robin is a bird.\n== Etymology ==\nThe name of the wing is old.\n== Description ==\nThe breast is red. The back is brown.\n== Behaviour ==\nIt flaps each wing.
== Merkmale ==\nDer Schnabel ist spitz.""", "by hand", "Robin")

@pytest.mark.parametrize("part, budget, first", [("breast", 10, "The breast is red. The back is brown."), ("wing", 10, "The breast is red. The back is brown."), ("Schnabel", 7, "Der Schnabel ist spitz."), ("breast", 6, "The breast is red."), ("tail", 6, "The breast is red.")])
def test_what_is_quoted_first(part, budget, first): assert passages_about(ROBIN, part, budget)[0] == first


def test_articles_as_tables_keep_them(tmp_path):
    "Parquet gives arrays for lists; meadow's articles have no sections; a table of both has gaps"
    pd.DataFrame([ROBIN]).to_parquet(tmp_path/"a.parquet")
    row = pd.read_parquet(tmp_path/"a.parquet").to_dict("records")[0]
    assert passages_about(row, "breast", 12) == passages_about(ROBIN, "breast", 12)
    for gap in ({}, {"sections": np.nan}, {"sections": None}): assert passages_about({"passages": row["passages"], **gap}, "breast", 100) == ROBIN["passages"]
    for gap in ({}, {"sections": np.nan}, {"sections": None}): assert passages_about({"passages": row["passages"], **gap}, "breast", 10) == ["The breast is red. The back is brown."]


texts = st.text(st.characters(codec="utf-8"), max_size=60)

@settings(max_examples=150, deadline=None)
@given(passages=st.lists(texts, max_size=8), part=texts, budget=st.integers(0, 60), words=st.booleans())
def test_any_article_gives_beginnings_of_its_passages_within_the_budget(passages, part, budget, words):
    count = (lambda text: len(text.split())) if words else _about_four_characters
    quoted = passages_about({"passages": passages, "sections": ["Description", ""] * 4}, part, budget, count)
    if sum(count(passage + "\n") for passage in passages) <= budget: assert quoted == passages
    else: assert sum(count(text + "\n") for text in quoted) <= budget and all(quoted)
    places = iter(passages)
    assert all(any(passage.startswith(text) for passage in places) for text in quoted)


@pytest.mark.parametrize("line", ["=" * 50_000, "==a" + " " * 50_000 + "b", "== " + "= " * 25_000, "may refer to " * 4_000, "." * 50_000, "a" * 50_000, "(" * 50_000, "\u200b" * 50_000])
def test_huge_lines_take_no_time(line):
    began = time.monotonic()
    article = _article_of(f"{line}\n== Description ==\n{line}", "w", "p")
    passages_about(article, "wings", 100), _lists_meanings(article), _text_of_html(line)
    assert time.monotonic() - began < 2


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_any_text_becomes_paragraphs(text):
    found = _paragraphs(text)
    assert all(passage == passage.strip() and passage for _, passage in found)
    assert _plain_name(_plain_name(text)) == _plain_name(text) or text[:1].isdigit()
