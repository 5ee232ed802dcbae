"""One run of an exact study, in a process of its own: trains in one process, and scores every solution on the way.

``RUN_DIR/run.json`` says what to do, ``points.jsonl`` gets a line an evaluation, ``state.pt`` is what a run that was
cut off goes on from, and ``done.json`` says that there is nothing left to do.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from omegaconf import DictConfig
from transformers import AutoTokenizer, PreTrainedModel

from recipe.flowrl.common.files import replacing, write_json, write_text
from recipe.flowrl.common.jsonl import JsonLines, to_line
from recipe.flowrl.common.progress import short_duration
from recipe.flowrl.compare import exact_measures
from recipe.flowrl.compare.exact_measures import rounded
from recipe.flowrl.one_process.task import Task
from recipe.flowrl.one_process.trainer import Trainer
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.tasks.change.reward import CHANGE
from recipe.flowrl.tasks.countdown.reward import COUNTDOWN
from recipe.flowrl.tasks.puzzles import Puzzle, PuzzleTask
from recipe.flowrl.tasks.sampling import encode, sample
from recipe.flowrl.tasks.solution_table import SolutionTable

RUN, POINTS, STATE, DONE = "run.json", "points.jsonl", "state.pt", "done.json"
TEMPERATURES = (0.25, 0.4, 0.6, 0.8, 1.0, 1.25, 1.6, 2.0, 2.5, 3.0)
"""At which solutions are scored. Training samples at the configuration's, 1."""
SAMPLED_EVERY = 50
"""Steps between two estimates of what isn't listed, which need samples."""
_TASKS = {task.source: task for task in (COUNTDOWN, CHANGE)}
COLLAPSED = 1.1
"""Effective solutions of the training puzzles at which a run has nothing left to lose."""


@dataclass(frozen=True)
class Run:
    """What to do.

    Attributes:
        overrides: of the run's configuration.
        steps: training steps.
        every: steps between two evaluations.
        train_puzzles: of the training file, from the first, seen again and again.
        held_out_puzzles: of the validation file, from the first.
        samples: answers to each puzzle for the estimate of what isn't listed.
        staleness: so many steps old is the policy that draws a batch.
    """

    overrides: tuple[str, ...]
    steps: int
    every: int
    train_puzzles: int
    held_out_puzzles: int
    samples: int
    staleness: int = 0


def read_run(run_dir: Path) -> Run:
    """What ``run_dir`` says is to be done."""
    described = json.loads((run_dir / RUN).read_text())
    return Run(**described | {"overrides": tuple(described["overrides"])})


class Measuring:
    """The puzzles of a run and the measures of a policy on them."""

    def __init__(
        self, task: PuzzleTask, base: Path, splits: dict[str, list[Puzzle]], samples: int, longest: int
    ) -> None:
        self.task, self.base, self.splits, self.samples, self.longest = task, base, splits, samples, longest
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.tables = {name: SolutionTable(puzzles, self.tokenizer) for name, puzzles in splits.items()}
        self.reference: dict[str, np.ndarray] = {}

    def point(self, policy: PreTrainedModel, sampled: bool) -> dict[str, Any]:
        """For each split the means over its puzzles at each temperature, and, where ``sampled``, what samples say.

        The first policy measured is the reference.
        """
        result: dict[str, Any] = {}
        for name, table in self.tables.items():
            log_probs = table.log_probs(policy, TEMPERATURES).numpy()
            reference = self.reference.setdefault(name, log_probs[TEMPERATURES.index(1.0)])
            lengths = table.answer_mask.sum(-1).numpy()
            result[name] = exact_measures.means(log_probs, reference, table.puzzle.numpy(), lengths, TEMPERATURES)
            if sampled:
                result[name]["sampled"] = self._sampled(policy, name)
        return result

    def _sampled(self, policy: PreTrainedModel, split: str) -> dict[str, float]:
        """Shares of sampled answers that are right, and that are right but spelt otherwise than in the table."""
        puzzles = self.splits[split]
        prompts = [puzzle.prompt for puzzle in puzzles]
        texts = sample(
            policy, self.tokenizer, prompts, self.samples, temperature=1.0, max_new_tokens=self.longest
        ).texts
        found = [form for row in self.task.solutions(texts, puzzles) for form in row]
        outside = [form != "" and text != form for text, form in zip(texts, found, strict=True)]
        return {"right": rounded(np.mean([form != "" for form in found])), "outside": rounded(np.mean(outside))}


