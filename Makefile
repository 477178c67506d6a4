# Every target makes the virtual environment it needs; a machine needs only Python >= 3.11, make and gcc.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 4

# The tests start hundreds of processes: without bytecode each would compile all that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check collect packages run lint types unit e2e e2e-grpcio soak fuzz bandit audit imports protos lock dist clean bench bench-full

demo: $(VENV)/.installed
	$(BIN)/extproc demo

# Every gate, and then every test in one run, so that no worker waits while another has something to do.
STATIC := types lint imports bandit
test: $(VENV)/.installed
	+$(MAKE) --no-print-directory -j 2 --output-sync=target collect $(STATIC)
	$(BIN)/python -m pytest -q $(FILES) -m "not packages and not soak"

# Reads the tests, so that a broken one is told at once and not every worker has to compile them.
collect: $(VENV)/.installed
	$(BIN)/python -m pytest -qq --collect-only > $(VENV)/collected.txt || { cat $(VENV)/collected.txt; exit 1; }

# The only tests that ask the package index; .ci/run does, after the others.
packages: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m packages tests/e2e/test_packages.py

# All but the tests that need Envoy, two gates at a time, the longest first.
check: $(VENV)/.installed
	+$(MAKE) --no-print-directory -j 2 --output-sync=target unit $(STATIC)

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.installed
	$(BIN)/mypy --num-workers 2

imports: $(VENV)/.installed
	$(BIN)/lint-imports

unit: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n 2 -m "not e2e and not soak"

# One file stays on one process, so that its gateways are shared, and files begin in the order that tests/e2e/conftest.py
# gives them, so that no long one is left for the end; each process has its own ports. `e2e` names the folders that hold
# such tests, as each process reads what it is given anew.
FILES = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
E2E = $(FILES) -m "e2e and not packages and not soak" tests/e2e tests/contract
e2e: $(VENV)/.installed
	$(BIN)/python -m pytest -q $(E2E)

# The same on the other transport. The tests of the fast one, which start it by themselves, run once more.
e2e-grpcio: $(VENV)/.installed
	GATEWAY_TRANSPORT=grpcio $(BIN)/python -m pytest -q $(E2E)

# So many requests through a random mix of all faults; the same SEED gives the same mix.
N ?= 200000
SEED ?= 1
soak: $(VENV)/.installed
	SOAK_REQUESTS=$(N) SOAK_SEED=$(SEED) $(BIN)/python -m pytest -q -s -m soak tests/soak

# A million hostile inputs over every reader of bytes from outside, so many a test: most of an hour on two cores. Each
# input is bounded in time, and all together in memory (tests/support/fuzzing.py).
FUZZ_EXAMPLES ?= 100000
FUZZ := tests/property/test_hostile_input.py tests/property/test_h2_fuzz.py tests/property/test_store_rows.py
fuzz: $(VENV)/.installed
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -q -n $(WORKERS) $(FUZZ)

# Known insecure patterns; what is excepted stands in pyproject.toml, or beside its line, with its reason.
bandit: $(VENV)/.installed
	$(BIN)/bandit -q -c pyproject.toml -r extproc configctl

# Known vulnerabilities of what is locked. Asks PyPI's vulnerability service (https://pypi.org/pypi/NAME/VERSION/json), which
# an index mirror does not replace: a package that it cannot tell of is a failure, not a pass.
audit: $(VENV)/.installed
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install -q --disable-pip-version-check pip-audit
	$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes -r requirements.lock

# The whole local gateway; CONFIG=your.yaml for your own providers.
CONFIG ?= examples/gateway.yaml
run: $(VENV)/.installed
	$(BIN)/extproc up --config $(CONFIG)

# Plain Envoy and the gateway in turns, about a minute; wrk is used when it is installed.
# BENCH="--other name=http://127.0.0.1:4000" measures another gateway beside them.
BENCH ?=
bench: $(VENV)/.installed
	$(BIN)/python -m tests.bench $(BENCH)

# Every size and more rounds, into docs/performance.md; for a machine that does nothing else.
bench-full: $(VENV)/.installed
	$(BIN)/python -m tests.bench --full --docs docs/performance.md $(BENCH)

protos: $(VENV)/.installed
	$(BIN)/python protos/generate.py

# dist/: source distribution, the wheel built from it, what it runs with (CycloneDX), and the digests by which a download
# is verified: cd dist && sha256sum --check SHA256SUMS. The version is extproc.__version__.
dist: $(VENV)/.installed
	rm -rf dist build
	$(BIN)/python -c "from setuptools import build_meta; build_meta.build_sdist('dist')"
	$(BIN)/python -m pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w dist dist/*.tar.gz
	$(BIN)/python .ci/sbom.py > dist/sbom.cdx.json
	cd dist && sha256sum *.tar.gz *.whl *.json > SHA256SUMS && cat SHA256SUMS

# Renew the locked environment after a change of dependencies, and the part of it that an image installs.
lock: $(VENV)/.installed
	$(BIN)/pip install -q pip-tools
	$(BIN)/pip-compile -q --extra dev --extra postgres --generate-hashes --allow-unsafe --strip-extras \
	    --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --output-file requirements.lock pyproject.toml
	$(BIN)/python .ci/locked.py > requirements-runtime.lock

# With the locked pip, as the one that came with Python may take three times as long. Bytecode is made by both cores, and
# not for what is large and hardly used.
LARGE := /(anthropic|openai|envoy_data_plane|mypy|mypyc|pip|setuptools)/
PIP_INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check --no-compile
$(VENV)/.installed: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	sed -n '/^pip==/,/[^\\]$$/p' requirements.lock > $(VENV)/pip.lock
	$(PIP_INSTALL) --require-hashes -r $(VENV)/pip.lock
	$(PIP_INSTALL) --require-hashes -r requirements.lock
	PYTHONWARNINGS=ignore $(PIP_INSTALL) --no-deps --no-build-isolation -e .  # setuptools warns of every editable install
	$(BIN)/python -m compileall -q -j 2 -x '$(LARGE)' $(VENV)/lib
	touch $@

clean:
	rm -rf $(VENV) .gateway build dist *.egg-info
