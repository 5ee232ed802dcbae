"""The exact test: its tasks, its measures and targets against brute force, its arguments."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.distribution.exact import Enumeration, of_endings, of_modes
from recipe.flowrl.distribution.exact_report import samples_to, write_report
from recipe.flowrl.distribution.setup import Setup, algorithms, compose_run, overrides
from recipe.flowrl.distribution.targets import flowrl_target, normalised_values, target_of, tilted, tilted_by_length
from recipe.flowrl.tasks.modes import endings
from recipe.flowrl.tasks.modes.data import HEIGHTS, LENGTH, PROMPTS, SYMBOLS, Modes, modes_of
from recipe.flowrl.tasks.modes.enumerable_qwen2 import ensure_model
from recipe.flowrl.tasks.modes.reward import compute_score


@pytest.fixture(scope="module")
def enumeration(tmp_path_factory: pytest.TempPathFactory) -> Enumeration:
    return of_modes(ensure_model(tmp_path_factory.mktemp("cache") / "enumerable_qwen2"))


@pytest.fixture(scope="module")
def of_lengths(tmp_path_factory: pytest.TempPathFactory) -> Enumeration:
    return of_endings(ensure_model(tmp_path_factory.mktemp("cache") / "endings_qwen2", endings.SYMBOLS))


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
    assert enumeration.answers[row] == tuple(tokens)
    rows = torch.cat([enumeration.prompt_ids, torch.tensor([tokens] * len(PROMPTS))], dim=1)
    with torch.no_grad():
        steps = enumeration.reference(rows).logits.double().log_softmax(-1)
    expected = sum(steps[:, -LENGTH - 1 + i, token] for i, token in enumerate(tokens))
    torch.testing.assert_close(log_probs[:, row], expected, rtol=1e-5, atol=1e-5)


def test_answers_that_end_are_enumerated_once_and_their_probabilities_add_up(of_lengths: Enumeration) -> None:
    eos, log_probs = of_lengths.reference.generation_config.eos_token_id, of_lengths.reference_log_probs
    assert len(set(of_lengths.answers)) == len(of_lengths.answers) == 1 + 10 + 100 + 1000 * 11
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(len(log_probs), dtype=torch.float64))
    assert set(of_lengths.lengths.tolist()) == {1, 2, 3, 4}
    for answer in of_lengths.answers[::397]:
        assert eos not in answer[:-1] and (answer[-1] == eos or len(answer) == 4)
        row = torch.cat([of_lengths.prompt_ids[1], torch.tensor(answer)]).unsqueeze(0)
        with torch.no_grad():
            steps = of_lengths.reference(row).logits[0].double().log_softmax(-1)
        expected = sum(steps[-len(answer) - 1 + i, token] for i, token in enumerate(answer))
        assert log_probs[1, of_lengths.answers.index(answer)].item() == pytest.approx(expected.item(), abs=1e-5)
    share = (log_probs.exp() * of_lengths.rewards).sum(-1)
    assert ((share > 0.1) & (share < 0.5)).all(), "right answers are neither rare nor most"


def test_the_trainer_is_given_the_rewards_that_are_enumerated(of_lengths: Enumeration) -> None:
    task = of_lengths.task()
    for number, answer in enumerate(of_lengths.answers[::997]):
        prompt = number % len(endings.PROMPTS)
        text = of_lengths.texts[of_lengths.answers.index(answer)]
        assert task.reward(prompt, answer) == endings.reward(endings.PROMPTS[prompt], text)
    assert endings.reward("a", "xab") == 1 and endings.reward("a", "b") == 0 == endings.reward("a", "")


def test_the_target_measures_itself_as_perfect(enumeration: Enumeration) -> None:
    target, log_z = tilted(enumeration.reference_log_probs, enumeration.rewards, 5.0)
    worst = enumeration.measure(target, target, log_z, log_z)["worst"]
    assert worst["modes_covered"] == 1.0
    for name in ("kl_policy_target", "kl_target_policy", "total_variation", "log_z_error"):
        assert worst[name] == pytest.approx(0.0, abs=1e-9)


def test_measures_against_brute_force(enumeration: Enumeration) -> None:
    strength, prompt = 4.0, 1
    reference = enumeration.reference_log_probs[prompt].tolist()
    rewards = enumeration.rewards[prompt].tolist()
    weights = [math.exp(log_p + r * strength) for log_p, r in zip(reference, rewards, strict=True)]
    target = [weight / sum(weights) for weight in weights]
    ideal = tilted(enumeration.reference_log_probs, enumeration.rewards, strength)
    measured = enumeration.measure(enumeration.reference_log_probs, ideal[0], torch.zeros(len(PROMPTS)), ideal[1])
    pairs = [(math.exp(log_p), t) for log_p, t in zip(reference, target, strict=True)]
    assert measured["kl_policy_target"][prompt] == pytest.approx(sum(p * math.log(p / t) for p, t in pairs))
    assert measured["kl_target_policy"][prompt] == pytest.approx(sum(t * math.log(t / p) for p, t in pairs))
    assert measured["total_variation"][prompt] == pytest.approx(sum(abs(p - t) for p, t in pairs) / 2)
    assert measured["log_z_error"][prompt] == pytest.approx(abs(math.log(sum(weights))))
    assert measured["expected_reward"][prompt] == pytest.approx(
        sum(p * r for (p, _), r in zip(pairs, rewards, strict=True))
    )
    assert measured["right_length"] == pytest.approx([LENGTH] * len(PROMPTS))
    right = enumeration.rewards[prompt] > 0
    ideal_right, of_reference = (
        table[prompt, right].log_softmax(0) for table in (ideal[0], enumeration.reference_log_probs)
    )
    divergence = float((ideal_right.exp() * (ideal_right - of_reference)).sum())
    assert enumeration.measure(ideal[0], ideal[0], None, ideal[1])["kl_right"][prompt] == pytest.approx(divergence)
    assert measured["kl_right"][prompt] == pytest.approx(0.0, abs=1e-12)
    assert measured["worst"]["kl_policy_target"] == max(measured["kl_policy_target"])


def small() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Reference, rewards and lengths of six answers to a prompt."""
    reference = torch.tensor([[0.3, 0.1, 0.2, 0.05, 0.05, 0.3]]).double().log()
    return reference, torch.tensor([[0, 1, 0, 1, 1, 0]]).double(), torch.tensor([1, 2, 3, 4, 10, 2]).double()


