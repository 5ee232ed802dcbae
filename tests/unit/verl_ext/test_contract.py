"""What this project takes of verl is there, in the form in which it is used. A new verl fails here first."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
from collections.abc import Iterator

import contract
import pytest

from verl_ext import compat

CALLED_BY_OURSELVES = {
    node.attr for tree in contract.sources().values() for node in ast.walk(tree) if isinstance(node, ast.Attribute)
}


@pytest.mark.parametrize("symbol", sorted(contract.used_symbols()))
def test_symbol_exists(symbol: str) -> None:
    contract.resolve(symbol)


def combined_classes() -> list[type]:
    """Every class of ours over the classes of verl that it is put in front of."""
    from verl.trainer.ppo.v1.trainer_base import get_trainer_cls
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

    from recipe.flowrl.trainer import FlowRLTrainer
    from verl_ext.cpu.engine import CPUFSDPMixin

    classes = [cls for cls in contract.own_classes() if contract.derives_from_verl(cls)]
    classes += [type("Engine", (CPUFSDPMixin, FSDPEngineWithLMHead), {})]
    modes = ("sync", "colocate_async", "separate_async")
    classes += [type("Trainer", (FlowRLTrainer, get_trainer_cls(mode)), {}) for mode in modes]
    return classes


def own_methods() -> Iterator[tuple[type, type, str]]:
    """(combined class, the class of ours that defines the method, the method's name)."""
    for combined in combined_classes():
        for cls in filter(contract.is_own, combined.__mro__):
            for name, value in vars(cls).items():
                if inspect.isfunction(value) and (name == "__init__" or not name.startswith("__")):
                    yield combined, cls, name


def test_every_class_that_calls_super_is_looked_at() -> None:
    looked_at = {base for combined in combined_classes() for base in combined.__mro__}
    assert set(contract.own_classes()) <= looked_at


def test_methods_override_something_with_its_signature_or_are_ours_to_call() -> None:
    problems = []
    for combined, cls, name in own_methods():
        after = combined.__mro__[combined.__mro__.index(cls) + 1 : -1]  # without object
        upstream = next((vars(base)[name] for base in after if not contract.is_own(base) and name in vars(base)), None)
        if upstream is not None:
            problem = contract.signature_problem(vars(cls)[name], inspect.unwrap(upstream))
            problems += [f"{cls.__name__}.{name}: {problem}"] if problem else []
        elif name != "__init__" and name not in CALLED_BY_OURSELVES:
            problems.append(f"{cls.__name__}.{name}: verl has no such method, and nothing here calls it")
    assert not problems


def test_what_is_called_on_super_and_self_exists() -> None:
    problems = []
    for combined in combined_classes():
        trees = contract.trees_of(combined)
        assigned = set().union(*(contract.attributes_of(tree, "self", ast.Store) for tree in trees.values()))
        assigned |= set().union(*(getattr(base, "__annotations__", {}) for base in trees))
        for cls in filter(contract.is_own, trees):
            after = combined.__mro__[combined.__mro__.index(cls) + 1 :]
            for name in contract.attributes_of(trees[cls], "super()"):
                if not any(name in vars(base) for base in after):
                    problems.append(f"{cls.__name__}: super().{name}")
            for name in contract.attributes_of(trees[cls], "self"):
                if not hasattr(combined, name) and name not in assigned:
                    problems.append(f"{cls.__name__}: self.{name}")
    assert not problems


def test_setup_messages_are_still_logged() -> None:
    from verl.trainer.ppo.v1 import trainer_base

    from verl_ext.trainer import SETUP_PHASES

    source = inspect.getsource(trainer_base)
    assert all(f'"{message}' in source for message in SETUP_PHASES)


def test_the_replay_buffer_still_polls() -> None:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

    assert "time.sleep(self.poll_interval)" in inspect.getsource(ReplayBuffer)


def test_the_installed_verl_is_the_supported_one() -> None:
    compat.require_supported_verl()


@pytest.mark.parametrize(("version", "found"), [("0.9.0", "verl 0.9.0 is installed"), (None, "verl isn't installed")])
def test_another_verl_is_refused_in_one_line(version: str | None, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(compat.metadata, "version", installed)
    with pytest.raises(compat.UnsupportedVerlError) as refused:
        compat.require_supported_verl()
    assert str(refused.value) == f"{found}, verl 0.9.1 is needed: pip install verl==0.9.1"
