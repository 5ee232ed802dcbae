"""The measuring process of ``update_cost``: real actor workers of verl, made as the trainer makes them, without Ray."""

import gc
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.configuration import compose, environment
from benchmarks.workload import Workload

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def overrides(algo: str, workload: Workload, model: str) -> list[str]:
    """Of ``main_flowrl``: ``algo`` on the CPU cluster with this workload; a KL loss for GRPO, as verl's option is."""
    actor = "actor_rollout_ref.actor"
    return [
        f"algo={algo}",
        "cluster=cpu",
        f"actor_rollout_ref.model.path={model}",
        f"{actor}.ppo_mini_batch_size={workload.sequences}",
        f"{actor}.ppo_micro_batch_size_per_gpu={workload.micro_batch}",
        f"{actor}.optim.total_training_steps=1000",
        f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={workload.micro_batch}",
    ]


def measure(argument: dict[str, Any]) -> dict[str, Any]:
    """Time or memory of updates; ``argument``: kind, workload, model directory, and what the kind takes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    workload = Workload(**argument["workload"])
    if argument["kind"] == "time":
        return {"seconds": _times(workload, argument["model"], argument["order"], argument["warm_up"])}
    return _memory(workload, argument["model"], argument["algo"], argument["updates"])


def _times(workload: Workload, model: str, order: list[str], warm_up: int) -> list[float]:
    workers = {algo: _make_worker(algo, workload, model) for algo in dict.fromkeys(order)}
    for _ in range(warm_up):
        for worker in workers.values():
            _update(worker, workload)
    return [_update(workers[algo], workload) for algo in order]


def _memory(workload: Workload, model: str, algo: str, updates: int) -> dict[str, Any]:
    worker = _make_worker(algo, workload, model)
    gc.collect()
    loaded = psutil.Process().memory_info().rss
    peak_before = _peak_rss()
    CLEAR_REFS.write_text("5")  # starts the peak afresh (proc(5))
    for _ in range(updates):
        _update(worker, workload)
    peak = _peak_rss()
    return {"loaded_bytes": loaded, "update_peak_bytes": peak, "process_peak_bytes": max(peak, peak_before)}


def _make_worker(algo: str, workload: Workload, model: str) -> Any:
    config = compose(*overrides(algo, workload, model))
    os.environ |= environment(config)
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from recipe.flowrl.worker import FlowRLWorker

    worker_cls = ActorRolloutRefWorker if config.actor_rollout_ref.flowrl is None else FlowRLWorker
    worker = worker_cls(config.actor_rollout_ref, role="actor")
    worker.init_model()
    return worker


def _update(worker: Any, workload: Workload) -> float:
    """Seconds of one update, from the batch to its metrics."""
    from benchmarks.workload import make_batch

    batch = make_batch(workload)
    gc.collect()
    start = time.perf_counter()
    worker.update_actor(batch)
    return time.perf_counter() - start


def _peak_rss() -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no VmHWM: this kernel doesn't tell a process's peak memory")
