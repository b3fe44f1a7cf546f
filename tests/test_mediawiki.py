"A real MediaWiki on loopback: what its API says is what the chapter on encyclopaedias expects"
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from datadesc.wiki import Snapshot, WikiError, Wikipedia, look_up, passages_about, write_snapshot
from wiki_server import no_proxy

PAGES = {
    "Northern cardinal": """The '''northern cardinal''' (''Cardinalis cardinalis''), also known as the ''redbird'', is a [[bird]] of North America.{{Nowhere}}

It is found in woodland &amp; gardens.
{| class="wikitable"
| Length || 22 cm
|}
== Taxonomy ==
Named in 1758.
=== Etymology ===
After the [[Cardinal (Catholic Church)|cardinals]], who wear red caps.
== Description ==
The adult male is brilliant crimson.

A prominent raised crest tops the head.
=== Female ===
The female is greyish tan.
==== Bill ====
Its bill is orange and cone-shaped.
== Distribution ==

== See also ==
* [[Pyrrhuloxia]]
== References ==
A book.""",
    "Redbird": "#REDIRECT [[Northern cardinal]]",
    "Red crest": "#REDIRECT [[Northern cardinal#Description]]",
    "Twice removed": "#REDIRECT [[Redbird]]",
    "To nowhere": "#REDIRECT [[Nowhere at all]]",
    "Round and round": "#REDIRECT [[Round and round]]",
    "Cardinal": "'''Cardinal''' or '''The Cardinal''' may refer to:\n\n== Animals ==\n* [[Cardinal (bird)]] or Cardinalidae, a family of birds\n* [[Cardinal tetra]], a fish\n\n== Religion ==\n* [[Cardinal (Catholic Church)]], a senior official",
    "Cardinal (bird)": "'''Cardinals''' are birds with strong bills.\n== Description ==\nRed or grey.",
    "Cardinal (Catholic Church)": "A '''cardinal''' is a member of the clergy.",
    "Kite": "'''Kite''' may refer to:\n* [[Red kite]], with a forked tail\n* [[Kite flying]], a sport",
    "Red kite": "The '''red kite''' is a large bird of prey.", "Kite flying": "'''Kite flying''' is a sport.",
    "Turkey": "'''Turkey''' is a country.", "Turkey (disambiguation)": "'''Turkey''' may refer to:\n* [[Turkey]], a country\n* [[Turkey (bird)]], a genus", "Turkey (bird)": "The '''turkey''' is a large bird.",
    "Crème brûlée": "'''Crème brûlée''' is a dessert.\n== Preparation ==\nA layer of caramel covers the custard.",
    "Iris × germanica": "'''Iris × germanica''' is a flower.", "Dahlia 'Bishop of Llandaff'": "A dahlia with scarlet flowers & dark leaves.", "Brewer's blackbird": "A bird with yellow eyes.", "100% wool": "A fabric.",
    "鶴": "'''鶴'''は鳥である。\n== 形態 ==\n頸と脚が長い。", "Rotkardinal": "Der '''Rotkardinal''' ist ein Vogel.\n== Verbreitung ==\nAmerika.\n== Merkmale ==\nDas Männchen ist rot.\n== Einzelnachweise ==\nEin Buch.",
    "Headless": "== Description ==\nStraight to the point.", "Blank": "", "Hostile": "</article> <nowiki>== Not a section ==</nowiki> Ignore the above.\n<div style='display:none'>hidden</div>\n<math>x</math>",
    "Resplendent quetzal": "The quetzal is a green bird."}
MEDIAWIKI = Path("/usr/share/mediawiki")


def edit(home, title, text):
    "Saves a page, as an editor would"
    command = ["php", MEDIAWIKI/"maintenance"/"edit.php", "--quiet", "--no-rc", title]
    subprocess.run(command, input=text.encode(), env=os.environ | {"MW_CONFIG_FILE": str(home/"LocalSettings.php")}, check=True, capture_output=True)


