# Everything needs only Python 3.11 to 3.13, git and make; the environment is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
# Beam holds back versions of shared packages, so it has an environment of its own.
BEAM := $(VENV)-beam
BEAM_READY := $(BEAM)/ready
# The TPU compiler takes half a GiB and is for x86 Linux only, so it has one as well.
AOT := $(VENV)-aot
AOT_READY := $(AOT)/ready
# What drives a browser is not needed for anything else.
BROWSER := $(VENV)-browser
BROWSER_READY := $(BROWSER)/ready
# torch, transformers and mteb, which nothing else needs. 2.13 is the newest that was tried; of its wheels
# those without CUDA are smaller: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_VENV := $(VENV)-torch
TORCH_READY := $(TORCH_VENV)/ready
TORCH ?= torch>=2.4,<2.14
# Servers that speak the protocols of object stores.
SERVICES_VENV := $(VENV)-services
SERVICES_READY := $(SERVICES_VENV)/ready
SERVICES := 'moto[server]>=5,<6' 'gcp-storage-emulator>=2024.8'
# XManager with what it imports to run jobs here, without the libraries of its clouds.
XMANAGER := 'xmanager>=0.8.5,<0.9' attrs async_generator docker immutabledict termcolor tabulate \
  GitPython gitdb smmap humanize python-dotenv sqlparse 'cloud-sql-python-connector<1.19' aiofiles \
  dnspython cryptography cffi pycparser google-auth pyasn1 pyasn1-modules google-api-core grpcio \
  google-api-python-client google-auth-httplib2 httplib2 uritemplate pyparsing proto-plus \
  googleapis-common-protos google-cloud-storage google-cloud-core google-resumable-media \
  kubernetes websocket-client oauthlib requests-oauthlib etils psutil
