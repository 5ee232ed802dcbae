"""Solve rate of a Countdown policy by plain sampling with transformers."""

from collections.abc import Sequence
from pathlib import Path

import torch

from recipe.flowrl.data.countdown import SOURCE, Puzzle
from recipe.flowrl.rewards.countdown import compute_score


@torch.no_grad()
def solve_rate(model_dir: Path, puzzles: Sequence[Puzzle], samples: int, max_new_tokens: int = 24) -> dict[str, float]:
    """Sample each puzzle ``samples`` times at T = 1.

    Returns:
        ``puzzles``; ``solve_rate``, the share of right answers; ``distinct_solutions``, found per puzzle.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    turns = [[{"role": "user", "content": puzzle.prompt}] for puzzle in puzzles for _ in range(samples)]
    prompts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
        )
    answers = tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    found = []
    for index, puzzle in enumerate(puzzles):
        own = answers[index * samples : (index + 1) * samples]
        found.append([compute_score(SOURCE, answer, puzzle.ground_truth)["solution"] for answer in own])
    right = [bool(solution) for solutions in found for solution in solutions]
    return {
        "puzzles": len(puzzles),
        "solve_rate": sum(right) / len(right),
        "distinct_solutions": sum(len(set(solutions) - {""}) for solutions in found) / len(found),
    }
