"""Each ONNX operator as one call of torch, its attributes and constant operands settled beforehand."""

from collections.abc import Mapping

from autocompress.translation.operators import matrices, pointwise
from autocompress.translation.operators.matrices import MATRICES
from autocompress.translation.operators.pointwise import DTYPES, POINTWISE, cast
from autocompress.translation.operators.reductions import REDUCTIONS
from autocompress.translation.operators.resizing import RESIZING
from autocompress.translation.operators.shapes import MOVES, SHAPES
from autocompress.translation.operators.windows import WINDOWS
from autocompress.translation.values import Translate

OPERATORS: Mapping[tuple[str, str], Translate] = {
    **{("", name): found for table in (POINTWISE, REDUCTIONS, SHAPES, WINDOWS, RESIZING, MATRICES)
       for name, found in table.items()},
    **{("com.microsoft", name): found for table in (pointwise.CONTRIBUTED, matrices.CONTRIBUTED)
       for name, found in table.items()},
}  # fmt: skip
"""By (domain, operator); "" is ai.onnx."""

__all__ = ["DTYPES", "MOVES", "OPERATORS", "cast"]
