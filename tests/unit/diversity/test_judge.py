"""The judge against a local server: scale, whole responses, schema, errors, retries, repeats, cost, resuming."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluations import write_evaluation
from judge_server import JudgeServer, completion, judge_server

from recipe.flowrl.__main__ import main
from recipe.flowrl.diversity.judge import MALFORMED_TRIES, Judge, Verdict, lower_bounds, request, score_of
from recipe.flowrl.diversity.judging import agreement

SOLUTIONS = [f"{'alpha' if i < 12 else 'beta'} way, and text {i}" for i in range(16)]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judge_server() as state:
        yield state


def test_the_scale_of_sixteen_is_the_papers() -> None:
    bands = {1: range(14, 17), 2: range(11, 14), 3: range(7, 11), 4: range(4, 7), 5: range(1, 4)}
    assert {score: [n for n in range(1, 17) if score_of(n, 16) == score] for score in bands} == {
        score: list(sizes) for score, sizes in bands.items()
    }
    text = request("2+2?", SOLUTIONS)
    for line in ("1: 14 or more of the 16", "2: 11 to 13", "3: 7 to 10", "4: 4 to 6", "5: 3 or fewer"):
        assert line in text


@pytest.mark.parametrize("count", [8, 12, 64])
def test_the_scale_keeps_its_shares_for_other_numbers(count: int) -> None:
    bounds = lower_bounds(count)
    assert bounds == sorted(set(bounds), reverse=True)
    assert [score_of(round(share * count), count) for share in (1, 0.75, 0.5, 0.25)] == [1, 2, 3, 4]
    assert score_of(1, count) == 5
    with pytest.raises(ValueError, match="needs 8"):
        lower_bounds(7)


def test_a_request_holds_the_whole_of_every_response_and_a_schema(server: JudgeServer) -> None:
    long = [f"{text} {'x' * 5000} end{i}." for i, text in enumerate(SOLUTIONS)]
    outcome = Judge(server.url, "m", "secret")("What is 2+2?", long)
    body = server.requests[0]
    text = body["messages"][0]["content"]
    assert "What is 2+2?" in text and all(solution in text for solution in long)
    assert body["model"] == "m" and body["temperature"] == 0 and server.keys == ["Bearer secret"]
    assert body["response_format"]["json_schema"]["strict"] is True
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["score"]["enum"] == [1, 2, 3, 4, 5] and schema["additionalProperties"] is False
    assert outcome.verdict.score == 2 and outcome.error is None
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (100, 10)


@pytest.mark.parametrize(
    "body",
    [
        completion("3"),
        completion('{"score": 3}'),
        completion('{"groups": [], "score": 6}'),
        completion('{"groups": [], "score": "many"}'),
        completion(None),
        completion('{"groups": [', finish="length"),
        {"object": "chat.completion", "choices": []},
        b"<html>busy</html>",
    ],
)
def test_a_malformed_answer_is_an_error_and_never_a_score(server: JudgeServer, body: object) -> None:
    server.script = lambda number: (200, body)
    outcome = Judge(server.url, "m", "k")("p", SOLUTIONS)
    assert outcome.verdict is None and outcome.error.startswith("malformed")
    assert len(server.requests) == MALFORMED_TRIES


def test_a_refusal_is_an_error(server: JudgeServer) -> None:
    server.script = lambda number: (200, completion(None, refusal="I can't."))
    assert Judge(server.url, "m", "k")("p", SOLUTIONS).error == "refused: I can't."


def test_a_malformed_answer_is_asked_for_again_and_paid_for(server: JudgeServer) -> None:
    server.script = lambda number: (200, completion("nonsense")) if number == 0 else None
    outcome = Judge(server.url, "m", "k")("p", SOLUTIONS)
    assert outcome.verdict.score == 2 and outcome.prompt_tokens == 200


@pytest.mark.parametrize("status", [429, 500])
def test_a_busy_or_failing_endpoint_is_tried_again(server: JudgeServer, status: int) -> None:
    server.script = lambda number: (status, {"error": {"message": "later"}}) if number < 3 else None
    assert Judge(server.url, "m", "k")("p", SOLUTIONS).verdict.score == 2
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [429, 500, 400])
def test_an_endpoint_that_stays_broken_is_an_error(server: JudgeServer, status: int) -> None:
    server.script = lambda number: (status, {"error": {"message": "no luck"}})
    outcome = Judge(server.url, "m", "k", retries=2)("p", SOLUTIONS)
    assert outcome.verdict is None and outcome.error.startswith(f"status {status}") and "no luck" in outcome.error
    assert len(server.requests) == (1 if status == 400 else 3)


def test_nobody_there_is_an_error() -> None:
    with judge_server() as gone:
        url = gone.url
    assert Judge(url, "m", "k", retries=0)("p", SOLUTIONS).error == "no answer: APIConnectionError"


def test_verdicts_that_contradict_themselves() -> None:
    def verdict(score: int, *groups: list[int]) -> Verdict:
        return Verdict(groups=[{"approach": "", "solutions": group} for group in groups], score=score)

    assert not verdict(1, list(range(1, 9))).contradicts_itself(8)
    assert verdict(2, list(range(1, 9))).contradicts_itself(8)
    assert verdict(1, list(range(1, 8))).contradicts_itself(8)
    assert verdict(1, list(range(1, 9)), [8]).contradicts_itself(8)


def test_agreement_of_repeats() -> None:
    assert agreement([[3], []]) == {"exact": None, "alpha": None, "problems": 0}
    assert agreement([[2, 2], [2, 2]]) == {"exact": 1.0, "alpha": None, "problems": 2}
    perfect = agreement([[1, 1, 1], [3, 3, 3], [5, 5, 5]])
    assert perfect["exact"] == 1.0 and perfect["alpha"] == pytest.approx(1.0)
    near, far = (agreement([[1, 1], [5, 5], [3, other], [2, 2]])["alpha"] for other in (4, 1))
    assert 1 > near > far
    assert agreement([[1, 2], [1, 1, 2]])["exact"] == pytest.approx(1 / 4)


def _aime(largest: int, right: int = 16) -> list[tuple[str, bool, str | None]]:
    """16 answers, the first ``right`` of them right; one approach ``largest`` times, else others."""
    words = ["alpha" if i < largest else f"other{i}" for i in range(16)]
    return [(f"{word} approach: 1 + {i} = {1 + i}", i < right, "1") for i, word in enumerate(words)]


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")


def _judge(directory: Path, url: str, *more: str) -> tuple[int, dict]:
    status = main(["diversity", str(directory), "embedding=null", f"judge={url}", "judge_model=m", *more])
    path = directory / "diversity.json"
    return status, json.loads(path.read_text())["benchmarks"] if path.exists() else {}


def test_a_benchmark_is_judged_repeated_and_not_asked_again(
    tmp_path: Path, server: JudgeServer, key: None, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = {"a": _aime(15), "b": _aime(8), "c": _aime(2), "d": _aime(12, right=9)}
    directory = write_evaluation(tmp_path / "run", {"aime2024": problems, "amc23": {"e": _aime(3)}})
    status, found = _judge(directory, server.url, "judge_price=1.5,6")
    judged = found["aime2024"]["judge"]
    assert status == 0 and "judge" not in found["amc23"]
    correct, everything = judged["populations"]["correct"], judged["populations"]["all"]
    assert correct["scores"] == {"a": [1, 1, 1], "b": [3, 3, 3], "c": [5, 5, 5]} and correct["value"] == 3.0
    assert correct["too_few_responses"] == 1 and everything["too_few_responses"] == 0
    assert everything["scores"]["d"] == [2, 2, 2] and everything["interval"][0] < 2.75 < everything["interval"][1]
    assert correct["agreement"]["exact"] == 1.0 and correct["errors"] == {} and correct["contradict_themselves"] == 0
    assert len(server.requests) == 4 * 3 and judged["prompt_tokens"] == 1200 and judged["completion_tokens"] == 120
    assert judged["cost"] == pytest.approx((1200 * 1.5 + 120 * 6) / 1e6)
    assert set(server.keys) == {"Bearer from the environment"}
    assert "from the environment" not in (directory / "diversity.json").read_text()
    orders = {body["messages"][0]["content"] for body in server.requests}
    # Where all answers are right, the two populations ask the same; a repeat shows them in another order.
    assert len(orders) == 4 * 3
    out = capsys.readouterr().out
    assert "12 questions" in out and "repeats agree 100%, alpha 1.00" in out and "0.0025" in out
    assert _judge(directory, server.url)[1]["aime2024"]["judge"]["populations"] == judged["populations"]
    assert len(server.requests) == 12


def test_errors_are_counted_beside_the_scores_and_asked_again(tmp_path: Path, server: JudgeServer, key: None) -> None:
    directory = write_evaluation(tmp_path / "run", {"aime2024": {"a": _aime(15), "b": _aime(2)}})
    options = ("judge_repeats=1", "judge_concurrency=1")
    server.script = lambda number: (200, completion("3")) if number < MALFORMED_TRIES else None
    correct = _judge(directory, server.url, *options)[1]["aime2024"]["judge"]["populations"]["correct"]
    assert correct["scores"] == {"b": [5]} and correct["value"] == 5.0 and correct["errors"] == {"malformed": 1}
    log = directory / "aime2024" / "judge.jsonl"
    log.write_text(log.read_text() + '{"key": "cut o')
    asked = len(server.requests)
    correct = _judge(directory, server.url, *options)[1]["aime2024"]["judge"]["populations"]["correct"]
    assert correct["scores"] == {"a": [1], "b": [5]} and correct["errors"] == {} and len(server.requests) == asked + 1
    assert _judge(directory, server.url, *options)[0] == 0 and len(server.requests) == asked + 1


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r\n"])
def test_no_answer_is_paid_for_twice_whatever_is_in_it(
    separator: str, tmp_path: Path, server: JudgeServer, key: None
) -> None:
    directory = write_evaluation(tmp_path / "run", {"aime2024": {"a": _aime(15), "b": _aime(2)}})
    groups = [{"approach": f"one idea{separator}in two lines", "solutions": list(range(1, 17))}]
    answer = completion(json.dumps({"groups": groups, "score": 1}))
    server.script = lambda number: (200, answer)
    status, first = _judge(directory, server.url, "judge_repeats=1")
    asked = len(server.requests)
    assert status == 0 and asked and _judge(directory, server.url, "judge_repeats=1") == (status, first)
    log = directory / "aime2024" / "judge.jsonl"
    strange = ["7", "null", "{}", '{"key": []}', '{"key": "k", "score": true, "error": null}', "[" * 9999]
    log.write_bytes("\n".join([*strange, log.read_text()]).encode())
    assert _judge(directory, server.url, "judge_repeats=1") == (status, first) and len(server.requests) == asked


def test_a_wrong_key_ends_it_in_one_line(
    tmp_path: Path, server: JudgeServer, key: None, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_evaluation(tmp_path / "run", {"aime2024": {str(i): _aime(15) for i in range(50)}})
    server.script = lambda number: (401, {"error": {"message": "invalid key"}})
    assert _judge(directory, server.url, "judge_concurrency=2") == (2, {})
    err = capsys.readouterr().err
    assert "status 401" in err and "OPENAI_API_KEY" in err and len(server.requests) < 10


def test_measures_rank_like_the_judge_on_samples_of_known_diversity(
    tmp_path: Path, server: JudgeServer, key: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three systems that take one approach ever less often, on problems that differ as well: every measure agrees."""
    directories = []
    for system, base in (("low", 16), ("middle", 11), ("high", 6)):
        problems = {f"p{i}": _aime(max(1, base - 2 * i)) for i in range(3)}
        directories.append(write_evaluation(tmp_path / system, {"aime2024": problems}))
        assert _judge(directories[-1], server.url, "judge_repeats=1")[0] == 0
    out = tmp_path / "ranking.json"
    assert main(["diversity", *map(str, directories), f"out={out}", "ranking=correct"]) == 0
    entries = {(entry["a"], entry["b"]): entry for entry in json.loads(out.read_text())["aime2024"]}
    for name in ("distinct_2", "self_bleu"):
        entry = entries["judge", name]
        assert entry["systems"] == {"tau": 1.0, "count": 3}, name
        assert entry["problems"]["tau"] > 0.5 and entry["problems"]["count"] == 3
    # All solutions use different equations, so that their forms say nothing.
    assert entries["judge", "distinct_forms"]["systems"]["tau"] is None
    assert "judge            self_bleu        +1.00 (3)" in capsys.readouterr().out


