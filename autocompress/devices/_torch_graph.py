"""What PyTorch as a runtime does with the module of an ONNX file: other floats, and a clock beside each call."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from autocompress.translation.operators import cast


def with_floats(module: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The same module computing in another float format, casts to float32 within it too."""
    for node in module.graph.nodes:
        if node.target is cast and node.args[1] is torch.float32:
            node.args = (node.args[0], dtype)
    module.recompile()
    return module.to(dtype)


class Clocked(fx.Interpreter):
    """Runs a module call by call and keeps what each took; `settle` waits until the hardware is done."""

    def __init__(self, module: fx.GraphModule, settle: Callable[[], None] | None) -> None:
        super().__init__(module)
        self.seconds: dict[fx.Node, list[float]] = defaultdict(list)
        self._settle = settle

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        call = getattr(self, n.op)
        start = time.perf_counter()
        result = call(n.target, args, kwargs)
        if self._settle is not None:
            self._settle()
        self.seconds[n].append(time.perf_counter() - start)
        return result
