"""Exact measures of a policy on puzzles against brute force, and the frontiers that are read off them."""

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.flowrl.compare.exact_measures import measures
from recipe.flowrl.compare.frontiers import at_accuracy, best_at, interval
from recipe.flowrl.tasks.countdown.data import Puzzle
from recipe.flowrl.tasks.countdown.expressions import canonical_form
from recipe.flowrl.tasks.sampling import sample
from recipe.flowrl.tasks.solution_table import SolutionTable
from recipe.flowrl.tasks.tiny_qwen2 import TinyQwen2Config, build

PUZZLES = [Puzzle((1, 2, 3), 6, 2), Puzzle((2, 3), 6, 1), Puzzle((1, 2, 2, 4), 8, 0)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    directory = tmp_path_factory.mktemp("policy")
    build(directory, TinyQwen2Config(hidden_size=64, layers=1, heads=2, intermediate_size=64))
    return AutoModelForCausalLM.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)


def test_every_solution_stands_in_the_table_once_and_reaches_its_target(policy: tuple[Any, Any]) -> None:
    table = SolutionTable(PUZZLES, policy[1])
    assert len(set(zip(table.puzzle.tolist(), table.solutions, strict=True))) == len(table.solutions)
    for number, text in zip(table.puzzle.tolist(), table.solutions, strict=True):
        exact = eval(text.replace("/", "*Fraction(1)/"), {"Fraction": Fraction})
        assert exact == PUZZLES[number].target and canonical_form(text) == text
    assert table.puzzle.bincount().tolist() == [len(puzzle.solutions()) for puzzle in PUZZLES]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_probabilities_against_one_token_at_a_time(policy: tuple[Any, Any], temperature: float) -> None:
    model, tokenizer = policy
    table = SolutionTable(PUZZLES, tokenizer)
    scored = table.log_probs(model, (1.0, temperature))[1]
    for number, text, log_prob in zip(table.puzzle.tolist(), table.solutions, scored.tolist(), strict=True):
        turn = [{"role": "user", "content": PUZZLES[number].prompt}]
        tokens = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
        expected = 0.0
        for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]:
            with torch.no_grad():
                logits = model(torch.tensor([tokens])).logits[0, -1]
            expected += (logits / temperature).log_softmax(-1)[token].item()
            tokens = [*tokens, token]
        assert log_prob == pytest.approx(expected, abs=1e-3)


