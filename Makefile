# berth: `make help` lists the targets. The work is done by the scripts; this file only names them.

PREFIX ?= /usr/local
DESTDIR ?=
N ?= 30
T ?= 10
WORKLOADS ?= default,docker,exec,exec-docker,state,kill,delete,delete-force

.DEFAULT_GOAL := help
.PHONY: help run build test lint test-unit test-integration conformance test-engines test-vm fuzz bench install completions clean deps-build deps-test

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' Makefile

run: ## build berth and run a first container with a busybox shell (root)
	@RUNTIME='$(RUNTIME)' scripts/first-container

build: ## build the static release binary and leave it as build/berth
	@scripts/build

test: deps-test ## install what the tests need, then lint and run all tests (root)
	@scripts/test lint binary unit integration conformance fuzz engines vm

lint: ## formatting, clippy, the aarch64 check, shellcheck, the dependency policy
	@scripts/test lint

test-unit: ## the tests beside the code; they need no root
	@scripts/test unit

test-integration: ## the tests in tests/, on the real kernel (root)
	@scripts/test integration

conformance: build ## the runtime-spec's requirements on berth, runc and crun; writes the table of the README (root)
	@scripts/conformance --readme README.md

test-engines: ## docker, containerd, podman and buildah with berth as their runtime (root)
	@scripts/test engines

test-vm: ## the integration tests and the engines in a machine with systemd and cgroup v2, which is built the first time (root)
	@scripts/test vm vm-engines

fuzz: ## each fuzz target for T=10 seconds; what makes one crash stays in fuzz/artifacts
	@scripts/setup build
	@scripts/fuzz '$(T)'

bench: build ## berth beside the runc, crun and youki that are installed; N=30 rounds (root)
	@RUNTIME='$(RUNTIME)' benches/run '$(N)' '$(WORKLOADS)'

install: ## install build/berth and its completions below PREFIX (after make build)
	@scripts/install '$(DESTDIR)$(PREFIX)'

completions: build ## write the shell completions to build/completions
	@scripts/completions

clean: ## remove build/ and what cargo built
	cargo clean
	cargo clean --manifest-path fuzz/Cargo.toml
	rm -rf build

deps-build: ## install what the build needs (root, Debian and Ubuntu)
	@scripts/setup build

deps-test: ## install what the tests need (root, Debian and Ubuntu)
	@scripts/setup test
