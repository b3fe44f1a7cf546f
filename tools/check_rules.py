"""Fails where the package or a notebook breaks one of the project's rules: `python tools/check_rules.py`, a part of `make check`.

Each breach is a line with its place.
"""
import ast
import json
import re
import sys
from itertools import groupby
from pathlib import Path

NAMES_IN_MODULE, NAMES_ON_AVERAGE, LINE, PARAGRAPH, LESSONS = 25, 5, 140, 60, 3
CHAPTERS = "[1-9]_*/*.ipynb"


def is_function(node): return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def public_names(tree):
    "Functions, classes and constants of a module that do not begin with an underscore; a patched function is a method."
    for node in tree.body:
        patched = any("patch" in ast.unparse(decorator) for decorator in getattr(node, "decorator_list", []))
        if (is_function(node) and not patched) or isinstance(node, ast.ClassDef): names = [node.name]
        elif isinstance(node, ast.Assign): names = [n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        elif isinstance(node, ast.AnnAssign): names = [node.target.id]
        else: names = []
        yield from (name for name in names if not name.startswith("_"))


def private_imports(tree):
    "(line, name) of what a module takes from another although its name is private."
    modules = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not (node.level or (node.module or "").startswith("datadesc")): continue
        if not node.module or node.module == "datadesc": modules |= {alias.asname or alias.name for alias in node.names}
        yield from ((node.lineno, alias.name) for alias in node.names if alias.name.startswith("_") and not alias.name.endswith("__"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules and re.match("_[^_]", node.attr):
            yield node.lineno, f"{node.value.id}.{node.attr}"


def public_functions(tree):
    "Functions of a module and methods of its classes that a user may call, with the number of arguments that need no type."
    for node in tree.body:
        if is_function(node) and not node.name.startswith("_"): yield node, 0
        if not isinstance(node, ast.ClassDef) or node.name.startswith("_"): continue
        for method in filter(is_function, node.body):
            static = any(ast.unparse(decorator) == "staticmethod" for decorator in method.decorator_list)
            if not method.name.startswith("_") or method.name == "__init__": yield method, 0 if static else 1


def untyped(function, skipped):
    "Arguments of a function without a type, and `return` if that has none."
    given = function.args
    arguments = [*given.posonlyargs, *given.args][skipped:] + [*given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    missing = [argument.arg for argument in arguments if argument.annotation is None]
    return missing + ["return"] * (function.returns is None and function.name != "__init__")


def paragraphs(text):
    "Paragraphs of a Markdown text; a list item counts by itself, code, formulas, headings and table rows do not count."
    text = re.sub(r"^(```|~~~).*?^\1|\$\$.*?\$\$|^#.*?$|^ *\|.*?$", "\n", text, flags=re.S | re.M)
    return [part for part in re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.) )", text) if part.strip()]


def unshown(cells):
    "(cell, name) of each public name of a chapter that none of the next `LESSONS` cells of code which are not exported writes."
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for at, cell in enumerate(code):
        if not re.search(r"^#\| *exports?\b", source := "".join(cell["source"]), re.M): continue
        lessons = ["".join(later["source"]) for later in code[at + 1:]]
        shown = "\n".join([text for text in lessons if not re.search(r"^#\| *(export|hide)", text, re.M)][:LESSONS])
        yield from ((cell["id"], name) for name in public_names(ast.parse(source)) if not re.search(rf"\b{name}\b", shown))


def breaches(root):
    "(rule, place, what) of every breach in the project at `root`."
    total, modules = 0, [file for file in sorted((root / "datadesc").glob("*.py")) if file.stem not in ("_modidx", "__init__", "__main__")]
    for file in modules:
        text = file.read_text(encoding="utf-8")
        tree, place = ast.parse(text), f"datadesc/{file.name}"
        names = list(public_names(tree))
        total += len(names)
        if len(names) > NAMES_IN_MODULE: yield "public names", place, f"{len(names)} public names, at most {NAMES_IN_MODULE}"
        for line, name in private_imports(tree): yield "private import", f"{place}:{line}", f"{name} is another module's private name"
        for function, skipped in public_functions(tree):
            if missing := untyped(function, skipped): yield "types", f"{place}:{function.lineno}", f"{function.name} has no type for {', '.join(missing)}"
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > LINE: yield "long line", f"{place}:{number}", f"{len(line)} characters, at most {LINE}"
    if total > (most := NAMES_ON_AVERAGE * len(modules)): yield "all public names", "datadesc", f"{total} public names, at most {most} in {len(modules)} modules"
    for file in sorted((root / "nbs").rglob("*.ipynb")):
        prose = [(cell["id"], "".join(cell["source"])) for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "markdown"]
        place = file.relative_to(root).as_posix()
        for name, text in prose:
            for part in paragraphs(text):
                if (words := len(part.split())) > PARAGRAPH: yield "long paragraph", f"{place}#{name}", f"{words} words, at most {PARAGRAPH}: {part.strip()[:50]}"
        if not file.match(f"nbs/{CHAPTERS}"): continue
        for cell, name in unshown(json.loads(file.read_text(encoding="utf-8"))["cells"]):
            yield "not shown", f"{place}#{cell}", f"no lesson writes {name} in the next {LESSONS} cells"
        if ".ipynb" not in prose[-1][1]: yield "no link at the end", place, "its last text names no page to read next"


if __name__ == "__main__":
    found = sorted(breaches(Path(__file__).parents[1]), key=lambda breach: breach[0])
    for rule, group in groupby(found, key=lambda breach: breach[0]):
        group = list(group)
        print(f"{rule}: {len(group)}", *(f"  {place}: {what}" for _, place, what in group), sep="\n")
    sys.exit(bool(found))
