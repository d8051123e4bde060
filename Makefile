# Bare `make` prints the targets. All of them work on a fresh Debian 12 with
# Go, make and git; those that need more install it (test/setup.sh).

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
KILLTIME    ?= 30s
OUTAGETIME  ?= 1m
QUICK       ?=
KEEP        ?=

.DEFAULT_GOAL := help
.PHONY: help build package run node test test-cluster sim promises bench bench-quick bench-micro bench-parts check lint fuzz clean

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

build: ## builds bin/nodelocaldns, static
	$(BUILD) -o bin/ ./cmd/...

package: ## builds deb and rpm for amd64 and arm64 into bin/package
	@test/setup.sh package
	units/package/build.sh bin/package

run: build ## shows a pod's queries answered on its node, on a throwaway node (root; KEEP=1 leaves it up)
	@test/setup.sh run
	$(BUILD) -o bin/ ./test/kubedns/cmd/...
	@KEEP=$(KEEP) test/run

node: build ## boots a node of a cluster with bin/nodelocaldns installed, and opens a shell on it (root)
	@test/setup.sh node
	export NODELOCALDNS_TEST_NODE=$$(test/node/build.sh)
	$(BUILD) -o bin/ ./test/node/cmd/...
	@bin/node bin/nodelocaldns{,-relay}

# Clones share what is built, and nobody debugs these binaries: linking them without
# what a debugger needs takes half the time. Some tests lay out what other users of
# the machine are to read.
test: ## runs all tests with the race detector (as root also those on real interfaces and rules)
	@test/setup.sh test
	umask 022
	CGO_ENABLED=1 go test -race -trimpath -ldflags=-w ./...

test-cluster: ## runs the tests on booted nodes: systemd, containerd, kubelet, API server (root; builds them once)
	@test/setup.sh node
	export NODELOCALDNS_TEST_NODE=$$(test/node/build.sh)
	CGO_ENABLED=0 go test -count=1 -p=1 -timeout=15m -parallel=8 ./test/node/... ./test/package/node ./test/fleet ./test/sim

sim: ## rolls up to 10,000 simulated nodes through --max-unavailable, and prints a table; two minutes
	@NODELOCALDNS_SIM_TABLE=1 go test -count=1 -v -run=TestTable ./test/sim | grep '^|'

promises: ## kills, hangs and breaks what runs on a node and what it asks, counts what its pods feel, and prints the tables (root; KILLTIME=30s, OUTAGETIME=1m)
	@test/setup.sh promises
	export NODELOCALDNS_TEST_NODE=$$(test/node/build.sh) NODELOCALDNS_PROMISES=$(CURDIR)/bin/promises NODELOCALDNS_PROMISES_TIME=$(KILLTIME) NODELOCALDNS_PROMISES_OUTAGE=$(OUTAGETIME) NODELOCALDNS_PROMISES_QUICK=$(QUICK)
	rm -f bin/promises.md bin/promises.json
	code=0
	CGO_ENABLED=0 go test -count=1 -timeout=20m -parallel=20 ./test/promises || code=$$?
	cat bin/promises.md
	exit $$code

bench: bench-parts ## measures what a query costs ours and each peer that is installed, and writes bin/bench.{md,json,svg}; a quarter of an hour (root)
	test/bench/micro >bin/micro.txt
	PATH=$(CURDIR)/bin:$$PATH:/usr/sbin:/sbin bin/bench -micro bin/micro.txt

bench-quick: bench-parts ## does so for the main cases, once, in two minutes (root)
	$(MAKE) bench-micro
	PATH=$(CURDIR)/bin:$$PATH:/usr/sbin:/sbin bin/bench -quick -micro bin/micro.txt

bench-micro: ## measures the parts of a query's way in Go, and compares them with test/bench/micro.txt
	mkdir -p bin
	test/bench/micro >bin/micro.txt
	go tool -modfile=test/tools/benchstat/go.mod benchstat before=test/bench/micro.txt now=bin/micro.txt

bench-parts: build
	@test/setup.sh bench
	$(BUILD) -o bin/ ./test/kubedns/cmd/... ./test/bench/floor ./test/bench/cmd/...
	CGO_ENABLED=0 go -C test/tools/coredns build -trimpath -buildvcs=false -o $(CURDIR)/bin/coredns .
	gcc -O2 -Wall -Wextra -Werror -o bin/floor-c test/bench/floor.c

check: ## does what CI does: lint, run, test, test-cluster and promises (shorter), where a skipped test is a failure
	@$(MAKE) lint
	$(MAKE) run
	NODELOCALDNS_REQUIRE_ROOT=1 $(MAKE) test
	$(MAKE) test-cluster
	$(MAKE) promises KILLTIME=12s OUTAGETIME=15s QUICK=1

lint: ## checks Go, shell, YAML and Ansible files; every finding is an error
	@test/setup.sh lint
	test/lint

fuzz: ## runs every fuzz target for FUZZTIME=1m
	@test/fuzz $(FUZZTIME)

clean: ## removes what the other targets built
	rm -rf bin
