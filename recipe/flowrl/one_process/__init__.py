"""Training in one process, without Ray, vLLM and FSDP: policy, head and critic in plain PyTorch.

Losses and advantages are the functions that the workers of the stack call, so that what is measured is the objective.
"""