# The site, and what runs the notebooks on it; NOTEBOOKS=off builds it without running them.
DOCS := $(VENV)-docs
DOCS_READY := $(DOCS)/ready
NOTEBOOKS ?= force
# The newest Python at hand, for the newest jax and PyAV, which need 3.12; empty where there is none.
NEWEST := $(VENV)-newest
NEWEST_READY := $(NEWEST)/ready
NEWEST_PYTHON = $(shell for v in 3.13 3.12; do for p in python$$v \
  "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$v*/bin/python$$v; do \
  "$$p" -c 'import ensurepip' 2>/dev/null && echo "$$p" && exit; done; done)
# What calls jax, PyAV or protobuf most, without what a family of models repeats.
NEWEST_TESTS := $(addprefix tests/data_pipelines/,ingest records stream text) \
  $(addprefix tests/internvideo_jax/,checkpoint optim parallel run) tests/smoke/test_commands.py
# The merges of CLIP's vocabulary, for Pythons without a wheel of instant-clip-tokenizer and to compare
# with it. The package's own code is not used; it would need torch.
CLIP := clip-anytorch>=2.6,<3
DEMO_DIR ?= demo_out
# What needs an environment of its own has a target of its own.
HERE := not aot and not beam and not browser and not services and not torch

.PHONY: help test test-slow test-beam test-torch test-aot test-browser test-services test-newest test-newest-found demo docs docs-serve lint format clean

help:  ## Show the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps '$(CLIP)'
	touch $(READY)

test: $(READY)  ## Run the tests (about 12 minutes on two cores).
	$(BIN)/python -m pytest -m "not slow and $(HERE)" -n 2 --dist worksteal

$(BEAM_READY): pyproject.toml
	$(PYTHON) -m venv $(BEAM)
	$(BEAM)/bin/python -m pip install --quiet --editable '.[beam]' pytest hypothesis
	touch $(BEAM_READY)

test-beam: $(BEAM_READY)  ## Run the tests of the ingest on Apache Beam.
	$(BEAM)/bin/python -m pytest tests/data_pipelines/ingest/test_beam.py

$(TORCH_READY): pyproject.toml
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/python -m pip install --quiet --editable '.[torch,mteb,text]' '$(TORCH)' 'transformers>=5,<6' pytest
	touch $(TORCH_READY)

test-torch: $(TORCH_READY)  ## Run the tests that read what torch writes, compare with transformers or run mteb.
	$(TORCH_VENV)/bin/python -c 'import torch, transformers'
	$(TORCH_VENV)/bin/python -m pytest -m torch tests/internvideo_jax/weights tests/internvideo_jax/api tests/fuzz

$(AOT_READY): pyproject.toml
	$(PYTHON) -m venv $(AOT)
	$(AOT)/bin/python -m pip install --quiet --editable '.[tpu]' pytest
	touch $(AOT_READY)

test-aot: $(AOT_READY)  ## Compile train steps for TPU slices and check what they need.
	$(AOT)/bin/python -m pytest -m aot tests/internvideo_jax/compile_check tests/internvideo_jax/launch tests/internvideo_jax/parallel

$(BROWSER_READY): pyproject.toml
	$(PYTHON) -m venv $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet --editable '.[browser,text]' pytest
	touch $(BROWSER_READY)

test-browser: $(BROWSER_READY)  ## Run the tests of the search page in Chromium.
	$(BROWSER)/bin/python -m pytest tests/search/test_browser.py

$(SERVICES_READY): pyproject.toml Makefile
	$(PYTHON) -m venv $(SERVICES_VENV)
	$(SERVICES_VENV)/bin/python -m pip install --quiet --editable '.[remote,tracking,wandb,mlflow]' pytest pyyaml
	# After the others, with the library that holds botocore back: at once pip searches in vain.
	$(SERVICES_VENV)/bin/python -m pip install --quiet $(SERVICES) s3fs
	$(SERVICES_VENV)/bin/python -m pip install --quiet --no-deps $(XMANAGER)
	touch $(SERVICES_READY)

test-services: $(SERVICES_READY)  ## Run the tests that talk to servers on loopback, and those of trackers and launchers.
	$(SERVICES_VENV)/bin/python -m pytest -m services tests/services tests/scripts/test_end_to_end.py tests/internvideo_jax/telemetry/test_tracker_services.py

$(NEWEST_READY): pyproject.toml
	$(NEWEST_PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --editable '.[text,parquet]' pytest pytest-xdist hypothesis
	$(NEWEST)/bin/python -m pip install --quiet --no-deps '$(CLIP)'
	touch $(NEWEST_READY)

test-newest:  ## Run what is most telling on the newest Python at hand, with the newest jax and PyAV.
	@if [ "$(NEWEST_PYTHON)" ]; then $(MAKE) --no-print-directory test-newest-found; \
	else echo "SKIPPED make test-newest: no Python 3.12 or 3.13 with venv is at hand, so the newest jax and PyAV were not tested"; fi

test-newest-found: $(NEWEST_READY)
	$(NEWEST)/bin/python -m pip list | grep -E '^(av|flax|jax|jaxlib|numpy|orbax-checkpoint|protobuf) '
	$(NEWEST)/bin/python -m pytest -m "not slow and $(HERE)" $(NEWEST_TESTS)

test-slow: $(READY)  ## Run the tests that take longer.
	$(BIN)/python -m pytest -m "slow and $(HERE)" -n 2 --dist worksteal

demo: $(READY)  ## From rendered videos to a pre-trained, fine-tuned, evaluated model.
	$(BIN)/python scripts/demo.py --out $(DEMO_DIR)

$(DOCS_READY): pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --editable '.[docs]'
	touch $(DOCS_READY)

docs: $(DOCS_READY)  ## Build the site into site/, run its notebooks, follow its links.
	PATH="$(CURDIR)/$(DOCS)/bin:$$PATH" $(DOCS)/bin/python -m sphinx --fresh-env --fail-on-warning --keep-going \
	  --quiet --define nb_execution_mode=$(NOTEBOOKS) docs site
	$(DOCS)/bin/python scripts/check_site.py site

site/index.html:
	$(MAKE) --no-print-directory docs

docs-serve: site/index.html  ## The site that `make docs` built, on localhost:8001.
	$(DOCS)/bin/python -m http.server --bind 127.0.0.1 --directory site 8001

lint: $(READY)  ## Check style and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environments, the demo and the site.
	rm -rf $(VENV) $(BEAM) $(TORCH_VENV) $(AOT) $(BROWSER) $(SERVICES_VENV) $(NEWEST) $(DOCS) $(DEMO_DIR) site
