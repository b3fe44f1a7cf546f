"A server on loopback that answers like MediaWiki, and fails in the ways that Wikipedia, its caches and networks do"
import json
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    "No proxy from outside"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"): monkeypatch.delenv(name, raising=False)


def page(title, text="It is a thing.", revision=7, **more):
    "The JSON of a query for one page that exists"
    return json.dumps({"query": {"pages": {"1": {"pageid": 1, "ns": 0, "title": title, "extract": text, "lastrevid": revision, "fullurl": f"http://wiki/{title}"} | more}}})


def api_error(code, info="no reason"):
    "The JSON of an error, which MediaWiki sends with status 200"
    return json.dumps({"error": {"code": code, "info": info}})


@contextmanager
def wiki_server(
    answer=lambda asked: page(asked["titles"]), # function of the query's parameters to: a body, (status, headers, body), or a function that writes to the handler
):
    "The address of the server's API; `.asked` of the second value holds the parameters, agent, login and path of every call"
    class Handler(BaseHTTPRequestHandler):
        protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
        def do_GET(self):
            url = urlsplit(self.path)
            server.asked.append({"path": url.path, "agent": self.headers["User-Agent"], "login": self.headers["Authorization"]} | {name: value[0] for name, value in parse_qs(url.query).items()})
            reply = answer(server.asked[-1])
            if callable(reply): self.close_connection = True; return reply(self)
            status, headers, body = reply if isinstance(reply, tuple) else (200, {}, reply)
            body = body.encode()
            self.send_response(status)
            for header in ({"Content-Length": str(len(body))} | headers).items(): self.send_header(*header)
            self.end_headers()
            self.wfile.write(body)
        def log_message(self, *args): pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request, client_address):
            "A client that has hung up is no error"
            if not isinstance(sys.exception(), ConnectionError): super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.asked = True, []
    Thread(target=server.serve_forever, kwargs={"poll_interval": .02}, daemon=True).start()
    try: yield f"http://127.0.0.1:{server.server_port}/api.php", server
    finally: server.shutdown(); server.server_close()