def test_what_is_scored_is_what_is_sampled(policy: tuple[Any, Any]) -> None:
    """A policy taught one solution gives it as often as the table says."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(policy[0].config._name_or_path), policy[1]
    table = SolutionTable(PUZZLES[:1], tokenizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    turn = [{"role": "user", "content": PUZZLES[0].prompt}]
    prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    for _ in range(15):
        for text in table.solutions[:3]:
            tokens = torch.tensor([[*prompt, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
            optimizer.zero_grad()
            (-model(tokens).logits[0, len(prompt) - 1 : -1].log_softmax(-1)).gather(
                -1, tokens[0, len(prompt) :, None]
            ).mean().backward()
            optimizer.step()
    probability = table.log_probs(model, [1.0])[0].exp().numpy()
    drawn = sample(model, tokenizer, [PUZZLES[0].prompt], 2000, temperature=1.0, max_new_tokens=16).texts
    frequency = np.array([drawn.count(text) / 2000 for text in table.solutions])
    assert probability.max() > 0.05
    assert np.abs(frequency - probability).max() < 4 * np.sqrt(0.25 / 2000)


def test_measures_against_brute_force() -> None:
    """All sequences of k answers of a policy with three solutions and one wrong answer, in exact arithmetic."""
    probabilities, reference = [0.1, 0.3, 0.05], [0.2, 0.1, 0.1]
    log_probs = np.log([*probabilities, 0.5])
    found = measures(log_probs, np.log([*reference, 0.5]), np.array([0, 0, 0, 1]), np.array([4, 6, 9, 3]))
    answers = [*enumerate(probabilities), (None, 1 - sum(probabilities))]
    for k in (1, 4):
        attempts = list(itertools.product(answers, repeat=k))
        solved = sum(math.prod(p for _, p in one) for one in attempts if any(a is not None for a, _ in one))
        assert found["right" if k == 1 else f"pass@{k}"][0] == pytest.approx(solved)
    shares = [p / sum(probabilities) for p in probabilities]
    assert found["effective"][0] == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)))
    of_reference = [p / sum(reference) for p in reference]
    divergence = sum(p * math.log(p / q) for p, q in zip(shares, of_reference, strict=True))
    assert found["kl_right"][0] == pytest.approx(divergence)
    assert found["length"].tolist() == pytest.approx([(0.1 * 4 + 0.3 * 6 + 0.05 * 9) / 0.45, 3.0])
    assert found["distinct@64"][0] == pytest.approx(sum(1 - (1 - p) ** 64 for p in probabilities))
    assert [found[name][1] for name in ("right", "effective", "kl_right")] == pytest.approx([0.5, 1.0, 0.0])
    assert found["pass@256"][1] == pytest.approx(1.0)


def test_measures_where_probabilities_vanish_or_fill_everything() -> None:
    found = measures(np.array([-2000.0, -2001.0, 0.0]), np.array([-1.0, -1.0, -1.0]), np.array([0, 0, 1]), np.ones(3))
    assert found["right"].tolist() == [0.0, 1.0] and all(np.isfinite(values).all() for values in found.values())
    share = 1 / (1 + math.exp(-1))
    assert found["effective"][0] == pytest.approx(
        math.exp(-share * math.log(share) - (1 - share) * math.log(1 - share))
    )


def point(step: int, **by_temperature: tuple[float, float]) -> dict[str, Any]:
    """A point whose training accuracy and effective solutions at each temperature are given."""
    rows = {name[1:]: {"right": right, "effective": worth} for name, (right, worth) in by_temperature.items()}
    return {"step": step, "train": rows | {"sampled": {"right": 0.5}}}


RIGHT, EFFECTIVE = ("train", "right"), ("train", "effective")


def test_the_best_over_steps_and_temperatures() -> None:
    run = [point(0, t1=(0.2, 5.0), t2=(0.1, 6.0)), point(10, t1=(0.8, 1.0), t2=(0.4, 4.0))]
    levels = np.array([0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9])
    best = best_at(run, RIGHT, EFFECTIVE, levels)
    # 0.2: step 0 as it is. 0.4: step 10 at T = 2; along T = 1 it would be 5 - 4/3. 0.6: halfway between T = 2 and 1.
    np.testing.assert_allclose(best, [np.nan, 6.0, 16 / 3, 4.0, 2.5, 1.0, np.nan])


def test_the_first_time_an_accuracy_is_reached() -> None:
    run = [point(0, t1=(0.2, 5.0)), point(10, t1=(0.6, 3.0)), point(20, t1=(0.5, 9.0)), point(30, t1=(0.7, 2.0))]
    assert at_accuracy(run, RIGHT, EFFECTIVE, 0.1) == 5.0
    assert at_accuracy(run, RIGHT, EFFECTIVE, 0.5) == pytest.approx(3.5)
    assert at_accuracy(run, RIGHT, EFFECTIVE, 0.65) == pytest.approx(3.75)
    assert math.isnan(at_accuracy(run, RIGHT, EFFECTIVE, 0.9))


def test_intervals_over_runs() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0, float("nan")])
    assert (mean, low, high) == pytest.approx((2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    assert interval([1.5])[0] == 1.5 and all(map(math.isnan, interval([1.5])[1:])) and math.isnan(interval([])[0])


def study(directory: Path, lines: list[dict[str, Any]]) -> Path:
    facts = {"train_puzzles": 64, "puzzles": 8, "every": 10, "steps": 20, "seeds": [0, 1]}
    path = directory / "repeated.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"study": facts}, *lines]))
    return path


def measured(variant: str, seed: int, step: int) -> dict[str, Any]:
    """A line of a made-up run: accuracy rises and diversity falls along training, the reverse with temperature."""

    def at(temperature: float) -> dict[str, float]:
        grown = step / 20 * (0.8 if variant == "other" else 0.9) + 0.01 * seed
        right = (0.2 + 0.6 * grown) / temperature
        effective = 1 + 3 * (1 - grown) * temperature + (variant != "grpo")
        return {"right": right, "pass@64": 1 - right / 3, "effective": effective, "distinct@64": 3.0, "kl_right": grown}

    split = {f"{temperature:g}": at(temperature) for temperature in (1.0, 1.5)}
    split |= {"sampled": {"right": 0.5, "outside": 0.01}}
    training = {"kl": 1.0, "clipped": 0.5} if step else {}
    return {"variant": variant, "lr": 1e-4, "seed": seed, "step": step, "samples": step, "train": split,
            "held_out": split, "training": training}  # fmt: skip


def test_the_report_shows_every_run_and_the_better_one_ahead(tmp_path: Path) -> None:
    from recipe.flowrl.__main__ import main

    path = study(
        tmp_path, [measured(name, seed, step) for name in ("grpo", "other") for seed in (0, 1) for step in (0, 10, 20)]
    )
    assert main(["report", str(path)]) == 0
    page = path.with_suffix(".html").read_text()
    for part in (
        "At the same accuracy",
        "Run by run",
        "Along training",
        "Along the sampling temperature",
        "other",
        "95% of grpo",
    ):
        assert part in page
    for index in (0, 1):
        assert page.count(f'id="switch-{index}"') == 1 and page.count(f'class="switched-{index}"') > 10


def test_pairs_are_compared_at_the_accuracy_of_the_baseline(tmp_path: Path) -> None:
    from recipe.flowrl.compare.frontier_report import load
    from recipe.flowrl.compare.frontier_tables import against_baseline

    systems = {"grpo": 3, "other": 2, "more": 4, "again": 2}
    runs = [(name, seed) for name, seeds in systems.items() for seed in range(seeds)]
    lines = [measured(name, seed, step) for name, seed in runs for step in (0, 10, 20)]
    (section,) = against_baseline(load(study(tmp_path, lines))[1])
    table = section.table
    # At 95% of 74.6%: more has 2.45 where grpo has 1.45, and other, which is the less accurate one, none.
    assert table and table.rows[0] == ["other", "2", "–", "–", "–"]
    assert table.rows[1] == ["more", "3", "1.69 [1.69, 1.69]", "+0.0 [+0.0, +0.0]", "+0.0 [+0.0, +0.0]"]
    assert table.rows[2] == ["again", "2", "1.69 and 1.69", "+0.0 and +0.0", "+0.0 and +0.0"]
    assert against_baseline(load(study(tmp_path, lines[:3]))[1]) == []


def test_at_one_accuracy_each_system_that_gets_there_has_a_row_and_each_run_a_dot(tmp_path: Path) -> None:
    from recipe.flowrl.compare.frontier_figures import level_figure
    from recipe.flowrl.compare.frontier_report import load

    systems = {"grpo": 3, "other": 2, "more": 4}
    runs = [(name, seed) for name, seeds in systems.items() for seed in range(seeds)]
    lines = [measured(name, seed, step) for name, seed in runs for step in (0, 10, 20)]
    solutions, _ = level_figure(load(study(tmp_path, lines))[1], 0.7).axes
    assert [label.get_text() for label in solutions.get_yticklabels()] == ["more", "grpo"], "other is right in 69%"
    more, grpo = ([float(x) for x in line.get_xdata()] for line in solutions.lines)
    assert more == pytest.approx([2.5] * 4) and grpo == pytest.approx([1.5] * 3)


def test_another_learning_rate_is_another_system(tmp_path: Path) -> None:
    from recipe.flowrl.compare.frontier_report import load

    lines = [
        measured(name, 0, step) | {"lr": lr} for lr in (3e-4, 1e-4) for name in ("grpo", "other") for step in (0, 10)
    ]
    _, runs = load(study(tmp_path, lines))
    assert {name: len(points) for name, points in runs.items()} == dict.fromkeys(
        ("grpo", "other", "grpo, rate 0.0003", "other, rate 0.0003"), 1
    )
    assert all([point["step"] for point in points[0]] == [0, 10] for points in runs.values())


def test_a_report_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from recipe.flowrl.__main__ import main

    assert main(["report", str(study(tmp_path, []))]) == 2
    assert "no run in it yet" in capsys.readouterr().err
