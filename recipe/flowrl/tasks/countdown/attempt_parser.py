"""Which turns of a conversation about a Countdown puzzle are attempts at it."""

import json
from typing import Any

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser

from recipe.flowrl.tasks.countdown.expressions import parse

TOOL = "calculator"


@ToolParser.register("attempt")
class AttemptParser(ToolParser):
    """A turn that is an expression calls the calculator; any other ends the conversation."""

    async def extract_tool_calls(self, responses_ids: list[int], tools: Any = None) -> tuple[str, list[FunctionCall]]:
        text = self.tokenizer.decode(responses_ids, skip_special_tokens=True).strip()
        if parse(text) is None:
            return text, []
        return text, [FunctionCall(name=TOOL, arguments=json.dumps({"expression": text}))]
