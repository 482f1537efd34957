# `make` alone prints the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: develop
develop: ## Build the extension into python/billiard for work in the tree
	PYO3_BUILD_EXTENSION_MODULE=1 cargo build --profile fast
	cp target/fast/lib_core.so python/billiard/.core.tmp
	mv python/billiard/.core.tmp python/billiard/_core.abi3.so
