"""Makes the pages of the site from the notebooks as they are stored; a hook of mkdocs.yml, used by `make site`.

Pages are written as Markdown, so that mkdocs itself checks every link and anchor. mkdocs-jupyter writes HTML, which mkdocs does
not check, leaves links between notebooks as they are, repeats JupyterLab's styles on each page and fetches MathJax from the web.
"""
import html
import json
import os
import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert as mathml
from mkdocs.exceptions import PluginError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter
from readme import PICTURE, RELATIVE_LINK, front_page

import datadesc
from datadesc.kernel import report_html

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"

# The parts, in the order of the story.
PARTS = {"1_method": "The method", "2_evidence": "Evidence", "3_looking": "Looking at a dataset", "4_pages": "Runs and reports", "5_sources": "Sources"}
STORED = {"runs": "Run notebooks", "bench": "Speed and memory"}
RUNS = ("meadow", "summary")  # whose pages are committed

TEMPLATE = "{% extends 'markdown/index.md.j2' %}\n" + PICTURE + """
{%- macro fenced(text, kind) %}
{{ text | fence }} {{ kind }}
{{ text }}
{{ text | fence }}
{% endmacro -%}
{%- macro as_text(text) %}{{ fenced(text | strip_ansi | trim('\n'), '{ .text .output }') }}{% endmacro -%}
{% block input %}{{ fenced(cell.source, 'python') }}{% endblock input %}
{% block stream %}{{ as_text(output.text) }}{% endblock stream %}
{% block data_text scoped %}{{ as_text(output.data['text/plain']) }}{% endblock data_text %}
{% block data_html scoped %}
<div class="output" data-search-exclude>
{{ output.data['text/html'] }}
</div>
{% endblock data_html %}
{% block data_png scoped %}{{ picture(output, 'image/png', '{ loading=lazy }') }}{% endblock data_png %}
{% block data_jpg scoped %}{{ picture(output, 'image/jpeg', '{ loading=lazy }') }}{% endblock data_jpg %}
{% block data_svg scoped %}{{ picture(output, 'image/svg+xml', '{ loading=lazy }') }}{% endblock data_svg %}
{% block error %}{{ as_text(output.traceback | join('\n')) }}{% endblock error %}
"""


def fence(text):
    "A line of tildes that the text does not hold, so that nothing in it ends the block."
    return "~" * max(5, 1 + max(map(len, re.findall("~+", text)), default=0))


def first_cell(notebook):
    "The title of a notebook, its promise, and the module it exports, or None."
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    title, promise = re.match(r"# (.+)\n*(?:> (.+))?", "".join(cells[0]["source"])).groups()
    exported = [re.search(r"^#\| *default_exp +(\w+)", "".join(cell["source"]), re.M) for cell in cells]
    return title, promise or "", next((found[1] for found in exported if found), None)


def notebooks(folder):
    "The notebooks of a folder of nbs/ in their order."
    return sorted((NBS / folder).glob("*.ipynb"))


def address(source, link):
    "Where a link in a file of the project leads on the site, as seen from nbs/; and the file, no notebook of nbs/, that the site needs for it."
    target = Path(os.path.normpath(source.parent / link))
    if target == ROOT / "README.md": return NBS / "index.md", None
    if target.is_relative_to(NBS): return (target.with_suffix(".md"), None) if target.suffix == ".ipynb" else (target, target)
    inside = target.relative_to(ROOT)
    page = inside.with_suffix(".html") if inside.parts[0] == "papermill_runs" and inside.suffix == ".ipynb" else inside
    return NBS / page, target


def site_links(text, source, needed):
    "`text` with its relative links as they are on the site; files but notebooks of nbs/ are added to `needed`."
    def moved(link):
        target, file = address(source, link[2])
        if file is not None and file.is_file(): needed.add(file)
        if link[1] != "](" and not (source.parent / link[2]).exists():  # HTML, which mkdocs does not check
            get_plugin_logger("site").warning(f"{source.name} contains a link '{link[2]}', but there is no such file.")
        start = NBS if source.parent == ROOT else source.parent
        return link[1] + Path(os.path.relpath(target, start)).as_posix()
    return RELATIVE_LINK.sub(moved, text)


def notebook_page(notebook, needed):
    "A notebook as Markdown, and its pictures by name."
    shown = front_page(notebook, notebook)  # without hidden cells and directives; links as they were
    for cell in shown.cells:
        if cell.cell_type == "markdown": cell.source = site_links(re.sub(r"^- skip_exec: true\n?", "", cell.source, flags=re.M), notebook, needed)
    exporter = MarkdownExporter(raw_template=TEMPLATE)
    exporter.register_filter("fence", fence)
    names = {"unique_key": notebook.stem, "output_files_dir": f"{notebook.stem}_files"}
    body, made = exporter.from_notebook_node(shown, names)
    return body, made["outputs"]