@pytest.mark.parametrize("form", ["log_probs", "residual", "none"])
@pytest.mark.parametrize("over", [None, 8], ids=["raw", "normalised"])
def test_every_residual_is_zero_at_the_target(form: str, over: int | None) -> None:
    """The residual by hand, with the mean normalised reward over all draws of the other rollouts."""
    reference, rewards, lengths = small()
    config = FlowRLConfig(beta=0.7, length_normalization=form)
    target, log_z = flowrl_target(config, reference, rewards, lengths, over)
    assert target.exp().sum().item() == pytest.approx(1.0)
    probability = float((target.exp() * rewards).sum())
    values = rewards[0]
    if over is not None:
        drawn = {0.0: 0.0, 1.0: 0.0}
        for others in itertools.product((0.0, 1.0), repeat=over - 1):
            chance = math.prod(probability if one else 1 - probability for one in others)
            for mine in drawn:
                group = torch.tensor([mine, *others], dtype=torch.float64)
                drawn[mine] += chance * float(((group - group.mean()) / (group.std() + 1e-6))[0])
        values = torch.tensor([drawn[r] for r in rewards[0].tolist()], dtype=torch.float64)
    ratio = (target - reference)[0]
    ratio = ratio / lengths if form == "log_probs" else ratio
    torch.testing.assert_close(log_z + ratio - 0.7 * values, torch.zeros(6).double(), atol=1e-9, rtol=0)


def test_long_answers_gain_only_where_the_log_probs_alone_are_divided() -> None:
    reference, rewards, lengths = small()
    whole, _ = tilted(reference, rewards, 3.0)
    alone, _ = tilted_by_length(reference, 0.5 * rewards, lengths)
    right = rewards[0] > 0
    gained = (alone - whole)[0, right]
    assert gained.tolist() == sorted(gained.tolist()) and gained[-1] > gained[0] + 1
    conditional = whole[0, right].log_softmax(0)
    torch.testing.assert_close(conditional, reference[0, right].log_softmax(0))


def test_normalised_values_of_certain_groups_are_nothing() -> None:
    right, wrong = normalised_values(torch.tensor([0.0, 1.0]).double(), 4)
    assert right.tolist() == pytest.approx([1.5, 0.0], abs=1e-4) and wrong.tolist() == pytest.approx(
        [0.0, -1.5], abs=1e-4
    )


def test_graded_rewards_have_no_known_target_when_normalised() -> None:
    reference, rewards, lengths = small()
    with pytest.raises(ValueError, match="0 and 1"):
        flowrl_target(FlowRLConfig(), reference, rewards / 2, lengths, 8)


@pytest.mark.parametrize("algo", algorithms())
def test_every_algorithm_composes_with_the_task(algo: str) -> None:
    config = compose_run(Setup(algo), [])
    assert config.data.max_response_length == LENGTH
    if config.flowrl is not None:
        assert config.algorithm.adv_estimator == "raw_reward"
        scale = LENGTH if config.flowrl.length_normalization == "log_probs" else 1
        assert config.flowrl.beta * scale == pytest.approx(6.0)


