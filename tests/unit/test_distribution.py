"""The exact test: its task, its measures against brute force, its arguments."""

import itertools
import math

import pytest
import torch

from recipe.flowrl.data.modes import HEIGHTS, LENGTH, PROMPTS, SYMBOLS, Modes, modes_of
from recipe.flowrl.distribution.__main__ import main
from recipe.flowrl.distribution.exact import Enumeration
from recipe.flowrl.distribution.report import samples_to
from recipe.flowrl.distribution.setup import algorithms, compose_run, overrides
from recipe.flowrl.errors import UserError
from recipe.flowrl.models.enumerable_qwen2 import ensure_model
from recipe.flowrl.rewards.modes import compute_score


@pytest.fixture(scope="module")
def enumeration(tmp_path_factory: pytest.TempPathFactory) -> Enumeration:
    return Enumeration(ensure_model(tmp_path_factory.mktemp("cache") / "enumerable_qwen2"))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_modes_are_separated(prompt: str) -> None:
    modes = modes_of(prompt)
    assert sorted(modes.heights.values(), reverse=True) == list(HEIGHTS)
    for a, b in itertools.combinations(modes.heights, 2):
        assert all(x != y for x, y in zip(a, b, strict=True))
    assert set("".join(modes.heights)) <= set(SYMBOLS)


def test_reward_is_the_highest_mode_near() -> None:
    modes = Modes({"ab": 1.0, "cd": 0.5})
    truth = modes.ground_truth
    assert [modes.reward(text) for text in ("ab", "cd", "xb", "cx", "ad", "xx", "a", "")] == pytest.approx(
        [1.0, 0.5, 0.3, 0.15, 0.3, 0.0, 0.0, 0.0]
    )
    assert compute_score("modes", "cd", truth) == {"score": 0.5, "acc": 1.0, "solution": "cd", "n_solutions": 2}
    assert compute_score("modes", "xb", truth)["solution"] == ""


def test_every_answer_is_enumerated_once_and_probabilities_add_up(enumeration: Enumeration) -> None:
    vocabulary = enumeration.reference.config.vocab_size
    log_probs = enumeration.reference_log_probs
    assert log_probs.shape == (len(PROMPTS), vocabulary**LENGTH) == (len(PROMPTS), len(enumeration.answers))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(len(PROMPTS), dtype=torch.float64))
    # An answer's probability by one pass over prompt and answer.
    row = 137
    tokens = [row // vocabulary, row % vocabulary]
    rows = torch.cat([enumeration.prompt_ids, torch.tensor([tokens] * len(PROMPTS))], dim=1)
    with torch.no_grad():
        steps = enumeration.reference(rows).logits.double().log_softmax(-1)
    expected = sum(steps[:, -LENGTH - 1 + i, token] for i, token in enumerate(tokens))
    torch.testing.assert_close(log_probs[:, row], expected, rtol=1e-5, atol=1e-5)


def test_the_target_measures_itself_as_perfect(enumeration: Enumeration) -> None:
    target, log_normaliser = enumeration.target(0.2)
    worst = enumeration.measure(target, 0.2, log_normaliser / LENGTH)["worst"]
    assert worst["modes_covered"] == 1.0
    for name in ("kl_policy_target", "kl_target_policy", "total_variation", "log_z_error"):
        assert worst[name] == pytest.approx(0.0, abs=1e-9)


def test_measures_against_brute_force(enumeration: Enumeration) -> None:
    temperature, prompt = 0.25, 1
    reference = enumeration.reference_log_probs[prompt].tolist()
    weights = [
        math.exp(log_p + r / temperature) for log_p, r in zip(reference, enumeration.rewards[prompt], strict=True)
    ]
    target = [weight / sum(weights) for weight in weights]
    measured = enumeration.measure(enumeration.reference_log_probs, temperature, torch.zeros(len(PROMPTS)))
    pairs = [(math.exp(log_p), t) for log_p, t in zip(reference, target, strict=True)]
    assert measured["kl_policy_target"][prompt] == pytest.approx(sum(p * math.log(p / t) for p, t in pairs))
    assert measured["kl_target_policy"][prompt] == pytest.approx(sum(t * math.log(t / p) for p, t in pairs))
    assert measured["total_variation"][prompt] == pytest.approx(sum(abs(p - t) for p, t in pairs) / 2)
    assert measured["log_z_error"][prompt] == pytest.approx(abs(math.log(sum(weights)) / LENGTH))
    assert measured["worst"]["kl_policy_target"] == max(measured["kl_policy_target"])


@pytest.mark.parametrize("algo", algorithms())
def test_every_algorithm_composes_with_the_task(algo: str) -> None:
    config = compose_run(algo, "raw", [])
    assert config.data.max_response_length == LENGTH
    if config.flowrl is not None:
        assert config.algorithm.adv_estimator == "raw_reward"
        scale = LENGTH if config.flowrl.length_normalize else 1
        assert config.flowrl.beta * scale == pytest.approx(6.0)


def test_as_published_nothing_is_changed() -> None:
    assert overrides("flowrl", "group_normalized") == []


@pytest.mark.parametrize(("algo", "reward", "part"), [("flowrI", "raw", "algo=flowrI"), ("flowrl", "x", "reward=x")])
def test_unknown_names(algo: str, reward: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        overrides(algo, reward)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["algo=flowrl"], "run_dir=... is missing"),
        (["run_dir=x"], "algo=... is missing"),
        (["flowrl"], "expected KEY=VALUE"),
        (["algo=flowrl", "run_dir=x", "mode=both"], "mode=both"),
        (["algo=flowrl,nope", "run_dir=x"], "algo=nope"),
        (["algo=flowrl", "run_dir=x", "seeds=0,b"], "seeds=0,b"),
    ],
)
def test_bad_arguments(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert part in capsys.readouterr().err


def test_a_target_counts_as_reached_where_the_policy_stays_near() -> None:
    def result(*divergences: float) -> dict:
        return {"curve": [{"samples": 10 * i, "worst": {"kl_policy_target": kl}} for i, kl in enumerate(divergences)]}

    assert samples_to(result(1.0, 0.005, 0.02, 0.01, 0.003), 0.01) == 30
    assert samples_to(result(1.0, 0.005, 0.02), 0.01) is None
