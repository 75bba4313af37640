"""Reading the calls of a lifted graph: which operator, with which arguments."""

import operator
from typing import Any

from torch.fx import Node

getitem = operator.getitem


def calls(node: Any, *targets: Any) -> bool:
    """Whether `node` is a call of one of these functions."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen call by the operator's own names, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    values.update({argument.name: value for argument, value in zip(schema, node.args, strict=False)})
    return values | node.kwargs
