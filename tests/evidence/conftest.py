"""Fixtures of this folder's tests."""

from tests.runner import runtime

__all__ = ["runtime"]
