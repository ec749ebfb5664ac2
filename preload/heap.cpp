// SPDX-License-Identifier: MIT
#include "heap.hpp"

#include <algorithm>
#include <atomic>
#include <new>

#include <fcntl.h>
#include <linux/cowsnap.h>
#include <linux/falloc.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/sysinfo.h>

#include "dispatch.hpp"
#include "guard.hpp"

namespace cowsnap_preload {
namespace {

/* Above what programs and scripts choose, and low, as fork(2) copies the table up to there. */
constexpr int lowest_descriptor = 233;

/* VMAs of regions are not merged by the kernel; closed parts are, within blocks of this size. */
constexpr address block = 64 << 20;

std::atomic<heap *> the_heap = nullptr;
/* Then it is there, or never will be, and nobody takes the lock to learn that: others may fork meanwhile. */
std::atomic<bool> was_tried = false;
alignas(heap) std::byte storage[sizeof(heap)];
constinit node_pool pool;

/* What the machine can hold, with as much again for what is free in between. */
std::size_t choose_length() noexcept
{
	constexpr std::size_t step = 1 << 30;
	struct sysinfo info = {};

	if (system_call(SYS_sysinfo, &info) < 0)
		return 0;
	return (2 * info.totalram * info.mem_unit + step - 1) / step * step;
}

/* The descriptor of a new region, named as the program. */
long create_region(std::size_t length) noexcept
{
	cowsnap_create arg = {};
	const long device = system_call(SYS_openat, AT_FDCWD, "/dev/cowsnap", O_RDWR | O_CLOEXEC);

	if (device < 0)
		return device;
	arg.size = sizeof(arg);
	arg.length = length;
	system_call(SYS_prctl, PR_GET_NAME, arg.name);

	const long result = patient_call(SYS_ioctl, device, COWSNAP_IOC_CREATE, &arg);

	system_call(SYS_close, device);
	return result < 0 ? result : arg.fd;
}

/* Moves it out of the program's way, if there is room. */
int move_away(int fd) noexcept
{
	const long moved = system_call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, lowest_descriptor);

	if (moved < 0)
		return fd;
	system_call(SYS_close, fd);
	return static_cast<int>(moved);
}

/* Maps that part of the region, for a fork that nobody saw to to have a hole there. */
long map_region(range wanted, bool fixed, int protection, int fd, long offset) noexcept
{
	const long mapped =
		system_call(SYS_mmap, wanted.start, wanted.size(), protection,
			    MAP_SHARED | (fixed ? MAP_FIXED : 0), fd, offset);

	if (is_error(mapped))
		return mapped;

	const long result = system_call(SYS_madvise, mapped, wanted.size(), MADV_DONTFORK);

	return result < 0 ? result : mapped;
}

} // namespace

heap *heap::existing() noexcept
{
	return the_heap.load(std::memory_order_acquire);
}

heap *heap::get() noexcept
{
	if (was_tried.load(std::memory_order_acquire))
		return existing();

	const guard hold;

	if (!was_tried.load(std::memory_order_relaxed)) {
		the_heap.store(make(), std::memory_order_release);
		was_tried.store(true, std::memory_order_release);
	}
	return existing();
}

heap *heap::make() noexcept
{
	const std::size_t length = choose_length();

	if (!length || !can_dispatch() || !pool.reserve(layout::nodes_per_change))
		return nullptr;

	const long fd = create_region(length);

	if (fd < 0)
		return nullptr;

	const long start = map_region({0, length}, false, readable_and_writable,
				      static_cast<int>(fd), 0);

	if (is_error(start)) {
		system_call(SYS_close, fd);
		return nullptr;
	}

	const auto first = static_cast<address>(start);

	return new (storage)
		heap({first, first + length}, move_away(static_cast<int>(fd)), pool);
}

void heap::leave_if_inherited() noexcept
{
	const heap *const found = existing();

	if (!found || found->pid_ == system_call(SYS_getpid))
		return;
	/* A process that shares all memory with its parent, as vfork() makes it, has it. */
	if (system_call(SYS_msync, found->all_.start, page_size, MS_ASYNC) == -ENOMEM ||
	    system_call(SYS_msync, found->all_.end - page_size, page_size, MS_ASYNC) == -ENOMEM)
		the_heap.store(nullptr, std::memory_order_release);
}

long heap::punch(range hole) const noexcept
{
	return patient_call(SYS_fallocate, fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			    offset_of(hole.start), hole.size());
}

long heap::map(range wanted, int protection) const noexcept
{
	return map_region(wanted, true, protection, fd_, offset_of(wanted.start));
}

/* What is closed on both sides of it, too, but no more than what lies in its blocks. */
range heap::closed_around(range wanted) const noexcept
{
	const range blocks = range{wanted.start / block * block,
				   (wanted.end + block - 1) / block * block}
				     .common(all_);

	if (wanted.start > blocks.start) {
		const auto [before, kind] = layout_.at(wanted.start - 1);

		if (kind.used == use::closed)
			wanted.start = std::max(before.start, blocks.start);
	}
	if (wanted.end < blocks.end) {
		const auto [after, kind] = layout_.at(wanted.end);

		if (kind.used == use::closed)
			wanted.end = std::min(after.end, blocks.end);
	}
	return wanted;
}

