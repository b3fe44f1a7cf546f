"Batches behind kills, rivals, broken lines and servers that change their mind"
import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import contextmanager
from email import message_from_bytes
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from threading import Lock, Thread

import pytest

from datadesc import batch
from datadesc.batch import ask_batch, notes_folder
from datadesc.call import CallError
from datadesc.llm import LLM, LLMError
from datadesc.cost import BudgetReached
from llm_server import completion, surroundings

KEY = "sk-secret-0123456789"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    "Pauses between tries that a test can wait for"
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", .01)
    for module in ("call", "batch"): monkeypatch.setattr(f"datadesc.{module}.PAUSE", .01)


def echo(chat): return completion(f"answer to {chat['messages'][-1]['content']}") | {"usage": {"prompt_tokens": 10, "completion_tokens": 5}}


class BatchServer(BaseHTTPRequestHandler):
    "Files and batches in memory. `server.answer`: chat -> reply; `server.fault(method, path)`: None, a status, \"hang up\" (undone) or \"lose\" (done, the reply lost)"
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass

    def handle_all(self):
        path, server = self.path.split("?")[0].removeprefix("/v1"), self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with server.lock:
            server.asked.append(f"{self.command} {path}")
            fault = server.fault(self.command, path)
            if fault == "hang up" or isinstance(fault, int): reply = (fault, {"error": {"message": f"fault, said to {self.headers['Authorization']}"}})
            else: reply = self.route(path, body)
        if fault in ("hang up", "lose"):
            self.close_connection = True
            return self.connection.shutdown(2)
        status, reply = reply if isinstance(reply, tuple) else (200, reply)
        reply = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        for header in (("Content-Type", "application/json"), ("Content-Length", str(len(reply)))): self.send_header(*header)
        self.end_headers()
        self.wfile.write(reply)
    do_GET = do_POST = handle_all

    def route(self, path, body):
        server, parts = self.server, path.strip("/").split("/")
        match self.command, parts:
            case "POST", ["chat", "completions"]:
                server.chats.append(chat := json.loads(body))
                return server.direct(chat)
            case "POST", ["files"]:
                form = message_from_bytes(b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + body)
                name = f"file-{len(server.files)}"
                server.files[name] = next(part.get_payload(decode=True) for part in form.get_payload() if part.get_filename())
                return {"id": name, "object": "file"}
            case "POST", ["batches"]:
                made = json.loads(body) | {"id": f"batch-{len(server.batches)}", "object": "batch", "status": "in_progress", "looks": 0}
                server.batches[made["id"]] = made
                return made
            case "GET", ["batches"]: return {"data": [*server.batches.values()][::-1], "has_more": False, "object": "list"}
            case "GET", ["batches", name]:
                if name not in server.batches: return 404, {"error": {"message": "no such batch"}}
                made = server.batches[name]
                made["looks"] += 1
                if made["looks"] >= server.looks: server.finish(server, made)
                return made
            case "GET", ["files", name, "content"]: return server.files[name]


def finish(server, made):
    "All lines are answered"
    rows = [{"custom_id": line["custom_id"], "response": {"status_code": 200, "body": server.answer(line["body"])}, "error": None} for line in questions_in(server, made)]
    random.Random(0).shuffle(rows)
    server.files[f"{made['id']}-out"] = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    made |= {"status": "completed", "output_file_id": f"{made['id']}-out", "request_counts": {"total": len(rows), "completed": len(rows), "failed": 0}}

def questions_in(server, made): return [json.loads(line) for line in server.files[made["input_file_id"]].splitlines()]

def ordered(server): return Counter(line["custom_id"] for made in server.batches.values() for line in questions_in(server, made))

@contextmanager
def batch_server(answer=echo, direct=None, fault=lambda method, path: None, looks=2, finish=finish):
    server = ThreadingHTTPServer(("127.0.0.1", 0), BatchServer)
    server.daemon_threads, server.lock, server.answer, server.direct, server.fault, server.looks, server.finish = True, Lock(), answer, direct or answer, fault, looks, finish
    server.files, server.batches, server.asked, server.chats, server.url = {}, {}, [], [], f"http://127.0.0.1:{server.server_port}/v1"
    server.handle_error = lambda *args: None
    Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
    try: yield server
    finally: server.shutdown(); server.server_close()

def questions(llm, n, word="question"): return [llm.request([("user", f"{word} {i}")], stage="s", number=i) for i in range(n)]

def ask(llm, requests): return ask_batch(llm, requests, poll=.01, progress=False)

def noted(llm): return [*notes_folder(llm.record).glob("*.json")]


