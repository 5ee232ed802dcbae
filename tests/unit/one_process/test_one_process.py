"""Training in one process: batches as the workers see them, rollouts, resumption, and that it learns."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.one_process.batch import Batch, concatenate
from recipe.flowrl.one_process.policy import read
from recipe.flowrl.one_process.task import PromptOrder, Task
from recipe.flowrl.one_process.trainer import Trainer
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.tasks.modes.enumerable_qwen2 import ensure_model
from recipe.flowrl.tasks.sampling import Responses, encode, generate

FAST = ("data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=1", "actor_rollout_ref.rollout.n=4")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """Answers of up to four tokens; right is what begins with the prompt's number."""
    from transformers import AutoTokenizer

    cache = tmp_path_factory.mktemp("cache")
    model_dir = ensure_model(cache / "enumerable_qwen2")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids, mask = encode(tokenizer, ["a", "bb"])
    assert not mask.bool().all(), "no prompt is padded"
    return Task(model_dir, ids, mask, 4, True, lambda prompt, answer: float(answer[0] == prompt))


def configure(task: Task, algo: str, *overrides: str) -> DictConfig:
    cache = f"cache_dir={task.model_dir.parent}"
    return compose_run(
        ["experiment=distribution", f"algo={algo}", cache, "trainer.total_training_steps=20", *FAST, *overrides]
    )


def responses(task: Task) -> Responses:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    policy = AutoModelForCausalLM.from_pretrained(task.model_dir)
    return generate(policy, task.prompt_ids, task.prompt_mask, 40, temperature=1.0, max_new_tokens=4)


def test_a_response_ends_with_its_first_end_of_sequence(task: Task) -> None:
    from transformers import AutoTokenizer

    drawn, eos = responses(task), AutoTokenizer.from_pretrained(task.model_dir).eos_token_id
    lengths = drawn.response_mask.sum(-1)
    assert set(lengths.tolist()) == {1, 2, 3, 4}
    for tokens, length in zip(drawn.tokens.tolist(), lengths.tolist(), strict=True):
        assert eos not in tokens[: length - 1]
        assert length == 4 or tokens[length - 1] == eos


def test_log_probs_entropies_and_prompt_states_against_single_sequences(task: Task) -> None:
    from transformers import AutoModelForCausalLM

    policy, drawn = AutoModelForCausalLM.from_pretrained(task.model_dir), responses(task)
    output = read(policy, drawn)
    for row in range(0, len(drawn.rows), 7):
        tokens, length = drawn.rows[row][drawn.attention[row]].unsqueeze(0), int(drawn.response_mask[row].sum())
        said = policy(tokens, output_hidden_states=True)
        steps = said.logits[0, -length - 1 : -1].log_softmax(-1)
        expected = steps.gather(-1, tokens[0, -length:, None]).squeeze(1)
        torch.testing.assert_close(output.log_probs[row, :length], expected, atol=1e-4, rtol=1e-4)
        entropy = -(steps.exp() * steps).sum(-1)
        torch.testing.assert_close(output.entropy[row, :length], entropy, atol=1e-4, rtol=1e-4)
        state = said.hidden_states[-1][0, :-length].mean(0)
        torch.testing.assert_close(output.prompt_state[row], state, atol=1e-4, rtol=1e-4)


def test_the_worker_finds_each_column_where_it_was(task: Task) -> None:
    drawn = responses(task)
    batch = Batch(np.arange(len(drawn.rows)), drawn, torch.zeros(len(drawn.rows))).rows(torch.tensor([3, 8, 1, 60]))
    column = torch.randn(batch.mask.shape)
    batch.columns["old_log_probs"] = column
    data = batch.as_worker_data()
    padded = data.select("old_log_probs", "response_mask").to_padded_tensor()
    mask = batch.responses.response_mask
    assert torch.equal(padded["response_mask"], mask)
    torch.testing.assert_close(padded["old_log_probs"], column * mask)
    torch.testing.assert_close(no_padding_2_padding(batch.as_model_output(column), data), column * mask)
    assert tu.get(data, "global_batch_size") == 4 and tu.get(data, "batch_num_tokens") == int(mask.sum())


