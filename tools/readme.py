"Writes README.md from the front page notebook: `python tools/readme.py nbs/index.ipynb README.md`."
import os
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

# nbdev's directives for cells that a reader does not see.
HIDDEN = re.compile(r"^\s*#\|\s*(hide|default_exp|include:\s*false)\b", re.M)
DIRECTIVE = re.compile(r"^\s*#\|.*\n?", re.M)
RELATIVE_LINK = re.compile(r'(\]\(|src="|href=")(?![a-z]+:|#|/)([^)"\s#]+)')
OUTPUT_ONLY = re.compile(r"^\s*#\|\s*echo:\s*false\b", re.M)
ALT = re.compile(r"^\s*#\|\s*fig-alt:\s*(.*)", re.M)  # Quarto's name for it
STYLE = re.compile(r"<style.*?</style>\s*", re.S)
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")


def texts_of_pictures(notebook):
    "For each picture that the cells drew the text that stands for it, 'png' where the cell gives none."
    return [found[1] if (found := ALT.search(cell.source)) else "png"
            for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]


def front_page(source, target):
    "(the notebook `source` as a reader sees it, with its relative links starting at the folder of `target`, the texts of its pictures)"
    def moved(link):
        return link[1] + Path(os.path.relpath(source.parent / link[2], target.parent)).as_posix()
    notebook = nbformat.read(source, as_version=4)
    notebook.metadata["language_info"] = {"name": "python"}  # nbdev-clean drops it; it names the fences
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN.search(cell.source)]
    texts = texts_of_pictures(notebook)
    for cell in notebook.cells:
        cell.metadata["transient"] = {"remove_source": bool(OUTPUT_ONLY.search(cell.source))}
        cell.source = DIRECTIVE.sub("", cell.source).strip() if cell.cell_type == "code" else RELATIVE_LINK.sub(moved, cell.source)
    return notebook, texts


def write_readme(source, target):
    "Writes `target`, and the pictures that the cells of `source` drew into a folder beside it."
    pictures = {"unique_key": "figure", "output_files_dir": f"{target.stem}_files"}
    page, texts = front_page(source, target)
    markdown, made = MarkdownExporter().from_notebook_node(page, pictures)
    texts = iter(texts)
    markdown = re.sub(rf"[ \t]*!\[png\](?=\({target.stem}_files/)", lambda match: f"![{next(texts)}]", markdown)
    for name, content in made["outputs"].items():
        (target.parent / name).parent.mkdir(exist_ok=True)
        (target.parent / name).write_bytes(content)
    note = f"<!-- Made by `make readme` from {source.name}: edit that. -->\n\n"
    target.write_text(note + BLANK_LINES.sub("\n\n", STYLE.sub("", markdown)).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_readme(*map(Path, sys.argv[1:]))
