# Everything runs with uv; if it is not installed, it is installed into .uv/. uv uses the Python of the machine.
# Relative paths only: make and the shell split absolute ones at spaces, and expand a `$` in them.
UV := $(if $(shell command -v uv),uv,.uv/bin/uv)
INSTALLED_UV := $(filter .uv/bin/uv,$(UV))
export UV_PYTHON_DOWNLOADS ?= never

# The service is linted, typed and tested in place. The caches are outside of its folder, because a bake copies the folder.
SERVICE := {{cookiecutter.project_slug}}
export RUFF_CACHE_DIR := $(CURDIR)/.ruff_cache
export MYPY_CACHE_DIR := $(CURDIR)/.mypy_cache

# If this make is killed, the make that it started also ends, on systems with `setpriv`.
TOGETHER := $(if $(shell setpriv --pdeathsig TERM true 2> /dev/null && echo yes),setpriv --pdeathsig TERM)

# The browser for the tests of pages; it is not downloaded.
BROWSER := $(firstword $(foreach name,chromium chromium-browser google-chrome google-chrome-stable,$(shell command -v $(name))))

# The connection pooler for a test.
POOLER := $(shell command -v pgbouncer || ls /usr/sbin/pgbouncer 2> /dev/null)

# A hint for machines whose pip.conf names an index, a certificate or a proxy, which uv does not read.
EXPLAIN_PIP_CONF := ! python3 -m pip config list 2> /dev/null | grep -Eq 'index-url|cert|proxy' || \
	echo 'uv does not read pip.conf. Set UV_DEFAULT_INDEX to its index-url, UV_INDEX to its extra-index-url,' \
	'SSL_CERT_FILE to its cert and HTTPS_PROXY to its proxy.' >&2

.PHONY: install demo bake test test-docker bench bench-process-managers bench-sign-ins screenshots check fix help

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' $(MAKEFILE_LIST)

install: $(INSTALLED_UV)
	@$(UV) sync --quiet --inexact --only-group bake || { $(EXPLAIN_PIP_CONF); exit 1; }

demo: install ## Bake the default answers into .demo/ and run the service
	$(UV) run --only-group bake cookiecutter --no-input --default-config --overwrite-if-exists --output-dir .demo "$$PWD"
	$(TOGETHER) $(MAKE) -C .demo/my-service run UV=$(if $(INSTALLED_UV),../../)$(UV)

bake: install ## Ask the questions of the template and bake a project into .bake/
	$(UV) run --only-group bake cookiecutter --overwrite-if-exists --output-dir .bake "$$PWD" $(ANSWERS)

test: install ## Run every test that this machine can run
	$(UV) run pytest -n auto --dist loadscope -m 'not docker$(if $(BROWSER),, and not browser)$(if $(POOLER),, and not pooler)'
	$(if $(POOLER),,@echo 'Left out: the tests of the pooler, because there is no pgbouncer.')
	$(if $(BROWSER),,@echo 'Left out: the tests of the pages in a browser, because there is neither Chromium nor Chrome.')
	@if docker info > /dev/null 2>&1; then $(MAKE) --no-print-directory test-docker; \
	else echo 'Left out: the tests of the containers, because no container engine answers (docker info).'; fi

test-docker: $(INSTALLED_UV) ## Test the containers, with no other tests at the same time; takes minutes
	$(UV) run pytest tests/docker $(if $(BROWSER),,-m 'not browser')

bench: $(INSTALLED_UV) ## Compare the service with minimal applications that give the same answers, and measure it at scale
	$(UV) run --group bench python -m benchmarks.service

bench-process-managers: $(INSTALLED_UV) ## Compare gunicorn, supervisor and circus
	$(UV) run python -m benchmarks.process_managers

bench-sign-ins: $(INSTALLED_UV) ## Measure the effect of many concurrent sign-ins on other requests
	$(UV) run python -m benchmarks.sign_ins

screenshots: $(INSTALLED_UV) ## Retake the pictures of the README
	$(UV) run python -m tests.support.screenshots

check: install ## Lint and type-check the template, and the service in place
	$(UV) run ruff check
	$(UV) run ruff format --check
	$(UV) run mypy
	cd '$(SERVICE)' && ../.venv/bin/shellcheck --external-sources start*.sh deploy/vm/*.sh deploy/docker/*.sh deploy/docker/proxy/*.sh
	sed 's/{{ cookiecutter.python_version }}/3.13/' '$(SERVICE)/Dockerfile' | .venv/bin/hadolint -
	cd '$(SERVICE)' && $(MAKE) --no-print-directory --dry-run --assume-old=install check | sed 's|\.venv|../.venv|' | sh -eux

fix: $(INSTALLED_UV) ## Format, and repair what the linter can repair
	$(UV) run ruff check --fix
	$(UV) run ruff format

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install --quiet 'uv>=0.13,<0.14'
