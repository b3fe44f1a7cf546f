"Money: many threads at one ledger, hostile price tables, and vocabularies that can or cannot be had"
import random
import time
from threading import Thread

import pytest
import tiktoken
from hypothesis import given, settings, strategies as st

from datadesc import cost
from datadesc.cost import BudgetReached, Ledger, bill, count_tokens, counted_by, price_of, prompt_tokens, read_prices, vocabulary

CHAT = (("user", "What do the wings look like?"),)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    "A store of its own, and no vocabulary decided before"
    monkeypatch.setenv("DATADESC_STORE", str(tmp_path/"store"))
    vocabulary.cache_clear()
    yield
    vocabulary.cache_clear()


def bytewise(model): return tiktoken.Encoding("bytewise", pat_str=r"\S+|\s+", mergeable_ranks={bytes([n]): n for n in range(256)}, special_tokens={"<|end|>": 256})


def test_a_vocabulary_counts_where_it_is_known(monkeypatch):
    monkeypatch.setattr(tiktoken, "encoding_for_model", bytewise)
    assert counted_by("any") == "tiktoken bytewise"
    assert count_tokens("wings <|end|>", "any") == 13 # special tokens in a text are text


@pytest.mark.parametrize("load", [lambda model: time.sleep(30), lambda model: 1 / 0])
def test_a_vocabulary_that_does_not_come_is_estimated_after_a_moment(monkeypatch, load):
    calls = []
    monkeypatch.setattr(cost, "MOMENT", .05)
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda model: calls.append(model) or load(model))
    assert [count_tokens("twelve bytes", "m") for _ in range(3)] == [3] * 3 and len(calls) == 1


def test_contents_of_all_kinds_are_counted():
    parts = [{"type": "text", "text": "four"}, {"type": "image_url", "image_url": {"url": "x" * 10**6}}, {"type": "input_audio", "input_audio": {}}]
    assert prompt_tokens((("user", parts), ("assistant", ""), ("user", "four")), "m") == 3 * cost.MESSAGE + 1 + 2 * cost.IMAGE + 1
    ledger = Ledger("gpt-6-luna", budget=1)
    ledger.settle(ledger.reserve("judge", (("user", parts),), 10))
    assert ledger.table()["estimated"].tolist() == [True, True]
    assert count_tokens("\ud800 half a character", "m") == 5


def test_every_packaged_price_is_complete():
    prices = read_prices()
    assert prices["model"].is_unique and len(prices) > 40
    assert (prices[["input", "output", "batch"]] > 0).all(axis=None) and (prices["batch"] <= 1).all() and (prices["input"] <= prices["output"]).all()
    assert prices["as_of"].str.fullmatch(r"\d{4}-\d\d-\d\d").all() and prices["shut_down"].str.fullmatch(r"(\d{4}-\d\d-\d\d)?").all() and prices["source"].ne("").all()


@pytest.mark.parametrize("name, family", [
    ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"), ("claude-haiku-4-5-20251001", "claude-haiku-4-5"), ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
    ("gpt-4-0613", "gpt-4"), ("gpt-5.4-latest", "gpt-5.4")])
def test_a_dated_name_has_its_familys_price(name, family):
    assert price_of(name, read_prices()) == price_of(family, read_prices()) is not None


@pytest.mark.parametrize("name", ["gpt-4o-mini-tuned", "gpt", "", "openai/gpt-4o", "GPT-4o", "2024-07-18"])
def test_an_unknown_name_has_none(name):
    assert price_of(name, read_prices()) is None


def test_the_stores_own_table_counts_unless_another_is_named(tmp_path):
    (tmp_path/"store").mkdir()
    (tmp_path/"store"/"prices.csv").write_bytes("\ufeffmodel, input , output\nmine, 0, 0\ngpt-4o,9,9\n".encode())
    (tmp_path/"other.csv").write_text("model,input,output,batch\nmine,1,2,.5\n")
    assert price_of("mine", read_prices()) == (0, 0) and price_of("gpt-4o", read_prices()) == (9, 9)
    assert price_of("mine", read_prices(tmp_path/"other.csv")) == (1, 2) and price_of("gpt-4o", read_prices(tmp_path/"other.csv")) == (2.5, 10)
    assert "mine counted by estimate: 4 bytes a token; $0 a million sent, $0 a million received (your own price table)" in bill(Ledger("mine"))


@pytest.mark.parametrize("text, message", [
    ("", "cannot be read .*expected CSV"), ("model;input;output\na;1;2\n", "no column input and no column model and no column output"),
    ("model,input,output\na,1\n", "model 'a': output is ''"), ("model,input,output\na,-1,2\n", "input is '-1', expected dollars"),
    ("model,input,output\na,nan,2\n", "input is 'nan'"), ("model,input,output,batch\na,1,2,half\n", "batch is 'half'"), ("\0\xff", "no column|cannot be read")])
