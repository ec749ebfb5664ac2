# SPDX-License-Identifier: GPL-2.0-only
# What the kernel's build system reads is in Kbuild; here is what a person runs. All that is made goes to build/.

vm := userspace-tests/vm
KDIR ?= /lib/modules/$(shell uname -r)/build

module:
	@$(vm)/build-module "$(KDIR)" $(if $(COWSNAP_DEBUG),build/module/debug COWSNAP_DEBUG=$(COWSNAP_DEBUG))

tools:
	@$(MAKE) --no-print-directory -C tools OUTPUT="$(CURDIR)/build/tools"

check:
	@$(vm)/check $(LANES)

lint:
	@$(vm)/lint $(CHECKS)

# COWSNAP_SEED and KERNEL reach it through the environment.
fuzz: SECONDS ?= 60
fuzz:
	@$(vm)/fuzz $(SECONDS)

check-debug:
	@$(vm)/check debug-check debug

check-kcsan:
	@$(vm)/check kcsan-check kcsan

check-matrix:
	@$(vm)/check --matrix

demo:
	@$(vm)/demo $(if $(FILE),"$(FILE)")

# QUICK, LOCAL, KERNELS, PROFILE, README and BENCH_ROWS reach it through the environment.
bench:
	@$(vm)/bench

PREFIX ?= /usr/local
installed := $(DESTDIR)$(PREFIX)
fill_in := sed -e 's|@prefix@|$(PREFIX)|' -e "s|@version@|$$(sed -n 's/^PACKAGE_VERSION="\(.*\)"$$/\1/p' dkms.conf)|"

install-headers:
	install -d "$(installed)/include/cowsnap" "$(installed)/include/linux" "$(installed)/share/pkgconfig" \
		"$(installed)/share/cmake/cowsnap"
	install -m 0644 include/cowsnap/*.hpp "$(installed)/include/cowsnap"
	install -m 0644 uapi/linux/cowsnap.h "$(installed)/include/linux"
	$(fill_in) packaging/cowsnap.pc.in > "$(installed)/share/pkgconfig/cowsnap.pc"
	install -m 0644 packaging/cowsnap-config.cmake "$(installed)/share/cmake/cowsnap"
	$(fill_in) packaging/cowsnap-config-version.cmake.in > "$(installed)/share/cmake/cowsnap/cowsnap-config-version.cmake"

install-tools: tools
	install -d "$(installed)/bin" "$(installed)/share/man/man1" "$(installed)/share/bash-completion/completions"
	install -m 0755 build/tools/cowsnap "$(installed)/bin"
	install -m 0644 man/cowsnap.1 "$(installed)/share/man/man1"
	install -m 0644 packaging/cowsnap.bash "$(installed)/share/bash-completion/completions/cowsnap"

clean:
	rm -rf build

help:
	@echo 'make                   build cowsnap.ko for the running kernel'
	@echo 'make KDIR=DIR          build it for the kernel whose build tree is DIR'
	@echo 'make COWSNAP_DEBUG=1   build one for tests, which can be told to wait in places, into build/module/debug'
	@echo 'make tools             build the command cowsnap, build/tools/cowsnap'
	@echo 'make demo [FILE=F]     see forks of memory at work in a VM, on the data in F or on a Debian package index'
	@echo 'make check             run every test: in VMs, under stock kernels; installs the packages that this needs'
	@echo 'make check LANES="L"   run only some lanes; an unknown name lists them'
	@echo 'make lint              check the sources without running them; CHECKS="C" does only some; an unknown name lists them'
	@echo 'make fuzz SECONDS=N    random calls: on the tree, natively and led by coverage, and on the module, in a VM; N s each'
	@echo 'make fuzz KERNEL=debug  the same on the module led by coverage, too, under the kernel of make check-debug'
	@echo 'make check-debug       run every test under a kernel that watches itself, which is built first'
	@echo 'make check-kcsan       run those in which threads meet under a kernel that watches for data races'
	@echo 'make check-matrix      run those in VMs under each kernel and flavour that the README lists, and a thousand loads'
	@echo 'make bench             measure it in VMs that count instructions, beside fork(2) and others: build/bench.json'
	@echo 'make bench QUICK=1     the same at small sizes, in two minutes; LOCAL=1: here, where the module is loaded'
	@echo 'make bench PROFILE=1   where the instructions of faults and forks go, symbol by symbol'
	@echo 'make bench README=1    and put the figures into README.md and doc/'
	@echo 'make install-headers   put the C++ library and the header of the interface under PREFIX, /usr/local, below DESTDIR'
	@echo 'make install-tools     put the command, its man page and its completion there'
	@echo 'make clean             remove build/'

.PHONY: module tools check lint fuzz check-debug check-kcsan check-matrix demo bench install-headers install-tools clean help
