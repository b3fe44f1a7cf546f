"Writes README.md from the front page notebook: `python tools/readme.py nbs/index.ipynb README.md`."
import base64
import os
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import Preprocessor

# nbdev's directives for cells that a reader does not see.
HIDDEN = re.compile(r"^\s*#\|\s*(hide|default_exp|include:\s*false)\b", re.M)
DIRECTIVE = re.compile(r"^\s*#\|.*\n?", re.M)
LINK = re.compile(r'(\]\(|src="|href=")(?![a-z]+:|#|/)([^)"\s]+)')


class Visible(Preprocessor):
    "The cells a reader sees, without nbdev's directives."

    def preprocess(self, notebook, resources):
        notebook.cells = [cell for cell in notebook.cells if not HIDDEN.search(cell.source)]
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = DIRECTIVE.sub("", cell.source).strip()
        return notebook, resources


def relink(markdown, source, target):
    "`markdown` with the relative links of `source` made to start at the folder of `target`."
    def moved(match):
        path, hash_, anchor = match[2].partition("#")
        there = os.path.relpath(source.parent / path, target.parent)
        return match[1] + Path(there).as_posix() + hash_ + anchor
    return LINK.sub(moved, markdown)


def write_readme(source, target):
    "Writes `target` and the pictures that `source` shows, in a folder beside it."
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # nbdev-clean drops it; it names the fences
    exporter = MarkdownExporter(preprocessors=[Visible])
    pictures = target.with_name(target.stem + "_files")
    resources = {"unique_key": "figure", "output_files_dir": pictures.name}
    markdown, resources = exporter.from_notebook_node(notebook, resources)
    shown = dict(resources["outputs"])
    placeholder = {name: f"figure:{n}" for n, name in enumerate(shown)}
    for name, key in placeholder.items():
        markdown = markdown.replace(name, key)
    markdown = relink(re.sub(r"<style scoped>.*?</style>\s*", "", markdown, flags=re.S), source, target)
    for name, key in placeholder.items():
        markdown = markdown.replace(key, name)
        (target.parent / name).parent.mkdir(exist_ok=True)
        (target.parent / name).write_bytes(shown[name])
    note = f"<!-- Made from {Path(os.path.relpath(source, target.parent)).as_posix()} by `make readme`: edit that. -->\n\n"
    target.write_text(note + markdown.strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_readme(Path(sys.argv[1]), Path(sys.argv[2]))
