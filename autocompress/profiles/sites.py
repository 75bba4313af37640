"""Sites: a workload at a place in a model, the key under which a kernel is priced.

Beside its workload a kernel owes time to the layout of the tensors around it: int8 convolutions want channels last,
fp32 ones channels blocked by 16 (NCHWc), everything else the planar NCHW. What merely combines elements takes the
layout that all its inputs share, and whatever a reader wants otherwise is converted, once per tensor and layout. This
is how ONNX Runtime's CPU provider settles it: on 340 mixed-precision ResNets the conversions counted here were those in
its optimised graphs (correlation 0.99). For other runtimes the same facts are merely features.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from autocompress.vocabulary.formats import format_of
from autocompress.vocabulary.precision import lower
from autocompress.vocabulary.workload import WEIGHTED_OPS, Kernel, Kernels, Workload

PLANAR, BLOCKED, LAST = 1, 2, 4
"""Layouts of a tensor, as bits."""

BLOCK = 16
DOT_PRODUCT = 4

PLAIN, ISOLATED, SHARED = 0, 1, 2
"""Peculiarities: an fp32 kernel with nothing but conversions around it (the runtime may run it as int8 after all), and
a conversion to fp32 for several readers (which the runtime makes anew for each)."""

_CONVERSIONS = frozenset({"quantize", "dequantize"})
_COMBINES = frozenset({"add", "mul", "relu"})
_ELEMENTWISE = _COMBINES | {"avg_pool", "max_pool", "mean"}


class Site(NamedTuple):
    """A workload, how many tensors it reads, the layout of what it makes, the further layouts (as bits) that readers
    want it in, and its peculiarity."""

    workload: Workload
    arity: int
    layout: int = PLANAR
    moved: int = 0
    peculiarity: int = PLAIN


def sites(kernels: Kernels | Sequence[Kernel]) -> dict[str, Site]:
    """Kernel name → site, for a plan's kernels (a mapping, lowered here) or for lowered ones (a sequence)."""
    lowered = kernels if isinstance(kernels, Sequence) else lower(kernels)
    walk = _Walk(lowered)
    for kernel in lowered:
        if kernel.workload.op not in _CONVERSIONS:
            walk.visit(kernel)
    walk.finish()
    return {kernel.name: walk.site(kernel) for kernel in lowered}


class _Walk:
    """One pass over kernels in execution order; conversions are met where their tensors are read.

    A search prices thousands of plans, so this is spelled out for speed: 3 us a kernel.
    """

    def __init__(self, lowered: Sequence[Kernel]) -> None:
        self._quantised = {k.inputs[0]: k.name for k in lowered if k.workload.op == "quantize"}
        self._dequantised = {k.inputs[0]: k.name for k in lowered if k.workload.op == "dequantize"}
        self._entering = _enter_channels_last(lowered, self._quantised)
        self._layout: dict[str, int] = {}
        self._moved: dict[str, int] = {}
        self._float_readers: dict[str, int] = {}
        self._read_plainly: set[str] = set()
        self._reads_dequantised: set[str] = set()

    def visit(self, kernel: Kernel) -> None:
        layout, moved = self._layout, self._moved
        tensors = [self._tensor(source, kernel) for source in kernel.inputs]
        layouts = [layout.get(tensor, PLANAR) for tensor in tensors]
        wanted, made = _layouts(kernel.workload, layouts)
        for tensor, found in zip(tensors, layouts, strict=True):
            if found != wanted:
                moved[tensor] = moved.get(tensor, 0) | wanted
        layout[kernel.name] = made

    def finish(self) -> None:
        """Conversions that no kernel reads give the model's output."""
        for source, name in self._dequantised.items():
            if name not in self._layout:
                self._convert(source, name, PLANAR)

    def site(self, kernel: Kernel) -> Site:
        name = kernel.name
        return Site(
            kernel.workload, len(kernel.inputs), self._layout[name], self._moved.get(name, 0), self._peculiarity(kernel)
        )

    def _tensor(self, source: str, reader: Kernel) -> str:
        """The tensor that a kernel reads of what `source` makes: in the reader's number format."""
        int8 = format_of(reader.workload.dtype).is_static
        name = (self._quantised if int8 else self._dequantised).get(source)
        if name is None:
            self._read_plainly.add(source)
            return source
        if name not in self._layout:
            self._convert(source, name, self._quantised_layout(source) if int8 else PLANAR)
        if not int8:
            self._float_readers[name] = self._float_readers.get(name, 0) + 1
            self._reads_dequantised.add(reader.name)
        return name

    def _quantised_layout(self, source: str) -> int:
        """Quantising keeps channels last, and puts them last where export/layout.py does; otherwise its result is
        planar, as is all that is dequantised."""
        last = self._layout.get(source, PLANAR) == LAST or source in self._entering
        return LAST if last else PLANAR

    def _convert(self, source: str, name: str, layout: int) -> None:
        self._layout[name] = layout
        if self._layout.get(source, PLANAR) != layout:
            self._moved[source] = self._moved.get(source, 0) | layout

    def _peculiarity(self, kernel: Kernel) -> int:
        name = kernel.name
        if self._float_readers.get(name, 0) > 1:
            return SHARED
        between = name in self._reads_dequantised and name in self._quantised and name not in self._read_plainly
        weighted = kernel.workload.op in WEIGHTED_OPS and format_of(kernel.workload.dtype).is_float
        return ISOLATED if between and weighted else PLAIN


def _enter_channels_last(lowered: Sequence[Kernel], quantised: Mapping[str, str]) -> set[str]:
    """Sources whose quantised tensor is read by an int8 convolution, and by something else or combined from maps that
    left int8: see `enters_channels_last` in export/layout.py."""
    if not quantised:
        return set()
    convolutions, others, left_int8 = set[str](), set[str](), set[str]()
    int8 = {kernel.name for kernel in lowered if format_of(kernel.workload.dtype).is_static}
    for kernel in lowered:
        if kernel.name not in int8:
            if kernel.workload.op in _COMBINES and any(i in int8 or i in left_int8 for i in kernel.inputs):
                left_int8.add(kernel.name)
        elif kernel.workload.op not in _CONVERSIONS:
            (convolutions if kernel.workload.op == "conv" else others).update(kernel.inputs)
    return convolutions & (others | left_int8) & quantised.keys()


def _layouts(workload: Workload, inputs: list[int]) -> tuple[int, int]:
    """(wanted of the inputs, made), given the layouts that the inputs come in."""
    if workload.op == "conv":
        return _convolution_layouts(workload)
    if workload.op in _ELEMENTWISE and inputs.count(inputs[0]) == len(inputs):
        return inputs[0], inputs[0]
    return PLANAR, PLANAR


def _convolution_layouts(workload: Workload) -> tuple[int, int]:
    """A blocked convolution with less than a block of input channels reads them planar."""
    inputs, outputs = workload.in_channels, workload.out_channels
    if format_of(workload.dtype).is_static:
        return LAST, LAST
    if workload.groups > 1:
        return (BLOCKED, BLOCKED) if outputs % BLOCK == 0 else (PLANAR, PLANAR)
    if outputs % DOT_PRODUCT or (inputs >= BLOCK and inputs % DOT_PRODUCT):
        return PLANAR, PLANAR
    return (BLOCKED if inputs >= BLOCK else PLANAR), BLOCKED
