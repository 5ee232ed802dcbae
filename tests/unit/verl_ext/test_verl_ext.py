"""Parts of verl_ext that need no engine: processes, seeds, the CPU platform."""

import subprocess
import sys
import textwrap

import torch


def test_descendants_are_ended_also_orphans() -> None:
    """A grandchild whose parent is gone, and that ignores SIGTERM, is found and killed."""
    script = textwrap.dedent("""
        import subprocess, sys, time
        import psutil
        from verl_ext.processes import adopt_orphans, end_descendants

        adopt_orphans()
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
        orphan = deaf + "; print('up', flush=True); time.sleep(60)"
        parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}], start_new_session=True)"
        child = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "up\\n"
        child.wait()
        print(end_descendants(grace_s=0.5), len(psutil.Process().children(recursive=True)))
    """)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split()[0] == "1"


def test_request_seeds_differ_and_repeat() -> None:
    from verl_ext.seeded_rollout import request_seed

    seeds = {
        request_seed(seed, step, index, session, validate)
        for seed in (1, 2)
        for step in (1, 2)
        for index in ("a", 7)
        for session in (0, 1)
        for validate in (False, True)
    }
    assert len(seeds) == 32
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(1, 2, "a", 3, True) == request_seed(1, 2, "a", 3, True)


def test_cpu_device_module_stands_for_torch_cpu() -> None:
    from verl_ext.cpu.platform import PlatformCPU

    platform = PlatformCPU()
    device = platform.device_module
    assert device == torch.cpu
    assert torch.ones(1).to(platform.current_device()).device.type == "cpu"
    device.reset_peak_memory_stats()
    used = device.memory_allocated()
    assert 0 < used <= device.max_memory_allocated()
    free, total = device.mem_get_info()
    assert used < total and free <= total
