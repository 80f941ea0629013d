"""As much of wandb's server as `wandb sync` asks for: it keeps the history of each run, line by line."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROJECT = {"id": "p", "name": "lowcomm", "entity": {"id": "e", "name": "me"}}
VIEWER = {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


class WandbServer:
    """Runs while it is used as a context manager.

    Attributes:
        history: run -> its lines by their offset; what is sent to an offset again replaces what was there.
    """

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: object) -> None:
                return None

            def answer(self, value: object) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def body(self) -> bytes:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

            def do_GET(self) -> None:
                self.answer({})

            def do_PUT(self) -> None:
                self.body()
                self.answer({})

            def do_POST(self) -> None:
                body = self.body()
                if self.path.endswith("file_stream"):
                    owner.take(self.path.split("/")[-2], json.loads(body))
                    self.answer({"limits": {}})
                elif self.path.endswith("graphql"):
                    asked = json.loads(body)
                    self.answer({"data": owner.graphql(asked["query"], asked.get("variables") or {})})
                else:
                    self.answer({})

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> WandbServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def take(self, run: str, sent: dict[str, Any]) -> None:
        part = (sent.get("files") or {}).get("wandb-history.jsonl")
        if part:
            lines = self.history.setdefault(run, {})
            lines.update({part["offset"] + i: json.loads(text) for i, text in enumerate(part["content"])})

    def graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name")
        if "upsertBucket" in query:
            bucket = {"id": "x", "name": name, "displayName": "d", "config": "{}", "sweepName": None}
            return {"upsertBucket": {"bucket": {**bucket, "project": PROJECT}, "inserted": True}}
        if "RunResumeStatus" in query:
            count = len(self.history.get(str(name), {}))
            tail = json.dumps([json.dumps({"_step": count - 1, "_runtime": 1})])
            bucket = {
                "id": "x", "name": name, "summaryMetrics": "{}", "displayName": "d", "logLineCount": 0,
                "historyLineCount": count, "eventsLineCount": 0, "historyTail": tail, "eventsTail": "[]",
                "config": "{}", "tags": [], "wandbConfig": '{"t": 1}',
            }  # fmt: skip
            return {"model": {**PROJECT, "bucket": bucket if count else None}}
        if "createRunFiles" in query:
            files = [
                {"name": f, "uploadUrl": f"{self.url}/{i}"} for i, f in enumerate(given.get("files", []))
            ]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        return {"viewer": VIEWER} if "Viewer" in query else {}