def measuring_of(run: Run, config: DictConfig) -> Measuring:
    """What measures the policies of a run."""
    train, held_out = Path(config.data.train_files), Path(config.data.val_files)
    task = _TASKS[pq.read_table(train, columns=["data_source"])["data_source"][0].as_py()]
    splits = {"train": task.read(train)[: run.train_puzzles], "held_out": task.read(held_out)[: run.held_out_puzzles]}
    base, longest = Path(config.actor_rollout_ref.model.path), config.data.max_response_length
    return Measuring(task, base, splits, run.samples, longest)


def carry_out(run: Run, run_dir: Path) -> None:
    """Train and measure, from where an earlier process was cut off."""
    config = compose_run([*run.overrides, f"trainer.total_training_steps={run.steps}"])
    measuring = measuring_of(run, config)
    puzzles = measuring.splits["train"]
    task = one_process_task(measuring.task, measuring.base, puzzles, measuring.longest)
    trainer = Trainer(config, task, run.staleness)
    lines, state = JsonLines(run_dir / POINTS), run_dir / STATE
    points = lines.read()
    measuring.point(trainer.reference, sampled=False)  # the reference's, before a state is loaded
    if state.exists():
        trainer.load_state(torch.load(state, weights_only=True))
    points = [point for point in points if point["step"] <= trainer.steps_trained]
    write_text(lines.path, "".join(map(to_line, points)))
    said: dict[str, list[float]] = {}
    began, start = time.monotonic(), trainer.steps_trained
    while True:
        step = trainer.steps_trained
        if (step % run.every == 0 or step == run.steps) and not any(point["step"] == step for point in points):
            with replacing(state) as temporary:
                torch.save(trainer.state(), temporary)
            point = measuring.point(trainer.policy, step % SAMPLED_EVERY == 0 or step == run.steps)
            means = {name: rounded(np.mean(values)) for name, values in said.items()}
            points.append({"step": step, "samples": trainer.samples, **point, "training": means})
            lines.append(points[-1])
            said = {}
            _tell(points[-1], run.steps, (time.monotonic() - began) / max(1, step - start))
        collapsed = points[-1]["train"]["1"]["effective"] < COLLAPSED
        if step >= run.steps or collapsed:
            break
        for name, value in trainer.step().items():
            said.setdefault(name, []).append(value)
    write_json(run_dir / DONE, {"step": step, "collapsed": collapsed, "run": asdict(run)})
    state.unlink(missing_ok=True)


def one_process_task(task: PuzzleTask, base: Path, puzzles: Sequence[Puzzle], response_length: int) -> Task:
    """Puzzles for the one-process trainer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    scores: dict[tuple[int, tuple[int, ...]], float] = {}

    def reward(number: int, answer: tuple[int, ...]) -> float:
        if (number, answer) not in scores:
            text = tokenizer.decode(answer, skip_special_tokens=True)
            scores[number, answer] = task.score(puzzles[number], text)["score"]
        return scores[number, answer]

    ids, mask = encode(tokenizer, [puzzle.prompt for puzzle in puzzles])
    return Task(base, ids, mask, response_length, True, reward)


def _tell(point: dict[str, Any], steps: int, each_s: float) -> None:
    train, held_out = point["train"]["1"], point["held_out"]["1"]
    print(
        f"step {point['step']:>{len(str(steps))}}/{steps}  right {train['right']:.1%}  effective solutions "
        f"{train['effective']:.2f}  held out: right {held_out['right']:.1%}, pass@64 {held_out['pass@64']:.1%}  "
        f"{each_s:.1f} s/step  ETA {short_duration(each_s * (steps - point['step']))}",
        flush=True,
    )


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    carry_out(read_run(Path(sys.argv[1])), Path(sys.argv[1]))