/* Of a hole. */
long heap::close(range wanted) noexcept
{
	if (!can_change())
		return -ENOMEM;

	const long result = map(closed_around(wanted), PROT_NONE);

	if (is_error(result))
		return result;
	layout_.assign(wanted, {use::closed});
	return 0;
}

/* Of what is free. */
long heap::take(range wanted, int protection) noexcept
{
	const auto is_fresh = [](const part &kind) { return kind.used == use::fresh; };

	if (!can_change())
		return -ENOMEM;
	if (protection != readable_and_writable || !layout_.all_of(wanted, is_fresh)) {
		const long result =
			system_call(SYS_mprotect, wanted.start, wanted.size(), protection);

		if (result < 0)
			return result;
	}
	layout_.assign(wanted, {use::taken, protection});
	return static_cast<long>(wanted.start);
}

long heap::find(address hint, std::size_t size, int protection) noexcept
{
	const range wished = {hint, hint + size};

	if (hint && all_.has(wished) && layout_.is_free(wished))
		return take(wished, protection);

	const auto start = layout_.find_free(size);

	return start ? take({*start, *start + size}, protection) : -ENOMEM;
}

long heap::allocate(address hint, std::size_t size, int protection) noexcept
{
	const guard hold;

	return find(hint, size, protection);
}

long heap::place_locked(range wanted, int protection, bool replace) noexcept
{
	if (layout_.is_free(wanted))
		return take(wanted, protection);
	if (!replace)
		return -EEXIST;
	if (!can_change())
		return -ENOMEM;

	long result = punch(wanted);

	if (result == 0)
		result = map(wanted, protection);
	if (is_error(result))
		return result;
	layout_.assign(wanted, {use::taken, protection});
	return static_cast<long>(wanted.start);
}

long heap::place(range wanted, int protection, bool replace) noexcept
{
	const guard hold;

	return place_locked(wanted, protection, replace);
}

long heap::map_over_locked(range wanted, bool replace, const kernel_call &call) noexcept
{
	const range inside = wanted.common(all_);

	if (!replace && !layout_.is_free(inside))
		return -EEXIST;
	if (!can_change())
		return -ENOMEM;

	const long result = call.make();

	if (is_error(result))
		return result;
	/* Nobody sees what is there any more; to keep it until it is released is a waste, and no harm. */
	punch(inside);
	layout_.assign(inside, {use::foreign});
	return result;
}

long heap::map_over(range wanted, bool replace, const kernel_call &call) noexcept
{
	const guard hold;

	return map_over_locked(wanted, replace, call);
}

long heap::release_locked(range wanted) noexcept
{
	const range inside = wanted.common(all_);
	long result = 0;

	/* What is too high for the kernel fails before anything is changed. */
	if (inside.end < wanted.end)
		result = system_call(SYS_munmap, inside.end, wanted.end - inside.end);
	if (wanted.start < inside.start && result == 0)
		result = system_call(SYS_munmap, wanted.start, inside.start - wanted.start);
	layout_.visit(inside, [&](range some, const part &kind) {
		if (result == 0 && !kind.is_free())
			result = punch(some);
		if (result == 0 && !kind.is_free())
			result = close(some);
	});
	return result;
}

long heap::release(range wanted) noexcept
{
	const guard hold;

	return release_locked(wanted);
}

long heap::advise(range wanted, int advice) noexcept
{
	const guard hold;
	const range inside = wanted.common(all_);
	long result = 0;

	/* What fails does not keep the rest from it; the kernel does so for what is not mapped. */
	const auto note = [&](long one) { result = result == 0 ? one : result; };
	const auto call_kernel = [&](range some) {
		if (!some.empty())
			note(system_call(SYS_madvise, some.start, some.size(), advice));
	};

	call_kernel({wanted.start, inside.start});
	layout_.visit(inside, [&](range some, const part &kind) {
		if (kind.is_free())
			return note(-ENOMEM);
		if (kind.used == use::foreign)
			return call_kernel(some);
		switch (advice) {
		case MADV_DONTNEED:
		case MADV_DONTNEED_LOCKED:
		case MADV_FREE:
			return note(punch(some));
		case MADV_DOFORK:
			return;
		case MADV_DONTFORK:
		case MADV_WIPEONFORK:
		case MADV_KEEPONFORK:
		case MADV_REMOVE:
			return note(-EINVAL);
		default:
			return call_kernel(some);
		}
	});
	call_kernel({inside.end, wanted.end});
	return result;
}

long heap::protect(range wanted, int protection) noexcept
{
	const guard hold;
	const range inside = wanted.common(all_);

	if (!layout_.all_of(inside, [](const part &kind) { return !kind.is_free(); }))
		return -ENOMEM;

	long result = system_call(SYS_mprotect, wanted.start, wanted.size(), protection);

	if (result < 0)
		return result;
	layout_.visit(inside, [&](range some, const part &kind) {
		if (kind.used != use::taken)
			return;
		if (can_change())
			layout_.assign(some, {use::taken, protection});
		else
			result = -ENOMEM;
	});
	return result;
}

long heap::prepare(std::uint64_t budget) const noexcept
{
	cowsnap_prepare arg = {};

	arg.size = sizeof(arg);
	arg.budget = budget;

	const long result = system_call(SYS_ioctl, fd_, COWSNAP_IOC_PREPARE, &arg);

	return result < 0 ? result : static_cast<long>(arg.left);
}

} // namespace cowsnap_preload
