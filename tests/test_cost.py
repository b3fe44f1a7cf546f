"Money: price tables that people write, and a budget that no order of calls exceeds"
import asyncio
import random

import pytest
from hypothesis import given, settings, strategies as st

from datadesc.llm import LLM, BudgetReached, _Costs, _read_prices

PRICE = {"input": 2.5, "cached": 1.25, "output": 10}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path): monkeypatch.setenv("DATADESC_STORE", str(tmp_path/"store"))


def price(name, table=None): return LLM(name, prices=table).costs.price


def test_every_packaged_price_is_complete():
    prices = _read_prices()
    assert len(prices) > 40
    for row in prices.values():
        assert 0 < row["cached"] <= row["input"] <= row["output"] and row["source"] and len(row["as_of"]) == 10 and len(row["shut_down"]) in (0, 10)


@pytest.mark.parametrize("name, family", [
    ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"), ("claude-haiku-4-5-20251001", "claude-haiku-4-5"), ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
    ("gpt-4-0613", "gpt-4"), ("gpt-5.4-latest", "gpt-5.4")])
def test_a_dated_name_has_its_familys_price(name, family): assert price(name) == price(family) is not None


@pytest.mark.parametrize("name", ["gpt-4o-mini-tuned", "gpt", "", "openai/gpt-4o", "GPT-4o", "2024-07-18"])
def test_an_unknown_name_has_none(name): assert price(name) is None


def test_the_stores_own_table_counts_unless_another_is_named(tmp_path):
    (tmp_path/"store").mkdir()
    (tmp_path/"store"/"prices.csv").write_bytes("\ufeffmodel, input , output\nmine, 0, 0\ngpt-4o,9,9\n".encode())
    (tmp_path/"other.csv").write_text("model;input;output;cached\nmine;1;2;.5\n")
    both = lambda row: (row["input"], row["cached"], row["output"])
    assert both(price("mine")) == (0, 0, 0) and both(price("gpt-4o")) == (9, 9, 9)
    assert both(price("mine", tmp_path/"other.csv")) == (1, .5, 2) and both(price("gpt-4o", tmp_path/"other.csv")) == (2.5, 1.25, 10)
    assert "$0 a million sent, $0 a million received (your own price table)" in LLM("mine").price_basis()


@pytest.mark.parametrize("text, message", [
    ("", "No column 'model'"), ("model,costs\na,1\n", "No column 'input'"), ("model,input,output\na,1\n", "Line 2 .* has 2 cells"),
    ("model,input,output\na,1,\n", "Line 2 .*model 'a': expected dollars"), ("model,input,output\nb,1,1\na,-1,2\n", "Line 3 .*model 'a': expected dollars"),
    ("model,input,output\na,nan,2\n", "expected dollars"), ("model,input,output\na,inf,2\n", "expected dollars"),
    ("model,input,output,cached\na,1,2,half\n", "expected dollars")])
def test_a_wrong_price_table_is_named(tmp_path, text, message):
    (tmp_path/"prices.csv").write_text(text)
    with pytest.raises(ValueError, match=message) as caught: _read_prices(tmp_path/"prices.csv")
    assert "prices.csv" in str(caught.value)


def test_a_missing_price_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="No price table .*none.csv"): LLM("m", prices=tmp_path/"none.csv")


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_is_dollars(budget):
    with pytest.raises(ValueError, match="expected dollars"): LLM("gpt-4o", budget=budget)


def test_a_budget_needs_a_price():
    with pytest.raises(ValueError, match="A budget needs a price.*'mine'.*prices.csv.*model,input,output"): LLM("mine", budget=1)


def test_a_model_without_price_is_counted_and_costs_nan():
    llm = LLM("mine")
    llm.costs.book("s", 10, 5)
    assert llm.costs.table()["cost"].isna().all() and llm.costs.total("prompt_tokens") == 10
    assert "$" not in llm.cost_estimate() and "price is unknown" in llm.cost_estimate()


def test_an_empty_account_has_a_total():
    assert _Costs(PRICE).table()[["stage", "calls", "cost"]].values.tolist() == [["total", 0, 0]]


def test_cached_tokens_cost_what_they_cost():
    costs = _Costs(PRICE)
    costs.book("s", 1000, 100, 800)
    assert costs.total("cost") == pytest.approx((200 * 2.5 + 800 * 1.25 + 100 * 10) / 1e6) and costs.total("cached_tokens") == 800


def call(costs, seconds=0, **reply):
    async def main():
        async with costs.call("s", 20, 300) as booked:
            await asyncio.sleep(seconds)
            if "error" in reply: raise reply["error"]
            booked.update(reply)
    return main()


def lost(is_lost):
    error = OSError("the line broke")
    error.lost = is_lost
    return error


def test_a_lost_call_counts_against_the_budget():
    worst = _Costs(PRICE).dollars(40, 300)
    costs = _Costs(PRICE, budget=2.5 * worst)
    for is_lost in (True, False, True):
        with pytest.raises(OSError): asyncio.run(call(costs, error=lost(is_lost)))
    with pytest.raises(BudgetReached, match="of the budget of"): asyncio.run(call(costs, answer="x"))
    assert costs.total("lost") == 2 and costs.total("cost") == 0 and costs.total("cost_at_most") == pytest.approx(2 * worst)


def test_a_budget_of_nothing_asks_nothing_that_costs():
    asyncio.run(call(_Costs(dict.fromkeys(PRICE, 0), budget=0), answer="free"))
    with pytest.raises(BudgetReached): asyncio.run(call(_Costs(PRICE, budget=0), answer="x"))


@settings(max_examples=25, deadline=None)
@given(st.floats(0, .05), st.integers(1, 16), st.integers(0, 2**32))
def test_no_order_of_calls_exceeds_the_budget(budget, concurrency, seed):
    rng, costs, ends = random.Random(seed), _Costs(PRICE, budget), []
    replies = [dict(usage=(20, 300, 0)), dict(usage=(20, 5, 10)), dict(answer="some words"), dict(error=lost(True)), dict(error=lost(False))]
    async def work():
        for _ in range(15):
            try: await call(costs, rng.choice([0, 0, .001]), **rng.choice(replies))
            except OSError: pass
            except BudgetReached: ends.append(1); return
            assert costs.total("cost_at_most") + sum(costs.held) <= budget * (1 + 1e-9)
    async def main(): await asyncio.gather(*(work() for _ in range(concurrency)))
    asyncio.run(main())
    assert costs.held == [] and costs.total("cost_at_most") <= budget * (1 + 1e-9) and (ends or costs.total("calls"))