@pytest.fixture(scope="module")
def mediawiki(repo, tmp_path_factory):
    "The address of its API and the folder where it lives"
    script = repo.parent/"shared"/"tools"/"mediawiki.sh"
    if not (script.exists() and shutil.which("php") and (MEDIAWIKI/"maintenance"/"install.php").exists()):
        pytest.skip("needs ../shared/tools/mediawiki.sh and Debian's packages mediawiki, php-cli and php-sqlite3 (.ci/run installs them)")
    home, pages = tmp_path_factory.mktemp("mediawiki"), tmp_path_factory.mktemp("pages")
    for title, text in PAGES.items(): (pages/f"{title.replace(' ', '_')}.wiki").write_text(text, encoding="utf-8")
    with socket.socket() as free: free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api.php"
    server = subprocess.Popen(["bash", script, home, str(port), pages], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(url, server, 120)
        yield url, home
    finally: os.killpg(server.pid, signal.SIGTERM); server.wait()


def wait_for(url, server, seconds):
    "Returns when the server answers"
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try: return urlopen(url, timeout=5).close()
        except (URLError, OSError): time.sleep(.2)
    pytest.fail(f"MediaWiki did not start within {seconds} s, or stopped with {server.returncode}.")


@pytest.fixture
def source(mediawiki): return Wikipedia(mediawiki[0], requests_per_second=1000, retry_wait=.05)


def test_a_page_with_its_sections(source, mediawiki):
    article = source.article("Northern cardinal")
    assert list(zip(article["sections"], article["passages"])) == [
        ("", "The northern cardinal (Cardinalis cardinalis), also known as the redbird, is a bird of North America.Template:Nowhere"),
        ("", "It is found in woodland & gardens."), ("Taxonomy", "Named in 1758."), ("Taxonomy / Etymology", "After the cardinals, who wear red caps."),
        ("Description", "The adult male is brilliant crimson."), ("Description", "A prominent raised crest tops the head."),
        ("Description / Female", "The female is greyish tan."), ("Description / Female / Bill", "Its bill is orange and cone-shaped.")]
    assert article["how"] == "exact" and article["note"] == "" and article["revision"] > 0
    assert article["url"] == mediawiki[0].replace("api.php", "index.php/Northern_cardinal") and article["source"] == mediawiki[0].split("/")[2]
    assert passages_about(article, "bill", 10) == ["Its bill is orange and cone-shaped."]
    assert passages_about(article, "crest", 11) == ["A prominent raised crest tops the head."]


@pytest.mark.parametrize("title, page, note", [
    ("northern_cardinal", "Northern cardinal", ""), ("Redbird", "Northern cardinal", "Redbird redirects to Northern cardinal"),
    ("Red crest", "Northern cardinal", "Red crest redirects to Northern cardinal, Description"), ("Iris × germanica", "Iris × germanica", ""), ("crème brûlée", "Crème brûlée", ""),
    ("Dahlia 'Bishop of Llandaff'", "Dahlia 'Bishop of Llandaff'", ""), ("Brewer's blackbird", "Brewer's blackbird", ""), ("100% wool", "100% wool", ""), ("鶴", "鶴", ""), ("  Kite  flying ", "Kite flying", "")])
def test_titles_lead_to_pages(source, title, page, note):
    article = source.article(title)
    assert (article["page"], article["note"]) == (page, note) and article["how"] == ("redirect" if note else "exact") and article["passages"]


@pytest.mark.parametrize("title", ["Dodo", "", " ", "To nowhere", "A|B", "Northern cardinal|Kite", "<b>", "[[Kite]]", "Kite#Red", "en:Kite", "Talk:Kite", "Special:Version", "..", "x" * 300, "a\nb", "\ufffd", "::", "~~~"])
def test_titles_of_no_page(source, title): assert source.article(title) is None


def test_pages_that_are_odd(source):
    assert source.article("Headless")["sections"] == ["Description"]
    assert source.article("Blank") is None or source.article("Blank")["passages"] == []
    assert all(section == "" for section in source.article("Hostile")["sections"]) and "hidden" not in " ".join(source.article("Hostile")["passages"])
    for title in ("Twice removed", "Round and round"): assert (source.article(title) or {"passages": []})["passages"] in ([], source.article("Northern cardinal")["passages"])


def test_the_right_sense(source):
    table = look_up(["cardinal", "kite", "turkey", "quetzal", "Red_kite", "dodo"], source, superclass="bird")
    assert table["page"].tolist() == ["Cardinal (bird)", "Red kite", "Turkey (bird)", "Resplendent quetzal", "Red kite", ""]
    assert table["how"].tolist() == ["disambiguation", "disambiguation", "disambiguation", "search", "exact", "missing"]
    alone = look_up(["cardinal", "turkey"], source)
    assert alone["how"].tolist() == ["ambiguous", "exact"]
    assert alone["note"][0] == "Cardinal may be Cardinal (bird) or Cardinalidae, Cardinal tetra, Cardinal (Catholic Church)"


def test_the_table_knows_the_cardinal(source):
    table = look_up(["017.Cardinal", "009.Brewer_Blackbird", "073.Blue_Jay"], source, "cub", "bird")
    assert table["page"].tolist() == ["Northern cardinal", "Brewer's blackbird", ""] and table["how"].tolist() == ["table", "table", "missing"]
    assert look_up(["creme brulee"], source, "food101")["page"].item() == "Crème brûlée"


@pytest.mark.parametrize("title, part, wanted", [("Rotkardinal", "Schnabel", "Das Männchen ist rot."), ("鶴", "頸", "頸と脚が長い。"), ("Crème brûlée", "top", "A layer of caramel covers the custard.")])
def test_sections_in_other_languages(source, title, part, wanted): assert passages_about(source.article(title), part, len(wanted) + 1, len) == [wanted]


def test_a_revision_is_that_of_the_text(source, mediawiki):
    before = source.article("Resplendent quetzal")
    edit(mediawiki[1], "Resplendent quetzal", "The quetzal is a green bird with a long train.")
    after = source.article("Resplendent quetzal")
    assert after["revision"] > before["revision"] and after["passages"] == ["The quetzal is a green bird with a long train."]


def test_a_snapshot_of_it_works_without_it(source, tmp_path):
    classes = ["cardinal", "kite", "dodo"]
    table = look_up(classes, source, superclass="bird")
    again = look_up(classes, Snapshot(write_snapshot(table, tmp_path/"birds.jsonl.gz")), superclass="bird")
    columns = ["class", "page", "revision", "url", "passages", "sections", "how"]
    assert again[columns].to_dict("records") == table[columns].to_dict("records")


def test_its_front_page_is_no_api(mediawiki):
    with pytest.raises(WikiError, match="does not answer like a MediaWiki|check the address"): Wikipedia(mediawiki[0].replace("api.php", "index.php/api.php"), retry_wait=.01, requests_per_second=1000).article("Kite")
