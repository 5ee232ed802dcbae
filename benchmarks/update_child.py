"""The measuring process of ``update_cost``: real actor workers of verl, made as the trainer makes them, without Ray."""

import gc
import os
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.configuration import compose
from benchmarks.workload import Workload, make_batch


def overrides(algo: str, workload: Workload, model: str) -> list[str]:
    """Of ``main_flowrl``: ``algo`` on the CPU cluster with this workload. ``algo=grpo`` has the KL loss."""
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


def be_the_only_rank() -> None:
    """Set what verl's workers read of a process group of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def measure(argument: dict[str, Any]) -> Any:
    """Time or memory of updates.

    Args:
        argument: ``kind``, time or memory; ``workload``, its fields; ``model``, its directory; for time ``order``, the
            algorithm of each update, and ``warm_up``, updates of each before the first that counts; for memory ``algo``
            and the number of ``updates``.

    Returns:
        Time: ``wall_s`` and ``cpu_s`` of each update. Memory, in bytes: resident when the worker is loaded, and the
        process's peak.
    """
    be_the_only_rank()
    workload = Workload(**argument["workload"])
    if argument["kind"] == "time":
        return _times(workload, argument["model"], argument["order"], argument["warm_up"])
    return _memory(workload, argument["model"], argument["algo"], argument["updates"])


def _times(workload: Workload, model: str, order: list[str], warm_up: int) -> list[dict[str, float]]:
    workers = {algo: _make_worker(algo, workload, model) for algo in dict.fromkeys(order)}
    for _ in range(warm_up):
        for worker in workers.values():
            _update(worker, workload)
    return [_update(workers[algo], workload) for algo in order]


def _memory(workload: Workload, model: str, algo: str, updates: int) -> dict[str, int]:
    worker = _make_worker(algo, workload, model)
    gc.collect()
    loaded = psutil.Process().memory_info().rss
    for _ in range(updates):
        _update(worker, workload)
    return {"loaded_bytes": loaded, "process_peak_bytes": _peak_rss()}


def _make_worker(algo: str, workload: Workload, model: str) -> Any:
    config = compose(*overrides(algo, workload, model))
    from verl.workers.engine_workers import ActorRolloutRefWorker

    from recipe.flowrl.worker import FlowRLWorker

    worker_cls = ActorRolloutRefWorker if config.actor_rollout_ref.flowrl is None else FlowRLWorker
    worker = worker_cls(config.actor_rollout_ref, role="actor")
    worker.init_model()
    return worker


def _update(worker: Any, workload: Workload) -> dict[str, float]:
    """Seconds of one update, from the batch to its metrics: on the wall, and of this process's CPU time."""
    batch = make_batch(workload)
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    worker.update_actor(batch)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def _peak_rss() -> int:
    # Not getrusage's: that one starts with the peak of the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: this kernel doesn't tell a process's peak memory")