def api_page(module, notebook):
    "The reference of one module."
    title = first_cell(notebook)[0]
    chapter = Path(os.path.relpath(notebook.with_suffix(".md"), NBS / "api")).as_posix()
    return f"# datadesc.{module}\n\nExplained, with examples, in the chapter [{title}]({chapter}).\n\n::: datadesc.{module}\n"


def api_index(modules):
    "The package's front door and its modules."
    door = "\n".join(f"| [`{name}`][datadesc.{module}.{name}] | [datadesc.{module}]({module}.md) |" for name, module in datadesc._FRONT.items())
    rows = "\n".join(f"| [datadesc.{module}]({module}.md) | {first_cell(notebook)[1]} |" for module, notebook in modules.items())
    return ("# API reference\n\nThese names are imported by `from datadesc import ...`:\n\n| name | module |\n|---|---|\n" + door
            + "\n\nEvery module, and the chapter that explains it:\n\n| module | what it does |\n|---|---|\n" + rows + "\n")


def api_modules(folder):
    "The modules that the chapters of a folder export."
    return {module: notebook for notebook in notebooks(folder) if (module := first_cell(notebook)[2])}


def on_config(config):
    "Navigation made of the notebooks' titles up to a colon."
    def entry(notebook): return {first_cell(notebook)[0].split(":")[0]: notebook.relative_to(NBS).with_suffix(".md").as_posix()}
    chapters = [{name: [entry(notebook) for notebook in notebooks(part)]} for part, name in PARTS.items()]
    pages = [{name: [entry(notebook) for notebook in notebooks(part)]} for part, name in STORED.items()]
    api = [{name: [{module: f"api/{module}.md"} for module in api_modules(part)]} for part, name in PARTS.items()]
    config.nav = [{"Start": [{"Front page": "index.md"}, {"Tour": "tour.md"}]}, *chapters, {"Results": ["reports.md", *pages]},
                  {"API": [{"API reference": "api/index.md"}, *api]}, {"Project": [{"Contributing": "CONTRIBUTING.md"}, {"Changes": "CHANGELOG.md"}]}]
    return config


def on_files(files, config):
    "Every page and picture of the site."
    made, needed = Files([]), set()
    def add(path, content):
        if made.get_file_from_path(path) is None: made.append(File.generated(config, path, content=content))
    for notebook in sorted(NBS.rglob("*.ipynb")):
        if ".ipynb_checkpoints" in notebook.parts: continue
        body, pictures = notebook_page(notebook, needed)
        folder = notebook.parent.relative_to(NBS)
        add((folder / f"{notebook.stem}.md").as_posix(), body)
        for name, content in pictures.items(): add((folder / name).as_posix(), content)
    modules = {module: notebook for part in PARTS for module, notebook in api_modules(part).items()}
    add("api/index.md", api_index(modules))
    for module, notebook in modules.items(): add(f"api/{module}.md", api_page(module, notebook))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"): add(name, site_links((ROOT / name).read_text(encoding="utf-8"), ROOT / name, needed))
    listed = ["# Reports\n\nThe pages of the runs that are stored in the repository.\n"]
    for run in RUNS:
        for file in sorted((ROOT / "papermill_runs" / run).rglob("*")):
            if file.suffix in (".ipynb", ".json", ".csv", ".md", ".png", ".svg"): needed.add(file)
            if file.suffix != ".ipynb": continue
            title, promise, _ = first_cell(file)
            listed.append(f"- [{title}](papermill_runs/{run}/{file.stem}.html) ({run}): {promise}")
    add("reports.md", "\n".join(listed) + "\n")
    for file in sorted(needed):
        page = address(file, file.name)[0].relative_to(NBS).as_posix()
        # A Markdown file of a run is for downloading: mkdocs would make a page of it.
        if file.suffix == ".ipynb": add(page, report_html(nbformat.read(file, as_version=4)))
        elif file.suffix != ".md": add(page, file.read_bytes())
    add("site.css", (ROOT / "tools" / "site.css").read_text(encoding="utf-8"))
    return made_with_theme(files, made)


def made_with_theme(files, made):
    "The files of the theme and of other plugins, without what lies in nbs/, and `made`."
    for file in files:
        if not (file.abs_src_path or "").startswith(str(NBS)): made.append(file)
    return made


def on_page_content(content, page, config, files):
    "Formulas as MathML, which browsers draw by themselves. A command that the converter does not know fails the build."
    def drawn(found):
        formula = html.unescape(found[2]).replace(r"\langle", "⟨").replace(r"\rangle", "⟩").replace(r"\arg\max", r"\operatorname{arg\,max}")
        result = mathml(formula, display="block" if found[1] == "div" else "inline")
        if unknown := re.search(r"\\[a-zA-Z]+", result): raise PluginError(f"{page.file.src_uri}: {unknown[0]} is not drawn in {found[2]}")
        return result
    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', drawn, content, flags=re.S)