def test_a_reward_stands_on_the_last_token(task: Task) -> None:
    drawn = responses(task)
    batch = Batch(np.arange(len(drawn.rows)), drawn, torch.arange(len(drawn.rows)).float() + 1)
    lengths = drawn.response_mask.sum(-1)
    assert torch.equal(batch.scores[torch.arange(len(batch)), lengths - 1], batch.reward)
    assert torch.equal(batch.scores.sum(-1), batch.reward)
    both = concatenate([batch, batch])
    assert len(both) == 2 * len(batch) and torch.equal(both.reward[len(batch) :], batch.reward)


def test_rows_of_draws_that_ended_early_fit_to_others() -> None:
    """A draw has as many columns as its longest response has tokens."""

    def drawn(tokens: int) -> Batch:
        rows = torch.arange(2 * (3 + tokens)).view(2, -1)
        mask = torch.ones(2, tokens, dtype=torch.bool)
        batch = Batch(np.arange(2), Responses(rows, torch.ones_like(rows), mask), torch.zeros(2))
        batch.columns["old_log_probs"] = -torch.ones(2, tokens)
        return batch

    both = concatenate([drawn(tokens).rows(torch.arange(2), longest=5) for tokens in (4, 6)])
    assert both.responses.prompt_length == 3
    assert both.responses.response_mask.sum(-1).tolist() == [4, 4, 5, 5]
    assert both.responses.attention.sum(-1).tolist() == [7, 7, 8, 8]
    assert both.columns["old_log_probs"].sum(-1).tolist() == [-4, -4, -5, -5]


def test_every_prompt_comes_once_before_any_comes_again() -> None:
    order = PromptOrder(6, seed=1)
    epochs = [order.next(4), order.next(2), order.next(6)]
    first, second = np.concatenate(epochs[:2]), epochs[2]
    assert sorted(first) == sorted(second) == list(range(6)) and list(first) != list(second)
    assert list(PromptOrder(6, seed=1).next(6)) == list(first) != list(PromptOrder(6, seed=2).next(6))


@pytest.mark.parametrize(
    "algo", ["flowrl", "flowrl_plus", "tb_replay", "grpo", "grpo_kl_matched", "ppo", "dapo", "rloo", "kl_cov"]
)
def test_it_learns_and_a_run_that_was_cut_off_goes_on_as_if_it_had_not(algo: str, task: Task) -> None:
    config = configure(task, algo, "actor_rollout_ref.actor.optim.lr=3e-3", "actor_rollout_ref.rollout.n=32")
    whole = Trainer(config, task)
    said = [whole.step() for _ in range(20)]
    first = Trainer(config, task)
    for _ in range(7):
        first.step()
    second = Trainer(config, task)
    second.load_state(first.state())
    again = [second.step() for _ in range(13)]
    assert said[7:] == again
    assert max(one["reward"] for one in said) > said[0]["reward"] + 0.2
    assert whole.samples >= 20 * 64 // (2 if algo == "tb_replay" else 1) and second.samples == whole.samples


def test_gradients_are_clipped_by_the_joint_norm_of_policy_and_head(task: Task) -> None:
    def norms(*overrides: str) -> tuple[float, float, float]:
        trainer = Trainer(configure(task, "flowrl", "actor_rollout_ref.actor.optim.clip_grad=0.5", *overrides), task)
        seen = {}
        for optimizer in trainer.optimizers:
            optimizer.step = lambda *_, **__: seen.update(  # what the optimizer gets to see
                policy=torch.nn.utils.get_total_norm([p.grad for p in trainer.policy.parameters()]).item(),
                head=torch.nn.utils.get_total_norm([p.grad for p in trainer.head.parameters()]).item(),
            )
        before = trainer.step()["grad_norm"]
        return before, seen["policy"], seen["head"]

    before, policy, head = norms()
    assert before > 0.5 and (policy**2 + head**2) ** 0.5 == pytest.approx(0.5, rel=1e-3)
    before, policy, head = norms("flowrl.partition_clip_separately=true")
    assert max(policy, head) == pytest.approx(0.5, rel=1e-3) and (policy**2 + head**2) ** 0.5 > 0.5


