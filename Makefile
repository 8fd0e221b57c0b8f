# vmand needs git, make and Go; `make run` and `make test` see to everything else
# (scripts/deps.sh). All of it comes as Debian packages and Go modules.

GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
STATICCHECK := $(GO) tool -modfile=tools/staticcheck/go.mod staticcheck
VACUUM := $(GO) tool -modfile=tools/lint/go.mod vacuum

.DEFAULT_GOAL := help
.PHONY: help deps build run test unit cover bench torture check lint-openapi generate guest debian test-debian clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the programs that vmand runs (QEMU), if they are missing
	@scripts/deps.sh run

build: ## build ./vmand, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o vmand .

run: deps build ## start vmand with no configuration
	@exec ./vmand

test: ## run every test, with real QEMU, and print the coverage
	@scripts/deps.sh test
	@test/guest/build.sh build/guest
	@scripts/test.sh

unit: ## run the fast tests: no QEMU, no network namespaces, at most a minute
	VMAN_TEST_QEMU=off $(GO) test -parallel 8 ./server ./store ./... # the longest first

cover: ## write what the last `make test` covered to build/coverage/index.html
	$(GO) tool cover -html=build/coverage/profile -o build/coverage/index.html

bench: deps build ## measure, each as a ratio to the best there could be
	VMAN_TEST_QEMU=required VMAN_TEST_BINARY=$(CURDIR)/vmand VMAN_TEST_GUEST=$(CURDIR)/build/guest \
		$(GO) test -count=1 -timeout=20m -run '^$$' -bench . -benchtime 10s ./test/bench

SECONDS ?= 120
torture: deps build ## kill vmand and QEMUs for SECONDS=120 while clients do what they like
	VMAN_TEST_QEMU=required VMAN_TEST_BINARY=$(CURDIR)/vmand VMAN_TEST_GUEST=$(CURDIR)/build/guest VMAN_TEST_TORTURE=$(SECONDS) \
		$(GO) test -count=1 -v -timeout=0 -run '^TestTorture$$' ./test/crash

check: ## format, generated code, contract, vet, static analysis, packaging
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(MAKE) --no-print-directory generate lint-openapi
	git diff --exit-code -- openapi
	$(GO) vet ./...
	$(GO) vet -tags debian ./test/debian
	$(STATICCHECK) $$($(GO) list ./... | grep -v /openapi)
	$(STATICCHECK) -checks inherit,-SA1019 ./openapi/... # the generator is older than its runtime
	scripts/check-unit.sh packaging/vmand.service

lint-openapi: ## lint the contract: no errors and no warnings
	$(VACUUM) lint --ruleset tools/lint/ruleset.yaml --details --no-banner --no-style --fail-severity warn openapi/vman.yaml

generate: ## regenerate the code in openapi/ from vman.yaml
	$(GO) generate ./openapi/...

guest: deps ## build the Linux guest of the tests in build/guest, unless it is up to date
	@test/guest/build.sh build/guest

debian: ## build a Debian cloud image for tests in build/debian, unless it is up to date
	@scripts/deps.sh debian
	@test/debian/build.sh build/debian

test-debian: deps build debian guest ## go from a cloud image of Debian to SSH, with a real one; minutes without KVM
	VMAN_TEST_QEMU=required VMAN_TEST_BINARY=$(CURDIR)/vmand VMAN_TEST_GUEST=$(CURDIR)/build/guest VMAN_TEST_DEBIAN=$(CURDIR)/build/debian/debian-12.qcow2 \
		$(GO) test -count=1 -v -timeout=60m -tags debian -run '^TestDebian$$' ./test/debian

clean: ## remove what was built
	rm -rf vmand build
