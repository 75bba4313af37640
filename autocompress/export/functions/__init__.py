"""How every ATen operator is written in ONNX: the tables of all themes as one."""

from typing import Any

from autocompress.export.emitter import Emit
from autocompress.export.functions.activations import ACTIVATIONS
from autocompress.export.functions.arithmetic import ARITHMETIC
from autocompress.export.functions.choosing import CHOOSING
from autocompress.export.functions.embedding import EMBEDDING
from autocompress.export.functions.filling import FILLING
from autocompress.export.functions.indexing import INDEXING
from autocompress.export.functions.moves import MOVES
from autocompress.export.functions.normalising import NORMALISING
from autocompress.export.functions.padding import PADDING
from autocompress.export.functions.pooling import POOLING
from autocompress.export.functions.products import PRODUCTS
from autocompress.export.functions.recurrent import RECURRENT
from autocompress.export.functions.reducing import REDUCING
from autocompress.export.functions.resizing import RESIZING
from autocompress.export.functions.windows import WINDOWS

FUNCTIONS: dict[Any, Emit] = {
    **ACTIVATIONS, **ARITHMETIC, **CHOOSING, **EMBEDDING, **FILLING, **INDEXING, **MOVES, **NORMALISING, **PADDING,
    **POOLING, **PRODUCTS, **RECURRENT, **REDUCING, **RESIZING, **WINDOWS,
}  # fmt: skip
