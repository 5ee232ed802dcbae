"""Files and modules of the user's that verl loads by path, minutes into a run: they are looked for at its start."""

import ast
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import guess
from verl_ext.source import verl_directory

_ROLLOUT = "actor_rollout_ref.rollout"

CLASSES = {
    "data.custom_cls": ("path", "name"),
    "trainer.v1.sampler.custom_sampler": ("path", "name"),
    f"{_ROLLOUT}.agent.custom_async_server": ("path", "name"),
    "reward.reward_manager.module": ("path", "name"),
}
"""Section -> its options that name a file or module and a class or function in it."""

FILES = (
    f"{_ROLLOUT}.multi_turn.tool_config_path",
    f"{_ROLLOUT}.multi_turn.function_tool_path",
    f"{_ROLLOUT}.agent.agent_loop_config_path",
    "actor_rollout_ref.model.custom_chat_template_path",
)
"""Options that name a file, which verl looks for in the working directory and beside itself."""


def check_user_modules(config: DictConfig) -> None:
    """Look for every file and module that the configuration names, and for the names in it. Nothing is executed.

    Raises:
        UserError: one of them isn't there.
    """
    for key in FILES:
        path = OmegaConf.select(config, key)
        if path and not any((base / path).is_file() for base in (Path.cwd(), verl_directory().parent)):
            raise UserError(f"{key}={path}: there is no such file: give its path, from {Path.cwd()} or absolute")
    for section, (path_key, name_key) in CLASSES.items():
        path, name = (OmegaConf.select(config, f"{section}.{key}") for key in (path_key, name_key))
        if path:
            _check_definition(section, str(path), name)


def _check_definition(section: str, path: str, name: str | None) -> None:
    source = _source_of(section, path)
    if source is None or not name:
        return
    try:
        body = ast.parse(source.read_bytes()).body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{section}.path={path}: isn't Python: {error}") from error
    defined = [node.name for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
    # What isn't defined there may be imported or assigned there.
    if name not in defined and not any(name in ast.unparse(node) for node in body if not hasattr(node, "body")):
        raise UserError(
            f"{section}.name={name}: {path} doesn't define it{guess(name, defined)}; it defines {', '.join(defined)}"
        )


def _source_of(section: str, path: str) -> Path | None:
    """The Python file that ``path`` means, None for a module without one."""
    if not path.startswith("pkg://"):
        file = Path(path.removeprefix("file://")).expanduser()
        if not file.is_file():
            raise UserError(f"{section}.path={path}: there is no such file: give a Python file or pkg://package.module")
        return file
    module = path.removeprefix("pkg://").replace("/", ".")
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise UserError(
            f"{section}.path={path}: there is no module {module}: install it, or add its folder to PYTHONPATH"
        )
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
