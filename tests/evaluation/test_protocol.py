"""What makes two evaluations incomparable, and what does not."""

import pytest

from mathrl.evaluation.protocol import EvaluationSettings, make_protocol
from mathrl.types import Problem


@pytest.mark.parametrize(
    "change",
    [
        {"max_completion_tokens": 8},
        {"num_samples": 3},
        {"temperature": 0.5},
        {"top_p": 0.9},
        {"prompt": {"kind": "chat"}},
        {"stop": "\nQuestion:"},
    ],
)
def test_every_setting_is_part_of_the_protocol(change: dict) -> None:
    problems = [Problem("a", "1 + 1?", "2")]
    settings = {"max_completion_tokens": 9, "num_samples": 2}
    first = make_protocol(problems, EvaluationSettings(**settings), extract="gsm8k")
    other = make_protocol(problems, EvaluationSettings(**settings | change), extract="gsm8k")
    assert {k for k in first | other if first.get(k) != other.get(k)} == set(change)
    assert make_protocol(problems, EvaluationSettings(**settings), extract="boxed") != first
    greedy = EvaluationSettings(9, temperature=0.5)
    assert "temperature" not in make_protocol(problems, greedy, extract="gsm8k")  # nothing is drawn by it
