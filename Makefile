# SPDX-License-Identifier: GPL-2.0-only
# What the kernel's build system reads is in Kbuild; here is what a person runs. All that is made goes to build/.

vm := userspace-tests/vm
KDIR ?= /lib/modules/$(shell uname -r)/build

module:
	@$(vm)/build-module "$(KDIR)" $(if $(COWSNAP_DEBUG),build/module/debug COWSNAP_DEBUG=$(COWSNAP_DEBUG))

# The library of fork-run is for x86-64 only.
tools:
	@$(MAKE) --no-print-directory -C tools OUTPUT="$(CURDIR)/build/tools"
	@case $$($(CXX) -dumpmachine) in x86_64-*) \
		$(MAKE) --no-print-directory -C preload OUTPUT="$(CURDIR)/build/tools" ;; esac

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

# QUICK reaches them through the environment.
demo-redis demo-prefork:
	@$(vm)/$@

# QUICK, LOCAL, KERNELS, PROFILE, README, FROM and BENCH_ROWS reach it through the environment.
bench:
	@$(vm)/bench

PREFIX ?= /usr/local
install := PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" KDIR="$(KDIR)" packaging/install

install: install-module install-headers install-tools

install-headers:
	@$(install) headers

install-tools: tools
	@$(install) tools

install-module:
	@$(install) module

uninstall:
	@$(install) --remove headers tools module

clean:
	rm -rf build

help:
	@echo 'make                   build cowsnap.ko for the running kernel'
	@echo 'make KDIR=DIR          build it for the kernel whose build tree is DIR'
	@echo 'make COWSNAP_DEBUG=1   build one for tests, which can be told to wait in places, into build/module/debug'
	@echo 'make tools             build the command, build/tools/cowsnap, and the library of its fork-run'
	@echo 'make demo [FILE=F]     see forks of memory at work in a VM, on the data in F or on a Debian package index'
	@echo "make demo-redis        Debian's redis-server in a VM, with and without forks of memory; QUICK=1: with little data"
	@echo "make demo-prefork      Debian's python3, and workers that it forks, in the same way"
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
	@echo 'make bench README=1    and put the figures into README.md and doc/; FROM=build/bench.json takes an earlier run'
	@echo 'make install           put all in its place: the module by DKMS, for the kernel of KDIR and those to come, the group'
	@echo '                       and the udev rule of its device, the command and the C++ library, under PREFIX, /usr/local;'
	@echo '                       with DESTDIR=DIR only the files, below it. install-module, install-tools and install-headers'
	@echo '                       are its parts'
	@echo 'make uninstall         remove what that put there, with the same PREFIX and DESTDIR; the group stays'
	@echo 'make clean             remove build/'

.PHONY: module tools check lint fuzz check-debug check-kcsan check-matrix demo demo-redis demo-prefork bench install \
	install-headers install-tools install-module uninstall clean help
