"Servers with habits of their own, as users met them: each either gets its classes described or is quoted in one line"
import json
import time

import pytest

from datadesc.describe import describe
from datadesc.llm import LLM, LLMError
from llm_server import body, completion, llm_server, surroundings

CLASSES = ["cat", "dog", "bird"]


def good(chat):
    "A list of parts, or a line that differs for each class and part"
    last = chat["messages"][-1]["content"]
    if "Part: " not in last: return "- head\n- tail\n- coat"
    part, subject = (last.split(f"{label}: ")[1].split("\n")[0] for label in ("Part", "Subject"))
    place = CLASSES.index(subject) * 3 + ["head", "tail", "coat"].index(part)
    return ["dark round", "pale thin", "striped short", "dotted broad", "glossy long", "grey bushy", "white small", "golden forked", "soft speckled"][place] + f" {part} with fine hairs"

def refuses(name, reply):
    "A server that takes no question with that parameter"
    return lambda chat: reply if name in chat else good(chat)

def error(status, message, **more): return status, {"error": {"message": message} | more}, {}

def busy(headers):
    "A server that is busy three times"
    seen = []
    return lambda chat: good(chat) if len(seen) > 2 or seen.append(1) else (429, {"error": {"message": "Rate limit"}}, headers)

def thinks(chat):
    "A model that needs room for its thought"
    return completion(good(chat) if chat.get("max_tokens", 0) >= 1500 else "", "stop" if chat.get("max_tokens", 0) >= 1500 else "length", reasoning_content="Hmm, the user wants ..." * 50)

def either(parts, look):
    "Answers by stage; {} in the look is what a good model says"
    return lambda chat: parts if "Part: " not in chat["messages"][-1]["content"] else look.replace("{}", good(chat))


