"""This process as the machine that TVM's programs run on."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from autocompress.devices.ort import OrtDevice
from autocompress.devices.tvm.loaded import Loaded
from autocompress.devices.tvm.model import Model, Shapes
from autocompress.devices.tvm.package import first_line, require_tvm
from autocompress.devices.tvm.program import Program, compiled
from autocompress.vocabulary.errors import DeviceError

NAME = "tvm:llvm"


class Local:
    """LLVM compiles for this processor, and the code runs where it was made: no linker is needed."""

    lost = False
    provider = "tvm llvm"

    @cached_property
    def target(self) -> str:
        processor = require_tvm().get_global_func("target.llvm_get_system_cpu")()
        return json.dumps({"kind": "llvm", "mcpu": str(processor)})

    @property
    def processor(self) -> str:
        return OrtDevice().environment()["processor"]

    def build(self, model: Model, shapes: Shapes) -> Program:
        return compiled(model, shapes, self.target)

    def load(self, program: Program) -> Loaded:
        import tvm
        from tvm import relax

        return Loaded(relax.VirtualMachine(program.executable, tvm.cpu()), tvm.cpu())

    @contextmanager
    def working(self, task: str) -> Iterator[None]:
        """Turns what TVM raises meanwhile into DeviceError."""
        try:
            yield
        except DeviceError:
            raise
        except Exception as error:  # TVM has no tree of its own
            raise DeviceError(f"{NAME} can't {task}: {first_line(error)}") from error
