"""FlowRL: reward-distribution matching for LLM reasoning, on verl (arXiv 2509.15207)."""
