"""A small upstream that notes every request it gets, and dies or says nothing when it is told to.

`upstream.py NAME PORT LOG`: the log is shared by all upstreams, a line of JSON for each request.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Upstream(BaseHTTPRequestHandler):
    """Answers everything with what it was asked; /v1/die ends the process of the upstream called `a`."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Note the request first: what is not noted was not sent."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        asked = {"upstream": NAME, "method": self.command, "path": self.path, "headers": headers, "bytes": len(body)}
        with LOG.open("a") as log:
            log.write(json.dumps(asked) + "\n")
        if self.path.startswith("/v1/die") and NAME == "a":
            os._exit(1)
        if self.path.startswith("/v1/silence") and NAME == "a":
            threading.Event().wait()
        if self.path == "/v1/seen":
            said = ("[" + ",".join(LOG.read_text().splitlines()) + "]").encode()
        else:
            said = json.dumps(asked).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Request-Id", "from-the-upstream")
        self.end_headers()
        self.wfile.write(said)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815 - http.server's names

    def log_message(self, *_: object) -> None:
        """The shared log says enough."""


NAME, PORT, LOG = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
ThreadingHTTPServer(("127.0.0.1", PORT), Upstream).serve_forever()
