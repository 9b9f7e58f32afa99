# Commands for developers; `make help` lists them. They all use a virtual environment of their own.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 4
TESTS ?= tests
SLURM_VERSIONS ?= 22.05 24.11 26.05

BIN := $(VENV)/bin
SLURM_TESTS := tests/slurm $(wildcard tests/faults/test_matrix_slurm_*.py)
PYTHON_CODE := jobs orchestrator tests examples $(wildcard benchmarks)

# Every test starts interpreters, and without cached bytecode each of them compiles what it imports.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test quick test-slurm-versions lint types unit packages bench constraints format clean

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | \
		while IFS='|' read -r name words; do printf '  make %-19s %s\n' "$$name" "$$words"; done

demo: $(VENV)/.installed-decode ## Make a sample dataset, run it on this machine, show the result (.demo/)
	@BIN="$(BIN)" .ci/demo

test: packages lint types unit ## Lint, types and all tests; installs Slurm for them if it has the permission

quick: lint ## Lint and most unit tests: what to run after each small change (a minute)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -q -m "not exhaustive and not slow" tests/unit

# Every version is tested, whatever the result of the others; a version that is not available says why.
test-slurm-versions: $(VENV)/.installed-test packages ## The Slurm tests on each supported version of Slurm (half an hour)
	@failed=; for version in $(SLURM_VERSIONS); do \
		echo "== Slurm $$version"; \
		VENV="$(VENV)" .ci/slurm-version $$version $(BIN)/python -m pytest -n $(WORKERS) \
			--dist worksteal -m "" $(SLURM_TESTS); rc=$$?; \
		case $$rc in 0|77) ;; *) failed="$$failed $$version" ;; esac; \
	done; [ -z "$$failed" ] || { echo "failed on Slurm$$failed" >&2; exit 1; }

# The order matters even with `make -j`: the fast checks first.
lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: lint
	$(BIN)/mypy $(PYTHON_CODE)

# More workers than cores: many tests wait for a Slurm or a server, not for a core. What fails is run
# once more, alone: hundreds of tests kill processes at a certain moment, which a busy machine misses
# now and then. Both results are shown, and what fails twice fails.
unit: lint packages
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 20 $(TESTS) || \
		$(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(TESTS)
	@.ci/packages --absent

packages:
	@.ci/packages

bench: $(VENV)/.installed-test ## Measure, and compare with common tools (minutes)
	@for each in $$(grep -l '^if __name__' benchmarks/*.py); do \
		name=$$(basename "$$each" .py); echo "== $$name"; \
		$(BIN)/python -m "benchmarks.$$name" || exit 1; \
	done

constraints: ## Pin the newest versions of everything for CI (needs uv)
	@{ echo '# The versions that CI installs, for every supported Python;' \
		'`make constraints` writes this file.'; \
	uv pip compile --universal --python-version 3.10 setup.cfg --all-extras --quiet \
		--no-header --no-annotate; } >.ci/constraints.txt

format: $(VENV)/.installed-test ## Format the code and apply the linter's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the demo and the caches of tools
	rm -rf .demo .mypy_cache .pytest_cache .ruff_cache build dist

# Installed again only when the metadata has changed. An environment whose Python is gone is created
# again; if the available Python cannot create it, the message says how to get it.
$(VENV)/.installed-%: setup.cfg setup.py pyproject.toml $(wildcard jobs/*.c)
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) || \
		{ echo "$(PYTHON) cannot make an environment: on Debian and Ubuntu, install python3-venv" >&2; \
		exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
