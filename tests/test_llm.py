"The language model behind faulty servers, kills and rivals"
import asyncio, gzip, json, os, signal, sqlite3, time
from contextlib import closing
from multiprocessing import get_context
from threading import Lock

import pytest

from datadesc.cache import Cache
from datadesc.llm import LLM, NOT_DESCRIBED, LLMError
from llm_server import completion, llm_server, surroundings

KEY = "sk-secret-0123456789"


def questions(llm, n, sample=0): return [llm.request([("user", f"question {i}")], sample, component=f"part {i}") for i in range(n)]

def echo(chat): return f"{chat['messages'][-1]['content']} / {chat['seed']}"


def test_a_server_is_asked_once(tmp_path):
    with llm_server(echo) as (url, server):
        llm = LLM("m", url)
        assert llm.ask(questions(llm, 3) + questions(llm, 3)) == [f"question {i} / 0" for i in range(3)] * 2
        assert len(server.chats) == 3
        assert llm.ask(questions(llm, 3, sample=1))[2] == "question 2 / 1"
        assert server.chats[0]["temperature"] == 0.7 and server.chats[0]["max_tokens"] == 300
    assert LLM("m").ask(questions(llm, 3)) == [f"question {i} / 0" for i in range(3)]
    assert (tmp_path/"store"/"answers.sqlite").exists() and LLM("m").ask([]) == []


def test_another_model_is_another_question():
    with llm_server(lambda chat: chat["model"]) as (url, _):
        assert [LLM(name, url).ask(questions(LLM(name), 1))[0] for name in ("a", "b", "a")] == ["a", "b", "a"]
        assert LLM("a", url, temperature=0).ask(questions(LLM("a", temperature=0), 1)) == ["a"]


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    with llm_server(echo) as (url, server):
        llm = LLM("m", url)
        llm.ask(questions(llm, 2))
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    llm.cache.write_export(tmp_path/"export.jsonl")
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_local_server_needs_no_key():
    with llm_server(echo) as (url, server):
        LLM("m", url).ask(questions(LLM("m"), 1))
        assert KEY not in str(server.headers)


@pytest.mark.parametrize("status, body, message", [
    (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, r"refused \(401\): Incorrect API key provided: \*\*\* Set OPENAI_API_KEY"),
    (404, {"error": {"message": "The model `m` does not exist"}}, r"refused \(404\): The model `m` does not exist Check --llm-model"),
    (429, {"error": {"message": "quota"}}, "busy or your quota is used up"),
    (400, {"error": {"message": f"bad request with {KEY}"}}, r"first .component .part 0.*refused \(400\): bad request with \*\*\*"),
    (500, {"error": {"message": "out of memory"}}, "out of memory")])
