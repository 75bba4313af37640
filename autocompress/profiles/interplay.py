"""How kernels of one model slow each other down, beyond what each takes by itself.

Their number: a model of twice the kernels takes a little more than twice as long, as its code, weights and tensors
leave the caches more often.

Their company: a Xeon's core lowers its clock for about a millisecond when dense float multiply-adds come between int8
multiplications on tiles (AMX). In turn with one float convolution of 4 to 15 input channels at 32x32, int8 models take
up to 1.22 times as long as by themselves; with one of 3 channels, or of 16 and more, as long as before. Float models,
and int8 ones whose outputs come in sixteens, for which ONNX Runtime has another kernel, never mind
(benchmarks/clock.py).
"""

import math

from autocompress.profiles.sites import BLOCK, DOT_PRODUCT, Site
from autocompress.vocabulary.formats import format_of
from autocompress.vocabulary.workload import WEIGHTED_OPS

DENSE_POSITIONS = 256
"""With fewer output positions, a float convolution is over before the clock falls."""

HALF_LOWERED = 3
"""With so many float convolutions that lower the clock, it is low half of the time."""


def lowers_clock(site: Site) -> bool:
    """Whether a kernel is one of those float convolutions."""
    w = site.workload
    dense = w.op == "conv" and format_of(w.dtype).is_float and w.groups == 1
    return dense and DOT_PRODUCT <= w.in_channels < BLOCK and math.prod(w.out_size) >= DENSE_POSITIONS


def suffers(site: Site) -> bool:
    """Whether a kernel multiplies int8 matrices on tiles."""
    w = site.workload
    return w.op in WEIGHTED_OPS and format_of(w.dtype).is_static and (w.op != "conv" or w.out_channels % BLOCK != 0)


def time_lowered(kernels: float) -> float:
    """The share of a run at the lower clock, given how many of its kernels lower it."""
    return kernels / (kernels + HALF_LOWERED)
