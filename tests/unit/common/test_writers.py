"""Every file is written through ``verl_ext.files``, which follows no link and leaves nothing half-written."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.flowrl.common.errors import LoggedFailure, traceback_in
from recipe.flowrl.common.jsonl import JsonLines
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.evaluate.records import Records

OWN_DIRECTORY = "a new directory that only this process knows, which is renamed or removed when it is whole"
EXCEPTIONS = {
    ("verl_ext/files.py", "open"): "the writer itself",
    ("recipe/flowrl/common/errors.py", "open"): "/dev/null",
    ("recipe/flowrl/tasks/code/call_driver.py", "open"): "/dev/null, within the sandbox, where it can import nothing",
    ("recipe/flowrl/sandbox/cgroups.py", "open"): "the kernel's files, in a directory that was just made",
    ("recipe/flowrl/sandbox/choose.py", "write_text"): OWN_DIRECTORY,
    ("recipe/flowrl/tasks/modes/enumerable_qwen2.py", "save_pretrained"): OWN_DIRECTORY,
    ("recipe/flowrl/tasks/arithmetic/smollm2.py", "save_pretrained"): OWN_DIRECTORY,
    ("recipe/flowrl/tasks/tiny_qwen2.py", "save_pretrained"): OWN_DIRECTORY,
    ("recipe/flowrl/tasks/sft.py", "copytree"): OWN_DIRECTORY,
    ("recipe/flowrl/rehearsal/policy.py", "save_pretrained"): OWN_DIRECTORY,
    ("recipe/flowrl/reporting/study_page.py", "savefig"): "memory",
    ("recipe/flowrl/reporting/figures.py", "savefig"): "memory",
    ("verl_ext/guardian.py", "copytree"): "Ray's logs, after a failure, into a directory of the run's own",
    ("benchmarks/fuzz.py", "write_text"): OWN_DIRECTORY,
    ("benchmarks/fuzz.py", "write_bytes"): OWN_DIRECTORY,
    ("benchmarks/workload.py", "save_pretrained"): OWN_DIRECTORY,
    ("benchmarks/acceptance_models.py", "save_pretrained"): OWN_DIRECTORY,
}
"""File and call -> why it needs no writer of ours."""

WRITING_METHODS = {
    *("write_text", "write_bytes", "touch", "to_csv", "to_parquet", "to_json", "to_pickle", "to_excel", "to_html"),
    *("savefig", "save", "savez", "savez_compressed", "savetxt", "tofile", "dump", "write_table", "save_file"),
    *("save_pretrained", "save_model", "copy", "copy2", "copyfile", "copytree", "move", "extractall", "urlretrieve"),
}
"""Of paths, frames, arrays, figures, models and the modules that write. ``copy`` and ``move``: of ``shutil``."""
ONLY_OF = {
    "copy": {"shutil"},
    "copy2": {"shutil"},
    "move": {"shutil"},
    "dump": {"json", "pickle", "yaml"},
    "save": {"torch", "np", "numpy", "OmegaConf"},
}
READING = {f"os.O_{flag}" for flag in ("RDONLY", "NONBLOCK", "CLOEXEC", "NOFOLLOW", "DIRECTORY")}


def _mode(call: ast.Call, place: int) -> str:
    given = [k.value for k in call.keywords if k.arg == "mode"] + call.args[place : place + 1]
    return ast.unparse(given[0]) if given else "'r'"


def _writes(call: ast.Call) -> str | None:
    """The name of the call if it opens, makes or replaces a file for writing."""
    function = call.func
    if isinstance(function, ast.Name) and function.id == "open":
        return "open" if set(_mode(call, 1)) & set("wax+") else None
    if not isinstance(function, ast.Attribute):
        return None
    of = ast.unparse(function.value)
    if function.attr == "open":
        if of == "os":
            flags = {ast.unparse(node) for node in ast.walk(call.args[1]) if isinstance(node, ast.Attribute)}
            names = {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
            return "open" if flags - READING or names != {"os"} else None
        place = 1 if of in ("gzip", "io", "bz2", "lzma", "codecs", "tarfile", "zipfile") else 0
        return "open" if set(_mode(call, place)) & set("wax+") else None
    if function.attr in WRITING_METHODS and (function.attr not in ONLY_OF or of in ONLY_OF[function.attr]):
        text = function.attr.startswith("to_") and not call.args  # what it would write, returned
        return None if text or of in ("files", "verl_ext.files") else function.attr
    return None


def plain_writers(tree: ast.AST, safe: bool = False) -> Iterator[tuple[str, int]]:
    """Calls that write and stand in no ``with replacing(...)``: name and line."""
    for node in ast.iter_child_nodes(tree):
        within = safe or (isinstance(node, ast.With) and "replacing(" in " ".join(map(ast.unparse, node.items)))
        if isinstance(node, ast.Call) and not safe and (name := _writes(node)):
            yield name, node.lineno
        yield from plain_writers(node, within)


def test_no_plain_writer_is_left() -> None:
    found: dict[tuple[str, str], int] = {}
    for folder in ("recipe", "verl_ext", "benchmarks"):
        for file in sorted((PROJECT / folder).rglob("*.py")):
            place = str(file.relative_to(PROJECT))
            found.update({(place, name): line for name, line in plain_writers(ast.parse(file.read_text()))})
    new = {f"{place}:{found[place, name]}: {name}" for place, name in found.keys() - EXCEPTIONS.keys()}
    assert not new, "write through verl_ext.files (open_own, replacing, write_text, write_json), or say why not"
    assert not EXCEPTIONS.keys() - found.keys(), "these are no more"


@pytest.mark.parametrize(
    "code",
    [
        *("open(p, 'w')", "open(p, mode='ab')", "open(p, 'r+')", "open(p, 'w' if x else 'a')", "p.open('x')"),
        *(
            "os.open(p, os.O_RDWR)",
            "os.open(p, FLAGS)",
            "os.open(p, os.O_RDONLY | more)",
            "gzip.open(p, 'wt')",
            "p.write_text(x)",
            "Path(p).write_bytes(x)",
            "p.touch()",
        ),
        *("torch.save(x, p)", "frame.to_csv(p)", "json.dump(x, f)", "figure.savefig(p)", "shutil.copy(a, b)"),
        *("with a as b: p.write_text(x)", "OmegaConf.save(c, p)", "archive.extractall(p)", "np.save(p, x)"),
    ],
)
def test_plain_writers_are_found(code: str) -> None:
    assert list(plain_writers(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        *("open(p)", "p.open()", "p.open('rb')", "open(p, encoding='utf-8')", "os.open(p, os.O_RDONLY | os.O_CLOEXEC)"),
        *("write_text(p, x)", "with replacing(p) as t: torch.save(x, t)", "x.copy()", "protocol.save(p)"),
        *("gzip.open(p, 'rt')", "os.fdopen(open_own(p, 0), 'w')", "run.dump()", "frame.to_json()"),
    ],
)
def test_safe_writers_and_readers_are_not(code: str) -> None:
    assert not list(plain_writers(ast.parse(code)))


@pytest.mark.parametrize("kind", ["traceback", "lines", "records"])
def test_no_link_is_followed(kind: str, tmp_path: Path) -> None:
    target, link = tmp_path / "precious", tmp_path / "link"
    target.write_text("")
    link.symlink_to(target)
    if kind == "traceback":  # a failure is raised as it is where the log can't be written
        with pytest.raises(ZeroDivisionError), traceback_in(link):
            raise ZeroDivisionError
    elif kind == "lines":
        with pytest.raises(OSError, match="symbolic link"):
            JsonLines(link).append({})
    else:
        with pytest.raises(OSError, match="symbolic link"):
            Records(link).append([{"problem": "a"}])
    assert target.read_text() == ""


def test_a_traceback_with_any_text_is_logged_for_this_user_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(LoggedFailure), traceback_in(log):
        raise ValueError("\ud800 é")
    assert "ValueError" in log.read_text() and os.stat(log).st_mode & 0o777 == 0o600
