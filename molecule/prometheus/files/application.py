"""A small application to watch, and what Alertmanager sends its alerts to.

It serves on 127.0.0.1:8080 what the file named says (metrics), and writes each alert it is sent into the other file.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Application(BaseHTTPRequestHandler):
    """GET: the metrics. POST: an alert, kept with the token it came with."""

    def do_GET(self) -> None:
        said = METRICS.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with ALERTS.open("a") as alerts:
            alerts.write(f"{self.headers['Authorization']} {body}\n")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


METRICS, ALERTS = Path(sys.argv[1]), Path(sys.argv[2])
ThreadingHTTPServer(("127.0.0.1", 8080), Application).serve_forever()
