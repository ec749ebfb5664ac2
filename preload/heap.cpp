// SPDX-License-Identifier: MIT
#include "heap.hpp"

#include <algorithm>
#include <atomic>
#include <new>

#include <fcntl.h>
#include <linux/cowsnap.h>
#include <linux/falloc.h>
#include <linux/prctl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "dispatch.hpp"
#include "guard.hpp"

namespace cowsnap_preload {
namespace {

constexpr int readable_and_writable = PROT_READ | PROT_WRITE;

/* Above what programs choose themselves, and low, as fork(2) copies the table up to there. */
constexpr int lowest_descriptor = 200;

constexpr address page_size = 4096;

/* VMAs of regions are not merged by the kernel; closed parts are, within blocks of this size. */
constexpr address block = 64 << 20;

std::atomic<heap *> the_heap = nullptr;
/* Then it is there, or never will be, and nobody takes the lock to learn that: others may fork meanwhile. */
std::atomic<bool> was_tried = false;
alignas(heap) std::byte storage[sizeof(heap)];

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

bool is_in(range all, const void *pointer) noexcept
{
	const auto where = reinterpret_cast<address>(pointer);

	return all.start <= where && where < all.end;
}

/*
 * What the kernel writes for rseq(2) lies in a thread's descriptor, which lies on the thread's stack,
 * which a program may have put into the heap. There is none of it while there is one of these: a child
 * could not take it.
 */
class restartable_sequences {
public:
	explicit restartable_sequences(range all) noexcept
		: area_(static_cast<char *>(__builtin_thread_pointer()) + __rseq_offset),
		  paused_(__rseq_size > 0 && is_in(all, area_) && call(RSEQ_FLAG_UNREGISTER))
	{
	}
	~restartable_sequences()
	{
		if (paused_)
			call(0);
	}
	restartable_sequences(const restartable_sequences &) = delete;
	restartable_sequences &operator=(const restartable_sequences &) = delete;

private:
	/* What the C library registered: it tells the size that it uses, and gave the kernel all. */
	bool call(int flags) const noexcept
	{
		return system_call(SYS_rseq, area_, std::max<std::size_t>(__rseq_size, 32), flags,
				   RSEQ_SIG) == 0;
	}

	char *area_;
	bool paused_;
};

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

	if (!length || !can_dispatch())
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

	return new (storage) heap({first, first + length}, move_away(static_cast<int>(fd)));
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
	/* Nobody sees what is there any more; to keep it would be a waste, and no harm. */
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

