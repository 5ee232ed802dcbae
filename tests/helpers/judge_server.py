"""A server that speaks the chat completions protocol, for tests: it groups solutions by their first word."""

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from recipe.flowrl.diversity.judge import score_of

Reply = tuple[int, Any]
"""Status, and the body: an object is sent as JSON, bytes as they are."""


@dataclass
class JudgeServer:
    """``url``; ``requests``: every body that came in. ``script`` answers request number i, or None: judge honestly."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    script: Callable[[int], Reply | None] = lambda number: None


def completion(content: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    """A completion that says ``content``, of 100 prompt and 10 completion tokens."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


def honest(body: dict[str, Any]) -> dict[str, Any]:
    """The verdict on a request: solutions that begin with the same word are one approach."""
    text = body["messages"][0]["content"]
    words = re.findall(r"# Solution \d+\n\n(\S+)", text)
    groups = [
        {"approach": word, "solutions": [i + 1 for i, other in enumerate(words) if other == word]}
        for word in Counter(words)
    ]
    score = score_of(max(Counter(words).values()), len(words))
    return completion(json.dumps({"groups": groups, "score": score}))


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """Serves on a free port until the block ends."""
    state, lock = JudgeServer(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.requests)
                state.requests.append(body)
                state.keys.append(self.headers["Authorization"])
            status, answer = state.script(number) or (200, honest(body))
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if status in (429, 500):
                self.send_header("retry-after-ms", "1")  # or the client's back-off would take seconds
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
