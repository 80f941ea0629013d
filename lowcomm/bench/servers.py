"""A web server of a folder with ranges, over a link of a given rate that all connections share."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

from lowcomm.clock import SystemClock

PIECE_BYTES = 1 << 15


class LimitedServer:
    """Serves while it is entered.

    Attributes:
        url: its address.
    """

    def __init__(self, folder: Path, mbit_s: float) -> None:
        self._bytes_s, self._clock = mbit_s * 1e6 / 8, SystemClock()
        self._lock, self._pause = threading.Lock(), threading.Event()
        self._free_s = self._first_s = self._last_s = 0.0
        self._sent = 0
        limited = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = folder / self.path.lstrip("/")
                if not path.is_file():
                    self.send_error(404)
                    return
                asked = self.headers.get("Range", "bytes=0-")
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                content = path.read_bytes()[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                for at in range(0, len(content), PIECE_BYTES):
                    piece = content[at : at + PIECE_BYTES]
                    limited.carry(len(piece))
                    self.wfile.write(piece)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def carry(self, size: int) -> None:
        """Wait until the link has carried so many bytes."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            self._first_s = self._first_s or now_s
            self._free_s = max(now_s, self._free_s) + size / self._bytes_s
            self._last_s, self._sent = self._free_s, self._sent + size
            wait_s = self._free_s - now_s
        self._pause.wait(wait_s)

    def used_share(self) -> float:
        """Of what the link could have carried from the first byte to the last."""
        return self._sent / (self._bytes_s * (self._last_s - self._first_s))

    def __enter__(self) -> LimitedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
