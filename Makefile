# vmand is built with git, make and Go. `make run` and `make test` install everything else
# that they need (scripts/deps.sh): Debian packages and Go modules.

GO ?= go
STATICCHECK := $(GO) tool -modfile=tools/staticcheck/go.mod staticcheck
VACUUM := $(GO) tool -modfile=tools/lint/go.mod vacuum

# The end-to-end tests of one package, with the vmand of `make build`.
E2E = VMAN_TEST_QEMU=required VMAN_TEST_BINARY=$(CURDIR)/vmand VMAN_TEST_GUEST=$(CURDIR)/build/guest $(GO) test -count=1

.DEFAULT_GOAL := help
.PHONY: help deps build deb rpm packages install run test unit cover bench torture check lint-openapi generate guest debian test-debian test-packages test-systemd test-kvm clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deps: ## install the programs that vmand runs (QEMU)
	@scripts/deps.sh run

build: ## build ./vmand, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "$$(scripts/version.sh ldflags)" -o vmand .

deb: ## build a Debian package in build/packages
	scripts/package.sh build/packages deb

rpm: ## build an RPM package in build/packages
	scripts/package.sh build/packages rpm

packages: ## build all packages in build/packages
	scripts/package.sh build/packages deb rpm

PREFIX ?= /usr/local
install: build ## install vmand and its client vman in PREFIX=/usr/local, below DESTDIR
	install -D -m 0755 vmand $(DESTDIR)$(PREFIX)/bin/vmand
	ln -sf vmand $(DESTDIR)$(PREFIX)/bin/vman

run: deps build ## start vmand with the default configuration
	@exec ./vmand

test: ## run every test with real QEMU, and print the coverage; takes a quarter of an hour
	@scripts/deps.sh test
	@test/guest/build.sh build/guest
	@scripts/test.sh

unit: ## run the tests that need no QEMU and no network namespaces; takes a minute
	VMAN_TEST_QEMU=off $(GO) test -parallel 8 ./server ./store ./... # the longest first

cover: ## write the coverage of the last `make test` to build/coverage/index.html
	$(GO) tool cover -html=build/coverage/profile -o build/coverage/index.html

bench: deps build guest ## measure vmand, and print each result beside the best possible one
	$(E2E) -timeout=20m -run '^$$' -bench . -benchtime 10s ./test/bench

SECONDS ?= 120
torture: deps build guest ## kill vmand and QEMUs for SECONDS=120 while clients send random requests
	VMAN_TEST_TORTURE=$(SECONDS) $(E2E) -v -timeout=0 -run '^TestTorture$$' ./test/crash

check: ## check format, generated code, API contract and packaging, vet, and run static analysis
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(MAKE) --no-print-directory generate lint-openapi
	git diff --exit-code -- openapi docs/cli.md
	$(GO) vet ./...
	for os in linux darwin windows; do \
		GOOS=$$os $(GO) vet ./cli ./cmd/vman && \
		GOOS=$$os CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/vman || exit 1; done
	$(GO) vet -tags debian,failpoints,kvm . ./failpoint ./qemu ./test/debian ./test/kvm
	$(STATICCHECK) ./...
	scripts/check-unit.sh packaging/*.service packaging/*.socket packaging/*.slice

lint-openapi: ## lint the API contract; warnings count as errors
	$(VACUUM) lint --ruleset tools/lint/ruleset.yaml --details --no-banner --no-style --fail-severity warn openapi/vman.yaml

generate: ## generate the code in openapi/ from vman.yaml, and the reference of the client
	$(GO) generate ./openapi/...
	$(GO) test -run '^TestReferenceIsCurrent$$' ./cli -update

guest: deps ## build the Linux guest of the tests in build/guest, unless it is up to date
	@test/guest/build.sh build/guest

debian: ## build a Debian cloud image in build/debian, unless it is up to date
	@scripts/deps.sh debian
	@test/debian/build.sh build/debian

test-debian: deps build debian guest ## boot the Debian cloud image and log in to it; takes minutes without KVM
	VMAN_TEST_DEBIAN=$(CURDIR)/build/debian/debian-12.qcow2 \
		$(E2E) -v -timeout=60m -tags debian -run '^TestDebian$$' ./test/debian

test-packages: ## build the packages twice, compare them, and check them with lintian
	@scripts/deps.sh packages
	scripts/test-packages.sh

test-systemd: guest ## install the package on a bare Debian 12 with systemd, in a container; takes some minutes
	@scripts/deps.sh systemd
	@test/systemd/build.sh build/systemd
	@rm -rf build/systemd/packages
	@VERSION=1.0.0 scripts/package.sh build/systemd/packages deb
	@VERSION=1.1.0 scripts/package.sh build/systemd/packages deb
	@test/systemd/run.sh build/systemd build/guest

test-kvm: ## run tests under KVM, in an emulated guest on a host without KVM; takes ten minutes
	@scripts/deps.sh kvm
	@test/guest/build.sh build/guest
	@test/kvm/build.sh build/kvm
	@scripts/test-kvm.sh

clean: ## remove everything that was built
	rm -rf vmand build
