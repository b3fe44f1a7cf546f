"A server on loopback that speaks the OpenAI chat protocol, and fails in the ways that real ones do"
import json
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    "No key, no address and no proxy from outside, and a store of its own"
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATADESC_STORE", str(tmp_path/"store"))


def completion(content, finish_reason="stop", **message):
    "The JSON of a reply that says `content`"
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content} | message}]}


@contextmanager
def llm_server(
    answer, # function of the posted chat (its JSON) to: text, the JSON of a reply, or (status, JSON, headers)
):
    "The server's address, ending in /v1; `.chats` and `.headers` of the second value hold what came in"
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_POST(self):
            chat = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.chats.append(chat)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            reply = answer(chat)
            status, reply, headers = reply if isinstance(reply, tuple) else (200, reply, {})
            body = (json.dumps(completion(reply) if isinstance(reply, str) else reply)).encode()
            self.send_response(status)
            for header in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items(): self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args): pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            "A client that has hung up, as those do whose time is over, is no error; what is one goes to stderr, where a later test may be listening"
            if not isinstance(sys.exception(), ConnectionError): super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.chats, server.headers = True, [], []
    Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/v1", server
    finally: server.shutdown(); server.server_close()