def test_what_a_server_refuses_is_explained_without_the_key(monkeypatch, status, body, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with llm_server(lambda chat: (status, body, {})) as (url, _), pytest.raises(LLMError, match=message) as caught:
        LLM("m", url, max_retries=0).ask(questions(LLM("m"), 1))
    assert KEY not in str(caught.getrepr(style="long", showlocals=False)) and url in str(caught.value)


@pytest.mark.parametrize("reply, message", [
    (completion(""), "gave an empty answer: run again"), (completion(None, "length"), "spent 2,400 tokens without an answer: allow more with -p llm_max_tokens"),
    (completion("  \n"), "empty answer"), (completion("<think>Hm, wings"), "empty answer"), ({"choices": []}, "gave no answer as an OpenAI-compatible server would"),
    ({"hello": 1}, "often ends in /v1"), (["a web page"], "a web page.*often ends in /v1"), ({"choices": [{"message": "wings"}], "usage": "little"}, "wings.*often ends in /v1")])
def test_what_is_no_answer_is_not_cached(reply, message):
    with llm_server(lambda chat: (200, reply, {})) as (url, _), pytest.raises(LLMError, match=message):
        LLM("m", url, max_retries=1).ask(questions(LLM("m"), 1))
    assert [*LLM("m").cache.rows()] == []


def test_refusals_that_the_protocol_marks_are_answers():
    replies = [completion("I'm sorry."), completion(None, refusal="I won't say."), completion("", "content_filter")]
    with llm_server(lambda chat: replies[int(chat["messages"][0]["content"][-1])]) as (url, _):
        assert LLM("m", url).ask(questions(LLM("m"), 3)) == ["I'm sorry.", NOT_DESCRIBED, NOT_DESCRIBED]
    assert LLM("m").ask(questions(LLM("m"), 3))[1] == NOT_DESCRIBED


def test_a_server_that_hangs_or_is_not_there_is_named():
    with llm_server(lambda chat: time.sleep(.5) or "late") as (url, _), pytest.raises(LLMError, match=f"{url}.* gave no answer within 0.2 s"):
        LLM("m", url, timeout=.2, max_retries=0).ask(questions(LLM("m"), 1))
    with pytest.raises(LLMError, match=f"No language model can be reached at {url}.*--llm-base-url") as caught:
        LLM("m", url.replace("//", "//user:password@"), max_retries=0).ask(questions(LLM("m"), 1))
    assert "password" not in str(caught.value)


def test_concurrency_is_a_limit():
    lock, running, most = Lock(), [], []
    def slow(chat):
        with lock: running.append(1); most.append(len(running))
        time.sleep(.05)
        with lock: running.pop()
        return "ok"
    with llm_server(slow) as (url, _): LLM("m", url, concurrency=3).ask(questions(LLM("m"), 12))
    assert max(most) == 3


def test_after_a_fatal_failure_calls_in_flight_are_kept_and_none_is_started():
    def fail(chat):
        n = int(chat["messages"][0]["content"].split()[1])
        time.sleep(.05 if n == 1 else .2)
        return (401, {"error": {"message": "bad"}}, {}) if n == 1 else "ok" # question 0 goes alone, then 1 to 4 together
    with llm_server(fail) as (url, server):
        llm = LLM("m", url, concurrency=4)
        with pytest.raises(LLMError, match="refused .401.: bad") as caught: llm.ask(questions(llm, 20))
        assert "4 of 20 answers came first and are cached" in caught.value.__notes__[0]
        assert len(server.chats) == 5 and len([*llm.cache.rows()]) == 4


def test_without_cache_key_and_server_the_question_is_named():
    with pytest.raises(LLMError, match="2 question.s. to model 'm' are not cached.*component 'part 0'.*OPENAI_API_KEY.*--llm-base-url.*--llm local.*--descriptions.*knowledge"):
        LLM("m").ask(questions(LLM("m"), 2))


@pytest.mark.parametrize("key", ["\u201csk-secret\u201d", "sk-\u00a0secret", "sk secret", "sk-\tsecret"])
def test_a_key_that_none_can_be_is_said_and_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with llm_server(echo) as (url, server), pytest.raises(LLMError, match="OPENAI_API_KEY holds a character that no key has .U\\+00|OPENAI_API_KEY holds a character that no key has .U\\+201C") as caught:
        LLM("m", url).ask(questions(LLM("m"), 1))
    assert not server.chats and "secret" not in str(caught.value)


@pytest.mark.parametrize("options, message", [(dict(concurrency=0), "concurrency=0: expected more than 0"), (dict(requests_per_minute=-1), "requests_per_minute=-1"), (dict(timeout=float("nan")), "timeout=nan"),
    (dict(base_url="me:password@localhost:8000/v1"), "base_url='localhost:8000/v1': expected .* http://")])
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ValueError, match=message): LLM("m", **options)


def test_asking_works_inside_a_running_loop():
    async def cell(): return LLM("m", client=lambda request: "ok").ask(questions(LLM("m"), 2))
    assert asyncio.run(cell()) == ["ok", "ok"]


def test_the_server_is_asked_twice_in_one_session():
    with llm_server(echo) as (url, _):
        llm = LLM("m", url)
        assert [llm.ask(questions(llm, 1, sample=n))[0] for n in range(3)] == [f"question 0 / {n}" for n in range(3)]


def test_a_bar_is_shown_for_many_open_questions_only(capsys):
    llm = LLM("m", client=lambda request: "ok")
    llm.ask(questions(llm, 5)); assert capsys.readouterr().err == ""
    llm.ask(questions(llm, 40)); assert "Asking m" in capsys.readouterr().err
    llm.ask(questions(llm, 40)); assert capsys.readouterr().err == ""
    llm.ask(questions(llm, 40, sample=1), progress=False); assert capsys.readouterr().err == ""


def endless(path, pipe):
    "Asks many questions, and tells each through the pipe when it is asked"
    llm = LLM("m", cache=path, client=lambda request: pipe.send(request.about["component"]) or time.sleep(.05) or "ok", concurrency=1)
    llm.ask(questions(llm, 2000), progress=False)

def test_an_interrupt_ends_the_run(tmp_path):
    fork = get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=endless, args=(tmp_path/"answers.sqlite", there))
    process.start()
    while here.recv() != "part 3": pass
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=10)
    assert process.exitcode == 1


@pytest.mark.parametrize("text", ["nul \0 inside", "lone \ud83d surrogate", "flügel 翅 🦋", '"quotes" and \\n', "x" * 100_000])
def test_any_answer_comes_back_as_it_was(tmp_path, text):
    llm = LLM("m", client=lambda request: text)
    assert llm.ask(questions(llm, 1)) == llm.ask(questions(llm, 1)) == [text]
    assert llm.cache.write_export(tmp_path/"b.jsonl.gz") == 1 and [row["answer"] for _, row in Cache.export_rows(tmp_path/"b.jsonl.gz")] == [text]


def test_an_export_replays_and_has_the_same_bytes(tmp_path):
    llm = LLM("m", client=lambda request: f"für {request.messages[0][1]}")
    answers = llm.ask(questions(llm, 5))
    one, two = tmp_path/"x"/"a.jsonl.gz", tmp_path/"y"/"a.jsonl.gz"
    assert llm.cache.write_export(one) == llm.cache.write_export(two) == 5 and one.read_bytes() == two.read_bytes()
    assert "für question 4" in [row["answer"] for _, row in Cache.export_rows(one)]
    assert LLM("m", cache=tmp_path/"none"/"r.sqlite", exports=[one]).ask(questions(llm, 5)) == answers
    assert not (tmp_path/"none").exists()
    assert json.loads(gzip.open(one).readline())["request"]["model"] == "m"


