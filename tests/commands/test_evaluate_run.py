"""``python -m recipe.flowrl evaluate`` with the real vLLM: killed and resumed, against a server."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("FLOWRL_CACHE", "~/.cache/flowrl")).expanduser()
MODEL = CACHE / "tiny_qwen2"
SETTINGS = ["suite=countdown", "n=4", "problems=48", "temperature=1.0", "engine.max_num_seqs=16"]


def command(out: Path, model: Path = MODEL, *settings: str) -> list[str]:
    return [sys.executable, "-m", "recipe.flowrl", "evaluate", f"model={model}", f"out={out}", *(settings or SETTINGS)]


def evaluated(*arguments: object) -> dict:
    """The summary of an evaluation that must succeed."""
    done = subprocess.run(
        command(*arguments), cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=300
    )
    assert done.returncode == 0, done.stdout
    return json.loads((arguments[0] / "summary.json").read_text())


def samples(out: Path) -> dict[tuple[str, int], str]:
    with gzip.open(out / "countdown" / "samples.jsonl.gz", "rt") as file:
        records = [json.loads(line) for line in file]
    return {(record["problem"], record["sample"]): record["response"] for record in records}


@pytest.fixture(scope="module")
def whole(prepared: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    evaluated(out)
    return out


def test_numbers(whole: Path) -> None:
    """The base policy solves about a fifth; its answers are nearly always expressions."""
    summary = json.loads((whole / "summary.json").read_text())
    found = summary["benchmarks"]["countdown"]
    assert found["problems"] == 48 and len(samples(whole)) == 192
    assert 0.05 < found["avg_at_n"]["value"] < 0.5
    assert found["pass_at_k"]["4"]["value"] > found["pass_at_k"]["1"]["value"] == found["avg_at_n"]["value"]
    assert found["extraction_failed"] < 0.3 and found["grader_failed"] == 0.0
    assert 5 < found["mean_tokens"] < 32
    assert summary["protocol"]["engine"]["name"] == "vllm"
    assert len(set(samples(whole).values())) > 96, "each sample has a seed of its own"


def test_an_engine_setting_that_vllm_does_not_have(prepared: None, tmp_path: Path) -> None:
    done = subprocess.run(
        command(tmp_path, MODEL, "suite=countdown", "engine.max_num_seq=8"),
        cwd=PROJECT,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        timeout=120,
    )
    assert done.returncode == 2 and "engine.max_num_seq: not a setting of vLLM (did you mean" in done.stderr


def test_killed_and_resumed(whole: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path), cwd=PROJECT, stdout=subprocess.DEVNULL, start_new_session=True)
    file = tmp_path / "countdown" / "samples.jsonl.gz"
    deadline = time.monotonic() + 240
    while not file.is_file() or file.stat().st_size < 500:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = file.read_bytes()
    resumed = evaluated(tmp_path)
    assert len(kept) < len(file.read_bytes()), "it was killed before the end"
    assert file.read_bytes().startswith(kept[:400]), "what was there is kept"
    assert samples(tmp_path) == samples(whole)
    assert resumed["benchmarks"] == json.loads((whole / "summary.json").read_text())["benchmarks"]


@pytest.fixture(scope="module")
def server(prepared: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``vllm serve`` of the base policy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = "--served-model-name tiny --dtype float32 --enforce-eager --no-enable-chunked-prefill "
    flags += "--no-enable-prefix-caching --max-model-len 128 --max-num-batched-tokens 2048 --max-num-seqs 16 "
    flags += "--kv-cache-memory-bytes 67108864 --host 127.0.0.1"
    log = tmp_path_factory.mktemp("server") / "log.txt"
    serve = [Path(sys.executable).with_name("vllm"), "serve", MODEL, "--port", str(port), *flags.split()]
    with open(log, "w") as output:
        process = subprocess.Popen(serve, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def test_a_server_gives_the_samples_of_the_engine_here(server: str, whole: Path, tmp_path: Path) -> None:
    settings = [setting for setting in SETTINGS if not setting.startswith("engine.")]
    summary = evaluated(tmp_path, "tiny", *settings, f"server={server}", "concurrency=16")
    assert summary["protocol"]["engine"]["version"] == "vllm"
    here, there = samples(whole), samples(tmp_path)
    assert here.keys() == there.keys()
    assert sum(here[place] == there[place] for place in here) >= 0.98 * len(here)