def test_all_answers_come_whatever_their_order():
    with batch_server() as server:
        llm = LLM("gpt-4o", server.url)
        asked = questions(llm, 20)
        assert ask(llm, asked) == {request.key: f"answer to question {i}" for i, request in enumerate(asked)}
        assert len(server.batches) == 1 and len(server.chats) == 1 and set(ordered(server).values()) == {1} and len(ordered(server)) == 19
        assert {row["usage"][1] for row in llm.record.rows().values()} == {5} and not noted(llm)
        assert llm.ledger.total("calls") == 20 and llm.ledger.total("cost") == pytest.approx((1 + 19 / 2) * (10 * 2.5 + 5 * 10) / 1e6)
        assert llm.ledger.budget.held == 0 and not llm.ledger.table()["estimated"].any()


def test_ask_goes_by_batch_and_the_next_time_by_record(monkeypatch):
    monkeypatch.setattr(batch, "ask_batch", partial(ask_batch, poll=.01))
    answers = [f"answer to question {i}" for i in range(4)]
    with batch_server() as server:
        assert LLM("m", server.url, batch=True).ask(questions(LLM("m"), 4), progress=False) == answers and len(server.batches) == 1
    assert LLM("m", server.url, batch=True).ask(questions(LLM("m"), 4)) == answers


def test_a_question_that_fails_in_a_batch_is_listed(monkeypatch):
    monkeypatch.setattr(batch, "ask_batch", partial(ask_batch, poll=.01))
    with batch_server(finish=partly) as server:
        llm = LLM("m", server.url, batch=True)
        answers = llm.ask(questions(llm, 6), progress=False, on_failure="none")
        assert [answer is None for answer in answers] == [False, False, True, True, True, True]
        assert [request.about["number"] for request, _ in llm.failures] == [2, 3, 4, 5] and "not in time" in llm.failures[2][1]


def test_one_question_is_no_batch():
    with batch_server() as server:
        llm = LLM("m", server.url)
        assert [*ask(llm, questions(llm, 1)).values()] == ["answer to question 0"] and not server.batches


def test_what_the_model_refuses_is_known_before_the_order():
    def picky(chat): return (400, {"error": {"message": "Unsupported value: 'temperature' does not support 0.7 with this model."}}) if "temperature" in chat else echo(chat)
    with batch_server(direct=picky) as server:
        llm = LLM("m", server.url, max_retries=0)
        ask(llm, questions(llm, 3))
        assert all("temperature" not in line["body"] for line in questions_in(server, server.batches["batch-0"]))


@pytest.mark.parametrize("status, message", [(401, "refused the key"), (404, "knows no model")])
def test_what_all_would_meet_ends_it_before_the_order(status, message):
    with batch_server(direct=lambda chat: (status, {"error": {"message": "no"}})) as server:
        with pytest.raises(LLMError, match=message): ask(LLM("m", server.url, max_retries=0), questions(LLM("m"), 3))
        assert not server.files and not server.batches


def test_a_first_question_that_fails_does_not_stop_the_others():
    with batch_server(direct=lambda chat: (400, {"error": {"message": "not this one"}})) as server:
        llm = LLM("m", server.url, max_retries=0)
        came = [*ask(llm, questions(llm, 3)).values()]
        assert isinstance(came[0], CallError) and came[1:] == ["answer to question 1", "answer to question 2"]


def test_many_questions_go_in_several_batches(monkeypatch):
    monkeypatch.setattr(batch, "LINES", 3)
    with batch_server() as server:
        llm = LLM("m", server.url)
        assert len(ask(llm, questions(llm, 9))) == 9
        assert len(server.batches) == 3 and set(ordered(server).values()) == {1}


@pytest.mark.parametrize("fault", ["lose", "hang up", 500, 503, 429])
def test_an_order_that_may_have_arrived_is_not_sent_twice(fault):
    faults = [fault] * 2
    def twice(method, path): return faults.pop() if (method, path) == ("POST", "/batches") and faults else None
    with batch_server(fault=twice) as server:
        llm = LLM("m", server.url, max_retries=0)
        if fault != "lose":
            with pytest.raises(LLMError): ask(llm, questions(llm, 5))
            assert len(noted(llm)) == 1 and not server.batches
        llm.max_retries = 2
        assert len(ask(llm, questions(llm, 5))) == 5
        assert len(server.batches) == 1 and set(ordered(server).values()) == {1} and not noted(llm)


