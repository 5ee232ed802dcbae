"""Evaluates a model: samples are kept and graded problem by problem, so that what was killed is continued.

``OUT/summary.json`` and ``OUT/report.html`` hold the outcome.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError, traceback_in
from recipe.flowrl.common.files import alone_in, write_json
from recipe.flowrl.common.progress import Progress
from recipe.flowrl.common.terminal import output_into
from recipe.flowrl.evaluate import protocol
from recipe.flowrl.evaluate.benchmarks import Benchmark, Problem, load, place
from recipe.flowrl.evaluate.evaluate_options import Options
from recipe.flowrl.evaluate.generation import Engine, Sampling, generate, unfinished
from recipe.flowrl.evaluate.grading import Grader, check_references, grade, grader_for
from recipe.flowrl.evaluate.model_path import model_directory
from recipe.flowrl.evaluate.paired import compare, load_summary
from recipe.flowrl.evaluate.records import Records
from recipe.flowrl.evaluate.summary import summarise
from recipe.flowrl.reporting.console import RunConsole

SAMPLES, GRADES = "samples.jsonl.gz", "grades.jsonl.gz"

OpenEngine = Callable[[Options, Sequence[Benchmark]], Any]
"""Returns a context manager that yields an :class:`Engine` for the problems of some benchmarks."""


def carry_out(options: Options) -> None:
    """Evaluate as asked, with progress on the terminal; what libraries print goes to ``OUT/log.txt``.

    Raises:
        UserError: as :func:`evaluate` does, or another process writes to ``out``.
    """
    benchmarks = load(options.suite, options.benchmarks, options.data, options.problems)
    with alone_in(options.out):
        _run(options, benchmarks)


def _run(options: Options, benchmarks: Sequence[Benchmark]) -> None:
    log = options.out / "log.txt"
    with traceback_in(log), output_into(log) as terminal, RunConsole(terminal) as console:
        console.message(f"evaluation: {options.out}; what vLLM says: {log}")
        evaluate(options, benchmarks, console)


def evaluate(
    options: Options, benchmarks: Sequence[Benchmark], console: RunConsole, open_engine: OpenEngine | None = None
) -> dict[str, Any]:
    """Generate what is missing, grade what isn't graded, and write the summary and the report.

    Args:
        options: what to do.
        benchmarks: the problems.
        console: for progress.
        open_engine: as :func:`engine_for`, which is the default.

    Returns:
        The summary.

    Raises:
        UserError: ``out`` holds another evaluation, or something that is needed isn't there.
    """
    grader = grader_for(options.suite, options.sandbox, options.sandbox_url)
    other = load_summary(options.against) if options.against else None
    before = protocol.recorded(options.out)
    wanted = protocol.protocol_of(options, benchmarks, grader.name)
    if options.grade_only and before:
        wanted |= {name: before[name] for name in protocol.OF_THE_MODEL}
    protocol.check_same(options.out, wanted)
    for benchmark in benchmarks:
        if benchmark.repeated:
            console.message(f"{benchmark.name}: {benchmark.repeated} rows repeat a problem and are left out")
    for line in check_references(benchmarks, grader):
        console.message(f"warning: {line}")
    missing = _missing(options, benchmarks)
    outdated = [benchmark.name for benchmark in benchmarks] if options.grade_only else []
    if before and before["grader"] != grader.name:
        outdated += before["benchmarks"]
    for name in outdated:
        (options.out / name / GRADES).unlink(missing_ok=True)
    if any(missing.values()):
        _generate(options, benchmarks, missing, wanted, console, open_engine or engine_for)
    kept = protocol.save(options.out, wanted)
    with console.phase("grading"):
        for benchmark in benchmarks:
            _grade(options, benchmark, grader, console)
    with console.phase("summary and report"):
        summary = _summarise(options, kept, grader, other)
        from recipe.flowrl.evaluate.evaluation_report import write_report  # seconds to import, not needed until now

        report = write_report(options.out, summary)
    _show(summary, report, console)
    return summary


@contextmanager
def engine_for(options: Options, benchmarks: Sequence[Benchmark]) -> Iterator[Engine]:
    """The engine that ``options`` ask for, for the problems of ``benchmarks``. Raises UserError if it can't be had."""
    if options.server:
        from recipe.flowrl.evaluate.server import ServerEngine

        yield ServerEngine(options.server, options.model, options.concurrency)
    else:
        from recipe.flowrl.evaluate.vllm_engine import VLLMEngine

        prompts = [problem.prompt for benchmark in benchmarks for problem in benchmark.problems]
        with (
            model_directory(options.model, options.trust) as model,
            VLLMEngine(model, prompts, options.max_tokens, options.engine) as engine,
        ):
            yield engine


