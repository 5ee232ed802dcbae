"""Solve rate of a Countdown policy."""

from collections.abc import Sequence
from pathlib import Path

import torch

from recipe.flowrl.data.countdown import SOURCE, Puzzle
from recipe.flowrl.rewards.countdown import compute_score


def solve_rate(model_dir: Path, puzzles: Sequence[Puzzle], samples: int, max_new_tokens: int = 24) -> dict[str, float]:
    """Sample each puzzle ``samples`` times at T = 1.

    Returns:
        ``puzzles``; ``solve_rate``, the share of right answers; ``distinct_solutions``, found per puzzle.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from recipe.flowrl.models.sampling import sample

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompts = [puzzle.prompt for puzzle in puzzles]
    drawn = sample(model, tokenizer, prompts, samples, temperature=1.0, max_new_tokens=max_new_tokens)
    found = solutions(drawn.texts, puzzles)
    right = [bool(solution) for row in found for solution in row]
    return {
        "puzzles": len(puzzles),
        "solve_rate": sum(right) / len(right),
        "distinct_solutions": sum(len(set(row) - {""}) for row in found) / len(found),
    }


def solutions(texts: Sequence[str], puzzles: Sequence[Puzzle]) -> list[list[str]]:
    """For each puzzle the canonical form of each answer, "" where it is wrong.

    Args:
        texts: the answers, equally many for each puzzle, puzzle by puzzle.
        puzzles: in the same order.
    """
    samples = len(texts) // len(puzzles)
    found = []
    for index, puzzle in enumerate(puzzles):
        answers = texts[index * samples : (index + 1) * samples]
        forms = {answer: compute_score(SOURCE, answer, puzzle.ground_truth)["solution"] for answer in set(answers)}
        found.append([forms[answer] for answer in answers])
    return found
