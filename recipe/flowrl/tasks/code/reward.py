"""Reward for programming tasks: 1 if the response's program passes all tests, else 0. Programs run in a sandbox."""

from typing import Any

from recipe.flowrl.sandbox.choose import gate
from recipe.flowrl.sandbox.outcome import Limits, SandboxError, Status
from recipe.flowrl.tasks.code.cases import parse_tests
from recipe.flowrl.tasks.code.extraction import last_program

_TEST_S = {"livecodebench": 6.0, "humanevalplus": 4.0}
"""Wall-clock seconds for one test, by data source; others have 12 (TACO's limit in the published reward). The published
limit for HumanEval+, 1 s, fails the data set's own solution to HumanEval/130 on a busy machine."""


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    sandbox: str = "bubblewrap",
    sandbox_url: str | None = None,
    concurrency: int | None = None,
    max_tests: int = 15,
    memory_mb: int = 2048,
    **kwargs: Any,
) -> dict[str, float]:
    """Score one response; a reward function in verl's sense.

    Args:
        data_source: decides the time for a test.
        solution_str: the response; :mod:`recipe.flowrl.tasks.code.extraction` says which part of it is the program.
        ground_truth: tests in one of the forms of :func:`recipe.flowrl.tasks.code.cases.parse_tests`.
        extra_info: ``split``: all tests are run unless it is "train".
        sandbox: ``bubblewrap``, or in so many words ``unsafe_without_isolation``.
        sandbox_url: of a SandboxFusion server, used instead.
        concurrency: responses graded at once, for each process that computes rewards; None: half of the CPUs.
        max_tests: in training, the tests with the longest inputs, at most so many.
        memory_mb: of address space for a program.
        **kwargs: not looked at.

    Returns:
        ``score`` and ``acc``: 1.0 if all tests passed, else 0.0; ``passed``: share of the tests before the first that
        failed; ``extraction_failed``: 1.0 if there is no program; ``timed_out``: 1.0 if a test took too long;
        ``grader_failed``: 1.0 if the sandbox failed, which says nothing about the program.

    Raises:
        UserError: there is no sandbox.
        ValueError: ``ground_truth`` holds no tests that can be read.
    """
    programs = gate(sandbox, sandbox_url, concurrency)  # first: a run without a sandbox ends before it starts
    tests = parse_tests(ground_truth)
    if (extra_info or {}).get("split", "train") == "train":
        tests = tests.longest(max_tests)
    program = last_program(solution_str)
    if program is None:
        return _result(extraction_failed=True)
    seconds = _TEST_S.get(data_source, 12.0)
    limits = Limits(wall_s=seconds, cpu_s=int(seconds), memory_bytes=memory_mb * 2**20)
    try:
        with programs.slot() as runner:
            passed, status = tests.passed(program, runner, limits)
    except SandboxError:
        return _result(grader_failed=True)
    return _result(passed / len(tests), timed_out=status == Status.TIMED_OUT and passed < len(tests))


def _result(passed: float = 0.0, **flags: bool) -> dict[str, float]:
    right = float(passed == 1.0)
    names = ("extraction_failed", "timed_out", "grader_failed")
    return {"score": right, "acc": right, "passed": passed, **{n: float(flags.get(n, False)) for n in names}}
