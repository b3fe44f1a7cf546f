"NO_PROXY in every form that people write: each client is made, and what is named goes past the proxy; and the wait that a server asks for."
import hashlib
import os
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datadesc.datasets import _fetch_file
from datadesc.hub import hub, hub_or_cache
from datadesc.llm import LLM
from datadesc.online import asked_wait, mend_no_proxy
from datadesc.wiki import Wikipedia
from llm_server import llm_server
from wiki_server import wiki_server

NOWHERE = "http://127.0.0.1:9"
FORMS = ["localhost,fd07::/64", "fd07::/64", "[::1]", "[::1]:8080,127.0.0.1", " 127.0.0.1 , fe80::%eth0/10 ", "127.0.0.1 ::1 10.0.0.0/8", "*,fd07::/64", "ä.example,127.0.0.1", "example.org:port,.local"]


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    "No proxy and no key from outside, a store of its own."
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        for form in (name, name.upper()): monkeypatch.delenv(form, raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("DATADESC_STORE", str(tmp_path/"store"))
    monkeypatch.setattr("datadesc.llm._PAUSE", .01)


def asked(url):
    llm = LLM("m", url)
    return llm.ask([llm.request([("user", "What?")], component="wing")])


@pytest.mark.parametrize("name, no_proxy", [*(("NO_PROXY", form) for form in FORMS), ("no_proxy", FORMS[0])])
def test_every_client_is_made_without_a_proxy(monkeypatch, tmp_path, name, no_proxy):
    monkeypatch.setenv(name, no_proxy)
    with llm_server(lambda chat: "an answer") as (url, _): assert asked(url) == ["an answer"]
    monkeypatch.setenv(name, no_proxy)
    with wiki_server() as (url, _): assert Wikipedia(url).article("Eel")["page"] == "Eel"
    monkeypatch.setenv(name, no_proxy)
    with wiki_server(lambda _: "bytes") as (url, _): _fetch_file(url, tmp_path/"file", hashlib.md5(b"bytes").hexdigest(), progress=False)
    monkeypatch.setenv(name, no_proxy)
    monkeypatch.setattr(hub, "ENDPOINT", NOWHERE)
    with hub_or_cache() as offline: assert offline, "NO_PROXY alone is no proxy that might answer for the hub"
    httpx.Client().close()


@pytest.mark.parametrize("no_proxy", [form for form in FORMS if "127.0.0.1" in form or "*" in form])
def test_what_is_named_goes_past_the_proxy(monkeypatch, no_proxy):
    for name, value in dict(HTTP_PROXY=NOWHERE, HTTPS_PROXY=NOWHERE, NO_PROXY=no_proxy).items(): monkeypatch.setenv(name, value)
    with llm_server(lambda chat: "an answer") as (url, _): assert asked(url) == ["an answer"]
    with wiki_server() as (url, _): assert Wikipedia(url).article("Eel")["page"] == "Eel"


def test_what_is_left_out_goes_through_the_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.0/8,fd07::/64")
    with wiki_server(lambda _: "from the proxy") as (proxy, server):
        monkeypatch.setenv("HTTP_PROXY", proxy.removesuffix("/api.php"))
        mend_no_proxy()
        assert httpx.get("http://[fd07::1]/page").text == httpx.get("http://127.0.0.1:9/page").text == "from the proxy"
    assert os.environ["NO_PROXY"] == "127.0.0.0/8"


def test_what_httpx_reads_stays_as_it_is(monkeypatch):
    monkeypatch.setenv("NO_PROXY", taken := "localhost,.example.org,*.corp,::1,10.0.0.0/8,host:8080,https://example.org")
    assert mend_no_proxy() == [] and os.environ["NO_PROXY"] == taken
    monkeypatch.delenv("NO_PROXY")
    assert mend_no_proxy() == [] and "NO_PROXY" not in os.environ


@given(st.text(max_size=40), st.sampled_from(["{}", "{}s", "1{}", "Wed, 21 Oct {} 07:28:00 GMT"]))
def test_any_header_gives_a_time_or_none(text, form):
    wait = asked_wait({"retry-after": form.format(text), "retry-after-ms": text})
    assert wait is None or wait >= 0


@pytest.mark.parametrize("value", ["1" * 100_000, "1m" * 50_000 + "x", "1." * 50_000, "1 " * 50_000])
def test_a_huge_header_takes_no_time(value):
    began = time.monotonic()
    asked_wait({"retry-after": value})
    assert time.monotonic() - began < 1
