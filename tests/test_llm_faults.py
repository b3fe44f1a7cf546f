"The language model behind kills, rivals and a server that does everything wrong"
import gzip, logging, random, sys, time, traceback
from collections import Counter
from multiprocessing import get_context
from threading import Lock

import pytest

from datadesc import llm as client
from datadesc.cache import Cache
from datadesc.describe import describe
from datadesc.llm import LLM, BudgetReached, LLMError
from llm_server import body, completion, cut, drips, llm_server, stalls, surroundings

KEY = "sk-secret-0123456789"


def questions(llm, n, **about): return [llm.request([("user", f"question {i}")], stage="describe", component=f"part {i}", **about) for i in range(n)]

def error(status, message="no", **more): return status, {"error": {"message": message} | more}, {}


# -- one fault at a time --

@pytest.mark.parametrize("fault", [error(429), error(500), error(503), error(408), stalls(1.2), drips(3), cut, body("{"), body("<html>busy</html>", content_type="text/html"),
                                   body("<html>bad gateway</html>", 502, "text/html"), {"choices": []}, {"error": {"message": "overloaded"}}, completion("")])
def test_what_goes_away_is_survived(fault):
    replies = [fault, "at last"]
    with llm_server(lambda chat: replies[min(len(server.chats), 2) - 1]) as (url, server):
        llm = LLM("m", url, timeout=1)
        assert llm.ask(questions(llm, 1)) == ["at last"] and len(server.chats) == 2


@pytest.mark.parametrize("fault, lost", [(error(500), 0), (error(429), 0), (stalls(1.2), 1), (cut, 1), (body("{"), 1), ({"choices": []}, 1)])
def test_the_account_knows_what_may_have_cost_something(fault, lost):
    with llm_server(lambda chat: fault if len(server.chats) == 1 else "ok") as (url, server):
        llm = LLM("m", url, timeout=1)
        llm.ask(questions(llm, 1))
    assert (llm.costs.total("calls"), llm.costs.total("lost")) == (1, lost)


def test_a_server_that_drips_is_left_after_the_time_in_all():
    start = time.monotonic()
    with llm_server(lambda chat: drips(5)) as (url, _), pytest.raises(LLMError, match="no answer within 0.5 s"):
        LLM("m", url, timeout=.5, max_retries=0).ask(questions(LLM("m"), 1))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("fault, message", [(error(401, f"Incorrect API key: {KEY}"), r"refused \(401\).*OPENAI_API_KEY"), (error(402, "Insufficient Balance"), r"refused \(402\): Insufficient Balance"),
    (error(404), r"refused \(404\): no Check --llm-model"),
    (error(429, "quota", code="insufficient_quota"), "quota is used up"),
    ((429, {"error": {"message": "tomorrow"}}, {"Retry-After": "86400"}), "left alone for 86,400 s"), ((503, {"error": {"message": "tomorrow"}}, {"Retry-After": "86400"}), "left alone for 86,400 s")])
@pytest.mark.parametrize("on_failure", ["raise", "none"])
def test_what_every_question_would_meet_ends_the_run_at_once(fault, message, on_failure):
    with llm_server(lambda chat: fault) as (url, server), pytest.raises(LLMError, match=message):
        LLM("m", url, concurrency=2).ask(questions(LLM("m"), 30), on_failure=on_failure, progress=False)
    assert len(server.chats) <= 5 # one question, asked in vain without schema, seed and temperature


def test_nobody_there_ends_the_run_after_the_tries():
    with llm_server(lambda chat: "ok") as (url, _): pass
    with pytest.raises(LLMError, match="No language model can be reached"): LLM("m", url, max_retries=2).ask(questions(LLM("m"), 30), on_failure="none", progress=False)


def test_a_server_that_only_fails_is_given_up():
    with llm_server(lambda chat: error(500)) as (url, server), pytest.raises(LLMError, match="failed.*500") as caught:
        LLM("m", url, concurrency=4, max_retries=1).ask(questions(LLM("m"), 500), on_failure="none", progress=False)
    assert len(server.chats) <= 2 * (client._HOPELESS + 4) and "0 of 500" in caught.value.__notes__[0]


