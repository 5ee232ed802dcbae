"""Arguments become a checked instance of a dataclass."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipe.flowrl.common import rules
from recipe.flowrl.common.command_line import option, overrides, parse
from recipe.flowrl.common.errors import UserError


@dataclass(frozen=True)
class Example:
    """An option of each kind."""

    places: tuple[Path, ...] = option("Where.", place="PLACE", labels=True)
    name: str = option("Name.")
    path: Path = option("Path.", fill=lambda given: Path(given.name) / "x", default="NAME/x")
    size: int = option("Size.", value=3, rule=rules.COUNT)
    rate: float = option("Rate.", value=0.5)
    on: bool = option("On.", value=False)
    maybe: int | None = option("Maybe.", value=None)
    seeds: tuple[int, ...] = option("Seeds.", value=(0,))
    settings: dict[str, Any] = option("Settings.", value={})


@dataclass(frozen=True)
class OfARun:
    """What a command has that takes a run's configuration."""

    gpu: str = option("GPU.")
    overrides: tuple[str, ...] = overrides()


def parsed(*arguments: str) -> Example:
    return parse(Example, ["a", "name=n", *arguments])


def test_defaults_and_what_follows_from_others() -> None:
    assert parsed() == Example((Path("a"),), "n", Path("n/x"))


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("size=1_000", "size", 1000),
        ("rate=1", "rate", 1.0),
        ("rate=1e-4", "rate", 1e-4),
        ("on=True", "on", True),
        ("maybe=7", "maybe", 7),
        ("maybe=null", "maybe", None),
        ("seeds=0,1,2", "seeds", (0, 1, 2)),
        ("seeds=[0, 1]", "seeds", (0, 1)),
        ("seeds=5", "seeds", (5,)),
        ("path='a b'", "path", Path("a b")),
        ("path=a=b (1),c", "path", Path("a=b (1),c")),
        ("name=1e5", "name", "1e5"),
        ("name=null", "name", "null"),
        ("settings.a=1", "settings", {"a": 1}),
        ("settings.a.b=[1,x]", "settings", {"a.b": [1, "x"]}),
        ("settings.a=x/y z", "settings", {"a": "x/y z"}),
        ("settings.a='1'", "settings", {"a": "1"}),
    ],
)
def test_values(argument: str, field: str, value: Any) -> None:
    found = getattr(parsed(argument), field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("size=0", "size=0: must be an integer >= 1"),
        ("size=1.0", "size=1.0: must be an integer >= 1"),
        ("size=true", "size=true"),
        ("size=null", "size=null"),
        ("size=", "size=: must be"),
        ("size=range(3)", "size=range(3): must be"),
        ("rate=nan", "rate=nan: must be a finite number"),
        ("rate=inf", "rate=inf"),
        ("rate=fast", "rate=fast: must be a finite number"),
        ("on=1", "on=1: must be true | false"),
        ("on=yes", "on=yes"),
        ("seeds=0,a", "seeds=a: must be an integer"),
        ("seeds=", "seeds=: must be an integer"),
        ("seeds=0,,1", "seeds=: must be an integer"),
        ("path=", "path=: must be a path"),
        ("seed=1", "seed: no such option (did you mean 'seeds'?)"),
        ("+size=1", "+size: no such option (did you mean 'size'?)"),
        ("size.x=1", "size.x: no such option"),
        ("--size=1", "--size=1: options are written KEY=VALUE (did you mean 'size'?)"),
        ("-v", "-v: options are written KEY=VALUE"),
        ("=1", ": no such option"),
        ("name=${nowhere}", "nowhere"),
        ("name=???", "name= is missing"),
    ],
)
def test_wrong_arguments(argument: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parsed(argument)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c=d").mkdir()
    Path("name=x").mkdir()
    assert parsed("b").places == (Path("a"), Path("b"))
    assert parse(Example, ["name=n", "places=a,b"]).places == (Path("a"), Path("b"))
    assert parsed("c=d", "label=c=d").places == (Path("a"), Path("c=d"), Path("label=c=d"))
    assert parsed("name=x").name == "x", "a key is a key"
    with pytest.raises(UserError, match="labl: no such option.*no such file or directory"):
        parsed("labl=nowhere")


def test_the_last_of_two_counts_as_in_hydra() -> None:
    assert parsed("size=4", "size=5").size == 5


def test_overrides_are_what_is_no_option() -> None:
    words = ["a.b=1", "gpu=x", "+c=2", "~d", "gpus=4", "e='f,g'"]
    assert parse(OfARun, words) == OfARun("x", ("a.b=1", "+c=2", "~d", "gpus=4", "e='f,g'"))
    for wrong in ("--x", "word"):
        with pytest.raises(UserError, match="KEY=VALUE"):
            parse(OfARun, ["gpu=x", wrong])
    with pytest.raises(UserError, match="gpu= is missing: GPU; for example y"):
        parse(OfARun, [], "y")
