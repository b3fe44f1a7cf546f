"A server on loopback that speaks the OpenAI chat protocol, and fails in the ways that real ones do"
import json
import sys
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    "No key, no address and no proxy from outside, a store of its own, and tries and looks that follow each other quickly"
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATADESC_STORE", str(tmp_path/"store"))
    for name in ("_PAUSE", "_MOMENT"): monkeypatch.setattr(f"datadesc.llm.{name}", .01)


def completion(content, finish_reason="stop", **message):
    "The JSON of a reply that says `content`"
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": finish_reason, "message": {"role": "assistant", "content": content} | message}]}


def stalls(seconds):
    "A reply that begins only when nobody waits for it any more"
    def reply(handler): time.sleep(seconds)
    return reply

def drips(seconds, pause=.05):
    "A reply that comes byte by byte: never silent for long, and never over"
    def reply(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")
        for _ in range(int(seconds / pause)):
            time.sleep(pause)
            handler.wfile.write(b" ")
            handler.wfile.flush()
        handler.close_connection = True
    return reply

def cut(handler):
    "Half a reply, then the end of the connection"
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"choices": [{"mess')
    handler.close_connection = True

def body(text, status=200, content_type="application/json"):
    "A reply with a body that no JSON need be"
    def reply(handler):
        handler.send_response(status)
        for header in (("Content-Type", content_type), ("Content-Length", str(len(text.encode())))): handler.send_header(*header)
        handler.end_headers()
        handler.wfile.write(text.encode())
    return reply


@contextmanager
def llm_server(
    answer, # function of the posted chat (its JSON) to: text, the JSON of a reply, (status, JSON, headers), or a function that writes to the connection
):
    "The server's address, ending in /v1; `.chats` and `.headers` of the second value hold what came in"
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_POST(self):
            posted = self.rfile.read(int(self.headers["Content-Length"]))
            if len(posted) < int(self.headers["Content-Length"]): raise ConnectionError("the client was killed")
            chat = json.loads(posted)
            server.chats.append(chat)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            reply = answer(chat)
            if callable(reply): return reply(self)
            status, reply, headers = reply if isinstance(reply, tuple) else (200, reply, {})
            body = (json.dumps(completion(reply) if isinstance(reply, str) else reply)).encode()
            self.send_response(status)
            for header in ({"Content-Type": "application/json", "Content-Length": str(len(body))} | headers).items(): self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args): pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128 # many may knock at once
        def handle_error(self, request, client_address):
            "A client that has hung up, as those do whose time is over, is no error; what is one goes to stderr, where a later test may be listening"
            if not isinstance(sys.exception(), ConnectionError): super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.chats, server.headers = True, [], []
    Thread(target=server.serve_forever, args=[.02], daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/v1", server
    finally: server.shutdown(); server.server_close()
