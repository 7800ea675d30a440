# Everything a developer or an operator types. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
STATE := .state
STAMP := $(VENV)/.whimbrel-setup
PYTEST := $(BIN)/pytest
# More workers mean more labs side by side; a lab wants a core or two.
UNIT_WORKERS ?= 2
# Lab tests mostly wait for guests and daemons: three labs side by side load two cores to 1.7.
LAB_WORKERS ?= 3
E2E_WORKERS ?= 2
PYTEST_FLAGS ?=
CLOUDS ?= a,b

export UV_PYTHON_DOWNLOADS := never
export UV_PROJECT_ENVIRONMENT := $(VENV)

.PHONY: help setup system lint test test-unit test-lab test-e2e test-openstack test-openstack-small demo demo-end bench bench-prefetch chaos \
	lab-kvm lab-openstack lab-openstack-down lab-down system-openstack clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

system: ## Debian packages that are missing (installs as root, prints the command otherwise)
	@deploy/install-system

system-openstack: system
	@deploy/install-system --openstack

setup: $(STAMP) ## Python environment in .venv, from uv.lock

.uv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

# The libvirt binding is compiled, so the system packages come first.
$(STAMP): pyproject.toml uv.lock | .uv/bin/uv
	@deploy/install-system
	.uv/bin/uv sync --quiet --frozen --all-extras --python "$$(command -v $(PYTHON))"
	@touch $@

lint: setup ## ruff, mypy --strict, layer rules
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

test: system-openstack setup ## all test layers but slow ones, fastest first
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-lab
	@$(MAKE) --no-print-directory test-e2e
	@$(MAKE) --no-print-directory test-openstack-small

test-unit: setup ## without root, libvirt or a server
	@mkdir -p $(STATE)
	$(PYTEST) -m 'not lab and not openstack and not e2e and not slow' -n $(UNIT_WORKERS) --junitxml=$(STATE)/junit-unit.xml $(PYTEST_FLAGS)

test-lab: system setup ## against real libvirtd and QEMU
	@mkdir -p $(STATE)
	$(PYTEST) -m 'lab and not openstack and not e2e and not slow' -n $(LAB_WORKERS) --junitxml=$(STATE)/junit-lab.xml $(PYTEST_FLAGS)

test-e2e: system setup ## whole migrations
	@mkdir -p $(STATE)
	$(PYTEST) -m 'e2e and not openstack and not slow' -n $(E2E_WORKERS) --junitxml=$(STATE)/junit-e2e.xml $(PYTEST_FLAGS)

test-openstack: system-openstack setup ## against real OpenStack clouds (labs/openstack)
	@mkdir -p $(STATE)
	$(PYTEST) -m 'openstack and not slow' --junitxml=$(STATE)/junit-openstack.xml $(PYTEST_FLAGS)

test-openstack-small: system-openstack setup ## the form of it that make test runs: one cloud, and a VM that comes to it
	@mkdir -p $(STATE)
	$(PYTEST) -m 'openstack and small' --junitxml=$(STATE)/junit-openstack-small.xml $(PYTEST_FLAGS)

demo: system setup ## a running VM moves between two clouds; KEEP=1 leaves everything up
	$(BIN)/python -m labs.demo $(if $(KEEP),--keep)

demo-end: setup ## end what `make demo KEEP=1` left up
	$(BIN)/python -m labs.demo --end

bench: system setup ## copy speed, a sparse disk of 1 TiB, handovers a minute and their outage, the streaming server, outages by mode
	$(BIN)/python -m tests.bench.copy_bench --big
	$(BIN)/python -m tests.bench.dual_attach_bench
	$(BIN)/python -m tests.bench.handover_outage_bench
	$(BIN)/python -m tests.bench.stream_bench
	$(BIN)/python -m tests.bench.downtime_bench

bench-prefetch: system setup ## hit rates of the streaming server by prefetch policy, on a link of 50 MB/s
	$(BIN)/python -m tests.bench.prefetch_bench

chaos: system setup ## slow end-to-end tests with faults
	@mkdir -p $(STATE)
	$(PYTEST) -m 'slow and e2e and not openstack' --junitxml=$(STATE)/junit-chaos.xml $(PYTEST_FLAGS)

lab-kvm: system setup ## bring two KVM clouds up
	$(BIN)/python -m labs.kvm up
	@$(BIN)/python -m labs.kvm status

lab-openstack: system-openstack setup ## bring OpenStack clouds up; CLOUDS=a for one of them
	$(BIN)/python -m labs.openstack --clouds $(CLOUDS) up
	@$(BIN)/python -m labs.openstack --clouds $(CLOUDS) status

lab-openstack-down: setup ## end the OpenStack clouds and remove their files; KEEP=1 keeps the files
	$(BIN)/python -m labs.openstack down $(if $(KEEP),--keep-data)

lab-down: lab-openstack-down ## end all labs' clouds and remove their files
	$(BIN)/python -m labs.kvm down

clean: ## lab, environments, caches, state
	@if [ -x $(BIN)/python ] && [ -d $(STATE)/lab-kvm ]; then $(BIN)/python -m labs.kvm down; fi
	@if [ -x $(BIN)/python ] && [ -d $(STATE)/lab-openstack ]; then $(BIN)/python -m labs.openstack down; fi
	rm -rf $(VENV) .uv $(STATE) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
