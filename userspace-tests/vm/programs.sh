# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2154
# What demo-redis and demo-prefork share; they source it behind common.sh. They set $kernel, $memory in MiB, $out, a
# folder for what is made, and $pack, the tree for their VMs; and $passed and $failed, before drivers run.

# build_driver FOLDER: the module, the library that is preloaded, and the program in userspace-tests/FOLDER; shows what
# that says only when it fails.
build_driver() {
	local log=$out/build.log
	mkdir -p "$out"
	printf 'building the module, the library and the driver\n'
	"$vm/kernel" "$kernel"
	if ! { "$vm/build-module" "$build/kernels/$kernel/headers" "$out/module" &&
		make --no-print-directory -C "$top/preload" OUTPUT="$out" &&
		make --no-print-directory -C "$top/userspace-tests/$1" OUTPUT="$out"; } > "$log" 2>&1; then
		tail -n 30 "$log" >&2
		die "the build failed; all that it said is in $log"
	fi
}

# Dies where the machine has no room for the VM.
need_memory() {
	local available
	available=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)
	[ "$memory" -le "$available" ] ||
		die "the VM needs $memory MiB and the machine has $available MiB to spare; QUICK=1 needs less"
}

pack_preloaded() {
	mkdir -p "$pack/usr/lib/cowsnap"
	cp "$out/libcowsnap-fork.so" "$pack/usr/lib/cowsnap/"
}

# run_driver NAME PROGRAM OPTION...: runs what was built as the only program of a VM; adds what it closes with,
# 'NAME: N passed, N failed', to $passed and $failed.
run_driver() {
	local status=0 counts said=$out/$1.said
	"$vm/run-vm" --name "$1" --raw --limit 3000 --total-limit 3000 --kernel "$kernel" --memory "$memory" \
		--module "$out/module/cowsnap.ko" --module-args "max_bytes=$((memory << 20))" --tree "$pack" \
		"${@:3}" "$2" | sed -u 's/\r$//' | tee "$said" || status=$?
	counts=$(sed -n "s/^$1: \([0-9]*\) passed, \([0-9]*\) failed\$/\1 \2/p" "$said")
	# An end before the last line is a failure of its own.
	[ -n "$counts" ] || counts='0 1'
	[ "$status" -eq 0 ] || [ "${counts#* }" -gt 0 ] || counts="${counts% *} 1"
	passed=$((passed + ${counts% *})) failed=$((failed + ${counts#* }))
}
