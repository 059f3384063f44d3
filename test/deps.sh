#!/bin/bash
# The Debian packages that pagewarp's tests and demo need, in one place.
#
#   test/deps.sh check      exit 1 and name what is missing
#   test/deps.sh install    install what is missing (needs root); nothing if all is there
set -euo pipefail

packages=(
  ca-certificates   # module downloads
  dkms              # the kernel module is packaged for it
  gcc libc6-dev     # the race detector, the kernel module
  git               # the list of files to lint
  ibverbs-providers # soft-RoCE in the test VM
  iproute2          # network namespaces, by hand and in tests
  kmod              # depmod, for the guest's modules
  libc6-dbg         # valgrind's, which needs the dynamic linker's symbols
  libibverbs-dev    # the daemon with RDMA
  make
  perftest          # ib_read_lat and ib_read_bw, RDMA's floors
  perl              # checkpatch, on the kernel module
  qemu-system-x86
  sparse            # the kernel module is built with its checks
  spin              # the model of the fault ring
  util-linux        # nsenter
  valgrind          # memcheck, on the part of RDMA in C
  xz-utils          # the kernel's sources, for checkpatch
)

missing=()
for p in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$p")
done

case "${1:-}" in
check)
  if [ "${#missing[@]}" -gt 0 ]; then
    echo "missing Debian packages: ${missing[*]}; run: sudo test/deps.sh install" >&2
    exit 1
  fi
  ;;
install)
  if [ "${#missing[@]}" -eq 0 ]; then
    exit 0
  fi
  if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}; this is no Debian, install their like by hand" >&2
    exit 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    echo "missing: ${missing[*]}; run: sudo test/deps.sh install" >&2
    exit 1
  fi
  echo "installing: ${missing[*]}"
  apt=(apt-get -q -y -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120)
  "${apt[@]}" update
  DEBIAN_FRONTEND=noninteractive "${apt[@]}" install --no-install-recommends "${missing[@]}"
  ;;
*)
  echo "usage: $0 check|install" >&2
  exit 2
  ;;
esac