def test_a_model_that_spends_its_tokens_and_says_nothing_is_not_paid_for_every_question():
    with llm_server(lambda chat: completion("", "length")) as (url, server), pytest.raises(LLMError, match="spent 2,400 tokens"):
        LLM("m", url, concurrency=4).ask(questions(LLM("m"), 500), on_failure="none", progress=False)
    assert len(server.chats) <= 1 + client._HOPELESS + 4 # once more, with room
    assert [chat["max_tokens"] for chat in server.chats] == [300] + [2400] * (len(server.chats) - 1)


def test_a_lock_that_cannot_be_made_loses_no_answer_in_flight(monkeypatch):
    lock, locks = Cache.lock, []
    def full(cache, key):
        locks.append(key)
        return lock(cache, key) if len(locks) <= 5 else 1 / 0
    monkeypatch.setattr(Cache, "lock", full)
    with llm_server(lambda chat: time.sleep(.1 * (1 + int(chat["messages"][0]["content"][-1]))) or "ok") as (url, _), pytest.raises(ZeroDivisionError):
        LLM("m", url, concurrency=4).ask(questions(LLM("m"), 10))
    assert len([*LLM("m").cache.rows()]) == 5


def test_words_of_a_server_without_a_key_stay_as_they_are():
    with llm_server(lambda chat: error(400, "none of the tools is known")) as (url, _), pytest.raises(LLMError, match="none of the tools"): LLM("m", url).ask(questions(LLM("m"), 1))


def test_one_bad_question_does_not_stop_the_others():
    def answer(chat): return error(400, "no such thing") if chat["messages"][0]["content"] == "question 3" else "ok"
    with llm_server(answer) as (url, server):
        llm = LLM("m", url)
        with pytest.raises(LLMError, match="1 of 10 question.*component 'part 3'.*no such thing"): llm.ask(questions(llm, 10))
        assert llm.ask(questions(llm, 10), on_failure="none") == ["ok"] * 3 + [None] + ["ok"] * 6
        assert len(server.chats) == 11 and [request.about["component"] for request, _ in llm.failures] == ["part 3"] * 2


@pytest.mark.parametrize("status, header, least", [(429, "0.3", .3), (429, "date", .9), (503, "0.3", .3)])
def test_all_questions_leave_a_busy_server_alone(status, header, least):
    when = []
    def answer(chat):
        when.append(time.time())
        if len(when) > 1: return "ok"
        until = header if header != "date" else time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(int(time.time()) + 2))
        return status, {"error": {"message": "slowly"}}, {"Retry-After": until}
    with llm_server(answer) as (url, _):
        LLM("m", url, concurrency=1).ask(questions(LLM("m"), 3))
    assert least <= when[1] - when[0] < 3.5 and len(when) == 4


def test_the_server_may_ask_for_more_than_a_minute(monkeypatch):
    waits = []
    async def sleep(seconds): waits.append(seconds); clock[0] += seconds
    clock = [0.]
    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    monkeypatch.setattr(client.time, "monotonic", lambda: clock[0])
    with llm_server(lambda chat: (429, {"error": {"message": "later"}}, {"Retry-After": "300"}) if len(server.chats) == 1 else "ok") as (url, server):
        llm = LLM("m", url)
        assert llm.ask(questions(llm, 1)) == ["ok"]
    assert 290 < max(waits) < 301


# -- what a model refuses --

@pytest.mark.parametrize("name, message", [("temperature", "Unsupported value: 'temperature' does not support 0.7 with this model."), ("seed", "Unrecognized request argument supplied: seed"),
    ("response_format", "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."),
    ("max_tokens", "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.")])
def test_what_a_model_refuses_is_left_out_from_then_on(name, message):
    with llm_server(lambda chat: error(400, message, param=name) if name in chat else "ok") as (url, server):
        llm = LLM("m", url, concurrency=1)
        requests = [llm.request([("user", f"question {i}")], schema={"type": "object"}) for i in range(3)]
        assert llm.ask(requests) == ["ok"] * 3 and len(server.chats) == 4 and llm.refused == {name}
        assert "max_completion_tokens" in server.chats[-1] or name != "max_tokens"
        llm.ask([llm.request([("user", "another")])])
        assert len(server.chats) == 5 and llm.costs.total("calls") == 4


