"""Losses of other algorithms once more, for tests: float64, response by response, from the papers.

Each takes a batch and gives the loss of all of it, a scalar with gradient. ``ratio`` is pi/pi_old.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DUAL_CLIP = 3.0
LONGEST = 32
"""``data.max_response_length`` of the experiment that the presets are composed with."""


@dataclass(frozen=True)
class Batch:
    """``log_prob``, ``old``, ``ref`` and ``mask`` are (B, T); ``advantage`` is (B,), the same on all of a response."""

    log_prob: Tensor
    old: Tensor
    ref: Tensor
    mask: Tensor
    advantage: Tensor

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, float]]:
        """Each response's log pi, log pi_old, log pi_ref (|y|,) and its advantage."""
        for row, mask in enumerate(self.mask):
            yield self.log_prob[row, mask], self.old[row, mask], self.ref[row, mask], self.advantage[row].item()


def random_batch(rows: int = 9, tokens: int = 7, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(rows, tokens, generator=generator, dtype=torch.float64) * 2 - 0.02
    drift = torch.randn(rows, tokens, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    return Batch(
        log_prob=(old + 0.5 * drift).clamp(max=-0.01),
        old=old,
        ref=old + 0.3 * torch.randn(rows, tokens, generator=generator, dtype=torch.float64),
        mask=torch.arange(tokens) < lengths.unsqueeze(-1),
        advantage=torch.randn(rows, generator=generator, dtype=torch.float64),
    )


def clipped(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """PPO's, with the dual clip: a negative advantage loses no more than c times itself."""
    losses = []
    for r in ratio:
        objective = torch.min(r * advantage, r.clamp(1 - low, 1 + high) * advantage)
        losses.append(-(torch.maximum(objective, torch.tensor(DUAL_CLIP * advantage)) if advantage < 0 else objective))
    return torch.stack(losses)


def k3(log_pi: Tensor, log_ref: Tensor) -> Tensor:
    return (log_ref - log_pi).exp() - (log_ref - log_pi) - 1


def token_mean(batch: Batch, losses: Callable[..., Tensor]) -> Tensor:
    rows = [losses(*row) for row in batch]
    return torch.cat(rows).sum() / sum(len(row) for row in rows)


def response_mean(batch: Batch, losses: Callable[..., Tensor]) -> Tensor:
    rows = [losses(*row) for row in batch]
    return torch.stack([row.mean() for row in rows]).mean()


def grpo(batch: Batch) -> Tensor:
    return response_mean(batch, lambda new, old, ref, a: clipped((new - old).exp(), a, 0.2, 0.2) + 0.001 * k3(new, ref))


def dr_grpo(batch: Batch) -> Tensor:
    return torch.stack([clipped((new - old).exp(), a, 0.2, 0.2).sum() / LONGEST for new, old, _, a in batch]).mean()


def dapo(batch: Batch) -> Tensor:
    return token_mean(batch, lambda new, old, ref, a: clipped((new - old).exp(), a, 0.2, 0.28))


def rloo(batch: Batch) -> Tensor:
    return torch.stack([clipped((new - old).exp(), a, 0.2, 0.2).sum() for new, old, _, a in batch]).mean()


def token_ppo(batch: Batch) -> Tensor:
    return token_mean(batch, lambda new, old, ref, a: clipped((new - old).exp(), a, 0.2, 0.2))


def reinforce_plus_plus_baseline(batch: Batch) -> Tensor:
    return token_mean(
        batch,
        lambda new, old, ref, a: clipped((new - old).exp(), a, 0.2, 0.2) + 0.001 * (new - ref) ** 2 / 2,
    )


def prorl(batch: Batch) -> Tensor:
    return token_mean(batch, lambda new, old, ref, a: clipped((new - old).exp(), a, 0.2, 0.4) + 0.001 * k3(new, ref))


def dmpo(batch: Batch) -> Tensor:
    return response_mean(batch, lambda new, old, ref, a: clipped((new - old).exp(), a, 0.2, 0.2))


def gspo(batch: Batch) -> Tensor:
    losses = []
    for new, old, _, a in batch:
        ratio = (new - old).mean().exp()
        losses.append(-torch.min(ratio * a, ratio.clamp(1 - 3e-4, 1 + 4e-4) * a))
    return torch.stack(losses).mean()


def gmpo(batch: Batch) -> Tensor:
    losses = []
    for new, old, _, a in batch:
        product = torch.ones((), dtype=torch.float64)
        for log_ratio in new - old:
            bounded = log_ratio.clamp(-0.4, 0.4)
            product = product * (torch.min(log_ratio, bounded) if a > 0 else torch.max(log_ratio, bounded)).exp()
        losses.append(-a * product ** (1 / len(new)))
    return torch.stack(losses).mean()


def cispo(batch: Batch) -> Tensor:
    return token_mean(batch, lambda new, old, ref, a: -(new - old).exp().clamp(max=5.0).detach() * a * new)


def clip_cov_without_selection(batch: Batch) -> Tensor:
    return token_mean(
        batch, lambda new, old, ref, a: torch.maximum(-(new - old).exp() * a, -(new - old).exp().clamp(0, 2) * a)
    )


def sapo(batch: Batch) -> Tensor:
    def losses(new: Tensor, old: Tensor, ref: Tensor, a: float) -> Tensor:
        tau = 1.0 if a > 0 else 1.05
        return -a * (4 / tau) / (1 + (-tau * ((new - old).exp() - 1)).exp())

    return response_mean(batch, losses)


def _dppo(batch: Batch, moved: Callable[[Tensor, Tensor], Tensor], threshold: float) -> Tensor:
    """A token that has moved by more than the threshold, and further the way that its advantage pushes, is left out."""

    def losses(new: Tensor, old: Tensor, ref: Tensor, a: float) -> Tensor:
        p, q = new.detach().exp(), old.exp()
        outside = (moved(p, q) > threshold) & ((p > q) if a > 0 else (p < q))
        return torch.where(outside, 0.0, -(new - old).exp().detach() * a * new)

    return token_mean(batch, losses)


def dppo_tv(batch: Batch) -> Tensor:
    return _dppo(batch, lambda p, q: (p - q).abs(), 0.15)


def dppo_kl(batch: Batch) -> Tensor:
    return _dppo(batch, lambda p, q: q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log(), 0.05)


def dro(batch: Batch) -> Tensor:
    return token_mean(batch, lambda new, old, ref, a: -(a * new - 0.05 / 2 * (new - old) ** 2))


def grpo_kl_matched(batch: Batch) -> Tensor:
    losses = []
    for new, old, _, a in batch:
        weight = min(max(math.exp((new - old).sum().item()), 0.8), 1.2)
        losses.append(-weight * a * new.mean())
    return torch.stack(losses).mean()


PAPER_LOSSES: dict[str, Callable[[Batch], Tensor]] = {
    "cispo": cispo,
    "dapo": dapo,
    "dmpo": dmpo,
    "dppo_kl": dppo_kl,
    "dppo_tv": dppo_tv,
    "dr_grpo": dr_grpo,
    "dro": dro,
    "gmpo": gmpo,
    "grpo": grpo,
    "grpo_kl_matched": grpo_kl_matched,
    "gspo": gspo,
    "maxrl": token_ppo,
    "passk": token_ppo,
    "ppo": token_ppo,
    "prorl": prorl,
    "reinforce_plus_plus": token_ppo,
    "reinforce_plus_plus_baseline": reinforce_plus_plus_baseline,
    "rloo": rloo,
    "sapo": sapo,
}
"""Preset -> its loss. ``clip_cov`` and ``kl_cov``, which choose tokens, have tests of their own."""
