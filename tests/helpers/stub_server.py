"""A small server of the OpenAI API, in the standard library only: what it answers and how fast is told by a test."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "minillm/serve/page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"


class Stub:
    """Answers with `deltas`, each a chunk's delta or {"pause": seconds}; `key` is asked for if it is given. `requests`
    are the bodies that came. A delta {"status": N} refuses, {"error": text} ends the stream with an error."""

    def __init__(self, deltas: list[dict[str, Any]] | None = None, key: str = ""):
        self.deltas = deltas if deltas is not None else [{"content": "Hello"}, {"content": " there."}]
        self.key, self.requests, self.closed, self.prompt_tokens = key, [], 0, 7  # type: ignore[var-annotated]
        self.usage = True
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def _send(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.send_header("content-security-policy", POLICY)
                self.end_headers()
                self.wfile.write(body)

            def _refuse(self, status: int, message: str) -> None:
                error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
                self._send(status, "application/json", json.dumps({"error": error}).encode())

            def _refused(self) -> bool:
                if stub.key and self.headers.get("authorization") != f"Bearer {stub.key}":
                    self._refuse(401, "a key is needed")
                    return True
                return False

            def do_GET(self) -> None:
                path = "/page/index.html" if self.path == "/" else self.path
                file = PAGE / path.removeprefix("/page/")
                if path.startswith("/page/") and file.is_file():
                    self._send(200, KINDS[file.suffix], file.read_bytes())
                elif not self._refused():
                    models = {"object": "list", "data": [{"id": "stub", "object": "model"}, {"id": "other"}]}
                    self._send(200, "application/json", json.dumps(models).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self._refused():
                    return
                stub.requests.append(body)
                status = next((delta["status"] for delta in stub.deltas if "status" in delta), None)
                if status:
                    return self._refuse(status, "not now")
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.end_headers()
                try:
                    stub.stream(body, self)
                except OSError:
                    stub.closed += 1

        return Handler

    def stream(self, body: dict[str, Any], handler: BaseHTTPRequestHandler) -> None:
        def send(data: Any) -> None:
            handler.wfile.write(f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode())

        def chunk(choices: list[Any], **more: Any) -> dict[str, Any]:
            kind = "chat.completion.chunk"
            return {"id": "c", "object": kind, "created": 1, "model": body["model"], "choices": choices, **more}

        handler.wfile.write(b": keep-alive\n\n")
        send(chunk([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]))
        count = 0
        for delta in self.deltas:
            if "pause" in delta:
                time.sleep(delta["pause"])
            elif "error" in delta:
                return send({"error": {"message": delta["error"], "type": "server_error"}})
            else:
                count += 1
                choice = {"index": 0, "delta": delta, "finish_reason": None}
                if body.get("logprobs") and "content" in delta:
                    top = [{"token": delta["content"], "logprob": -0.1}, {"token": "<b>x", "logprob": -2.5}]
                    choice["logprobs"] = {"content": [{**top[0], "bytes": None, "top_logprobs": top}]}
                send(chunk([choice]))
        calls = any("tool_calls" in delta for delta in self.deltas)
        send(chunk([{"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}]))
        if self.usage and body.get("stream_options", {}).get("include_usage"):
            usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": count}
            send(chunk([], usage={**usage, "total_tokens": count + self.prompt_tokens}))
        send("[DONE]")
