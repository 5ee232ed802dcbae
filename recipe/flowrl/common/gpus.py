"""What a GPU has, from its data sheet."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """Memory in bytes, dense bfloat16 FLOP/s, memory bandwidth in bytes/s."""

    memory: float
    flops: float
    bandwidth: float


GPUS = {
    "a100_40gb": GPU(40e9, 312e12, 1.555e12),
    "a100_80gb": GPU(80e9, 312e12, 2.039e12),
    "h800_80gb": GPU(80e9, 989e12, 3.35e12),
    "h100_80gb": GPU(80e9, 989e12, 3.35e12),
    "h200_141gb": GPU(141e9, 989e12, 4.8e12),
    "l40s_48gb": GPU(48e9, 362e12, 0.864e12),
}


def named(device: str) -> str | None:
    """The key in :data:`GPUS` of a device as CUDA names it (``NVIDIA H100 80GB HBM3``), None if it isn't there.

    Where a model comes with several sizes of memory, CUDA's name has the size.
    """
    words = device.lower().replace("-", " ").split()
    models = {key: key.partition("_") for key in GPUS}
    fitting = [key for key, (model, _, _) in models.items() if model in words]
    if len(fitting) > 1:
        fitting = [key for key in fitting if models[key][2] in words]
    return fitting[0] if fitting else None
