# Bare `make` prints the targets. All of them work on a fresh Debian 12 with
# Go, make and git; `run`, `test`, `check` and `lint` install what else they
# need (test/setup.sh).

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory
.ONESHELL:
.DELETE_ON_ERROR:

# The version in the binary is the commit's. GOFLAGS of the machine may turn
# that off, so it is asked for here; git refuses in a tree of another user's,
# and then there is no version to be had.
BUILDVCS    := $(shell git rev-parse HEAD >/dev/null 2>&1 && echo auto || echo false)
BUILD       := CGO_ENABLED=0 go build -trimpath -buildvcs=$(BUILDVCS)
FUZZTIME    ?= 1m
KEEP        ?=

.DEFAULT_GOAL := help
.PHONY: help build run test check lint fuzz clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

build: ## builds bin/nodelocaldns, static
	$(BUILD) -o bin/ ./cmd/...

run: build ## shows a pod's queries answered on its node, on a throwaway node (root; KEEP=1 leaves it up)
	@test/setup.sh run
	$(BUILD) -o bin/ ./test/kubedns/cmd/...
	@KEEP=$(KEEP) test/run

test: ## runs all tests with the race detector (as root also those on real interfaces and rules)
	@test/setup.sh test
	CGO_ENABLED=1 go test -race ./...

check: ## does what CI does: lint, run and test, where a skipped test is a failure
	@$(MAKE) lint
	$(MAKE) run
	NODELOCALDNS_REQUIRE_ROOT=1 $(MAKE) test

lint: ## checks Go, shell and YAML files; every finding is an error
	@test/setup.sh lint
	test/lint

fuzz: ## runs every fuzz target for FUZZTIME=1m
	@test/fuzz $(FUZZTIME)

clean: ## removes what the other targets built
	rm -rf bin
