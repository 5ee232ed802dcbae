"""Time and peak memory of a FlowRL update against those of GRPO with a KL loss.

Both are verl's actor worker on the CPU's FSDP2 engine, one rank, with the same weights and the same mini-batch; they
differ in what ``algo=flowrl`` and ``algo=grpo`` differ in. Time is taken in one process that holds both workers and
lets them take turns. Memory is the peak resident set of processes that hold one.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.children import call
from benchmarks.configuration import compose
from benchmarks.rows import Row, ratio_row, summary_row
from benchmarks.stats import block_sums, interleaved, paired_ratio, summarize
from benchmarks.workload import Workload, write_model
from recipe.flowrl.common.environment import environment_of
from recipe.flowrl.reporting.console import RunConsole

FLOWRL, BASELINE = "flowrl", "grpo"
TARGET = 1.02
MEMORY = {
    "process_peak_bytes": "peak memory of the process",
    "grown_bytes": "peak memory above the state after loading",
}


@dataclass(frozen=True)
class Effort:
    """How much is measured: blocks of two updates of each algorithm, blocks of two processes of each."""

    workload: Workload = Workload()
    time_blocks: int = 6
    memory_blocks: int = 2
    warm_up: int = 2
    memory_updates: int = 2


QUICK = Effort(
    Workload(layers=2, hidden_size=64, intermediate_size=128, heads=2, vocabulary=512, sequences=4, micro_batch=4),
    time_blocks=2,
    memory_blocks=1,
    warm_up=1,
)


def measure(effort: Effort, console: RunConsole) -> dict[str, Any]:
    """Returns ``settings``, ``summary`` and ``samples``, all JSON. Times in seconds, memory in bytes."""
    env = environment_of(compose("cluster=cpu"))
    with tempfile.TemporaryDirectory(prefix="flowrl_bench_") as model:
        parameters = write_model(effort.workload, Path(model))
        given = {"workload": asdict(effort.workload), "model": model}
        order = interleaved(FLOWRL, BASELINE, effort.time_blocks)
        with console.phase(f"update_cost: time, {len(order)} updates"):
            timed = call("update_child", given | {"kind": "time", "order": order, "warm_up": effort.warm_up}, env)
        memory_order = interleaved(FLOWRL, BASELINE, effort.memory_blocks)
        processes = []
        with console.phase(f"update_cost: memory, {len(memory_order)} processes"):
            for algo in memory_order:
                argument = given | {"kind": "memory", "algo": algo, "updates": effort.memory_updates}
                processes.append({"algo": algo} | call("update_child", argument, env))
    for sample in processes:
        sample["grown_bytes"] = sample["process_peak_bytes"] - sample["loaded_bytes"]
    return {
        "settings": asdict(effort) | {"parameters": parameters, "target": TARGET, "environment": env},
        "summary": _summarize_time(order, timed) | _summarize_memory(processes),
        "samples": {"time": [{"algo": algo} | sample for algo, sample in zip(order, timed, strict=True)]}
        | {"memory": processes},
    }


def _summarize_time(order: list[str], timed: list[dict[str, float]]) -> dict[str, Any]:
    summary = {}
    for clock in ("wall_s", "cpu_s"):
        values = [sample[clock] for sample in timed]
        sums = [block_sums(order, values, algo) for algo in (FLOWRL, BASELINE)]
        summary[f"{clock}_ratio"] = asdict(paired_ratio(*sums))
        for algo in (FLOWRL, BASELINE):
            own = [value for name, value in zip(order, values, strict=True) if name == algo]
            summary[f"{clock}_{algo}"] = asdict(summarize(own))
    return summary


def _summarize_memory(processes: list[dict[str, Any]]) -> dict[str, Any]:
    summary = {}
    for quantity in MEMORY:
        own = [[process[quantity] for process in processes if process["algo"] == algo] for algo in (FLOWRL, BASELINE)]
        summary[f"{quantity}_ratio"] = asdict(paired_ratio(*own))
        for algo, values in zip((FLOWRL, BASELINE), own, strict=True):
            summary[f"{quantity}_{algo}"] = asdict(summarize(values))
    return summary


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    summary = result["summary"]
    lines = [
        ratio_row("update time, FlowRL / GRPO with KL", summary["wall_s_ratio"], TARGET),
        ratio_row("the same in CPU time", summary["cpu_s_ratio"]),
        *(summary_row(f"update, {algo}", summary[f"wall_s_{algo}"], "s") for algo in (FLOWRL, BASELINE)),
    ]
    for quantity, name in MEMORY.items():
        lines.append(ratio_row(f"{name}, FlowRL / GRPO with KL", summary[f"{quantity}_ratio"], TARGET))
        lines += [
            summary_row(f"{name}, {algo}", summary[f"{quantity}_{algo}"], "GB", 1e9) for algo in (FLOWRL, BASELINE)
        ]
    return lines
