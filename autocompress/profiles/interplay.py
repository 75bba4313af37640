"""How kernels of one model slow each other down, beyond what each takes by itself.

Their number: a model of twice the kernels takes a little more than twice as long, as its code, weights and tensors
leave the caches more often.

Their company: a Xeon's core lowers its clock for about a millisecond when dense float multiply-adds come between int8
multiplications on tiles (AMX). Found by timing an int8 ResNet in turn with one float convolution: after one of 8 to 15
input channels at 32x32 the int8 model takes 1.22 times as long, after one of 4 channels 1.08 to 1.2 times, after one of
3, or of 16 and more, as long as before; by itself neither slows. ONNX Runtime has a dense kernel for maps it reads
planar, and multiplies int8 matrices on tiles unless the outputs come in sixteens, for which it has another kernel.
"""

import math

from autocompress.profiles.sites import BLOCK, DOT_PRODUCT, Site
from autocompress.workload import WEIGHTED_OPS, DType

DENSE_POSITIONS = 256
"""With fewer output positions, a float convolution is over before the clock falls."""

HALF_LOWERED = 3
"""With so many float convolutions that lower the clock, it is low half of the time."""


def lowers_clock(site: Site) -> bool:
    """Whether a kernel is one of those float convolutions."""
    w = site.workload
    dense = w.op == "conv" and w.dtype is DType.FP32 and w.groups == 1
    return dense and DOT_PRODUCT <= w.in_channels < BLOCK and math.prod(w.out_size) >= DENSE_POSITIONS


def suffers(site: Site) -> bool:
    """Whether a kernel multiplies int8 matrices on tiles."""
    w = site.workload
    return w.op in WEIGHTED_OPS and w.dtype is DType.INT8 and (w.op != "conv" or w.out_channels % BLOCK != 0)


def time_lowered(kernels: float) -> float:
    """The share of a run at the lower clock, given how many of its kernels lower it."""
    return kernels / (kernels + HALF_LOWERED)
