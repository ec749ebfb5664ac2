// SPDX-License-Identifier: MIT
/*
 * The region that a process has its private anonymous memory in. It is mapped whole, offset for
 * address, and forked with the process.
 *
 * The calls are those of the kernel on memory that mmap() gave, and return what it does, or -errno.
 */
#pragma once

#include <cstddef>
#include <cstdint>

#include <sys/mman.h>

#include "layout.hpp"
#include "node_pool.hpp"
#include "system.hpp"

namespace cowsnap_preload {

class heap {
public:
	/* Shorter mappings are the kernel's. */
	static constexpr std::size_t smallest = 64 << 10;

	/* The process's only one, made at the first call, for good; nullptr where there can be none. */
	static heap *get() noexcept;

	/* The same, but does not make it. */
	static heap *existing() noexcept;

	/*
	 * Forgets it in a child that was forked without it, as another thread made it meanwhile: there
	 * is nothing at its addresses.
	 */
	static void leave_if_inherited() noexcept;

	heap(const heap &) = delete;
	heap &operator=(const heap &) = delete;

	/* What every descriptor is compared with, so it is not locked for. */
	int fd() const noexcept { return fd_; }

	bool has(range wanted) const noexcept { return all_.has(wanted); }
	bool touches(range wanted) const noexcept { return !wanted.common(all_).empty(); }

	/* Memory that reads as zeros; -ENOMEM where there is no room. */
	long allocate(address hint, std::size_t size, int protection) noexcept;

	/* The same at these addresses, in place of what is there or not at all. */
	long place(range wanted, int protection, bool replace) noexcept;

	/* Has @call map something else at these addresses. */
	long map_over(range wanted, bool replace, const kernel_call &call) noexcept;

	/* Has the kernel's own memory where there is some to read and write, with what is there now. */
	void hand_over(range wanted) noexcept;

	long release(range wanted) noexcept;
	long advise(range wanted, int advice) noexcept;
	long protect(range wanted, int protection) noexcept;

	/* mremap(), with its flags. */
	long resize(range old, std::size_t size, int flags, address target) noexcept;

	/*
	 * Has @call fork the process, with a fork of the region for the child, which has it in place
	 * of its parent's when this returns there.
	 */
	long fork(const kernel_call &call, bool shares_descriptors) noexcept;

	/* PREPARE of at most so many granules; how many are left. */
	long prepare(std::uint64_t budget) const noexcept;

private:
	struct forking;

	static constexpr int readable_and_writable = PROT_READ | PROT_WRITE;

	heap(range all, int fd, node_pool &pool) noexcept
		: all_(all), fd_(fd), pool_(pool), layout_(all, &pool)
	{
	}

	static heap *make() noexcept;

	bool can_change() noexcept { return pool_.reserve(layout::nodes_per_change); }
	long offset_of(address where) const noexcept
	{
		return static_cast<long>(where - all_.start);
	}

	long punch(range hole) const noexcept;
	long map(range wanted, int protection) const noexcept;
	range closed_around(range wanted) const noexcept;
	long close(range wanted) noexcept;
	long take(range wanted, int protection) noexcept;
	long find(address hint, std::size_t size, int protection) noexcept;
	long place_locked(range wanted, int protection, bool replace) noexcept;
	long map_over_locked(range wanted, bool replace, const kernel_call &call) noexcept;
	long release_locked(range wanted) noexcept;
	long copy(range from, address to) const noexcept;
	long move(range old, int protection, std::size_t size, bool fixed,
		  address target) noexcept;
	long hand_over_one(range wanted) noexcept;
	long resize_taken(range old, int protection, std::size_t size, bool may_move) noexcept;
	long fork_locked(forking how) noexcept;
	long fork_region() const noexcept;
	void adopt(int fd, bool shares_descriptors) noexcept;
	long map_all() noexcept;

	/* Page-aligned, as is all that is called a range here. */
	const range all_;
	int fd_;
	/* The process that it is mapped in. */
	long pid_ = system_call(SYS_getpid);
	node_pool &pool_;
	layout layout_;
};

} // namespace cowsnap_preload
