# Everything a person or a CI does with a checkout. `make` alone lists it.
#
# PYTHON: the interpreter of the virtual environment, 3.10 to 3.13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DELETE_ON_ERROR:
.PHONY: help install install-service uninstall-service demo bench test check fuzz clean prepared prepared-for-tests root

help:
	@echo "make install   .venv with loden in it, ready to run"
	@echo "make install-service    a service of systemd, in /opt/loden (needs root)"
	@echo "make uninstall-service  removes it again"
	@echo "make demo      two hosts, one overlay: shown and measured (needs root)"
	@echo "make bench     loden beside its peers, with a report in perf-results/ (needs root)"
	@echo "make test      all tests, namespaces and a real etcd included (needs root)"
	@echo "make check     format, lint, types, then all tests"
	@echo "make fuzz      malformed packets, for a minute"
	@echo "make clean     remove what the others made here, but for perf-results/"

install: $(VENV)/installed

# PREFIX, UNITDIR, DESTDIR: see systemd/service.
service = PYTHON="$(PYTHON)" PREFIX="$(PREFIX)" UNITDIR="$(UNITDIR)" DESTDIR="$(DESTDIR)" systemd/service

install-service: | prepared
	@$(service) install

uninstall-service:
	@$(service) uninstall

demo: root $(VENV)/installed
	@$(BIN)/loden demo

# OPTIONS: those of `python -m perf`, such as OPTIONS=--quick.
bench: root $(VENV)/installed-for-bench
	@$(BIN)/python -m perf $(OPTIONS)

# What cannot be tested here is a failure and not a skip.
test: root $(VENV)/installed-for-tests
	@LODEN_REQUIRE_ALL=1 $(BIN)/python -m pytest

check: root $(VENV)/installed-for-tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@LODEN_REQUIRE_ALL=1 $(BIN)/python -m pytest

fuzz: $(VENV)/installed-for-tests
	@$(BIN)/python -m tests.fuzz --seconds 60

clean:
	rm -rf $(VENV) .tox build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

prepared:
	@.ci/prepare $(PYTHON)

prepared-for-tests:
	@.ci/prepare $(PYTHON) tests

root:
	@[ "$$(id -u)" -eq 0 ] || { echo "this builds network namespaces and needs root"; exit 1; }

$(VENV)/installed: pyproject.toml | prepared
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --use-pep517 --disable-pip-version-check --editable .
	@echo "compiling the data path, once; later starts load it from the cache"
	@$(BIN)/python -c "from forwarder.worker import compile_kernels; compile_kernels()"
	@touch $@

$(VENV)/installed-for-bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --use-pep517 --disable-pip-version-check --editable ".[perf]"
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed | prepared-for-tests
	$(BIN)/python -m pip install --quiet --use-pep517 --disable-pip-version-check --editable ".[test,lint,perf]"
	@touch $@
