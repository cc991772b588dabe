"""Which columns of a row a Jinja template reads, told from its text."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import Environment, TemplateSyntaxError, meta, nodes

from vllm_optimal_sampling.data.generate.errors import SettingsError

ROW = "row"
"""The variable that is the whole row."""

_OPTIONAL_TESTS = {"defined", "undefined"}
_OPTIONAL_FILTERS = {"default", "d"}


@dataclass(frozen=True)
class TemplateColumns:
    """What a template reads."""

    names: frozenset[str] = frozenset()
    """Columns that it names: `{{ answer }}`, `{{ row.answer }}`, `{{ row["answer"] }}`, `{{ row.get("answer") }}`."""
    optional: frozenset[str] = frozenset()
    """Of `names`, those it can do without: it asks whether they are defined, or gives a default."""
    whole_row: bool = False
    """It uses `row` in another way as well, and so may read any column."""


def columns_of(name: str, text: str, environment: Environment) -> TemplateColumns:
    """Read a template for the columns that it reads.

    Args:
        name: the setting that the template is from, for messages.
        text: the template.
        environment: what it will be rendered with.

    Raises:
        SettingsError: it is not a Jinja template.

    """
    try:
        tree = environment.parse(text)
        undeclared = meta.find_undeclared_variables(tree) - set(environment.globals)
    except TemplateSyntaxError as error:
        raise SettingsError(f"{name} is not a Jinja template: {error.message} (line {error.lineno})") from None
    names = set(undeclared - {ROW})
    whole_row = False
    if ROW in undeclared:
        named_accesses = 0
        for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Call)):
            column = _column_of_row(node)
            if column is not None:
                names.add(column)
                named_accesses += 1
        uses = sum(1 for node in tree.find_all(nodes.Name) if node.name == ROW and node.ctx == "load")
        whole_row = uses > named_accesses
    return TemplateColumns(frozenset(names), frozenset(names & _optional(tree)), whole_row)


def _column_of_row(node: nodes.Node) -> str | None:
    """The column that `row.name`, `row["name"]` or `row.get("name")` reads, None for anything else."""
    if isinstance(node, nodes.Getattr) and _is_row(node.node):
        return None if hasattr(dict, node.attr) else node.attr
    if isinstance(node, nodes.Getitem) and _is_row(node.node):
        return _constant(node.arg)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and _is_row(node.node.node):
        return _constant(node.args[0]) if node.node.attr == "get" and node.args else None
    return None


def _is_row(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == ROW


def _constant(node: nodes.Node) -> str | None:
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None


def _optional(tree: nodes.Template) -> set[str]:
    asked = [test.node for test in tree.find_all(nodes.Test) if test.name in _OPTIONAL_TESTS]
    asked += [one.node for one in tree.find_all(nodes.Filter) if one.name in _OPTIONAL_FILTERS and one.node is not None]
    found = {node.name if isinstance(node, nodes.Name) else _column_of_row(node) for node in asked}
    # row.get("name") gives nothing where there is nothing.
    found |= {_column_of_row(call) for call in tree.find_all(nodes.Call)}
    return {column for column in found if column is not None}
