#!/bin/sh
# Fails, and shows the difference, where a generated file is not what its source gives.
set -eu
before=$(git status --porcelain; git diff | git hash-object --stdin)
.venv/bin/nbdev-clean
.venv/bin/nbdev-export
.venv/bin/python tools/readme.py nbs/index.ipynb README.md
after=$(git status --porcelain; git diff | git hash-object --stdin)
if [ "$before" != "$after" ]; then
    git status --short
    git --no-pager diff --stat
    echo "Generated files differ from their notebooks: commit the changes above." >&2
    exit 1
fi
echo "Notebooks are clean; datadesc/ and README.md are what they export."