def test_an_order_that_is_refused_is_forgotten():
    with batch_server(fault=lambda method, path: 400 if path == "/batches" and method == "POST" else None) as server:
        llm = LLM("m", server.url, max_retries=0)
        with pytest.raises(LLMError, match="fault"): ask(llm, questions(llm, 3))
        assert not noted(llm) and llm.ledger.budget.held == 0


def test_a_server_without_the_endpoint_says_so():
    with batch_server(fault=lambda method, path: 404 if "chat" not in path else None) as server:
        with pytest.raises(CallError, match="has no Batch endpoint .404.: ask its model without a batch"): ask(LLM("m", server.url), questions(LLM("m"), 3))


def test_a_long_outage_is_waited_for():
    looks = []
    def flaky(method, path):
        looks.append(path)
        return random.Random(len(looks)).choice([503, "hang up", 429, 500]) if method == "GET" and len(looks) < 20 else None
    with batch_server(fault=flaky) as server:
        assert len(ask(LLM("m", server.url, max_retries=0), questions(LLM("m"), 4))) == 4


def test_an_outage_without_end_leaves_the_note(monkeypatch):
    monkeypatch.setattr(batch, "PATIENCE", .05)
    down = [True]
    with batch_server(fault=lambda method, path: "hang up" if method == "GET" and down else None) as server:
        llm = LLM("m", server.url, max_retries=0)
        with pytest.raises(LLMError): ask(llm, questions(llm, 4))
        assert len(noted(llm)) == 1 and llm.ledger.budget.held == 0
        down.clear()
        assert len(ask(LLM("m", server.url), questions(llm, 4))) == 4 and len(server.batches) == 1


def partly(server, made):
    "Of five lines: an answer with odd separators, an empty one, an error inside a response, one in the error file, and nothing at all"
    ok, empty, bad, late, _ = (line["custom_id"] for line in questions_in(server, made))
    row = lambda key, **more: json.dumps({"custom_id": key} | more, ensure_ascii=False)
    server.files["out"] = "\r\n".join([row(ok, response={"status_code": 200, "body": completion("one\u2028two\x85three")}), "",
        row(empty, response={"status_code": 200, "body": completion("", "length") | {"usage": {"prompt_tokens": 10, "completion_tokens": 300}}})]).encode()
    server.files["err"] = "\n".join([row(bad, response={"status_code": 400, "body": {"error": {"message": f"bad request with {KEY}"}}}),
        row(late, response=None, error={"code": "batch_expired", "message": "not in time"})]).encode()
    made |= {"status": "expired", "output_file_id": "out", "error_file_id": "err", "request_counts": {"total": 5, "completed": 2, "failed": 2}}

