# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# What the scripts of this folder share; they source it first.
set -euo pipefail
export LC_ALL=C

me=${0##*/}
vm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$vm/../.." && pwd)
build=$top/build
# shellcheck disable=SC2034 # used by the scripts that source this
package_version=$(sed -n 's/^PACKAGE_VERSION="\(.*\)"$/\1/p' "$top/dkms.conf")

# The kernels, as userspace-tests/vm/kernel names them, that all is tested and measured on.
# shellcheck disable=SC2034 # used by the scripts that source this
kernels=(6.1 6.12 7.3)

# Has KCSAN watch one access in 500 or so instead of one in 4000.
# shellcheck disable=SC2034 # used by the scripts that source this
kcsan_options='kcsan.skip_watch=500'

die() {
	printf '%s: %s\n' "$me" "$*" >&2
	exit 1
}

can_be_root() {
	[ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null
}

as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	else
		sudo -n -- "$@"
	fi
}

update_lists() {
	can_be_root || die "the package lists are missing or old; run: sudo apt-get update"
	(
		lock apt-lists
		as_root apt-get update >/dev/null </dev/null
	) || die 'apt-get update failed; run it by hand to see why'
}

# download_package NAME DIR: puts Debian's newest package of that name there, with lists that are renewed if it takes that.
download_package() {
	local -a command=(apt-get -o APT::Sandbox::User=root -qq download "$1")
	printf '%s: fetching %s\n' "$me" "$1"
	(cd "$2" && "${command[@]}") >"$2/fetch.log" 2>&1 && return
	update_lists
	(cd "$2" && "${command[@]}") >"$2/fetch.log" 2>&1 && return
	cat "$2/fetch.log" >&2
	die "$1 could not be fetched; the mirror's answer is above"
}

# Holds a lock named $1 until unlock, so that lanes that run side by side make a thing once.
lock() {
	mkdir -p "$build/locks"
	exec {lock_fd}> "$build/locks/$1"
	flock "$lock_fd"
}

unlock() {
	exec {lock_fd}>&-
}

# The Debian mirror that this machine is set up to use.
mirror() {
	local site
	# shellcheck disable=SC2016 # expanded by apt-get
	site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Label: Debian' 'Component: main' | head -n 1)
	[ -n "$site" ] || die 'no Debian mirror is configured in apt, and other suites are fetched from the same one'
	printf '%s\n' "$site"
}

# in_tree ROOT COMMAND...: runs it with that tree for its root, and with what is in $top where it is here.
in_tree() {
	# shellcheck disable=SC2016 # expanded by the inner shell
	as_root unshare --mount sh -c 'mkdir -p "$0$1" && mount --bind "$1" "$0$1" && mount -t proc proc "$0/proc" &&
		shift && exec chroot "$0" "$@"' "$1" "$top" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C "${@:2}"
}

# The machine that a kernel, as userspace-tests/vm/kernel names it, is for.
machine_of() {
	case $1 in
	*-arm64*) printf 'arm64\n' ;;
	*) printf 'amd64\n' ;;
	esac
}

# for_machine MACHINE COMMAND...: runs it where there are compilers for that machine, as this user.
for_machine() {
	if [ "$1" = amd64 ]; then
		"${@:2}"
	else
		"$vm/suite-tree" "bookworm-$1"
		in_tree "$(realpath "$build/trees/bookworm-$1/root")" \
			setpriv --reuid "$(id -u)" --regid "$(id -g)" --clear-groups "${@:2}"
	fi
}

# What the names of the compilers for a machine begin with.
cross_prefix() {
	[ "$1" = amd64 ] || printf 'aarch64-linux-gnu-\n'
}

# program_of_page PAGE: the program in a manual page, as it would be copied from it: what stands between the marks, without
# the escapes.
program_of_page() {
	sed -n -e '/^\.\\" SRC BEGIN/,/^\.\\" SRC END/{/^\.\(EX\|EE\|\\"\)/d' -e 's/\\-/-/g' -e 's/\\(ti/~/g' -e 's/\\\[ti\]/~/g' \
		-e "s/\\\\\[aq\]/'/g" -e 's/\\\[dq\]/"/g' -e 's/\\e/\\/g' -e 'p}' "$1"
}

# pack_libraries TREE FILE...: puts the libraries that these programs and libraries need into a tree for run-vm.
pack_libraries() {
	local library
	for library in $(ldd "${@:2}" | grep -o '/[^ ]* (0x' | cut -d' ' -f1 | sort -u); do
		mkdir -p "$1/$(dirname "$library")"
		[ -e "$1/$library" ] || cp -L "$library" "$1/$library"
	done
}

# pack_program TREE PATH [AS]: puts a program of this machine there, or a library, with those that it needs.
pack_program() {
	local as=${3-$2}
	mkdir -p "$1/$(dirname "$as")"
	cp -L "$2" "$1/$as"
	pack_libraries "$1" "$2"
}

# Where Debian's package libjemalloc2 has its library.
find_jemalloc() {
	local found
	found=$(ldconfig -p | sed -n 's/^.*libjemalloc\.so\.2 .*x86-64.* => //p' | head -n 1)
	[ -n "$found" ] || die 'there is no libjemalloc.so.2 here; install libjemalloc2'
	printf '%s\n' "$found"
}