DETAIL = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 0}]}
DESCRIBED = {
    "good": good,
    "schema is unavailable": refuses("response_format", error(400, "This response_format type is unavailable now", param=None)),
    "schema, as text with 422": refuses("response_format", body("Failed to deserialize the JSON body: response_format.type `json_schema` is unavailable now", 422, "text/plain")),
    "schema, in other words": refuses("response_format", error(400, "This model does not support response format `json_schema`.")),
    "schema, unwrapped": refuses("response_format", (400, {"object": "error", "message": "response_format is not supported by this server", "code": 400}, {})),
    "schema, without a word": refuses("response_format", body("", 400, "text/plain")),
    "schema, not found": refuses("response_format", error(404, "No endpoints found that can handle the requested parameters.")),
    "schema, server error": refuses("response_format", error(500, "failed to parse json_schema")),
    "seed, nested": refuses("seed", (422, {"object": "error", "message": DETAIL}, {})),
    "seed, detail": refuses("seed", (422, DETAIL, {})),
    "seed, raw": refuses("seed", body("Bad request: unsupported parameter `seed`", 400, "text/plain")),
    "seed, in another language": refuses("seed", error(400, "不支持的参数")),
    "temperature": lambda chat: error(400, "invalid temperature: only 1 is allowed for this model") if chat.get("temperature") not in (None, 1) else good(chat),
    "everything, without a name": lambda chat: error(400, "Bad request") if chat.keys() & {"seed", "temperature", "response_format"} else good(chat),
    "parts of content": lambda chat: completion([{"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]}, {"type": "text", "text": good(chat)}]),
    "thought in tags": lambda chat: "<think>\nThe user wants parts: ears, nose.\n- ears\n</think>\n\n" + good(chat),
    "thought in brackets": lambda chat: "[THINK]Parts? - ears[/THINK]" + good(chat),
    "thought needs room": thinks,
    "answer in place of the thought": lambda chat: completion(None, "stop", reasoning_content=good(chat)),
    "waits in milliseconds": busy({"retry-after-ms": "150"}),
    "waits in words": busy({"Retry-After": "0.1s"}),
    "numbered and chatty": either("Sure! Here are three visible parts:\n\n1. **Head**\n   The head is round.\n\n2. **Tail**\n   Bushy.\n\n3. **Coat**\n   Fluffy.\n\nLet me know!",
                                  "**Look:** {}\n\n*(Note: this is a general description.)*"),
    "broken JSON": either("```json\n{'parts': ['head', 'tail', 'coat',],}\n```", '{"description": "{}",}'),
    "dollars and markup": either("- head\n- tail\n- coat", "worth $5 to $10, <b>bold</b> | pipe \\frac{1}{2} {}"),
}


@pytest.mark.parametrize("mode", DESCRIBED)
def test_every_class_is_described(mode):
    with llm_server(DESCRIBED[mode]) as (url, server):
        llm = LLM("m", url)
        pool = describe(CLASSES, llm, knowledge="none", progress=False)
    assert set(pool[pool.flag == ""].class_id) == {0, 1, 2}, pool
    assert set(pool.component) == {"head", "tail", "coat"} and pool[pool.flag == ""].text.str.contains("hairs").all()
    assert not pool.text.str.contains("ears, nose|Let me|user wants|Look:|Note").any()


@pytest.mark.parametrize("parts, look", [("当然！以下是主要部分：\n1、头部\n2、尾巴\n3、皮毛", "深色的短毛，带有白色斑点"), ("بالتأكيد:\n١. الرأس\n٢. الذيل\n٣. الفراء", "فراء داكن قصير مع بقع بيضاء")])
def test_a_model_of_another_language_describes_the_parts_that_it_named(parts, look):
    with llm_server(lambda chat: parts if "Part: " not in chat["messages"][-1]["content"] else look) as (url, server):
        pool = describe(CLASSES, LLM("m", url), knowledge="none", progress=False)
    assert set(pool.class_id) == {0, 1, 2} and pool.component.nunique() == 3 and set(pool.text) == {look}
    assert set(pool[pool.flag == ""].class_id) == {0, 1, 2}


def test_what_a_server_takes_is_remembered():
    with llm_server(DESCRIBED["everything, without a name"]) as (url, server):
        llm = LLM("m", url)
        describe(CLASSES, llm, knowledge="none", progress=False)
        assert len(server.chats) == 12 + 4 and llm.refused == {"seed", "temperature", "response_format"}


def test_a_class_that_the_filter_withholds_is_the_only_one_without_a_sentence():
    with llm_server(lambda chat: completion("", "content_filter") if "dog" in chat["messages"][-1]["content"] else good(chat)) as (url, server):
        pool = describe(CLASSES, LLM("m", url), knowledge="none", progress=False)
    assert set(pool[pool.flag == ""].class_id) == {0, 2} and set(pool[pool.class_id == 1].flag) == {"not described"}


SAID = {
    "wrong type": (error(400, "json: cannot unmarshal object into Go struct field .seed"), "refused .400.: json: cannot unmarshal object into Go struct field .seed"),
    "wants another parameter": (error(400, "parameter.enable_thinking must be set to false for non-streaming calls"), "enable_thinking must be set to false"),
    "region": (error(403, "Country, region, or territory not supported"), "refused .403.: Country, region, or territory not supported"),
    "moderation": (error(403, "Your chosen model requires moderation and your input was flagged", code=403), "your input was flagged"),
    "unpaid": (error(402, "Insufficient Balance"), "refused .402.: Insufficient Balance Pay, or take another server"),
    "context": (error(400, "This model's maximum context length is 256 tokens.", code="context_length_exceeded"), "maximum context length is 256 tokens"),
    "error with 200": ((200, {"error": {"message": "Provider returned error", "code": 502}}, {}), "Provider returned error"),
    "sign-in page": (body("<!DOCTYPE html><html><head><title>Sign in to Corp Proxy</title></head><body>Please sign in</body></html>", 200, "text/html"),
                     "Sign in to Corp Proxy Please sign in.*check the address"),
    "blocked page": (body("<html><head><title>403 Forbidden</title></head><body>Sorry, you have been blocked</body></html>", 403, "text/html"), "Sorry, you have been blocked"),
    "stream": (body('data: {"choices": [{"delta": {"content": "hi"}}]}\n\ndata: [DONE]\n\n', 200, "text/event-stream"), "as an OpenAI-compatible server would"),
    "wrong endpoint": ((200, {"error": "Unexpected endpoint or method. (POST /chat/completions)"}, {}), "Unexpected endpoint or method"),
    "no such model": (error(404, 'model "llama9" not found, try pulling it first'), 'model "llama9" not found, try pulling it first Check --llm-model'),
    "used up for today": (error(429, "Rate limit exceeded: free-models-per-day. Add credits to unlock"), "free-models-per-day. Add credits to unlock"),
    "thought without an end": (completion("<think>\nThe user wants parts: ears, nose.\n- ears and so on", "length"), "spent 2,400 tokens without an answer: allow more with -p llm_max_tokens"),
    "nothing listed": ("I would rather talk about the weather.", "cat.*weather")}

@pytest.mark.parametrize("mode", SAID)
def test_what_cannot_be_asked_is_said_in_the_servers_words_and_once(monkeypatch, mode):
    reply, words = SAID[mode]
    monkeypatch.setattr("datadesc.llm._PATIENCE", 1.)
    start = time.monotonic()
    with llm_server(lambda chat: reply) as (url, server), pytest.raises(LLMError, match=words) as caught:
        describe(CLASSES, LLM("m", url, max_retries=2), knowledge="none", progress=False)
    assert len(str(caught.value).splitlines()) <= 2 and len(str(caught.value)) < 700 and time.monotonic() - start < 8
    assert "key" not in str(caught.value).lower() or "OPENAI_API_KEY is not set" in str(caught.value)


def test_more_that_a_server_wants_is_sent():
    def qwen(chat): return good(chat) if chat.get("enable_thinking") is False else error(400, "parameter.enable_thinking must be set to false for non-streaming calls")
    with llm_server(qwen) as (url, server):
        assert len(describe(CLASSES, LLM("m", url, extra={"enable_thinking": False}), knowledge="none", progress=False)) == 9
