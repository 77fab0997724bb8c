"""As much of a W&B server as the client needs to log a run: it takes what is sent, and remembers it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORKING, REFUSING, SILENT = "working", "refusing", "silent"


class Server(ThreadingHTTPServer):
    """Listens on a free local port. ``mood`` can be changed while it runs."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, mood: str = WORKING):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.mood = mood
        self.queries: list[tuple[str, dict[str, Any]]] = []
        """GraphQL operations with their variables."""
        self.runs: set[str] = set()
        self.history: list[dict[str, Any]] = []
        """The rows that ``run.log`` made, of all runs."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        """Data for a GraphQL operation; None for one that this server doesn't have."""
        self.queries.append((operation, variables))
        if operation == "Viewer":
            me = {"id": "V", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": {"edges": []}}
            return {"viewer": me}
        if operation == "RunResumeStatus":
            if variables["name"] not in self.runs:
                return {"model": None}
            run = {
                "summaryMetrics": "{}",
                "config": "{}",
                "displayName": "",
                "notes": "",
                "wandbConfig": '{"t": {"1": []}}',
            }
            run |= {"logLineCount": 0, "eventsLineCount": 0, "eventsTail": "[]"}
            run |= {"historyLineCount": len(self.history), "historyTail": json.dumps([json.dumps(self.history[-1])])}
            return {"model": {"bucket": run, "entity": {"id": "E", "name": "me"}}}
        if operation == "UpsertBucket":
            project = {"id": "P", "name": "ilo", "entity": {"id": "E", "name": "me"}}
            name = variables["name"]
            self.runs.add(name)
            run = {"id": "R", "name": name, "displayName": name, "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "R", "uploadHeaders": [], "files": files}}
        if "spec" in variables:
            return {"upsertView": {"view": {"id": "W", "name": variables["name"]}, "inserted": True}}
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while self.server.mood == SILENT:
            time.sleep(0.1)
        status, answer = 200, {}
        if self.server.mood == REFUSING:
            status = 401
        elif self.path == "/graphql":
            query = json.loads(body)
            data = self.server.answer(query.get("operationName", ""), query.get("variables") or {})
            answer = {"data": data} if data is not None else {"data": None, "errors": [{"message": "not here"}]}
        elif self.path.endswith("/file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", ())
            self.server.history += [json.loads(line) for line in lines]
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _handle

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that gave up
            super().handle()

    def log_message(self, format: str, *arguments: Any) -> None: ...


@contextmanager
def serving(mood: str = WORKING) -> Iterator[Server]:
    """A running server."""
    with Server(mood) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.mood = WORKING
            server.shutdown()
