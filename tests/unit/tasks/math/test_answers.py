"""The rule of docs/rewards.md: which part of a response is the answer, and that finding it takes linear time."""

import time

import pytest

from recipe.flowrl.tasks.math.answers import complete_boxes, final_answer, strip_delimiters
from recipe.flowrl.tasks.math.reward import compute_score

RULE = [
    (r"\boxed{12}" "\n\nLet me check the answer: 12 + 1 = 13.", "12"),
    (r"\boxed{12}" "\nThe answer: since twelve is even, it holds.", "12"),
    (r"\boxed{12}" "\nSo the answer is 13, I thought first.", "12"),
    (r"\boxed{12}" "\n**Final Answer:** 13", "13"),
    (r"\boxed{12}" "\n\n### Final Answer\n\n13", "13"),
    ("\u2705 Final Answer: **73**", "73"),
    ("ANSWER: (B)", "(B)"),
    ("The final answer: $7$", "7"),
    ("1. Answer: 7", "7"),
    ("Answer: 7. I checked it twice.", "7"),
    ("Answer: B. Paris", "B. Paris"),
    ("we get x = 5. Answer: 5", "5"),
    ("The answer is 0.5.", "0.5"),
    (r"\framebox{9}", "9"),
    (r"\framebox[2cm][c]{9}", "9"),
    (r"\boxed 9$", "9"),
    (r"\boxed{\boxed{9}}", "9"),
    (r"\boxed{1 + \fbox{2}}", r"1 + \fbox{2}"),
    (r"$x = \boxed{2}$ or $x = \boxed{3}$", "2, 3"),
    (r"\boxed{2}, \boxed{3} and \boxed{5}.", "2, 3, 5"),
    (r"first \boxed{2}, then we see that \boxed{3}", "3"),
    (r"\boxed{004}." "\n\nCheck.\n\n" r"\boxed{004}", "004"),
    (r"\boxed{5!}", "5!"),
    ("Answer: `2**3**2`", "2**3**2"),
    ("Final Answer: The final answer is $7$. I hope it is correct.", "7"),
    (r"Final Answer: The final answer is \boxed{7}. I hope it is correct.", "7"),
    (r"<think>Is it \boxed{5}?</think> The answer is 6.", "6"),
    (r"<think>\boxed{5}</think>" "\nThat was all.", "5"),
    (r"<think>a</think> \boxed{5} <think>b</think> Answer: 6", "6"),
    (r"\boxed{3.14...}", "3.14..."),
    ("Answer: 3.14...", "3.14..."),
]
REPEATED = [
    *("\\boxed{", "\\boxed{1}, ", "\\boxed[", "{}", "answer", "answer" + " " * 9, "\nAnswer: "),
    *("\nFinal answer\n", "$", "\n***", " "),
]


@pytest.mark.parametrize(("response", "answer"), RULE)
def test_the_rule(response: str, answer: str) -> None:
    assert final_answer(response) == answer


def test_several_boxes_are_no_way_to_hedge() -> None:
    assert compute_score("m", r"\boxed{2} or \boxed{3}", "3")["acc"] == 0.0
    assert compute_score("m", r"\boxed{2} or \boxed{3}", "2,3")["acc"] == 1.0


def test_a_reference_in_a_box_is_its_content() -> None:
    assert (
        strip_delimiters(r"\boxed{\{1, 2\}}") == r"\{1, 2\}"
        and strip_delimiters(r"\boxed{1}+\boxed{2}").count("box") == 2
    )


def test_an_unclosed_box_is_none() -> None:
    assert [box.content for box in complete_boxes(r"\boxed{6} and \boxed{\frac{1}{2}")] == ["6"]


@pytest.mark.parametrize("piece", REPEATED)
def test_time_grows_linearly_with_the_response(piece: str) -> None:
    def seconds(characters: int) -> float:
        texts = [piece * (characters // len(piece))]
        texts += ["\\boxed{3} " + texts[0], texts[0] + "\\boxed{3}"]
        started = time.process_time()
        for text in texts:
            final_answer(text)
        return time.process_time() - started

    short, long = (min(seconds(characters) for _ in range(3)) for characters in (100_000, 1_000_000))
    assert long < 3.0 and long < 40 * max(short, 1e-3), "ten times the text may not take a hundred times as long"
