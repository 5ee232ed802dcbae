"""Answers of one to four tokens that end with the end-of-sequence token; right is what contains the prompt's symbol.

Some 10^4 answers a prompt, of which about a quarter are right, short ones more seldom than long ones: what an objective
does to the lengths shows. The policy has to look back at what it has said, and at nothing else.
"""

SYMBOLS = "abcd"
LENGTH = 4
"""Tokens of the longest answer, the end-of-sequence token included; one of so many needn't end with it."""
PROMPTS = SYMBOLS


def reward(prompt: str, answer: str) -> float:
    """1 if ``answer``, without its special tokens, contains the symbol ``prompt``, else 0."""
    return float(prompt in answer)
