"""Evaluation through an OpenAI-compatible server: what it is asked, and what is made of its replies."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.evaluate.benchmarks import load
from recipe.flowrl.evaluate.generation import Completion, Request, Sampling
from recipe.flowrl.evaluate.server import ServerEngine
from recipe.flowrl.tasks.parquet import prompt_row, write_rows


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The directory of a benchmark of four problems."""
    directory = tmp_path / "data"
    rows = [prompt_row("amc23", "math", f"{index}+1", str(index + 1), index, "test") for index in range(4)]
    write_rows(directory / "test_amc23.parquet", rows)
    return directory


class _Server(BaseHTTPRequestHandler):
    """OpenAI's interface as far as it is used; says what it was asked."""

    owner = "vllm"
    reason = "stop"

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "m", "object": "model", "created": 0, "owned_by": self.owner}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        message = {"role": "assistant", "content": json.dumps(asked)}
        choice = {"index": 0, "finish_reason": self.reason, "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 7, "total_tokens": 8}
        self._reply(
            {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}
        )

    def _reply(self, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing to say."""


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Server]]]:
    handler = type("Handler", (_Server,), {})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1", handler
    http.shutdown()


def ask(url: str, data: Path) -> list[tuple[Request, Completion]]:
    problems = load("math", ("amc23",), data)[0].problems
    requests = [Request(problem, sample, 100 + sample) for problem in problems for sample in range(2)]
    return list(ServerEngine(url, "m", 4).generate(requests, Sampling(0.6, 0.95, 50)))


def test_what_a_server_is_asked(server: tuple[str, type[_Server]], data: Path) -> None:
    """Each sample with its seed; and a model's own sampling defaults are switched off."""
    replies = ask(server[0], data)
    assert len(replies) == 8
    for request, completion in replies:
        assert completion.tokens == 7 and completion.finish_reason == "stop"
        assert json.loads(completion.text) == {
            "model": "m",
            "messages": [{"role": "user", "content": request.problem.prompt}],
            "temperature": 0.6,
            "top_p": 0.95,
            "max_tokens": 50,
            "seed": request.seed,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }


def test_fields_that_only_some_servers_know(server: tuple[str, type[_Server]], data: Path) -> None:
    server[1].owner = "somebody"
    assert "top_k" not in json.loads(ask(server[0], data)[0][1].text)


def test_a_response_that_was_filtered_is_an_error(server: tuple[str, type[_Server]], data: Path) -> None:
    server[1].reason = "content_filter"
    with pytest.raises(UserError, match="content_filter"):
        ask(server[0], data)


def test_a_server_without_the_model(server: tuple[str, type[_Server]]) -> None:
    with pytest.raises(UserError, match="model=other: not on .* which has m"):
        ServerEngine(server[0], "other", 1)


def test_no_server() -> None:
    with pytest.raises(UserError, match="APIConnectionError"):
        ServerEngine("http://127.0.0.1:9/v1", "m", 1)


def test_the_command(server: tuple[str, type[_Server]], data: Path, tmp_path: Path, capfd: Any) -> None:
    places = [f"data={data}", f"out={tmp_path / 'out'}"]
    arguments = ["evaluate", "model=m", "suite=math", "benchmarks=amc23", *places, "n=2"]
    assert main([*arguments, f"server={server[0]}"]) == 0
    assert "amc23" in capfd.readouterr().out
    assert main([*arguments, f"server={server[0]}", "n=3"]) == 2
    assert "another protocol (n: 2 there, 3 now)" in capfd.readouterr().err
