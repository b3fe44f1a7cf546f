"The language model behind a server that we did not write: LiteLLM's proxy with canned answers"
import os, socket, subprocess, time
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from datadesc.describe import describe
from datadesc.llm import LLM, LLMError
from llm_server import surroundings

LITELLM = os.environ.get("DATADESC_LITELLM")
KEY = "sk-master-0123456789"
pytestmark = pytest.mark.skipif(not LITELLM, reason="DATADESC_LITELLM is not set to LiteLLM's command: pip install 'litellm[proxy]' in an environment of its own, then DATADESC_LITELLM=<that>/bin/litellm")

MODELS = """model_list:
- {model_name: parts, litellm_params: {model: openai/parts, api_key: none, mock_response: "- wings\\n- beak\\n- crown\\n- tail\\n- legs"}}
- {model_name: crowded, litellm_params: {model: openai/crowded, api_key: none, mock_response: litellm.RateLimitError}}
- {model_name: broken, litellm_params: {model: openai/broken, api_key: none, mock_response: litellm.InternalServerError}}
- {model_name: overlong, litellm_params: {model: openai/overlong, api_key: none, mock_response: litellm.ContextWindowExceededError}}
"""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    "The proxy's address, ending in /v1"
    folder = tmp_path_factory.mktemp("litellm")
    (folder/"models.yaml").write_text(MODELS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"LITELLM_MASTER_KEY": KEY, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [LITELLM, "--config", "models.yaml", "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    with open(folder/"log", "w") as log: process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            try: urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5); break
            except (URLError, ConnectionError): time.sleep(.2)
            assert process.poll() is None, (folder/"log").read_text()[-2000:]
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(autouse=True)
def key(monkeypatch, surroundings): monkeypatch.setenv("OPENAI_API_KEY", KEY)


def test_classes_are_described(proxy):
    llm = LLM("parts", proxy, concurrency=32)
    table = describe(["robin", "crane"], llm, "bird", knowledge="none", samples=2)
    assert list(table["component"].unique()) == ["wings", "beak", "crown", "tail", "legs"] and len(table) == 20 and set(table["source"]) == {"parts"}
    counts = llm.costs.table().set_index("stage").loc["total"]
    assert counts["calls"] == 21 and counts["lost"] == 0 and counts["prompt_tokens"] > 0 and not counts["estimated"]
    assert describe(["robin", "crane"], LLM("parts"), "bird", knowledge="none", samples=2).equals(table)


@pytest.mark.parametrize("model, key, message", [("crowded", KEY, "busy or your quota is used up .429."), ("broken", KEY, "mock internal server error"), ("overlong", KEY, "context window"),
    ("nobody", KEY, "refused .400.: .*nobody"), ("parts", "sk-wrong-0123456789", "failed|refused .40[01].")])
def test_what_fails_is_explained(proxy, monkeypatch, model, key, message):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    llm = LLM(model, proxy, max_retries=0)
    with pytest.raises(LLMError, match=message) as caught: llm.ask([llm.request([("user", "parts?")])])
    print(caught.value)
    assert key not in str(caught.value) and [*llm.cache.rows()] == []
