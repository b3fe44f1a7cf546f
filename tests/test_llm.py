"The language model behind faulty servers, kills and rivals"
import asyncio, gzip, json, os, signal, time
from multiprocessing import get_context
from threading import Lock

import pytest

from datadesc.llm import LLM, LLMError
from datadesc.record import Record, import_bundle, read_bundle, row_of, write_bundle
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
    write_bundle(llm.record, tmp_path/"bundle.jsonl")
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_local_server_needs_no_key():
    with llm_server(echo) as (url, server):
        LLM("m", url).ask(questions(LLM("m"), 1))
        assert KEY not in str(server.headers)


@pytest.mark.parametrize("status, body, message", [
    (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, "refused the key .401.: set OPENAI_API_KEY"),
    (404, {"error": {"message": "The model `m` does not exist"}}, "knows no model 'm' .404.: check --llm-model"),
    (429, {"error": {"message": "quota"}}, "busy or your quota is used up"),
    (400, {"error": {"message": f"bad request with {KEY}"}}, "first .component .part 0.*failed: .*bad request with"),
    (500, {"error": {"message": "out of memory"}}, "out of memory")])
def test_what_a_server_refuses_is_explained_without_the_key(monkeypatch, status, body, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with llm_server(lambda chat: (status, body, {})) as (url, _), pytest.raises(LLMError, match=message) as caught:
        LLM("m", url, max_retries=0).ask(questions(LLM("m"), 1))
    assert KEY not in str(caught.getrepr(style="long", showlocals=False)) and url in str(caught.value)


@pytest.mark.parametrize("reply, message", [
    (completion(""), "empty answer.*allow more than 300 tokens"), (completion(None, "length"), "empty answer.*'length'"),
    (completion("  \n"), "empty answer"), ({"choices": []}, "did not answer like an OpenAI-compatible server"), ({"hello": 1}, "often ends in /v1"),
    (["a web page"], "often ends in /v1"), ({"choices": [{"message": "wings"}], "usage": "little"}, "empty answer")])
def test_what_is_no_answer_is_not_recorded(reply, message):
    with llm_server(lambda chat: (200, reply, {})) as (url, _), pytest.raises(LLMError, match=message):
        LLM("m", url, max_retries=1).ask(questions(LLM("m"), 1))
    assert LLM("m").record.rows() == {}


def test_refusals_are_answers():
    replies = [completion("I'm sorry."), completion(None, refusal="I won't say."), completion("", "content_filter")]
    with llm_server(lambda chat: replies[int(chat["messages"][0]["content"][-1])]) as (url, _):
        assert LLM("m", url).ask(questions(LLM("m"), 3)) == ["I'm sorry.", "I won't say.", "[withheld by the server's content filter]"]
    assert LLM("m").ask(questions(LLM("m"), 3))[1] == "I won't say."


def test_a_server_that_hangs_or_is_not_there_is_named():
    with llm_server(lambda chat: time.sleep(.5) or "late") as (url, _), pytest.raises(LLMError, match=f"{url}.* gave no answer within 0.2 s"):
        LLM("m", url, timeout=.2, max_retries=0).ask(questions(LLM("m"), 1))
    with pytest.raises(LLMError, match=f"No LLM server can be reached at {url}.*--llm-base-url") as caught:
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
        time.sleep(.2 if n else .05)
        return "ok" if n else (403, {"error": {"message": "bad"}}, {})
    with llm_server(fail) as (url, server):
        llm = LLM("m", url, concurrency=4)
        with pytest.raises(LLMError, match="refused the key .403.") as caught: llm.ask(questions(llm, 20))
        assert "3 of 20 answers came first and are on record" in caught.value.__notes__[0]
        assert len(server.chats) == 4 and len(llm.record.rows()) == 3


def test_without_record_key_and_server_the_question_is_named():
    with pytest.raises(LLMError, match="2 question.s. to model 'm' not on record.*component 'part 0'.*OPENAI_API_KEY.*--llm-base-url.*--descriptions.*knowledge"):
        LLM("m").ask(questions(LLM("m"), 2))


    with pytest.raises(LLMError, match="2 question.s. to model 'm' not on record"): LLM("m", batch=True).ask(questions(LLM("m"), 2))


@pytest.mark.parametrize("options, message", [(dict(concurrency=0), "concurrency=0: expected more than 0"), (dict(requests_per_minute=-1), "requests_per_minute=-1"), (dict(timeout=float("nan")), "timeout=nan"),
    (dict(base_url="me:password@localhost:8000/v1"), "base_url='localhost:8000/v1': expected .* http://"), (dict(client=len, batch=True), "leave out the client, or the batch")])
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
    llm = LLM("m", record=path, client=lambda request: pipe.send(request.about["component"]) or time.sleep(.05) or "ok", concurrency=1)
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
    assert list(read_bundle(write_bundle(llm.record, tmp_path/"b.jsonl.gz")).values()) == [text]


def test_a_bundle_replays_and_has_the_same_bytes(tmp_path):
    llm = LLM("m", client=lambda request: f"für {request.messages[0][1]}")
    answers = llm.ask(questions(llm, 5))
    one, two = (write_bundle(llm.record, tmp_path/name/"a.jsonl.gz") for name in "xy")
    assert one.read_bytes() == two.read_bytes() and "für question 4" in read_bundle(one).values()
    assert LLM("m", record=tmp_path/"none"/"r.sqlite", bundles=[one]).ask(questions(llm, 5)) == answers
    assert not (tmp_path/"none").exists()
    assert json.loads(gzip.open(one).readline())["request"]["model"] == "m"


def test_imported_answers_replay_and_those_on_record_win(tmp_path):
    here, there = (LLM("m", record=tmp_path/name, client=lambda request, name=name: name) for name in ("here", "there"))
    here.ask(questions(here, 2))
    there.ask(questions(there, 5))
    bundle = write_bundle(there.record, tmp_path/"there.jsonl.gz")
    assert [import_bundle(here.record, bundle) for _ in range(2)] == [(3, 2), (0, 5)]
    here.client = None
    assert here.ask(questions(here, 5)) == ["here"] * 2 + ["there"] * 3
    assert import_bundle(Record(tmp_path/"new"), bundle) == (5, 0) and write_bundle(Record(tmp_path/"new"), tmp_path/"again.jsonl.gz").read_bytes() == bundle.read_bytes()


def test_a_bundle_with_a_broken_line_leaves_nothing_behind(tmp_path):
    llm = LLM("m", record=tmp_path/"r", client=lambda request: "ok")
    llm.ask(questions(llm, 3))
    whole = write_bundle(llm.record, tmp_path/"b.jsonl").read_text()
    for broken, line in ((whole[:-9], 3), (whole + "{}\n", 4), (whole + '{"key": "k", "answer": 5}\n', 4), (whole + "[]\n", 4)):
        (tmp_path/"b.jsonl").write_text(broken)
        with pytest.raises(ValueError, match=f"b.jsonl' is no bundle of answers .line {line}:"): import_bundle(Record(tmp_path/"new"), tmp_path/"b.jsonl")
        assert Record(tmp_path/"new").rows() == {}


def test_ten_thousand_answers_replay_in_no_time_and_without_a_claim(tmp_path, monkeypatch):
    llm = LLM("m", record=tmp_path/"r")
    text = "What an article says about wings. " * 90
    requests = [llm.request([("user", f"{text}{i}")], component=f"part {i}") for i in range(10_000)]
    lines = "".join(json.dumps({"key": request.key} | row_of(request, "wide brown wings", (900, 5))) + "\n" for request in requests)
    (tmp_path/"b.jsonl").write_text(lines)
    import_bundle(llm.record, tmp_path/"b.jsonl")
    monkeypatch.setattr("datadesc.llm.claim", None)
    requests = [llm.request(request.messages, component="") for request in requests]
    start = time.monotonic()
    assert llm.ask(requests) == ["wide brown wings"] * 10_000
    assert time.monotonic() - start < 3 and llm.ledger.total("replayed") == 10_000


@pytest.mark.parametrize("content", ["no json\n", '{"key": "k"}\n'])
def test_a_damaged_bundle_is_named(tmp_path, content):
    (tmp_path/"b.jsonl").write_text(content)
    with pytest.raises(ValueError, match="b.jsonl' is no bundle of answers"): read_bundle(tmp_path/"b.jsonl")


def test_a_file_that_is_no_record_is_named(tmp_path):
    (tmp_path/"answers.sqlite").write_text("not a database, but long enough to look like one to nobody" * 20)
    with pytest.raises(LLMError, match="answers.sqlite' cannot be used .file is not a database"): LLM("m", record=tmp_path/"answers.sqlite", client=lambda r: "ok").ask(questions(LLM("m"), 1))


def test_a_record_that_cannot_be_written_is_named(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(PermissionError, match="Cannot write in .*file"): LLM("m", record=tmp_path/"file"/"answers.sqlite", client=lambda r: "ok").ask(questions(LLM("m"), 1))