def test_a_model_that_refuses_everything_is_asked_in_the_end():
    def answer(chat):
        name = next((name for name in ("temperature", "seed", "response_format", "max_tokens") if name in chat), None)
        return error(400, f"'{name}' is not supported, use max_completion_tokens" if name == "max_tokens" else f"{name} is not supported") if name else "ok"
    with llm_server(answer) as (url, server):
        llm = LLM("m", url)
        assert llm.ask([llm.request([("user", "q")], schema={"type": "object"})]) == ["ok"]
        assert server.chats[-1].keys() == {"model", "messages", "max_completion_tokens"}


def test_a_value_that_is_refused_is_left_out_and_said():
    refusal = error(400, "Invalid 'temperature': expected a value <= 2, but got 3.", param="temperature")
    with llm_server(lambda chat: refusal if "temperature" in chat else "ok") as (url, server):
        llm = LLM("m", url, temperature=3)
        assert llm.ask(questions(llm, 1)) == ["ok"] and len(server.chats) == 2
    assert "does not take temperature: left out" in llm.price_basis()


def test_a_temperature_of_none_is_not_sent():
    with llm_server(lambda chat: "ok") as (url, server):
        llm = LLM("m", url, temperature=None)
        llm.ask(questions(llm, 1))
        assert "temperature" not in server.chats[0]


# -- limits and money --

def test_calls_a_minute_are_a_limit():
    start, when = time.monotonic(), []
    with llm_server(lambda chat: when.append(time.monotonic()) or "ok") as (url, _): LLM("m", url, concurrency=32, requests_per_minute=1200).ask(questions(LLM("m"), 35), progress=False)
    assert len(when) == 35 and when[-1] - start > .7


def test_tokens_a_minute_are_a_limit():
    start, when = time.monotonic(), []
    with llm_server(lambda chat: when.append(time.monotonic()) or "ok") as (url, _):
        LLM("m", url, max_tokens=3000, concurrency=32, tokens_per_minute=32_500).ask(questions(LLM("m", max_tokens=3000), 11), progress=False)
    assert len(when) == 11 and when[10] - start > 1 # ten times 3,007 tokens are there, of the eleventh 577 are not


PRICES = "model,input,output\nm,0,1000\n" # a thousandth of a dollar a token

def test_a_budget_is_never_exceeded_and_used_well(tmp_path):
    (tmp_path/"prices.csv").write_text(PRICES)
    def answer(chat):
        time.sleep(.01)
        return completion("ok") | {"usage": {"prompt_tokens": 5, "completion_tokens": 10}}
    with llm_server(answer) as (url, server):
        llm = LLM("m", url, max_tokens=100, budget=.505, prices=tmp_path/"prices.csv", concurrency=16)
        with pytest.raises(BudgetReached, match="of the budget of .0.5050 are spent.*--budget for the rest.*cached") as caught: llm.ask(questions(llm, 100), progress=False)
        assert "41 of 100 answers came first" in caught.value.__notes__[0]
        assert len(server.chats) == len([*llm.cache.rows()]) == 41 and llm.costs.total("cost") == pytest.approx(.41)
        again = LLM("m", url, max_tokens=100, budget=10, prices=tmp_path/"prices.csv")
        assert again.ask(questions(again, 100), progress=False) == ["ok"] * 100 and len(server.chats) == 100
        assert again.costs.total("cached") == 41


def test_a_dry_run_sends_and_writes_nothing(tmp_path):
    with llm_server(lambda chat: "ok") as (url, server):
        llm = LLM("m", url, dry_run=True)
        table = describe(["robin", "crane"], llm, "bird", knowledge="none")
        assert not server.chats and not (tmp_path/"store").exists() and len(table) == 20
    assert llm.costs.total("calls") == 21 and list(llm.costs.table()["stage"]) == ["components", "describe", "total"]


# -- attempts --

def is_list(request, answer):
    if not answer.startswith("["): raise ValueError(f"no list: {answer}")

