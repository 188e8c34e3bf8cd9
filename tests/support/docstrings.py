"""What public docstrings leave out: `python -m tests.support.docstrings [FOLDER ...]` prints a table, and each place.

Public: a function or method, or a class, whose name has no leading underscore, at the top of a module or in a public
class. Each kind of gap is a list of `file:line name`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tests.support.checkout import ROOT

_ARRAY = re.compile(r"NDArray|\bTensor\b|ndarray|\b(Floats|Ints|F16|F32|F64|I64|U64|U16|U8|Bools)\b")
# As in `(users, T)`, `(events,)`, `f32[B, D]` or `(..., dim)`.
_SHAPE = re.compile(r"\([^()]*\w,[^()]*\)|\w+\[[\w, +*]+\]|\(\w+,\)|\(\.\.\.|any shape|^See `\w+`")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Gaps:
    """Of one package: how many there are of each kind, and where a docstring lacks something."""

    functions: int = 0
    array_functions: int = 0
    raising_functions: int = 0
    classes: int = 0
    undocumented: list[str] = field(default_factory=list)
    without_shapes: list[str] = field(default_factory=list)
    without_raises: list[str] = field(default_factory=list)
    undocumented_classes: list[str] = field(default_factory=list)


def gaps_of(folder: Path) -> Gaps:
    """The gaps of all modules under a folder."""
    found = Gaps()
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for name, function in _public_functions(tree):
            where = f"{path.relative_to(folder.parent)}:{function.lineno} {name}"
            text = ast.get_docstring(function) or ""
            found.functions += 1
            if not text:
                found.undocumented.append(where)
            if _has_arrays(function):
                found.array_functions += 1
                if not _SHAPE.search(text):
                    found.without_shapes.append(where)
            if _raises(function):
                found.raising_functions += 1
                if not re.search(r"[Rr]aise", text):
                    found.without_raises.append(where)
        for node in _public_classes(tree):
            found.classes += 1
            if not ast.get_docstring(node):
                found.undocumented_classes.append(
                    f"{path.relative_to(folder.parent)}:{node.lineno} {node.name}"
                )
    return found


def _public_classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    yield from (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_")


def _public_functions(tree: ast.Module) -> Iterator[tuple[str, Function]]:
    for node in tree.body:
        if isinstance(node, Function) and node.name[0] != "_":
            yield node.name, node
    for owner in _public_classes(tree):
        for node in owner.body:
            if isinstance(node, Function) and node.name[0] != "_":
                yield f"{owner.name}.{node.name}", node


def _has_arrays(function: Function) -> bool:
    arguments = function.args
    every = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    annotations = [one.annotation for one in every if one.annotation] + [
        function.returns or ast.Constant(None)
    ]
    return any(_ARRAY.search(ast.unparse(annotation)) for annotation in annotations)


def _raises(function: Function) -> bool:
    """Whether it raises an exception class by name itself; bare `raise` and functions inside do not count."""
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if ast.unparse(raised).rpartition(".")[2][:1].isupper():
                return True
        inside = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, inside)]
    return False


PACKAGES = {
    "headwater": ROOT / "streams" / "headwater",
    "headwater_models": ROOT / "models" / "headwater_models",
}


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]] or [*PACKAGES.values()]
    for folder in folders:
        found = gaps_of(folder)
        print(f"{folder.name}: {found.functions} public functions, {found.classes} public classes")
        print(
            f"  {len(found.undocumented)} functions and {len(found.undocumented_classes)} classes undocumented"
        )
        print(f"  {len(found.without_shapes)} of {found.array_functions} array functions name no shape")
        print(f"  {len(found.without_raises)} of {found.raising_functions} raising functions do not say so")
        kinds = (found.undocumented, found.undocumented_classes, found.without_shapes, found.without_raises)
        for where in chain(*kinds):
            print(f"    {where}")


if __name__ == "__main__":
    main()