def test_a_judge_without_a_benchmark_to_judge_is_refused(
    tmp_path: Path, server: JudgeServer, key: None, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_evaluation(tmp_path / "run", {"math500": {"a": _aime(15)}})
    assert _judge(directory, server.url) == (2, {})
    assert "nothing to judge: judge_benchmarks=aime2024,aime2025" in capsys.readouterr().err
    assert _judge(directory, server.url, "judge_benchmarks=math500")[0] == 0 and server.requests


def test_ranking_needs_a_benchmark_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_evaluation(tmp_path / name, {name: {"p": _aime(4)}}) for name in ("aime2024", "aime2025")]
    assert main(["diversity", *map(str, runs), "embedding=null"]) == 0
    assert main(["diversity", *map(str, runs), "ranking=correct"]) == 2
    assert "no benchmark in common" in capsys.readouterr().err


def test_ranking_without_a_judge_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_evaluation(tmp_path / "run", {"aime2024": {f"p{i}": _aime(3 * i) for i in range(4)}})
    assert main(["diversity", str(directory), "embedding=null"]) == 0
    assert main(["diversity", str(directory), "ranking=correct"]) == 0
    out = capsys.readouterr().out
    assert "no judge's scores here" in out and "distinct_2       self_bleu            – (1)   +" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ranking=all"], "EVALUATION is missing"),
        (["{dir}", "ranking=all"], "recipe.flowrl diversity makes it"),
        (["{dir}", "ranking=x"], "ranking=x: must be 'correct' | 'all'"),
        (["{dir}", "out=x.json"], "out= without ranking="),
    ],
)
def test_ranking_refuses(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diversity", *(argument.format(dir=tmp_path) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err
