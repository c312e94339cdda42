# The commands of this checkout. `make` lists them; what each needs it installs into .venv and the cache folder.

.DEFAULT_GOAL := help
.PHONY: help run test lint conformance agent-eval bench-agent bench-relay bench-containers bench-faults bench-engine bench-search bench-policy bench-auth bench-guards catalog-check lock clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Set up what is missing and start Lockgate
	@.ci/bootstrap
	@.venv/bin/lockgate serve $(ARGS)

test: ## Lint, check types and run all tests, with a Docker Engine where one can be had
	@.ci/bootstrap --dev
	@.ci/engine
	@.ci/parts
	@.ci/check
	@.ci/with-node .venv/bin/pytest $(ARGS)

lint: ## Check format, lint and types only
	@.ci/bootstrap --dev
	@.ci/check

conformance: ## Judge the gateway with the public MCP conformance suite
	@.ci/bootstrap --dev
	@.ci/parts
	@.ci/with-node .venv/bin/python -m tests.conformance $(ARGS)

bench-relay: ## Measure what the gateway adds to a call
	@.ci/bootstrap --dev
	@.ci/parts
	@.ci/with-node .venv/bin/python benchmarks/relay.py $(ARGS)

bench-containers: ## Measure how servers in containers start, answer and are listed
	@.ci/bootstrap --dev
	@.ci/engine
	@.ci/parts
	@.ci/with-node .venv/bin/python benchmarks/containers.py $(ARGS)

bench-engine: ## Measure the model engine beside llama-server of the same llama.cpp (builds that first: minutes)
	@.ci/bootstrap --dev
	@.venv/bin/python -m benchmarks.engine "$$(.ci/llama-server)" $(ARGS)

bench-faults: ## Measure calls of one server while another one fails
	@.ci/bootstrap --dev
	@.ci/engine
	@.ci/parts
	@.ci/with-node .venv/bin/python benchmarks/faults.py $(ARGS)

bench-search: ## Measure how well and how fast the catalogue is searched
	@.ci/bootstrap --dev
	@.venv/bin/python -m benchmarks.search $(ARGS)

bench-policy: ## Measure how long decisions and filtered listings take
	@.ci/bootstrap --dev
	@.venv/bin/python -m benchmarks.policy $(ARGS)

bench-guards: ## Measure what content guards add to a payload
	@.ci/bootstrap --dev
	@.venv/bin/python -m benchmarks.guards $(ARGS)

bench-auth: ## Measure what signing in adds to a call
	@.ci/bootstrap --dev
	@.venv/bin/python -m benchmarks.auth $(ARGS)

bench-agent: ## Measure what a step of an agent costs beside the model and the tool
	@.ci/bootstrap --dev
	@.venv/bin/python -m benchmarks.agent $(ARGS)

agent-eval: ## Let an agent do sixty tasks with the starter servers (MODEL=..., a quarter of an hour)
	@.ci/bootstrap --dev
	@.ci/engine
	@.ci/with-node .venv/bin/python -m benchmarks.agent_eval $(if $(MODEL),--model $(MODEL)) $(ARGS)

catalog-check: ## Build, start and list every server of the catalogue that has a package (takes an hour)
	@.ci/bootstrap --dev
	@.ci/parts
	@.ci/with-node .venv/bin/python -m tests.catalog_check $(ARGS)

lock: ## Write the lock files anew from pyproject.toml (UPGRADE=1 takes newer versions)
	@.ci/lock

clean: ## Remove .venv and what tools left behind; the cache folder stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