@pytest.mark.parametrize("algo", ["flowrl", "flowrl_plus", "tb_raw", "tb_replay", "rloo", "grpo_kl_matched"])
def test_whoever_aims_at_the_target_aims_at_the_same(algo: str, enumeration: Enumeration) -> None:
    """Answers of one length and raw rewards: the forms differ in their way only."""
    target, _ = target_of(compose_run(Setup(algo), []), enumeration)
    expected, _ = tilted(enumeration.reference_log_probs, enumeration.rewards, 6.0)
    torch.testing.assert_close(target, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("algo", ["flowrl_vargrad", "grpo_kl_matched"])
def test_a_group_mean_for_log_z_makes_a_normalised_reward_count_more(algo: str, of_lengths: Enumeration) -> None:
    """The mean over a group of what drew it: with two rollouts each residual holds half of the other's log-ratio."""
    two = "actor_rollout_ref.rollout.n=2"
    target, _ = target_of(compose_run(Setup(algo, "group_normalized", "endings", 0.5), [two]), of_lengths)
    free, _ = target_of(compose_run(Setup("flowrl", "group_normalized", "endings", 1.0), [two]), of_lengths)
    torch.testing.assert_close(target, free, atol=1e-9, rtol=0)


def test_what_aims_at_no_distribution_has_no_target(enumeration: Enumeration) -> None:
    assert target_of(compose_run(Setup("grpo"), []), enumeration) is None


def test_as_published_nothing_is_changed() -> None:
    assert overrides(Setup("flowrl", "group_normalized")) == []


def test_the_two_by_two_changes_one_thing_at_a_time() -> None:
    """beta and the normalisation differ, the head's rate doesn't."""
    for beta, reward in itertools.product((3.0, 15.0), ("raw", "group_normalized")):
        config = compose_run(Setup("flowrl", reward, "endings", beta), [])
        assert (config.flowrl.beta, config.flowrl.partition_lr) == (beta, 1e-2)
        assert config.algorithm.adv_estimator == ("raw_reward" if reward == "raw" else "grpo")
        assert config.data.max_response_length == 4


@pytest.mark.parametrize(("algo", "reward", "part"), [("flowrI", "raw", "algo=flowrI"), ("flowrl", "x", "reward=x")])
def test_unknown_names(algo: str, reward: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        Setup(algo, reward)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["algo=flowrl"], "run_dir= is missing"),
        (["run_dir=x"], "algo= is missing"),
        (["flowrl"], "expected KEY=VALUE"),
        (["algo=flowrl", "run_dir=x", "mode=both"], "mode=both"),
        (["algo=flowrl,nope", "run_dir=x"], "algo=nope"),
        (["algo=flowrl", "run_dir=x", "seeds=0,b"], "seeds=b: must be an integer >= 0"),
        (["algo=flowrl", "run_dir=x", "task=words"], "task=words"),
        (["algo=flowrl", "run_dir=x", "beta=0"], "beta=0: must be a finite number > 0"),
        (["algo=flowrl", "run_dir=x", "staleness=-1"], "staleness=-1"),
        (["algo=flowrl", "run_dir=x", "mode=stack", "staleness=2"], "staleness=2 is of mode=objective"),
        (["algo=flowrl", "run_dir=x", "mode=stack", "task=endings"], "task=endings is of mode=objective"),
    ],
)
def test_bad_arguments(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distribution", *arguments]) == 2
    assert part in capsys.readouterr().err


def test_a_target_counts_as_reached_where_the_policy_stays_near() -> None:
    def result(*divergences: float) -> dict:
        return {"curve": [{"samples": 10 * i, "worst": {"kl_policy_target": kl}} for i, kl in enumerate(divergences)]}

    assert samples_to(result(1.0, 0.005, 0.02, 0.01, 0.003), 0.01) == 30
    assert samples_to(result(1.0, 0.005, 0.02), 0.01) is None


def test_the_report_names_what_results_differ_in(tmp_path: Path) -> None:
    worst = {"kl_policy_target": 0.1, "kl_target_policy": 0.1, "total_variation": 0.1, "modes_covered": None,
             "log_z_error": None, "expected_reward": 0.9, "right_length": 3.5, "kl_right": 0.1}  # fmt: skip
    for beta, staleness in ((3.0, 0), (3.0, 4), (15.0, 0)):
        result = {"algo": "flowrl", "mode": "objective", "reward": "raw", "task": "endings", "beta": beta,
                  "staleness": staleness, "overrides": [], "own_target": True, "worst": worst,
                  "target": {"worst": worst}, "curve": [{"samples": 0, "worst": worst}]}  # fmt: skip
        directory = tmp_path / f"{beta}-{staleness}"
        directory.mkdir()
        (directory / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    for name in ("flowrl, beta 3, staleness 0", "flowrl, beta 3, staleness 4", "flowrl, beta 15, staleness 0"):
        assert name in page
