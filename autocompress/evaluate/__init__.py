"""Judging a model on a split of data."""

from autocompress.batches import subset
from autocompress.evaluate.cka import cka, linear_cka
from autocompress.evaluate.scores import kl_to, negative_mean_squared_error, r2, top1

__all__ = ["cka", "kl_to", "linear_cka", "negative_mean_squared_error", "r2", "subset", "top1"]
