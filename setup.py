"Everything a package index wants to know about the project, read from settings.ini."
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

facts = ConfigParser(delimiters="=")
facts.read("settings.ini", encoding="utf-8")
facts = facts["DEFAULT"]
EXTRAS = "dev", "bench", "huggingface", "webdataset", "zim", "transformers", "local-llm", "judge", "explore", "offline", "ray", "site"


def lines(name):
    "The non-empty lines of a setting that spans several."
    return [line for line in facts[name].splitlines() if line.strip()]


class BuildWithRuns(build_py):
    "Puts the run notebooks and their parameter files into the package; an editable install reads them where they are."

    def run(self):
        super().run()
        if self.editable_mode:
            return
        runs = Path(self.build_lib) / facts["lib_path"] / "assets" / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir(parents=True)
        for source in [*Path(facts["nbs_path"], "runs").glob("*.ipynb"), *Path("papermill_runs").glob("*.yaml")]:
            shutil.copy(source, runs)


setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    author=facts["author"],
    author_email=facts["author_email"],
    license_expression=facts["license"],
    keywords=facts["keywords"],
    classifiers=[f"Intended Audience :: {facts['audience']}", "Programming Language :: Python :: 3"],
    python_requires=f">={facts['min_python']}",
    packages=[facts["lib_path"]],
    package_data={facts["lib_path"]: ["assets/**"]},
    install_requires=lines("requirements"),
    extras_require={name: lines(f"{name}_requirements") for name in EXTRAS},
    entry_points={"console_scripts": [facts["console_scripts"]]},
    cmdclass={"build_py": BuildWithRuns},
)
