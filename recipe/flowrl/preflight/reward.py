"""The reward function: loaded as verl loads it, and called once."""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import itertools
import math
import numbers
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.tasks.rows import shown
from verl_ext import graders

_KEY = "reward.custom_reward_function"
_ANSWER = "The answer is \\boxed{1}."
_MODULES = "ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES"
_CALLED, _NAMED = 64, 12
"""Data sources on whose rows the function is called, and that are listed: a file may call each of its rows another."""
_WAY_OUT = f"set {_KEY}.path, or choose reward=math_verify, reward=math_dapo or reward=code"


def check_reward_source(config: DictConfig) -> None:
    """Check that the reward function's file exists and is Python, without running it, and that verl's unsafe ones are
    shut in every process.

    Raises:
        UserError: it doesn't, or isn't, or they aren't.
    """
    modules = OmegaConf.select(config, _MODULES) or ""
    if graders.MODULE not in modules.split(","):
        raise UserError(
            f"{_MODULES}={modules}: it must name {graders.MODULE} too, which keeps verl's reward functions that run "
            f"what a model wrote from being imported: set it to {','.join(filter(None, [graders.MODULE, modules]))}"
        )
    path = config.reward.custom_reward_function.path
    if not path or path.startswith("pkg://"):
        return
    file = Path(path.removeprefix("file://"))
    if not file.is_file():
        raise UserError(f"{_KEY}.path: {file} doesn't exist: give a Python file or pkg://package.module")
    try:
        compile(file.read_text(), file, "exec")
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{_KEY}.path: {file} isn't Python: {error}") from error


def check_reward(
    config: DictConfig, rows: Mapping[str, tuple[str, Callable[[], dict[str, Any]]]], unseen: str | None
) -> list[str]:
    """Check what will score each data source, and call it on an answer to the first row of each, as verl would.

    Args:
        config: of the run.
        rows: the place of the first row of each data source, and what reads it, in verl's schema.
        unseen: data that can't be looked at before the run, if there are any.

    Returns:
        A line for each reward function: what it is, and the data sources that it scores.

    Raises:
        UserError: a data source has no reward function, or one that runs what the model wrote; or the function can't be
            loaded or called, raises, or returns something that is no score.
    """
    options = OmegaConf.select(config, f"{_KEY}.reward_kwargs") or {}
    if config.reward.custom_reward_function.path:
        function, where = _load(config)
        names = dict.fromkeys(rows, where.removeprefix("the reward function "))
    elif config.reward.reward_model.enable:
        names = {source: f"the reward model {config.reward.reward_model.model_path}" for source in rows}
    else:
        (function, where), options = _verls_own(config), {}
        names = {source: _verls_choice(config, source, place) for source, (place, _) in rows.items()}
        if unseen:
            raise UserError(
                f"{unseen}: which of verl's own reward functions would score these rows can't be known before the run: "
                f"{_WAY_OUT}"
            )
    # Another manager may call the function otherwise, or not at all.
    if not config.reward.reward_model.enable and config.reward.reward_manager.source == "register":
        for source, (place, read) in itertools.islice(rows.items(), _CALLED):
            row = read()
            arguments = {
                "data_source": source,
                "solution_str": _ANSWER,
                "ground_truth": row["reward_model"]["ground_truth"],
                "extra_info": {**(row.get("extra_info") or {}), "num_turns": 2, "rollout_reward_scores": {}},
                **options,
            }
            _check_score(_call(function, where, arguments, place), where)
    return [
        _scored_by(name, [source for source in rows if names[source] == name]) for name in dict.fromkeys(names.values())
    ]


def _scored_by(name: str, sources: list[str]) -> str:
    more = f" and {len(sources) - _NAMED} more" if len(sources) > _NAMED else ""
    return f"scored by {name}: {', '.join(shown(source[:80]) for source in sorted(sources)[:_NAMED])}{more}"


def _load(config: DictConfig) -> tuple[Callable, str]:
    graders.shut()
    path, name = config.reward.custom_reward_function.path, config.reward.custom_reward_function.name
    try:
        module = _import(path)
    except Exception as error:
        raise UserError(f"{_KEY}.path: {path} can't be imported: {_describe(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if inspect.isfunction(value) and key[0] != "_"]
        raise UserError(f"{_KEY}.name: {path} has no function {name!r}; it has {', '.join(functions) or 'none'}")
    return function, f"the reward function {name} of {path}"


def _import(path: str) -> Any:
    if path.startswith("pkg://"):
        return importlib.import_module(path.removeprefix("pkg://").replace("/", "."))
    spec = importlib.util.spec_from_file_location("custom_reward_function", path.removeprefix("file://"))
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _verls_own(config: DictConfig) -> tuple[Callable, str]:
    from verl.utils.reward_score import default_compute_score

    graders.shut()
    sandbox = OmegaConf.select(config, "reward.sandbox_fusion.url")
    function = functools.partial(default_compute_score, sandbox_fusion_url=sandbox)
    return function, f"verl's own reward function (set {_KEY}.path to use another)"


def _verls_choice(config: DictConfig, source: str, place: str) -> str:
    """The name of verl's reward function for a data source. Raises UserError if it has none, or it is unsafe."""
    chosen = graders.verls_choice(source, OmegaConf.select(config, "reward.sandbox_fusion.url"))
    if chosen is None:
        raise UserError(
            f"{place}: verl's own reward function knows no data_source {shown(source)!r} (NotImplementedError): "
            f"{_WAY_OUT}"
        )
    if chosen in graders.SHUT:
        raise UserError(f"{place}: data_source {shown(source)!r}: verl's {chosen} {graders.SHUT[chosen]}: {_WAY_OUT}")
    return f"verl's {chosen}"


def _call(function: Callable, where: str, arguments: dict[str, Any], place: str) -> Any:
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{where} can't be called: {error}. It must take the arguments {', '.join(arguments)}"
        ) from error
    try:
        result = function(**arguments)
        return asyncio.run(result) if inspect.iscoroutine(result) else result
    except UserError:  # of our own functions: says all there is to say
        raise
    except Exception as error:
        source = shown(arguments["data_source"])
        raise UserError(f"{where} failed on a row of {source!r} ({place}): {_describe(error)}") from error


def _check_score(result: Any, where: str) -> None:
    wanted = "it must return a finite number, or a dict with a finite number under 'score'"
    score = result
    if isinstance(result, dict):
        if "score" not in result:
            raise UserError(f"{where} returned a dict with the keys {', '.join(map(str, result))}: {wanted}")
        score = result["score"]
    number = score.item() if hasattr(score, "item") else score  # of NumPy or PyTorch
    if not isinstance(number, numbers.Real) or not math.isfinite(number):
        under = " under 'score'" if isinstance(result, dict) else ""
        raise UserError(f"{where} returned {score!r} ({type(score).__name__}){under}: {wanted}")


def _describe(error: Exception) -> str:
    """Type, message and place of an error raised in someone else's code."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message} ({frame.filename}, line {frame.lineno})"
