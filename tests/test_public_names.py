"""The public names exist, are what they say, and cost nothing until they are used."""

import subprocess
import sys
from importlib import import_module

import autocompress as ac


def test_every_public_name_resolves():
    for name in ac.__all__:
        assert getattr(ac, name) is not None, name
    assert {"Plan", "Score", "Study", "Task", "build", "load", "profile", "search", "trace", "verify"} <= set(
        ac.__all__
    )


def test_functions_are_not_hidden_by_their_modules():
    import_module("autocompress.search")
    assert callable(ac.search)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, autocompress; print(sorted({'torch', 'optuna', 'onnx', 'pandas'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