def test_imported_answers_replay_and_those_cached_before_win(tmp_path):
    here, there = (LLM("m", cache=tmp_path/name, client=lambda request, name=name: name) for name in ("here", "there"))
    here.ask(questions(here, 2))
    there.ask(questions(there, 5))
    there.cache.write_export(tmp_path/"there.jsonl.gz")
    assert [here.cache.read_export(tmp_path/"there.jsonl.gz") for _ in range(2)] == [(3, 2), (0, 5)]
    here.client = None
    assert here.ask(questions(here, 5)) == ["here"] * 2 + ["there"] * 3
    new = Cache(tmp_path/"new")
    assert new.read_export(tmp_path/"there.jsonl.gz") == (5, 0) and new.write_export(tmp_path/"again.jsonl.gz") == 5
    assert (tmp_path/"again.jsonl.gz").read_bytes() == (tmp_path/"there.jsonl.gz").read_bytes()


def test_an_export_with_a_broken_line_leaves_nothing_behind(tmp_path):
    llm = LLM("m", cache=tmp_path/"r", client=lambda request: "ok")
    llm.ask(questions(llm, 3))
    llm.cache.write_export(tmp_path/"b.jsonl")
    whole = (tmp_path/"b.jsonl").read_text()
    for broken, line in ((whole[:-9], 3), (whole + "{}\n", 4), (whole + '{"key": "k", "answer": 5}\n', 4), (whole + "[]\n", 4)):
        (tmp_path/"b.jsonl").write_text(broken)
        with pytest.raises(ValueError, match=f"b.jsonl' is no export of answers .line {line}:"): Cache(tmp_path/"new").read_export(tmp_path/"b.jsonl")
        assert [*Cache(tmp_path/"new").rows()] == []


def test_a_cache_and_an_export_of_version_0_1_are_read(tmp_path):
    request = LLM("m").request([("user", "question 0")], component="part 0")
    row = {"request": {"messages": [["user", "question 0"]], "model": "m", "temperature": 0.7, "sample": 0, "max_tokens": 300, "about": {}}, "answer": "old", "usage": [10, 5]}
    with closing(sqlite3.connect(tmp_path/"old.sqlite")) as db: # as 0.1 made it
        db.execute("create table answers (key text primary key, value text not null)")
        db.execute("insert into answers values (?, ?)", [request.key, json.dumps(row)])
        db.commit()
    (tmp_path/"old.jsonl").write_text(json.dumps({"key": request.key} | row) + "\n")
    assert request.key == "e016ef60a41217595c664d5333c86e6a" # what 0.1 called this question
    for llm in (LLM("m", cache=tmp_path/"old.sqlite"), LLM("m", cache=tmp_path/"new.sqlite", exports=[tmp_path/"old.jsonl"])): assert llm.ask([request]) == ["old"]
    llm = LLM("gpt-4o", cache=tmp_path/"old.sqlite")
    llm.asked = {request.key: request}
    assert llm.worth() == pytest.approx((10 * 2.5 + 5 * 10) / 1e6)


def test_ten_thousand_answers_replay_in_no_time_and_without_a_lock(tmp_path, monkeypatch):
    llm = LLM("m", cache=tmp_path/"r")
    text = "What an article says about wings. " * 90
    requests = [llm.request([("user", f"{text}{i}")], component=f"part {i}") for i in range(10_000)]
    row = {"request": {"messages": [["user", text]], "model": "m"}, "answer": "wide brown wings", "usage": [900, 5]}
    (tmp_path/"b.jsonl").write_text("".join(json.dumps({"key": request.key} | row) + "\n" for request in requests))
    llm.cache.read_export(tmp_path/"b.jsonl")
    monkeypatch.setattr(Cache, "lock", None)
    requests = [llm.request(request.messages, component="") for request in requests]
    start = time.monotonic()
    assert llm.ask(requests) == ["wide brown wings"] * 10_000
    assert time.monotonic() - start < 3 and llm.costs.total("cached") == 10_000


@pytest.mark.parametrize("content", ["no json\n", '{"key": "k"}\n'])
def test_a_damaged_export_is_named(tmp_path, content):
    (tmp_path/"b.jsonl").write_text(content)
    with pytest.raises(ValueError, match="b.jsonl' is no export of answers"): LLM("m", exports=[tmp_path/"b.jsonl"]).ask(questions(LLM("m"), 1))


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path/"answers.sqlite").write_text("not a database, but long enough to look like one to nobody" * 20)
    with pytest.raises(LLMError, match="answers.sqlite' cannot be used .file is not a database"): LLM("m", cache=tmp_path/"answers.sqlite", client=lambda r: "ok").ask(questions(LLM("m"), 1))


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(PermissionError, match="Cannot write in .*file"): LLM("m", cache=tmp_path/"file"/"answers.sqlite", client=lambda r: "ok").ask(questions(LLM("m"), 1))
