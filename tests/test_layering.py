"""Imports only run downwards, and the model side and the device side meet in search and verify only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "autocompress"

FLOW = ("vocabulary", "translation", "task", "graph", "devices", "profiles", "compression", "export", "evidence",
        "search", "report", "cli", "__init__")  # fmt: skip
"""The package's folders, each importing only from those before it."""
MODEL_SIDE = {"graph", "compression", "export"}
DEVICE_SIDE = {"devices", "profiles"}
SURFACE = {"report", "cli"}

ONLY_IN_SEARCH = {"optuna"}
ONLY_ON_THE_SURFACE = {"typer", "rich", "argparse"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The package's part that a file belongs to: `graph/cut.py` → `graph`."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of everything imported anywhere in a file, but for annotations (`if TYPE_CHECKING`)."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = {alias.name for alias in node.names} if node.module == "autocompress" else {""}
            found.update(f"{node.module}.{name}".rstrip(".") for name in names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def own(names: set[str]) -> set[str]:
    """Parts of this package among the imported names."""
    return {name.split(".")[1] for name in names if name.startswith("autocompress.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downwards(path):
    here, names = part(path), imported(path)
    parts, roots = own(names) - {here}, {name.split(".")[0] for name in names}
    assert parts <= set(FLOW[: FLOW.index(here)]), f"{here} stands above {parts - set(FLOW[: FLOW.index(here)])}"
    if here in MODEL_SIDE:
        assert not parts & DEVICE_SIDE, "the model side knows nothing of devices"
    if here in DEVICE_SIDE:
        assert not parts & {"task", *MODEL_SIDE}, "the device side knows nothing of models"
    if here not in SURFACE:
        assert not roots & ONLY_ON_THE_SURFACE, "printing is the surface's"
    if here != "search":
        assert not roots & ONLY_IN_SEARCH, "only the search knows Optuna"


def test_the_check_sees_what_it_should(tmp_path):
    """Mutation: each way of importing is found, an import for annotations alone is not."""
    file = tmp_path / "x.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport optuna.samplers\nif TYPE_CHECKING:\n    import rich\n"
        "def f():\n    from autocompress.devices import open_device\n    from autocompress import profiles\n"
    )
    assert imported(file) >= {"optuna.samplers", "autocompress.devices", "autocompress.profiles"}
    assert "rich" not in imported(file)
    assert own(imported(file)) == {"devices", "profiles"}


def test_nothing_prints_below_the_surface():
    for path in modules():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        prints = [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
        assert part(path) in SURFACE or not prints, f"{path} prints"
