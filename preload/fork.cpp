// SPDX-License-Identifier: MIT
/* A fork of the process with the heap. */
#include "heap.hpp"

#include <algorithm>

#include <fcntl.h>
#include <linux/cowsnap.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/rseq.h>

#include "guard.hpp"

namespace cowsnap_preload {
namespace {

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