	if (wanted.start < inside.start)
		result = system_call(SYS_munmap, wanted.start, inside.start - wanted.start);
	if (inside.end < wanted.end && result == 0)
		result = system_call(SYS_munmap, inside.end, wanted.end - inside.end);
	layout_.visit(inside, [&](range some, const part &kind) {
		if (result == 0 && kind.used == use::taken)
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

/* What the region has there, but no holes. */
long heap::copy(range from, address to) const noexcept
{
	const address shift = to - from.start;
	long at = offset_of(from.start);
	const long end = offset_of(from.end);

	while (at < end) {
		at = system_call(SYS_lseek, fd_, at, SEEK_DATA);
		if (at == -ENXIO)
			return 0;
		if (at < 0)
			return at;

		const long hole = std::min(end, system_call(SYS_lseek, fd_, at, SEEK_HOLE));

		while (at < hole) {
			const long done = patient_call(
				SYS_pread64, fd_, all_.start + static_cast<address>(at) + shift,
				hole - at, at);

			if (done <= 0)
				return done < 0 ? done : -EFAULT;
			at += done;
		}
	}
	return 0;
}

long heap::hand_over(range wanted) noexcept
{
	const guard hold;

	if (!has(wanted) || !layout_.all_of(wanted, [](const part &kind) {
		    return kind == part{use::taken, readable_and_writable};
	    }))
		return -EINVAL;

	const long made = system_call(SYS_mmap, nullptr, wanted.size(), readable_and_writable,
				      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (is_error(made))
		return made;

	const kernel_call call = {SYS_mremap,
				  {made, static_cast<long>(wanted.size()),
				   static_cast<long>(wanted.size()), MREMAP_MAYMOVE | MREMAP_FIXED,
				   static_cast<long>(wanted.start), 0}};
	long result = copy(wanted, static_cast<address>(made));

	if (result == 0)
		result = map_over_locked(wanted, true, call);
	if (is_error(result))
		system_call(SYS_munmap, made, wanted.size());
	return result;
}

/* To where there is room, or to @target, in place of what is there. */
long heap::move(range old, int protection, std::size_t size, bool fixed, address target) noexcept
{
	const range wanted = {target, target + size};
	long moved = 0;

	if (!fixed)
		moved = find(0, size, readable_and_writable);
	else if (all_.has(wanted))
		moved = place_locked(wanted, readable_and_writable, true);
	else if (touches(wanted))
		return -EINVAL;
	if (moved == 0 || (!fixed && moved == -ENOMEM))
		moved = system_call(SYS_mmap, target, size, readable_and_writable,
				    MAP_PRIVATE | MAP_ANONYMOUS | (fixed ? MAP_FIXED : 0), -1, 0);
	if (is_error(moved))
		return moved;

	const auto start = static_cast<address>(moved);
	const range made = {start, start + size};
	long result = copy({old.start, std::min(old.end, old.start + size)}, start);

	if (result == 0 && protection != readable_and_writable) {
		result = system_call(SYS_mprotect, start, size, protection);
		if (result == 0 && touches(made) && can_change())
			layout_.assign(made, {use::taken, protection});
	}
	if (result == 0)
		result = release_locked(old);
	else
		release_locked(made);
	return result < 0 ? result : moved;
}

/* Of one mapping that is the heap's, where it is if that can be. */
long heap::resize_taken(range old, int protection, std::size_t size, bool may_move) noexcept
{
	const range tail = {old.start + size, old.end};
	const range growth = {old.end, old.start + size};
	long result = 0;

	if (!tail.empty())
		result = release_locked(tail);
	else if (!growth.empty() && all_.has(growth) && layout_.is_free(growth))
		result = take(growth, protection);
	else if (!growth.empty())
		return may_move ? move(old, protection, size, false, 0) : -ENOMEM;
	return is_error(result) ? result : static_cast<long>(old.start);
}

long heap::resize(range old, std::size_t size, int flags, address target) noexcept
{
	const guard hold;
	const bool fixed = flags & MREMAP_FIXED;
	const range wanted = {target, target + size};
	const part kind = touches(old) ? layout_.at(old.common(all_).start).second
				       : part{use::foreign};
	const auto is_alike = [&](const part &other) { return other == kind; };

	/* More than one mapping, or none. */
	if (kind.is_free() || !layout_.all_of(old, is_alike) || (touches(old) && !all_.has(old)))
		return -EFAULT;
	if (kind.used == use::foreign) {
		const kernel_call call = {SYS_mremap,
					  {static_cast<long>(old.start),
					   static_cast<long>(old.size()), static_cast<long>(size),
					   flags, static_cast<long>(target), 0}};

		return fixed && touches(wanted) ? map_over_locked(wanted, true, call) : call.make();
	}
	if (flags & MREMAP_DONTUNMAP || (fixed && !wanted.common(old).empty()))
		return -EINVAL;
	if (fixed)
		return move(old, kind.protection, size, true, target);
	return resize_taken(old, kind.protection, size, flags & MREMAP_MAYMOVE);
}

long heap::prepare(std::uint64_t budget) const noexcept
{
	cowsnap_prepare arg = {};

	arg.size = sizeof(arg);
	arg.budget = budget;

	const long result = system_call(SYS_ioctl, fd_, COWSNAP_IOC_PREPARE, &arg);

	return result < 0 ? result : static_cast<long>(arg.left);
}

struct heap::forking {
	kernel_call call;
	bool shares_descriptors;
};

long heap::fork_region() const noexcept
{
	cowsnap_fork arg = {};

	arg.size = sizeof(arg);

	const long result = patient_call(SYS_ioctl, fd_, COWSNAP_IOC_FORK, &arg);

	return result < 0 ? result : arg.fd;
}

/* Maps all of the child's region in place of the hole that it has there. */
long heap::map_all() noexcept
{
	long result = 0;
	range run = {all_.start, all_.start};
	const auto map_run = [&] {
		if (!run.empty() && !is_error(result))
			result = map(run, readable_and_writable);
	};

	layout_.visit(all_, [&](range some, const part &kind) {
		if (kind.used != use::foreign) {
			run.end = some.end;
			return;
		}
		map_run();
		run = {some.end, some.end};
	});
	map_run();
	layout_.visit(all_, [&](range some, const part &kind) {
		const int protection = kind.used == use::closed	 ? PROT_NONE
				       : kind.used == use::taken ? kind.protection
								 : readable_and_writable;

		if (protection != readable_and_writable && !is_error(result))
			result = system_call(SYS_mprotect, some.start, some.size(), protection);
	});
	return is_error(result) ? result : 0;
}

void heap::adopt(int fd, bool shares_descriptors) noexcept
{
	if (shares_descriptors) {
		fd_ = fd;
	} else if (system_call(SYS_dup3, fd, fd_, O_CLOEXEC) >= 0) {
		system_call(SYS_close, fd);
	} else {
		/* The limit was lowered below the number; that of the parent's region must not stay. */
		system_call(SYS_close, fd_);
		fd_ = fd;
	}
	pid_ = system_call(SYS_getpid);
	/* Without its memory it can do nothing, not even say so. */
	if (map_all() < 0)
		system_call(SYS_kill, system_call(SYS_getpid), SIGKILL);
}

/* What a child needs of this before it has its memory must not be in its parent's. */
long heap::fork_locked(forking how) noexcept
{
	const long fd = fork_region();

	if (fd < 0)
		return fd;

	const long pid = how.call.make();

	if (pid == 0)
		adopt(static_cast<int>(fd), how.shares_descriptors);
	else if (pid < 0 || !how.shares_descriptors)
		system_call(SYS_close, fd);
	return pid;
}

long heap::fork(const kernel_call &call, bool shares_descriptors) noexcept
{
	/* Of the process's own memory, so that the child has a copy. */
	alignas(64) static std::byte stack[16 << 10];
	const guard hold;
	const restartable_sequences pause(all_);
	forking how = {call, shares_descriptors};

	/*
	 * A child on a stack in the heap would have none until it has mapped its own. It returns there
	 * to what the stack was when the region was forked, which is what it is now.
	 */
	if (!is_in(all_, __builtin_frame_address(0)))
		return fork_locked(how);
	return cowsnap_preload_on_stack(
		[](void *self, void *copied) {
			return static_cast<heap *>(self)->fork_locked(
				*static_cast<const forking *>(copied));
		},
		this, &how, stack + sizeof(stack));
}

} // namespace cowsnap_preload
