# 'make' alone lists the targets.

GO      ?= go
BUILD   := build
BIN     := $(BUILD)/bin
TOOLS   := $(BUILD)/tools
FUZZTIME ?= 20s
# The header of libibverbs, if the C compiler finds one: then RDMA can be built in.
VERBS   := $(shell echo '\#include <infiniband/verbs.h>' | $(or $(CC),cc) -E -x c - >/dev/null 2>&1 && echo yes)
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Without the checkout's path in what is compiled, which all programs then share, and so do
# all checkouts.
export GOFLAGS := $(strip $(filter-out -trimpath,$(GOFLAGS)) -trimpath)
LDFLAGS := -s -w -X github.com/pagewarp/pagewarp/cmd/internal/version.Release=$(VERSION)

.DEFAULT_GOAL := help
.PHONY: help build peers guest kmod tools deps test test-kmod kmod-debug-kernel test-kmod-debug test-rdma test-rdma-setups lint bench bench-qemu bench-kmod bench-rdma bench-peers bench-paper bench-trace benchstat demo fuzz clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 19

build: ## static binaries of the daemon and its command, in build/bin; with libibverbs-dev pagewarpd-rdma, too
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/pagewarpd ./cmd/pagewarp
ifneq ($(VERBS),)
	CGO_ENABLED=1 $(GO) build -tags rdma -trimpath -buildvcs=auto -ldflags '$(LDFLAGS)' -o $(BIN)/pagewarpd-rdma ./cmd/pagewarpd
endif

peers: ## the Go peers of 'bench process', in build/peers; needs a C compiler and the Go module proxy
	cd bench/peers/userfaultfd-go && CGO_ENABLED=1 $(GO) build -trimpath -o $(abspath $(BUILD))/peers/userfaultfd-go .

guest: ## kernel and initramfs of the test guest, in build/guest
	@$(GO) run ./bench/guest/mkimage -out $(BUILD)/guest

kmod: guest ## the kernel module, for Linux 6.1 and 6.12, in build/kmod
	@$(GO) run ./kmod/kmodbuild -out $(BUILD)/kmod -guest $(BUILD)/guest 6.12

tools: ## the linters, in build/tools
	@CGO_ENABLED=0 $(GO) build -modfile=internal/tools/tools.mod -o $(TOOLS)/staticcheck honnef.co/go/tools/cmd/staticcheck

deps: ## install the Debian packages that are missing
	@test/deps.sh install

test: guest tools ## everything CI runs; the last line counts passes, failures and skips
	@test/deps.sh check
	@$(GO) run ./test/summary -staticcheck $(TOOLS)/staticcheck

test-kmod: guest tools ## the kernel module in a virtual machine; part of 'make test'
	@test/deps.sh check
	@$(GO) run ./test/summary -race=false -staticcheck $(TOOLS)/staticcheck ./kmod/...

kmod-debug-kernel: ## Linux 6.1 with lockdep, KASAN and kmemleak, compiled in build/kmod (ten minutes, 1.7 GB)
	@$(GO) run ./kmod/kmodbuild -out $(BUILD)/kmod -debug kmod/debug.config

test-kmod-debug: kmod-debug-kernel ## the kernel module on that kernel; not a part of 'make test'
	$(GO) test -count=1 -v -timeout 950s -tags kmoddebug -run TestOnDebugKernel ./kmod/kmodtest

test-rdma: guest tools ## pages over RDMA, by soft-RoCE in a virtual machine; part of 'make test'
	@test/deps.sh check
	@$(GO) run ./test/summary -race=false -staticcheck $(TOOLS)/staticcheck ./transport/rdma/...

test-rdma-setups: guest ## 100000 set-ups by RDMA and their end, without a verbs object left (8 minutes); not a part of 'make test'
	RDMA_PROGRAM=rdma RDMA_RUN='^TestManySetUps$$' RDMA_SETUPS=100000 $(GO) test -count=1 -v -timeout 25m -run '^TestInVM$$' ./transport/rdma/rdmatest

lint: tools ## gofmt, go vet, staticcheck, and the rules on imports
	@$(GO) run ./test/summary -staticcheck $(TOOLS)/staticcheck -lint-only
	@$(GO) test ./internal/archlint

bench: build guest ## floors, faults, streams and downtime, each against its floor
	$(BIN)/pagewarp bench floors
	$(BIN)/pagewarp bench fault
	$(BIN)/pagewarp bench stream
	$(BIN)/pagewarp bench downtime

bench-qemu: build guest ## QEMU's own postcopy of the same guest, side by side
	$(BIN)/pagewarp bench qemu

bench-kmod: guest ## the character device against userfaultfd, in a virtual machine of each kernel
	$(GO) test -timeout 700s -run '^$$' -bench InVM -benchtime 1x ./kmod/kmodtest

bench-rdma: guest ## RDMA READs against ib_read_lat and ib_read_bw, in a virtual machine
	$(GO) test -timeout 460s -run '^$$' -bench InVM -benchtime 1x ./transport/rdma/rdmatest

bench-peers: build peers guest ## moves by pagewarp, by QEMU's own engines, by CRIU and a Go peer, of Debian's newest QEMU and CRIU
	[ -e $(BUILD)/qemu-root/usr ] || $(BIN)/pagewarp bench peers --make-root
	$(BIN)/pagewarp bench relocate --engine pagewarp,qemu-postcopy,qemu-precopy,pagewarp@root,qemu-postcopy-preempt@root --load touch
	$(BIN)/pagewarp bench process --load touch
	$(GO) test -timeout 300s -run '^$$' -bench CRIU -benchtime 1x ./bench/process

bench-paper: build guest ## the experiments of the paper, in one report in build/bench/paper
	$(BIN)/pagewarp bench paper

bench-trace: build guest ## traces of real guests under every workload, simulated at other links, in build/bench/trace
	$(BIN)/pagewarp bench trace study

BASE ?= HEAD~1
benchstat: ## the hot code's own benchmarks against BASE (HEAD~1), for information
	@GO='$(GO)' test/benchstat.sh $(BASE)

demo: deps ## a real relocation on this machine, and a report of it in build/demo
	@$(MAKE) --no-print-directory build guest
	$(BIN)/pagewarp demo

fuzz: ## every fuzz target for FUZZTIME (20s)
	@GO='$(GO)' test/fuzz.sh $(FUZZTIME)

clean: ## remove build/
	rm -rf $(BUILD)