def test_each_failed_question_says_why_and_is_open_again(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with batch_server(finish=partly) as server:
        llm = LLM("gpt-4o", server.url)
        _, ok, empty, bad, late, gone = ask(llm, questions(llm, 6)).values()
        assert ok == "one\u2028two\x85three"
        for error, why in ((empty, "empty answer"), (bad, "bad request with"), (late, "not in time"), (gone, "came back without an answer")):
            assert isinstance(error, CallError) and why in str(error) and KEY not in str(error)
        assert llm.ledger.total("calls") == 3 and llm.ledger.total("unknown") == 0 and not noted(llm)
        server.finish = finish
        again = LLM("gpt-4o", server.url)
        assert all(isinstance(answer, str) for answer in ask(again, questions(llm, 6)).values())
        assert max(ordered(server).values()) == 2 and sum(ordered(server).values()) == 5 + 3 # the first of the four open ones is asked at once


def test_a_file_that_the_server_refuses_is_a_reason_to_stop():
    def invalid(server, made): made |= {"status": "failed", "errors": {"object": "list", "data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}]}}
    with batch_server(finish=invalid) as server:
        llm = LLM("m", server.url)
        with pytest.raises(CallError, match="refused a batch of 2 questions: Enqueued token limit reached"): ask(llm, questions(llm, 3))
        assert not noted(llm)


def test_a_batch_that_is_gone_is_named():
    with batch_server() as server:
        llm = LLM("m", server.url)
        server.finish = lambda server, made: server.batches.clear()
        with pytest.raises(CallError, match="knows no batch 'batch-0': use the key with which it was ordered, or delete '.*json', and its 2 questions"): ask(llm, questions(llm, 3))
        assert len(noted(llm)) == 1


def test_a_batch_at_another_server_is_not_waited_for():
    with batch_server(fault=lambda method, path: 503 if method == "GET" else None) as one, batch_server() as other, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "PATIENCE", .01)
        with pytest.raises(LLMError): ask(LLM("m", one.url, max_retries=0), questions(LLM("m"), 4))
        assert len(ask(LLM("m", other.url), questions(LLM("m"), 4))) == 4 and len(other.batches) == 1


def test_a_budget_holds_for_the_whole_batch():
    with batch_server() as server:
        llm = LLM("gpt-4o", server.url, budget=.02)
        with pytest.raises(BudgetReached, match="1 questions are answered, 99 are open"): ask(llm, questions(llm, 100))
        assert not server.batches and llm.ledger.budget.held == 0
        assert len(ask(llm, questions(llm, 10))) == 10


def test_both_who_wait_for_a_batch_hear_what_failed_in_it():
    came = []
    with batch_server(finish=partly, looks=30) as server:
        waiting = [Thread(target=lambda: came.append(ask(LLM("m", server.url), questions(LLM("m"), 6)))) for _ in range(2)]
        for thread in waiting: thread.start()
        for thread in waiting: thread.join()
    one, two = ([str(answer) for answer in answers.values()] for answers in came)
    assert len(server.batches) == 1 and one == two and len(one) == 6 and sum("not in time" in answer for answer in one) == 1


def test_what_was_ordered_is_not_asked_at_once_as_well():
    with batch_server() as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "ended", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError): ask(LLM("m", server.url), questions(LLM("m"), 6))
        here = LLM("m", server.url)
        with pytest.raises(LLMError, match="5 question.s. were ordered as a batch at .*take in its answers .-p llm_batch=true., or delete '.*json' to ask"): here.ask(questions(here, 4))
        assert len(server.chats) == 1 and here.ask(questions(here, 2, "another question")) == ["answer to another question 0", "answer to another question 1"]
        noted(here)[0].unlink()
        assert here.ask(questions(here, 4))[3] == "answer to question 3"


def test_questions_of_a_batch_that_nobody_asks_any_more_are_recorded():
    with batch_server(looks=10**6) as server, pytest.MonkeyPatch.context() as patch:
        llm = LLM("m", server.url)
        patch.setattr(batch, "ended", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError): ask(llm, questions(llm, 6))
        patch.undo()
        server.looks = 1
        assert [*ask(LLM("m", server.url), questions(llm, 6)[3:4]).values()] == ["answer to question 3"]
        assert len(LLM("m").record.rows()) == 6


def test_the_key_is_in_no_file(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with batch_server(fault=lambda method, path: 418 if method == "GET" else None) as server:
        with pytest.raises(LLMError) as caught: ask(LLM("m", server.url, max_retries=0), questions(LLM("m"), 4))
    assert KEY not in str(caught.value) and "fault, said to Bearer ***" in str(caught.value)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(".batches" in str(file) for file in files) and not any(KEY.encode() in file.read_bytes() for file in files)


def run(url, root, seed=None):
    "What a process does: kills itself after a random while if there is a seed"
    os.environ["DATADESC_STORE"] = str(root)
    if seed is not None: Thread(target=lambda: (time.sleep(random.Random(seed).uniform(0, .35)), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
    llm = LLM("m", url)
    ask(llm, questions(llm, 30))
    (root/f"{os.getpid()}.counts").write_text(json.dumps([llm.ledger.total("calls"), llm.ledger.total("replayed")]))

def test_kills_at_random_moments_order_nothing_twice(tmp_path):
    slow = lambda method, path: time.sleep(.02)
    with batch_server(fault=slow, looks=4) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "LINES", 10)
        codes = []
        for seed in [*range(12), None]:
            process = get_context("fork").Process(target=run, args=(server.url, tmp_path/"killed", seed))
            process.start(); process.join(30)
            codes.append(process.exitcode)
        assert codes[-1] == 0 and -signal.SIGKILL in codes
        assert max(ordered(server).values()) == 1
        llm = LLM("m", record=tmp_path/"killed"/"answers.sqlite")
        assert llm.ask(questions(llm, 30)) == [f"answer to question {i}" for i in range(30)] and not noted(llm)


def test_two_processes_order_once(tmp_path):
    with batch_server(looks=5) as server:
        processes = [get_context("fork").Process(target=run, args=(server.url, tmp_path/"shared")) for _ in range(3)]
        for process in processes: process.start()
        for process in processes: process.join(30)
        assert [process.exitcode for process in processes] == [0] * 3
        assert len(server.chats) == 1 and set(ordered(server).values()) == {1} and len(ordered(server)) == 29
        counts = [json.loads(file.read_text()) for file in (tmp_path/"shared").glob("*.counts")]
        assert sum(calls for calls, _ in counts) == 30 and [sum(count) for count in counts] == [30] * 3 # each was paid for by one of them
