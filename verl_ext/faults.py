"""What ends a run from outside its code. Standard library only."""


class RunFault(RuntimeError):
    """A fault of the run's surroundings or numbers. The message is one line for a person, and needs no traceback."""


class ProcessDied(RunFault):
    """A process of the run is gone."""


class Stalled(RunFault):
    """The run has made no progress for longer than it may."""


class NonFiniteError(RunFault):
    """Too many updates in a row had a loss or a gradient that isn't finite. The message says where the batch is."""


class UngradedError(RunFault):
    """In too many steps in a row no response could be graded."""


class LogProbsDiffer(RunFault):
    """Two ways to compute the log-probs of the same tokens don't agree."""


class RejectedError(RunFault):
    """Every response of a batch was rejected: there is nothing to train on."""
