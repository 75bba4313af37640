"""ONNX models compiled by TVM, with the ONNX node that each compiled kernel stands for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autocompress.devices.tvm.fixed import fixed
from autocompress.devices.tvm.model import Model, Shapes
from autocompress.devices.tvm.origins import MAIN, Call, calls_of, made_for, operators, parameters, with_names
from autocompress.devices.tvm.package import quiet, require_tvm
from autocompress.devices.tvm.schedule import scheduled

PROGRAMS = 32
"""Compiled programs kept: `measure` loads models anew every few rounds, two dozen of them in turn."""

_ANCHORS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One call of a compiled function, in execution order.

    `source` is the ONNX node that it mostly is: the convolution or product that went into it, else the last node.
    `alone` is the program's entry that runs nothing else; it takes `arguments`, (shape, type) of what the call reads.
    """

    function: str
    source: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    alone: str
    arguments: tuple[tuple[tuple[int, ...], str], ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A model compiled for inputs of fixed shapes."""

    executable: Any
    calls: tuple[KernelCall, ...]


@lru_cache(maxsize=PROGRAMS)
def compiled(model: Model, shapes: Shapes, target: str) -> Program:
    """The model for inputs of these shapes on a target (TVM's JSON), operators fused.

    Raises what TVM raises when it can't compile the model.
    """
    tvm = require_tvm()
    from tvm import relax

    steps = relax.transform
    machine = tvm.target.Target(target)
    module, nodes = imported(model, shapes)
    with machine, quiet():
        for step in (steps.LegalizeOps(), steps.AnnotateTIROpPattern(), steps.FoldConstant()):
            module = step(module)
        grouped = steps.FuseOps()(module)
        fused = steps.RewriteDataflowReshape()(steps.FuseTIR()(grouped))
        calls = calls_of(module, grouped, fused)
        executable = relax.build(scheduled(_with_entries(fused, calls)), target=machine)
    return Program(executable, tuple(_kernel_call(call, nodes) for call in calls))


@lru_cache(maxsize=PROGRAMS)
def imported(model: Model, shapes: Shapes) -> tuple[Any, Sequence[Any]]:
    """TVM's module of the model, its variables named after the nodes they were made for, and those nodes.

    Raises what TVM raises for an operator that it does not know.
    """
    require_tvm()
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    proto = fixed(model.proto, shapes)
    maker = {tensor: i for i, node in enumerate(proto.graph.node) for tensor in node.output if tensor}
    tensors = [*(value.name for value in proto.graph.input), *maker]
    with quiet():
        module = from_onnx(_returning(proto, tensors))
        *bindings, returned = operators(module[MAIN])
        values = dict(zip(tensors, returned.value.fields, strict=True))
        origins = made_for(bindings, {values[tensor]: i for tensor, i in reversed(maker.items())})
        module = with_names(module, bindings, origins, [values[value.name] for value in proto.graph.output])
        for step in (relax.transform.DecomposeOpsForInference(), relax.transform.CanonicalizeBindings()):
            module = step(module)
    return module, list(proto.graph.node)


def _returning(proto: Any, tensors: Sequence[str]) -> Any:
    """A copy that returns these tensors: how TVM's importer tells which expression a node became."""
    import onnx

    made = onnx.ModelProto()
    made.CopyFrom(proto)
    del made.graph.output[:]
    made.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in tensors)
    return made


def _kernel_call(call: Call, nodes: Sequence[Any]) -> KernelCall:
    parts = sorted(call.nodes)
    source = next((i for i in parts if nodes[i].op_type in _ANCHORS), parts[-1] if parts else None)
    return KernelCall(
        function=call.function,
        source="" if source is None else nodes[source].name,
        inputs=call.inputs,
        outputs=call.outputs,
        alone=_entry(call),
        arguments=tuple((tuple(int(size) for size in kind.shape), str(kind.dtype)) for kind in parameters(call.value)),
    )


def _with_entries(module: Any, calls: Sequence[Call]) -> Any:
    """The module with a function more for each kernel, which runs it alone: TVM 0.27 has no profiler of its own."""
    from tvm import relax

    builder = relax.BlockBuilder(module)
    for call in {call.function: call for call in calls}.values():
        arguments = [relax.Var(f"a{i}", kind) for i, kind in enumerate(parameters(call.value))]
        function, value = call.value.args[0], call.value
        with builder.function(_entry(call), params=arguments):
            with builder.dataflow():
                alone = relax.Call(value.op, [function, relax.Tuple(arguments)], value.attrs, value.ty_args)
                result = builder.emit_output(alone)
            builder.emit_func_output(result)
    return builder.get()


def _entry(call: Call) -> str:
    return f"only_{call.function}"
