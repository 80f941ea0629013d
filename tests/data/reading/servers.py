"""A web server of a folder that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Answer:
    """What a request gets.

    Attributes:
        content: of the whole file.
        status: other than 200 or 206 ends it.
        headers: further ones.
        sent: bytes of the body that are sent before the connection is closed; None = all.
    """

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None


@dataclass
class Server:
    """Its address, and how often it was asked for what from which byte on."""

    url: str
    asked: Counter[tuple[str, int]]


Behave = Callable[[str, int, int], Answer | None]
"""(file, first byte, how often this file was asked for before) -> another answer than the file, or None."""


@contextlib.contextmanager
def serving(folder: Path, behave: Behave = lambda name, start, before: None) -> Iterator[Server]:
    """Serve a folder with ranges."""
    asked: Counter[tuple[str, int]] = Counter()
    times: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
            answer = behave(name, start, times[name])
            times[name] += 1
            asked[name, start] += 1
            if answer is None:
                path = folder / name
                answer = Answer(path.read_bytes()) if path.is_file() else Answer(status=404)
            body = answer.content[start:]
            self.send_response(206 if start and answer.status == 200 else answer.status)
            self.send_header("Content-Length", str(len(body)))
            for key, value in answer.headers.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body[: answer.sent])

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
