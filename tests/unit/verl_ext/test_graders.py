"""verl's graders that run model text: which they are, and that they are shut wherever verl is imported."""

import ast
import os
import subprocess
import sys

import pytest

from recipe.flowrl.common.project import CONFIG_DIR, PROJECT
from verl_ext import graders
from verl_ext.source import verl_directory

RUNNERS = {"eval", "exec", "parse_expr"}


def calls(name: str) -> set[str]:
    """Names of the functions that a module or package of verl's rewards calls, and the packages it imports."""
    package = verl_directory() / "utils" / "reward_score"
    files = [*(package / name).rglob("*.py"), *package.glob(f"{name}.py")]
    found: set[str] = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func).rpartition(".")[2])
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_those_that_are_shut_run_model_text_and_no_other_does() -> None:
    """Fails once verl mends one, or gets another."""
    package = verl_directory() / "utils" / "reward_score"
    names = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    unsafe = {name for name in names - {"__init__"} if calls(name) & {*RUNNERS, "mathruler"}}
    assert unsafe == set(graders.SHUT)


@pytest.mark.parametrize(
    ("source", "url", "module"),
    [
        ("openai/gsm8k", None, "gsm8k"),
        ("math_dapo", None, "math_dapo"),
        ("aime-anything", None, "math_dapo"),
        ("HuggingFaceH4/MATH-500", None, "math_reward"),
        ("numina_cn_k12", None, "prime_math"),
        ("hiyouga/geometry3k", None, "geo3k"),
        *((name, None, "prime_code") for name in ("taco", "apps", "codecontests", "codeforces")),
        ("taco", "http://sandbox", "sandbox_fusion"),
        ("numina_other", None, None),
        ("", None, None),
    ],
)
def test_verl_itself_says_what_it_would_score_with(source: str, url: str | None, module: str | None) -> None:
    assert graders.verls_choice(source, url) == module


SCRIPT = """
import verl
from verl.utils.reward_score import default_compute_score
for source in ("numina_olympiads", "taco", "hiyouga/geometry3k"):
    try:
        default_compute_score(source, "__import__('os')._exit(9)", "1")
        raise SystemExit(f"{source} was scored")
    except ImportError as error:
        assert "is shut" in str(error) and "reward.custom_reward_function.path" in str(error), error
for module in ("prime_code.utils", "prime_code.testing_util", "prime_math.grader", "prime_math"):
    try:
        __import__("verl.utils.reward_score." + module)
        raise SystemExit(f"{module} was imported")
    except ImportError as error:
        assert "is shut" in str(error), error
assert default_compute_score("openai/gsm8k", "#### 4", "4") == 1.0
"""


def test_they_are_shut_in_a_process_of_a_run() -> None:
    environment = {**os.environ, "VERL_USE_EXTERNAL_MODULES": graders.MODULE, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_they_are_shut_after_they_were_imported() -> None:
    name = f"{graders.PACKAGE}.prime_math"
    sys.modules[name] = os  # any module
    graders.shut()
    with pytest.raises(ImportError, match="is shut"):
        __import__(name)
    assert [type(finder).__name__ for finder in sys.meta_path].count("_Shut") == 1


def test_every_cluster_names_the_module() -> None:
    texts = [path.read_text() for path in [CONFIG_DIR / "flowrl.yaml", *CONFIG_DIR.glob("cluster/*.yaml")]]
    named = [line for text in texts for line in text.splitlines() if "VERL_USE_EXTERNAL_MODULES" in line]
    assert len(named) == 2 and all(graders.MODULE in line for line in named)
