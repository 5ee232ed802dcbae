"""The front door: ``python -m recipe.flowrl COMMAND …``, or ``flowrl COMMAND …`` where the project is installed."""

import importlib
import sys
from collections.abc import Sequence

from recipe.flowrl.common.errors import BAD_INPUT, UserError, exit_status_of
from recipe.flowrl.common.project import in_utf8
from recipe.flowrl.common.rules import guess

COMMANDS = {
    "train": "Train a model, and go on with a run that was ended.",
    "prepare": "Make what runs and evaluations need: own data and base policies, public data sets.",
    "plan": "Reckon whether a run fits on its GPUs, and how long it takes.",
    "doctor": "Check whether a run could work on this machine.",
    "submit": "Hand a run to SLURM.",
    "status": "Tell how a run is doing: step, reward, time to go, attempts.",
    "replay": "Compute the loss of a kept batch again, one whose loss or gradient wasn't finite.",
    "export": "Write a checkpoint as a Hugging Face model.",
    "report": "Draw the report of a run, an evaluation, a study or a distribution again.",
    "evaluate": "Evaluate a model on benchmarks.",
    "diversity": "Measure how different the answers of evaluated systems are.",
    "tables": "Set evaluations beside the paper's figures.",
    "compare": "Train algorithms alike, several times, and compare them.",
    "distribution": "Test whether a policy matches the target distribution, where all answers can be enumerated.",
}
"""In the order in which a user needs them; each is a module of ``recipe.flowrl.commands``."""

_HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command.

    Args:
        arguments: its name and what follows; None: those of this process.

    Returns:
        The exit status: the command's own, 2 for bad input, or that of what ended it
        (:func:`recipe.flowrl.common.errors.exit_status_of`).
    """
    try:
        if arguments is None:
            in_utf8()
        status = _carry_out(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # here, where it may fail: a reader may have left
    except BaseException as error:
        return exit_status_of(error)
    return status


def _carry_out(arguments: list[str]) -> int:
    name, *rest = arguments or [""]
    if not name or name in _HELP:
        print(_overview())
        return 0 if name else BAD_INPUT
    if name not in COMMANDS:
        raise UserError(f"{name}: no such command{guess(name, COMMANDS)}; there are {', '.join(COMMANDS)}")
    from recipe.flowrl.common import command_line  # OmegaConf, which the overview doesn't need

    command = importlib.import_module(f"recipe.flowrl.commands.{name}").COMMAND
    if set(_HELP) & set(rest):
        print(command_line.help_text(name, COMMANDS[name], command))
        return 0
    if command.hydra:
        return command.run(command.options(tuple(rest))) or 0
    usage = f"{command_line.PROGRAM} {name} {command.examples[-1]}"
    return command.run(command_line.parse(command.options, rest, usage)) or 0


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = ["python -m recipe.flowrl COMMAND [KEY=VALUE …]", ""]
    lines += [f"  {name:<{width}}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join([*lines, "", "COMMAND --help tells its options, with an example."])


if __name__ == "__main__":
    sys.exit(main())
