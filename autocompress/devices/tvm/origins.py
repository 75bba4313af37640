"""Which ONNX nodes end up in which kernel, through TVM's passes: by names that last, and by walking back the groups."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MAIN = "main"
"""The function of a module that is the whole model."""

_NAMED = re.compile(r"^onnx(\d+)_")


@dataclass(frozen=True, slots=True)
class Call:
    """A kernel call in a fused module: TVM's expression, and the numbers of the ONNX nodes that it stands for."""

    function: str
    nodes: frozenset[int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    value: Any


def operators(function: Any) -> list[Any]:
    """A function's bindings, in order."""
    return [binding for block in function.body.blocks for binding in block.bindings]


def parameters(call: Any) -> list[Any]:
    """Types of the tensors that a kernel call reads."""
    return [operand.ty for operand in call.args[1]]


def made_for(bindings: Sequence[Any], known: Mapping[Any, int]) -> dict[Any, int]:
    """Variable → the node that it was made for; one that is no node's result serves the first that reads it."""
    origins = dict(known)
    for binding in reversed(bindings):
        for variable in _variables(binding.value):
            if binding.var in origins and variable not in known:
                origins[variable] = origins[binding.var]
    return origins


def with_names(module: Any, bindings: Sequence[Any], origins: Mapping[Any, int], outputs: Sequence[Any]) -> Any:
    """The module with these bindings and outputs, variables named `onnxN_`: the passes keep names, and little else."""
    from tvm import relax

    builder = relax.BlockBuilder()
    new = {parameter: parameter for parameter in module[MAIN].params}
    with builder.function(MAIN, params=list(new)):
        with builder.dataflow():
            for binding in bindings:
                hint = f"onnx{origins[binding.var]}_" if binding.var in origins else "unread"
                new[binding.var] = builder.emit(_replaced(binding.value, new), name_hint=hint)
            returned = [_replaced(value, new) for value in outputs]
            hint = f"onnx{origins.get(outputs[0], 0)}_"
            result = builder.emit_output(returned[0] if len(returned) == 1 else relax.Tuple(returned), name_hint=hint)
        builder.emit_func_output(result)
    named = builder.get()
    for name, function in module.functions.items():
        if name.name_hint != MAIN:
            named[name] = function
    return named


def calls_of(module: Any, grouped: Any, fused: Any) -> list[Call]:
    """Every kernel call of the fused module, in order.

    `module` holds the operators one by one, `grouped` the same as groups, `fused` each group as one kernel.
    """
    nodes = _Members(module, grouped).nodes
    return [
        Call(
            function=after.value.args[0].name_hint,
            nodes=frozenset(nodes.get(before.var, ())),
            inputs=tuple(variable.name for variable in _variables(after.value)),
            outputs=(after.var.name,),
            value=after.value,
        )
        for before, after in zip(operators(grouped[MAIN]), operators(fused[MAIN]), strict=True)
        if getattr(getattr(after.value, "op", None), "name", "") == "relax.call_tir"
    ]


@dataclass(frozen=True, slots=True)
class _Scope:
    """A function's variables with their values; a group's also with its arguments and the variable it makes outside."""

    values: Mapping[Any, Any]
    arguments: Mapping[Any, Any]
    group: Any = None


class _Members:
    """Nodes by the grouped module's variables: both modules are walked from the result backwards, side by side."""

    def __init__(self, module: Any, grouped: Any) -> None:
        plain = operators(module[MAIN])
        named = {b.var: int(match[1]) for b in plain if (match := _NAMED.match(b.var.name))}
        self.nodes: dict[Any, set[int]] = {}
        self._origins = made_for(plain, named)
        self._plain = {binding.var: binding.value for binding in plain}
        self._grouped = grouped
        self._main = _Scope({binding.var: binding.value for binding in operators(grouped[MAIN])}, {})
        self._walk(grouped[MAIN].body.body, module[MAIN].body.body)

    def _walk(self, result: Any, plain: Any) -> None:
        seen = set()
        todo = [(self._main, result, plain)]
        while todo:
            scope, variable, plain = todo.pop()
            if variable in scope.arguments:
                todo.append((self._main, scope.arguments[variable], plain))
            elif variable in scope.values and plain in self._plain and (scope.group, variable, plain) not in seen:
                seen.add((scope.group, variable, plain))
                todo += self._before(scope, variable, plain)

    def _before(self, scope: _Scope, variable: Any, plain: Any) -> list[tuple[_Scope, Any, Any]]:
        """What the two variables of the same value are made of; notes the plain one's node where it belongs."""
        value = scope.values[variable]
        group = self._result(variable, value)
        if group is not None:
            inner, result, whole = group
            return [(inner, result, getattr(self._plain[plain], "tuple_value", plain) if whole else plain)]
        if plain in self._origins:
            kernel = variable if scope.group is None else scope.group
            self.nodes.setdefault(kernel, set()).add(self._origins[plain])
        return [(scope, here, there) for here, there in _aligned(value, self._plain[plain])]

    def _result(self, variable: Any, value: Any) -> tuple[_Scope, Any, bool] | None:
        """The scope and the result of the group that a value comes from, if it does.

        The last says whether that result is a tuple of which the value is a part: one operator made them all.
        """
        from tvm import ir, relax

        index = value.index if isinstance(value, relax.TupleGetItem) else None
        made = variable if index is None else value.tuple_value
        call: Any = self._main.values.get(made)
        if not isinstance(getattr(call, "op", None), ir.GlobalVar):
            return None
        function = self._grouped[call.op]
        values = {binding.var: binding.value for binding in operators(function)}
        result = function.body.body
        scope = _Scope(values, dict(zip(function.params, call.args, strict=True)), made)
        if index is not None and isinstance(values[result], relax.Tuple):
            return scope, values[result].fields[index], False
        return scope, result, index is not None


def _parts(value: Any) -> list[Any]:
    """Expressions that an expression is made of."""
    from tvm import relax

    if isinstance(value, relax.TupleGetItem):
        return [value.tuple_value]
    return list(value.fields if isinstance(value, relax.Tuple) else getattr(value, "args", ()))


def _variables(value: Any) -> list[Any]:
    """Variables that an expression reads."""
    from tvm import relax

    if isinstance(value, relax.Var):
        return [value]
    return [variable for part in _parts(value) for variable in _variables(part)]


def _aligned(value: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Variables of two expressions of the same form, or what stands in their place, in pairs."""
    from tvm import relax

    if isinstance(value, relax.Var) or isinstance(other, relax.Var):
        yield value, other
    else:
        for parts in zip(_parts(value), _parts(other), strict=False):
            yield from _aligned(*parts)


def _replaced(value: Any, new: Mapping[Any, Any]) -> Any:
    """The expression with other variables."""
    from tvm import relax

    if isinstance(value, relax.Var):
        return new[value]
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(_replaced(value.tuple_value, new), value.index)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_replaced(part, new) for part in value.fields])
    if isinstance(value, relax.Call):
        return relax.Call(value.op, [_replaced(part, new) for part in value.args], value.attrs, value.ty_args)
    return value