def test_dynamic_sampling_draws_until_the_batch_is_full(task: Task) -> None:
    """A prompt whose answers are all wrong is left out, and another takes its place."""
    hopeless = replace(task, reward=lambda prompt, answer: float(prompt == 0 and answer[0] == 0))
    trainer = Trainer(configure(task, "dapo"), hopeless)
    batch = trainer._draw(2)
    assert set(batch.prompt) == {0} and len(batch) == 8 and trainer.samples > 8


def test_stale_batches_are_those_of_an_older_policy(task: Task) -> None:
    config = configure(task, "flowrl_plus")
    stale, fresh = Trainer(config, task, staleness=2), Trainer(config, task)
    assert stale.step() == {} == stale.step()
    untrained = {name: value.clone() for name, value in stale.policy.state_dict().items()}
    assert all(torch.equal(value, fresh.policy.state_dict()[name]) for name, value in untrained.items())
    drawn = stale.waiting[0]
    again = Trainer(config, task, staleness=2)
    again.load_state(stale.state())
    said = stale.step()
    assert said["reward"] == float(drawn.reward.mean()) and stale.waiting[0] is not drawn
    assert again.step() == said and again.steps_trained == 1


@pytest.mark.parametrize(
    ("overrides", "old_is_what_drew", "weighed"),
    [
        ((), False, False),
        (("algorithm.rollout_correction.bypass_mode=true",), True, False),
        (("algorithm.rollout_correction.rollout_is=sequence",), False, True),
    ],
    ids=["as it is", "bypass", "weights"],
)
def test_the_old_policy_of_a_stale_batch(
    overrides: tuple[str, ...], old_is_what_drew: bool, weighed: bool, task: Task
) -> None:
    """It is the one before the updates, as in the stack, unless the run's rollout correction says otherwise."""
    trainer = Trainer(configure(task, "flowrl", "actor_rollout_ref.actor.optim.lr=1e-2", *overrides), task, staleness=1)
    for _ in range(4):
        trainer.step()
    batch, _ = trainer._with_earlier(trainer.waiting[0])
    drew, before = batch.columns["rollout_log_probs"], read(trainer.policy, batch.responses).log_probs.detach()
    assert (drew - before).abs().max() > 1e-3
    trainer._prepare(batch)
    torch.testing.assert_close(batch.columns["old_log_probs"], drew if old_is_what_drew else before)
    if weighed:
        ratio = (((before - drew) * batch.mask).sum(-1)).exp()
        told = batch.columns["rollout_is_weights"][:, 0]
        inside = ratio < 2  # verl bounds them from above
        torch.testing.assert_close(told[inside], ratio[inside])
    assert ("rollout_is_weights" in batch.columns) == weighed


def test_the_reference_moves_where_it_is_asked_to(task: Task) -> None:
    trainer = Trainer(configure(task, "prorl", "algorithm.reference_reset_steps=2"), task)
    start = trainer.reference.state_dict()["model.norm.weight"].clone()
    for _ in range(2):
        trainer.step()
    policy = trainer.policy.state_dict()["model.norm.weight"].clone()
    assert torch.equal(trainer.reference.state_dict()["model.norm.weight"], start)
    trainer.step()
    assert torch.equal(trainer.reference.state_dict()["model.norm.weight"], policy)


def test_the_base_policy_is_left_alone(task: Task) -> None:
    files = {path: path.read_bytes() for path in Path(task.model_dir).iterdir()}
    Trainer(configure(task, "grpo"), task).step()
    assert files == {path: path.read_bytes() for path in Path(task.model_dir).iterdir()}
    assert list(itertools.islice(files, 1))


REPLAY = ("data.train_batch_size=4", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "algorithm.replay.share=0.5")


def replaying(task: Task, *overrides: str, staleness: int = 0) -> Trainer:
    config = configure(task, "tb_replay", "actor_rollout_ref.actor.optim.lr=1e-2", *REPLAY, *overrides)
    return Trainer(config, task, staleness)


