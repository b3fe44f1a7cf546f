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
WIDTH = re.compile(r"^\s*#\|\s*out-width:\s*(\d+)", re.M)  # pixels
STYLE = re.compile(r"<style.*?</style>\s*", re.S)
BLANK_LINES = re.compile(r"\n(?:[ \t]*\n){2,}")
HEADING = re.compile(r"^#+ +(.+)", re.M)
PICTURES = {"image/png", "image/jpeg", "image/svg+xml"}
SIGNS = re.compile(r"[&<>\[\]\\`*_$~|]")  # what Markdown reads as markup

# Pictures of every kind with the text that stands for each, as wide as the cell says; `after` is for a template that extends this one.
PICTURE = """{%- macro picture(output, kind, after='') %}
{%- set file, width = output.metadata.filenames[kind] | path2url, output.metadata.width %}
{% if width %}<img src="{{ file }}" alt="{{ output.metadata.alt | replace('"', '&quot;') }}" width="{{ width }}">
{% else %}![{{ output.metadata.alt }}]({{ file }}){{ after }}
{% endif %}
{% endmacro -%}
"""
TEMPLATE = "{% extends 'markdown/index.md.j2' %}\n" + PICTURE + """
{% block data_png scoped %}{{ picture(output, 'image/png') }}{% endblock data_png %}
{% block data_jpg scoped %}{{ picture(output, 'image/jpeg') }}{% endblock data_jpg %}
{% block data_svg scoped %}{{ picture(output, 'image/svg+xml') }}{% endblock data_svg %}
"""


def alternative_text(cell, output, heading):
    "What stands for a picture: the cell's `fig-alt`, else what the figure says of itself, else the heading above it; escaped for Markdown."
    given, own = ALT.search(cell.source), output["data"].get("text/plain", "<")
    text = given[1] if given else f"Picture: {heading}" if own.startswith("<") else own
    return SIGNS.sub(lambda sign: f"&#{ord(sign[0])};", " ".join(text.split()))


def front_page(source, target):
    "The notebook `source` as a reader sees it, with its relative links starting at the folder of `target`, and a text for every picture."
    def moved(link):
        return link[1] + Path(os.path.relpath(source.parent / link[2], target.parent)).as_posix()
    notebook, heading = nbformat.read(source, as_version=4), ""
    notebook.metadata["language_info"] = {"name": "python"}  # nbdev-clean drops it; it names the fences
    notebook.cells = [cell for cell in notebook.cells if not HIDDEN.search(cell.source)]
    for cell in notebook.cells:
        if cell.cell_type == "markdown": heading = next(reversed(HEADING.findall(cell.source)), heading).replace("`", "")
        width = WIDTH.search(cell.source)
        for output in cell.get("outputs", []):
            if PICTURES & {*output.get("data", {})}: output.metadata |= dict(alt=alternative_text(cell, output, heading), width=width and int(width[1]))
        cell.metadata["transient"] = {"remove_source": bool(OUTPUT_ONLY.search(cell.source))}
        cell.source = DIRECTIVE.sub("", cell.source).strip() if cell.cell_type == "code" else RELATIVE_LINK.sub(moved, cell.source)
    return notebook


def write_readme(source, target):
    "Writes `target`, and the pictures that the cells of `source` drew into a folder beside it."
    names = {"unique_key": "figure", "output_files_dir": f"{target.stem}_files"}
    markdown, made = MarkdownExporter(raw_template=TEMPLATE).from_notebook_node(front_page(source, target), names)
    for name, content in made["outputs"].items():
        (target.parent / name).parent.mkdir(exist_ok=True)
        (target.parent / name).write_bytes(content)
    note = f"<!-- Made by `make readme` from {source.name}: edit that. -->\n\n"
    target.write_text(note + BLANK_LINES.sub("\n\n", STYLE.sub("", markdown)).strip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_readme(*map(Path, sys.argv[1:]))
