"""Calls a program's function with given arguments. Runs within the sandbox only, as its program: nothing is imported.

Input, as JSON: ``preamble``, what is imported before; ``program``, the model's text; ``function``, a name in it
(``Solution.f`` is called on a fresh object, and so is ``f`` if the program has it in ``class Solution``); ``calls``, a
list of ``[args, kwargs]`` encoded by :mod:`recipe.flowrl.tasks.code.values`. Output: for each call a line with the
encoded result. The right results stay outside.
"""

import json
import os
import sys
import types


class ListNode:
    """As LeetCode's tasks have it."""

    def __init__(self, val=0, next=None):
        self.val, self.next = val, next


class TreeNode:
    """As LeetCode's tasks have it."""

    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right


def decode(value):
    """The value that ``values.encode`` encoded."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "list_node":
        head = None
        for item in reversed(content):
            head = ListNode(item, head)
        return head
    if kind == "tree_node":
        return _tree(content)
    if kind == "hex":
        return int(content, 16)
    content = decode(content)
    return {"tuple": tuple, "set": set, "dict": dict, "float": float, "complex": complex}[kind](content)


def _tree(items):
    """From a level-order list with None for what is missing."""
    if not items:
        return None
    nodes = iter(items)
    root = TreeNode(next(nodes))
    level = [root]
    for node in level:
        for side in ("left", "right"):
            item = next(nodes, None)
            if item is not None:
                setattr(node, side, TreeNode(item))
                level.append(getattr(node, side))
    return root


def encode(value):
    """The same encoding for results; a tuple becomes a list, since tasks don't tell them apart."""
    if isinstance(value, int) and value.bit_length() > 10_000:
        return {"hex": hex(value)}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else {"float": repr(value)}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return {"set": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if hasattr(value, "next") and hasattr(value, "val"):
        items = []
        while value is not None:
            items.append(encode(value.val))
            value = value.next
        return {"list_node": items}
    if hasattr(value, "left") and hasattr(value, "val"):
        return {"tree_node": _levels(value)}
    if hasattr(value, "tolist"):  # NumPy's
        return encode(value.tolist())
    return {"other": repr(value)}


def _levels(root):
    items, level = [], [root]
    for node in level:
        items.append(None if node is None else encode(node.val))
        if node is not None:
            level += [node.left, node.right]
    while items and items[-1] is None:
        items.pop()
    return items


def main():
    """Read the task, make the calls, write the results to where the program's own output doesn't go."""
    task = json.loads(sys.stdin.buffer.read())
    results = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    sys.setrecursionlimit(100_000)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module  # where dataclasses and others look a name of the program's up
    namespace = module.__dict__
    namespace.update(ListNode=ListNode, TreeNode=TreeNode)
    for text in (task["preamble"], task["program"]):
        exec(compile(text, "solution", "exec", dont_inherit=True), namespace)
    owner, _, name = task["function"].rpartition(".")
    if not owner and name not in namespace and "Solution" in namespace:
        owner = "Solution"
    for args, kwargs in task["calls"]:
        function = getattr(namespace[owner](), name) if owner else namespace[name]
        result = function(*map(decode, args), **{key: decode(value) for key, value in kwargs.items()})
        print(json.dumps(encode(result)), file=results, flush=True)


if __name__ == "__main__":
    main()