def test_half_of_each_mini_batch_are_earlier_groups(task: Task) -> None:
    """Whole, with the log-probs of the policy that drew them and of the reference, and without those of an update."""
    trainer = replaying(task)
    first = trainer.step()
    assert first["replay_share"] == 0 and trainer.samples == 4 * 4
    kept = [rows for rows, _, _ in trainer.replay.state()]
    untrained = trainer.reference
    for group in kept:
        assert len(group) == 4 and len(set(group.prompt)) == 1
        drew = read(untrained, group.responses).log_probs
        for name in ("rollout_log_probs", "ref_log_prob"):
            torch.testing.assert_close(group.columns[name] * group.mask, drew * group.mask, atol=1e-5, rtol=1e-4)
        assert set(group.columns) == {"rollout_log_probs", "ref_log_prob"}
    for step in (2, 3):
        trainer.steps_done = step
        new = trainer._draw(2)
        drawn = trainer.replay.draw(2, step)
        batch, said = trainer._with_earlier(new)
        assert len(batch) == 16 and said["replay_share"] == 0.5
        for place, group in ((4, drawn[0]), (12, drawn[1])):  # the second half of each mini-batch
            part = batch.rows(torch.arange(place, place + 4), longest=task.response_length)
            assert torch.equal(part.responses.rows, group.rows.responses.rows)
            assert torch.equal(part.columns["ref_log_prob"], group.rows.columns["ref_log_prob"])


def test_the_old_policy_of_a_replayed_answer_is_the_present_one(task: Task) -> None:
    trainer = replaying(task, "algorithm.rollout_correction.rollout_is=sequence")
    for _ in range(4):
        trainer.step()
    trainer.steps_done += 1
    batch, _ = trainer._with_earlier(trainer._draw(2))
    drew, before = batch.columns["rollout_log_probs"], read(trainer.policy, batch.responses).log_probs.detach()
    lag = ((before - drew) * batch.mask).sum(-1)
    old, new = torch.tensor([4, 5, 6, 7, 12, 13, 14, 15]), torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    assert lag[old].abs().max() > 1e-2 > 1e-4 > lag[new].abs().max()
    trainer._prepare(batch)
    torch.testing.assert_close(batch.columns["old_log_probs"], before)
    inside = lag < np.log(2)
    torch.testing.assert_close(batch.columns["rollout_is_weights"][inside, 0], lag[inside].exp())


def test_log_z_of_a_replayed_group_is_its_own_under_the_present_policy(task: Task) -> None:
    """Also where a new group of the same prompt is in the batch; in float64, by hand."""
    trainer = replaying(task)
    for _ in range(4):
        trainer.step()
    trainer.steps_done += 1
    batch, _ = trainer._with_earlier(trainer._draw(2))
    assert len(set(batch.prompt)) == 2, "each of the two prompts is there twice"
    trainer._prepare(batch)
    columns = {name: column.double().numpy() for name, column in batch.columns.items()}
    mask = batch.mask.double().numpy()
    for start in range(0, 16, 4):
        values = []
        for row in range(start, start + 4):
            tokens = np.flatnonzero(mask[row])
            log_ratio = sum(columns["old_log_probs"][row, t] - columns["ref_log_prob"][row, t] for t in tokens)
            values.append(3.0 * float(batch.reward[row]) - log_ratio)
        for row in range(start, start + 4):
            assert columns["group_log_z"][row, 0] == pytest.approx(sum(values) / 4, rel=1e-5)


def test_replay_with_stale_batches(task: Task) -> None:
    trainer = replaying(task, staleness=2)
    said = [trainer.step() for _ in range(7)]
    assert said[:2] == [{}, {}]
    assert [one["replay_share"] for one in said[2:]] == [0, 0, 0, 0.5, 0.5]
    assert said[-1]["replay_age"] >= 1


@pytest.mark.parametrize(
    ("algo", "override", "words"),
    [
        ("grpo", "algorithm.replay.share=0.5", "policy gradient"),
        ("tb_replay", "flowrl.ppo_coef=1", "policy gradient"),
        ("tb_replay", "flowrl.partition=constant", "log Z"),
        ("tb_replay", "algorithm.rollout_correction.bypass_mode=true", "log Z"),
    ],
)
def test_replay_is_for_objectives_that_hold_whoever_drew(task: Task, algo: str, override: str, words: str) -> None:
    with pytest.raises(UserError, match=f"algorithm.replay.share=0.5.*{words}"):
        Trainer(configure(task, algo, override), task)
