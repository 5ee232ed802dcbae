"""A tokenised fine-tuning data set for verl's SFT trainer (``data.custom_cls``)."""

from typing import Any

import pandas as pd
import torch
from torch.utils.data import Dataset


class TokenizedDataset(Dataset):
    """Rows of ``input_ids`` and ``prompt_length`` from a parquet file.

    verl's own data set renders the chat template anew for each message of each sample, which takes longer than a step
    of a small model.
    """

    def __init__(self, parquet_files: str, tokenizer: Any, config: Any, processor: Any, max_samples: int = -1) -> None:
        frame = pd.read_parquet(parquet_files)
        self.rows = list(zip(frame["input_ids"], frame["prompt_length"], strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``input_ids``, ``position_ids`` and ``loss_mask`` (1 on the answer), each of the sequence's length."""
        tokens, prompt_length = self.rows[index]
        positions = torch.arange(len(tokens))
        return {
            "input_ids": torch.tensor(tokens),
            "position_ids": positions,
            "loss_mask": (positions >= prompt_length).long(),
        }