def test_a_wrong_answer_is_asked_again_with_another_seed_and_paid_once():
    with llm_server(lambda chat: "[]" if chat["seed"] // client._SEEDS == int(chat["messages"][0]["content"][-1]) else "Sure!") as (url, server):
        llm = LLM("m", url)
        assert llm.ask(questions(llm, 4), check=is_list, on_failure="none") == ["[]", "[]", "[]", None]
        assert len(server.chats) == 1 + 2 + 3 + 3 and "No usable answer in 3 attempts, at last: no list: Sure!" == llm.failures[0][1]
        again = LLM("m", url)
        assert again.ask(questions(again, 4), check=is_list, on_failure="none") == ["[]", "[]", "[]", None] and len(server.chats) == 9
        assert again.costs.total("cached") == 9 and again.costs.total("calls") == 0
        with pytest.raises(LLMError, match="1 of 4 question.*part 3.*no list: Sure!"): again.ask(questions(again, 4), check=is_list)


# -- all at once --

FREE, LOST, BACK = ("429", "500", "503"), ("stall", "cut", "no JSON", "no choices"), ("wrong schema", "refusal", "good")

def in_trouble(seed, timeout):
    "A function from a chat to one of ten kinds of reply, 10 % each, and how often each was taken"
    rng, lock, counts = random.Random(seed), Lock(), Counter()
    def answer(chat):
        with lock: counts[kind := rng.choice(FREE + LOST + BACK)] += 1
        listed = "Which visible parts" in chat["messages"][-1]["content"]
        good = "- wings\n- beak\n- crown\n- tail\n- legs\n- back" if listed else f"long brown feathers, seed {chat['seed']}"
        return {"429": (429, {"error": {"message": "busy"}}, {"Retry-After": "0.05"}), "500": error(500), "503": error(503), "stall": stalls(timeout + .3), "cut": cut,
                "no JSON": body('{"choices": [{'), "no choices": {"choices": []}, "wrong schema": "Sure! Here is what you asked for:",
                "refusal": completion(None, refusal="I'm sorry, I can't help with that."), "good": good}[kind]
    return answer, counts


def test_every_class_ends_described_or_named_as_failed():
    answer, counts = in_trouble(seed=0, timeout=1)
    classes = [f"species {n}" for n in range(16)]
    with llm_server(answer) as (url, server):
        llm = LLM("m", url, concurrency=32, timeout=1, max_retries=3)
        with pytest.raises(LLMError, match="No description of") as caught: describe(classes, llm, knowledge="none", progress=False)
    about = [row["request"]["about"] for _, row in llm.cache.rows() if row["answer"] != "Sure! Here is what you asked for:"]
    described = {row["class"] for row in about if row["stage"] == "describe"}
    assert all((name in described) != (f"'{name}'" in str(caught.value)) for name in classes) and 0 < len(described) < 16
    assert len(server.chats) == sum(counts.values()) and all(counts[kind] for kind in FREE + LOST + BACK)
    calls, lost = llm.costs.total("calls"), llm.costs.total("lost")  # on a busy machine an answer may come after the timeout: it is lost as well
    assert 0 < calls == len([*llm.cache.rows()]) <= sum(counts[kind] for kind in BACK)
    assert calls + lost == sum(counts[kind] for kind in BACK + LOST)


# -- kills and rivals --

def asker(url, path, n, concurrency, pipe):
    "Asks `n` questions in a process of its own, and tells the answers and how many calls and replays it booked"
    llm = LLM("m", url, cache=path, concurrency=concurrency)
    pipe.send((llm.ask(questions(llm, n), progress=False), llm.costs.total("calls"), llm.costs.total("cached")))

def start(url, path, n, concurrency=8):
    "That process, and the pipe's other end"
    fork = get_context("fork")
    there, here = fork.Pipe()
    process = fork.Process(target=asker, args=(url, path, n, concurrency, there))
    process.start()
    there.close()
    return process, here

def slow_echo(chat):
    time.sleep(.02)
    return chat["messages"][0]["content"]


def test_after_kills_only_calls_in_flight_repeat(tmp_path):
    rng, path = random.Random(0), tmp_path/"answers.sqlite"
    with llm_server(slow_echo) as (url, server):
        for _ in range(5):
            process, _ = start(url, path, 250)
            time.sleep(rng.uniform(.05, .4))
            process.kill()
            process.join()
            time.sleep(.05)
            before, known = len(server.chats), {row["request"]["messages"][0][1] for _, row in LLM("m", cache=path).cache.rows()}
            again = Counter(chat["messages"][0]["content"] for chat in server.chats)
            assert before - len(known) <= 8 * 5 and known <= again.keys()
        process, pipe = start(url, path, 250)
        assert pipe.recv()[0] == [f"question {i}" for i in range(250)]
        process.join()
        assert not {chat["messages"][0]["content"] for chat in server.chats[before:]} & known
        assert len(server.chats) <= 250 + 5 * 8
    for file in tmp_path.glob(".answers*"): # of an answer that was cached just before the kill; nobody holds it
        with LLM("m", cache=path).cache.lock(file.name.split(".")[-2]): pass
    assert [*tmp_path.glob(".answers*")] == []


def test_rivals_ask_each_question_once(tmp_path):
    with llm_server(slow_echo) as (url, server):
        rivals = [start(url, tmp_path/"answers.sqlite", 100) for _ in range(2)]
        (answers, calls, replayed), (others, other_calls, other_replayed) = [pipe.recv() for _, pipe in rivals]
        assert answers == others == [f"question {i}" for i in range(100)]
        assert calls + other_calls == replayed + other_replayed == 100 and calls + replayed == 100
        for process, _ in rivals: process.join()
        assert len(server.chats) == 100
    assert [file.name for file in tmp_path.glob(".answers*")] == []


def test_a_rival_that_dies_leaves_its_questions_to_the_other(tmp_path):
    with llm_server(lambda chat: time.sleep(.3) or "ok") as (url, server):
        first, _ = start(url, tmp_path/"answers.sqlite", 8)
        while len(server.chats) < 8: time.sleep(.01)
        second, pipe = start(url, tmp_path/"answers.sqlite", 8)
        first.kill()
        assert pipe.recv()[0] == ["ok"] * 8 and len(server.chats) <= 16
        first.join(); second.join()


# -- the key --

class Everything(logging.Handler):
    "Keeps all that any library logs"
    def __init__(self): super().__init__(); self.lines = []
    def emit(self, record): self.lines.append(self.format(record))


def test_the_key_is_in_no_byte_left_behind(monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    handler, root = Everything(), logging.getLogger()
    root.addHandler(handler)
    loggers = [root, *(logging.getLogger(name) for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"))]
    levels = [logger.level for logger in loggers]
    for logger in loggers: logger.setLevel(logging.DEBUG)
    replies = [error(500, f"your key {KEY}"), (429, {"error": {"message": KEY}}, {"Retry-After": "0.01"}), cut, body(f"<html>{KEY}</html>"), "ok"]
    refusals = [error(401, f"Incorrect API key provided: {KEY}"), error(400, f"bad {KEY}"), error(500, KEY), body(f"<p>{KEY}"), cut]
    try:
        with llm_server(lambda chat: replies[min(len(server.chats), 5) - 1]) as (url, server):
            llm = LLM("m", url)
            assert llm.ask(questions(llm, 30)) == ["ok"] * 30
            assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        told = [repr(llm), repr(vars(llm)), llm.costs.table().to_string()]
        for refusal in refusals:
            with llm_server(lambda chat: refusal) as (url, _):
                llm = LLM("m", url, max_retries=0)
                for on_failure in ("raise", "none"):
                    try: llm.ask(questions(llm, 2, reason=str(refusals.index(refusal))), on_failure=on_failure)
                    except LLMError:
                        told.append("".join(traceback.TracebackException.from_exception(sys.exception(), capture_locals=True).format()))
                told += [str(llm.failures)]
    finally:
        root.removeHandler(handler)
        for logger, level in zip(loggers, levels): logger.setLevel(level)
    LLM("m").cache.write_export(tmp_path/"export.jsonl.gz")
    (tmp_path/"export.txt").write_bytes(gzip.decompress((tmp_path/"export.jsonl.gz").read_bytes()))
    assert len(handler.lines) > 50
    for text in (*told, *handler.lines, *capfd.readouterr()): assert KEY not in text
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