def test_a_wrong_price_table_is_named(tmp_path, text, message):
    (tmp_path/"prices.csv").write_text(text)
    with pytest.raises(ValueError, match=f"prices.csv.*{message}"): read_prices(tmp_path/"prices.csv")


def test_a_missing_price_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No price table .*none.csv"): Ledger("m", tmp_path/"none.csv")


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_is_dollars(budget):
    with pytest.raises(ValueError, match="expected dollars"): Ledger("gpt-4o", budget=budget)


def test_a_budget_of_nothing_asks_nothing_that_costs(tmp_path):
    (tmp_path/"p.csv").write_text("model,input,output\nmine,0,0\n")
    Ledger("mine", tmp_path/"p.csv", budget=0).reserve("s", CHAT, 300)
    with pytest.raises(BudgetReached): Ledger("gpt-4o", budget=0).reserve("s", CHAT, 1)


def test_a_model_without_price_is_counted_and_costs_nan():
    ledger = Ledger("mine")
    ledger.settle(ledger.reserve("s", CHAT, 300), (10, 5))
    assert ledger.table()["cost"].isna().all() and ledger.total("prompt_tokens") == 10
    assert "$" not in bill(ledger) and "Its price is unknown" in bill(ledger)


def test_an_empty_ledger_has_a_total():
    assert Ledger("gpt-4o").table()[["stage", "calls", "cost"]].values.tolist() == [["total", 0, 0]]


def test_several_answers_of_one_call_send_the_prompt_once():
    one, three = (Ledger("gpt-4o").ticket("s", CHAT, 100, n) for n in (1, 3))
    assert three.prompt_tokens == one.prompt_tokens and three.completion_tokens == 300


def test_a_batch_is_held_and_booked_at_its_price():
    plain, batch = Ledger("gpt-4o"), Ledger("gpt-4o")
    plain.settle(plain.reserve("s", CHAT, 300), (1000, 1000))
    ticket = batch.reserve("s", CHAT, 300, batch=True)
    assert ticket.worst == plain.ticket("s", CHAT, 300).worst / 2
    batch.settle(ticket, (1000, 1000))
    assert batch.total("cost") == plain.total("cost") / 2 == (2.5 + 10) / 1000 / 2


def test_a_lost_call_counts_against_the_budget():
    worst = Ledger("gpt-4o").ticket("s", CHAT, 300).worst
    ledger = Ledger("gpt-4o", budget=2.5 * worst)
    ledger.release(ledger.reserve("s", CHAT, 300))
    ledger.release(ledger.reserve("s", CHAT, 300), lost=False)
    ledger.release(ledger.reserve("s", CHAT, 300))
    with pytest.raises(BudgetReached, match="0 questions are answered"): ledger.reserve("s", CHAT, 300)
    assert ledger.total("unknown") == 2 and ledger.total("cost") == 0 and ledger.total("cost_at_most") == pytest.approx(2 * worst)


def test_what_is_open_is_said_by_those_who_know():
    reached = BudgetReached(1, 1, 5)
    reached.open = 1200
    assert "5 questions are answered, 1,200 are open" in str(reached)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, .05), st.integers(1, 16), st.integers(0, 2**32))
def test_no_order_of_calls_exceeds_the_budget(budget, concurrency, seed):
    rng, ledger, flying, made = random.Random(seed), Ledger("gpt-4o", read_prices(), budget), [], 0
    for _ in range(200):
        try: flying.append(ledger.reserve("s", CHAT, 300)); made += 1
        except BudgetReached as reached: assert reached.in_flight == len(flying)
        if flying and (len(flying) >= concurrency or rng.random() < .5):
            ticket = flying.pop(rng.randrange(len(flying)))
            rng.choice([lambda: ledger.settle(ticket, (rng.randint(1, 22), rng.randint(1, 300))), lambda: ledger.settle(ticket), lambda: ledger.release(ticket)])()
        assert ledger.total("cost_at_most") + ledger.budget.held <= budget * (1 + 1e-9)
    assert made == ledger.total("calls") + ledger.total("unknown") + len(flying)


def test_threads_share_a_ledger():
    ledger = Ledger("gpt-4o", budget=100)
    def work():
        for _ in range(200): ledger.settle(ledger.reserve("s", CHAT, 300), (10, 5))
    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert ledger.total("calls") == 1600 and ledger.total("prompt_tokens") == 16000 and ledger.budget.held == 0 and not ledger.budget.flying


def test_fifty_thousand_calls_may_be_held_at_once():
    ledger, start = Ledger("gpt-4o", budget=1e6), time.perf_counter()
    tickets = [ledger.reserve("s", CHAT, 300, batch=True) for _ in range(50_000)]
    for ticket in tickets: ledger.settle(ticket, (10, 5))
    assert time.perf_counter() - start < 10 and ledger.total("calls") == 50_000
