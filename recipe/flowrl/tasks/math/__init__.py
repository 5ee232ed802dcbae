"""Mathematics with a reference answer: which part of a response is the answer, and whether it equals the reference."""
