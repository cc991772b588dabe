"""Modules import in one direction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = "vllm_optimal_sampling"
ROOT = Path(__file__).resolve().parents[2] / PACKAGE


def imports(node: ast.AST) -> Iterator[str]:
    """What a module imports at any time, but for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.ImportFrom) and child.module is not None:
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        yield from imports(child)


def test_no_modules_of_the_data_tools_import_in_a_circle() -> None:
    modules = {
        ".".join((PACKAGE, *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in (ROOT / "data").rglob("*.py")
        if path.name != "__init__.py"
    }
    graph = {
        name: {found for found in imports(ast.parse(path.read_text())) if found in modules} - {name}
        for name, path in modules.items()
    }
    assert sum(map(len, graph.values())) > 50
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
