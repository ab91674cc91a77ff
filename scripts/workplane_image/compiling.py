"""Run by the image's own Python: compile all modules below a folder, in place of their sources.

Sources would be half of the image, and nothing reads them. Left out as well is what costs every agent memory and serves
nobody in it: docstrings (save those that click shows as help), annotations of functions, which nothing here asks for (those
of classes stay: attrs does), and, by ``-X no_debug_ranges`` of the caller, the columns of tracebacks, which point into
sources. Assertions stay. The bytes depend on the sources alone: names of files in them are
those of the image, they are checked against nothing, and the caller fixes the hash seed.
"""

import ast
import importlib._bootstrap_external as bootstrap  # the only place that writes the header of what is checked against nothing
import os
import sys

_WITH_HELP = ("workplane/cli.py",)


def main(root: str) -> None:
    """Compile what is below ``root``."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                compile_file(os.path.join(folder, name), root)


def compile_file(path: str, root: str) -> None:
    """Put ``NAME.pyc`` in the place of ``NAME.py``."""
    with open(path, "rb") as file:
        source = file.read()
    tree = ast.parse(source, path)
    if not path.endswith(_WITH_HELP):
        drop_docstrings(tree)
    drop_annotations(tree)
    code = compile(tree, path.removeprefix(root), "exec", dont_inherit=True)
    with open(path + "c", "wb") as file:
        file.write(bootstrap._code_to_hash_pyc(code, bytes(8), False))
    os.unlink(path)


def drop_docstrings(tree: ast.Module) -> None:
    """``__doc__`` is None where there was a docstring."""
    for node in ast.walk(tree):
        if isinstance(
            node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        ) and ast.get_docstring(node, clean=False):
            node.body[:1] = (
                []
                if len(node.body) > 1 or isinstance(node, ast.Module)
                else [ast.copy_location(ast.Pass(), node.body[0])]
            )


def drop_annotations(tree: ast.Module) -> None:
    """``__annotations__`` of functions is empty."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None


if __name__ == "__main__":
    main(sys.argv[1])
