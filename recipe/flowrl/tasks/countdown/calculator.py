"""Countdown in several turns: verl's tool agent hands each attempt to this calculator, which tells its value.

verl loads this file by its path (``rollout.multi_turn.function_tool_path``), in each agent loop worker.
To be imported nowhere: verl refuses a second tool of the same name.
"""

from verl.tools.function_tool import function_tool

from recipe.flowrl.tasks.countdown.attempt_parser import TOOL
from recipe.flowrl.tasks.countdown.expressions import parse


@function_tool(TOOL)
def calculator(expression: str) -> str:
    """Tells the value of an arithmetic expression.

    Args:
        expression: Integers, + - * / and parentheses.
    """
    parsed = parse(expression)
    if parsed is None:
        return "not an expression"
    sign, form = parsed
    return str(sign * form.value)