def _missing(options: Options, benchmarks: Sequence[Benchmark]) -> dict[str, list[Problem]]:
    """The problems of each benchmark that have no samples yet; with ``grade_only`` there must be none."""
    missing = {item.name: unfinished(item, Records(options.out / item.name / SAMPLES)) for item in benchmarks}
    lacking = [name for name, problems in missing.items() if problems]
    if options.grade_only and lacking:
        raise UserError(
            f"grade_only=true: {len(missing[lacking[0]])} problems of {lacking[0]} have no samples in {options.out}: "
            "leave it out, and they are generated"
        )
    return missing


def _generate(
    options: Options,
    benchmarks: Sequence[Benchmark],
    missing: dict[str, list[Problem]],
    wanted: dict[str, Any],
    console: RunConsole,
    open_engine: OpenEngine,
) -> None:
    """Draw the samples that are missing; ``wanted`` gets the engine."""
    sampling = Sampling(options.temperature, options.top_p, options.max_tokens)
    with ExitStack() as stack:
        with console.phase("asking the server for its models" if options.server else "loading the model"):
            engine = stack.enter_context(open_engine(options, benchmarks))
        wanted["engine"] = engine.describe()
        protocol.check_same(options.out, wanted)
        protocol.save(options.out, wanted)
        for benchmark in benchmarks:
            todo, total = missing[benchmark.name], len(benchmark.problems) * options.n
            progress = Progress(console.message, benchmark.name, total, total - len(todo) * options.n)
            samples = Records(options.out / benchmark.name / SAMPLES)
            with console.phase(f"generating {benchmark.name}"):
                generate(engine, todo, samples, sampling, options.n, options.seed, progress)


def _grade(options: Options, benchmark: Benchmark, grader: Grader, console: RunConsole) -> None:
    samples, grades = (Records(options.out / benchmark.name / name) for name in (SAMPLES, GRADES))
    left = sum(problem.id not in grades.by_problem for problem in benchmark.problems) * options.n
    total = len(benchmark.problems) * options.n
    progress = Progress(console.message, f"grading {benchmark.name}", total, total - left)
    grade(benchmark, samples, grades, grader, progress)


def _summarise(options: Options, kept: dict[str, Any], grader: Grader, other: dict[str, Any] | None) -> dict[str, Any]:
    """Of all benchmarks in ``out`` that have been graded, also those of earlier commands."""
    found = {}
    for name in kept["benchmarks"]:
        grades = Records(options.out / name / GRADES).by_problem
        samples = Records(options.out / name / SAMPLES).by_problem
        both = sorted(samples.keys() & grades.keys(), key=place)  # a resumed run's are in another order
        if both:
            found[name] = summarise(
                name,
                {problem: samples[problem] for problem in both},
                {problem: grades[problem] for problem in both},
                options.n,
                votes=grader.same is not None,
                contests=options.contests,
            )
    summary = {"protocol": kept, "benchmarks": found}
    if other:
        summary["paired"] = compare(summary, other)
    write_json(options.out / "summary.json", summary, indent=1)
    return summary


def _show(summary: dict[str, Any], report: Path, console: RunConsole) -> None:
    from recipe.flowrl.evaluate.evaluation_report import notes, paired_table, results_table, text_table

    for line in [*text_table(results_table(summary)), *notes(summary)]:
        console.message(line)
    if paired := summary.get("paired"):
        console.message(f"against {paired['model']}:")
        for line in [
            *text_table(paired_table(paired)),
            *map("protocols differ: {}".format, paired["protocol_differs"]),
        ]:
            console.message(line)
    console.message(f"report: {report}")
