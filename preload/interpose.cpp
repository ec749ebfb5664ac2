// SPDX-License-Identifier: MIT
/* The functions of the C library that this library stands in front of. */
#include <atomic>
#include <cstdarg>
#include <cstdint>

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include "dispatch.hpp"
#include "heap.hpp"
#include "system.hpp"

using namespace cowsnap_preload;

namespace {

std::size_t to_pages(std::size_t size)
{
	return (size + page_size - 1) & ~(page_size - 1);
}

bool is_aligned(const void *start)
{
	return reinterpret_cast<address>(start) % page_size == 0;
}

/* Empty when it is no range that any call takes. */
range range_of(const void *start, std::size_t size)
{
	const auto first = reinterpret_cast<address>(start);
	const std::size_t whole = to_pages(size);

	if (!is_aligned(start) || whole < size || first + whole < first)
		return {};
	return {first, first + whole};
}

/* The heap, if any of that is in it; not that of a parent, in a child that was forked without it. */
heap *heap_of(const range &wanted)
{
	heap::leave_if_inherited();

	heap *const memory = heap::existing();

	return memory && !wanted.empty() && memory->touches(wanted) ? memory : nullptr;
}

void *to_pointer(long result)
{
	return reinterpret_cast<void *>(or_errno(result));
}

template <typename Function> Function *next(const char *name)
{
	return reinterpret_cast<Function *>(::dlsym(RTLD_NEXT, name));
}

constexpr int fixed_flags = MAP_FIXED | MAP_FIXED_NOREPLACE;

bool is_for_heap(int protection, int flags)
{
	constexpr int wanted = MAP_PRIVATE | MAP_ANONYMOUS;
	constexpr int harmless = MAP_NORESERVE | MAP_POPULATE | fixed_flags;

	return (flags & wanted) == wanted && !(flags & ~(wanted | harmless)) &&
	       !(protection & ~(PROT_READ | PROT_WRITE));
}

/* What @call maps at these addresses, in the heap where it can be. */
long map_there(const kernel_call &call, range wanted, bool takes, int protection, bool replace)
{
	heap *const memory = heap_of(wanted);

	if (!memory)
		return call.make();
	if (!takes || !memory->has(wanted))
		return memory->map_over(wanted, replace, call);
	return memory->place(wanted, protection, replace);
}

long map_anywhere(const kernel_call &call, address hint, std::size_t size, int protection)
{
	heap::leave_if_inherited();

	heap *const memory = size >= heap::smallest ? heap::get() : nullptr;
	const long result = memory ? memory->allocate(hint, size, protection) : -ENOMEM;

	return result == -ENOMEM ? call.make() : result;
}

long map(void *start, std::size_t size, int protection, int flags, int fd, off_t offset)
{
	const kernel_call call = {SYS_mmap,
				  {to_register(start), static_cast<long>(size), protection, flags,
				   fd, offset}};
	const range wanted = range_of(start, size);
	/* The kernel refuses other offsets, though there is no file. */
	const bool takes = is_for_heap(protection, flags) && to_pages(size) >= size &&
			   offset % static_cast<off_t>(page_size) == 0;
	const bool replace = !(flags & MAP_FIXED_NOREPLACE);
	long result;

	if (flags & fixed_flags)
		result = map_there(call, wanted, takes, protection, replace);
	else if (takes)
		result = map_anywhere(call, wanted.start, to_pages(size), protection);
	else
		return call.make();
	/* As the kernel does, which does not tell whether it could. */
	if (!is_error(result) && takes && flags & MAP_POPULATE)
		system_call(SYS_madvise, result, size,
			    protection & PROT_WRITE ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
	return result;
}

/* Closes a range of descriptors, but for the heap's. */
long close_descriptors(unsigned first, unsigned last, int flags)
{
	const heap *const memory = heap::existing();
	const auto ours = memory ? static_cast<unsigned>(memory->fd()) : 0;

	if (!memory || ours < first || ours > last)
		return system_call(SYS_close_range, first, last, flags);

	long result = first < ours ? system_call(SYS_close_range, first, ours - 1, flags) : 0;

	if (result == 0 && ours < last)
		result = system_call(SYS_close_range, ours + 1, last, flags);
	return result;
}

bool is_ours(int fd)
{
	const heap *const memory = heap::existing();

	return memory && fd == memory->fd();
}

using register_atfork = int(void (*)(), void (*)(), void (*)(), void *);

/*
 * The first that are registered run last before a fork, and first after it. The C library's function
 * has no need of the program's handle of this library, which is never unloaded.
 */
void register_handlers()
{
	static std::atomic<bool> done = false;

	if (!done.exchange(true))
		next<register_atfork>("__register_atfork")(arm, disarm, start_child, nullptr);
}

__attribute__((constructor)) void start()
{
	register_handlers();
}

} // namespace

extern "C" {

int __register_atfork(void (*prepare)(), void (*parent)(), void (*child)(),
				     void *handle)
{
	register_handlers();
	return next<register_atfork>("__register_atfork")(prepare, parent, child, handle);
}

void *mmap(void *start, std::size_t size, int protection, int flags, int fd,
	     off_t offset) noexcept
{
	return to_pointer(map(start, size, protection, flags, fd, offset));
}

void *mmap64(void *start, std::size_t size, int protection, int flags, int fd,
	     off_t offset) noexcept
{
	return to_pointer(map(start, size, protection, flags, fd, offset));
}

int munmap(void *start, std::size_t size) noexcept
{
	const range wanted = range_of(start, size);
	heap *const memory = heap_of(wanted);

	return static_cast<int>(or_errno(memory ? memory->release(wanted)
						: system_call(SYS_munmap, start, size)));
}

int madvise(void *start, std::size_t size, int advice) noexcept
{
	const range wanted = range_of(start, size);
	heap *const memory = heap_of(wanted);

	return static_cast<int>(
		or_errno(memory ? memory->advise(wanted, advice)
				: system_call(SYS_madvise, start, size, advice)));
}

int mprotect(void *start, std::size_t size, int protection) noexcept
{
	const range wanted = range_of(start, size);
	heap *const memory = heap_of(wanted);

	return static_cast<int>(
		or_errno(memory ? memory->protect(wanted, protection)
				: system_call(SYS_mprotect, start, size, protection)));
}

void *mremap(void *start, std::size_t old_size, std::size_t new_size, int flags, ...) noexcept
{
	va_list rest;

	va_start(rest, flags);

	void *const target = flags & MREMAP_FIXED ? va_arg(rest, void *) : nullptr;

	va_end(rest);

	constexpr int known = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
	const range old = range_of(start, old_size);
	const range wanted = range_of(target, new_size);
	heap *memory = heap_of(old);

	if (!memory && flags & MREMAP_FIXED)
		memory = heap_of(wanted);
	/* What is wrong in itself the kernel knows best. */
	if (!memory || old.empty() || range_of(start, new_size).empty() || flags & ~known ||
	    (flags & MREMAP_FIXED && (wanted.empty() || !(flags & MREMAP_MAYMOVE))))
		return to_pointer(
			system_call(SYS_mremap, start, old_size, new_size, flags, target));
	return to_pointer(memory->resize(old, to_pages(new_size), flags, wanted.start));
}

int close(int fd)
{
	return static_cast<int>(or_errno(is_ours(fd) ? -EBADF : system_call(SYS_close, fd)));
}

int close_range(unsigned first, unsigned last, int flags) noexcept
{
	return static_cast<int>(or_errno(close_descriptors(first, last, flags)));
}

void closefrom(int first) noexcept
{
	close_descriptors(static_cast<unsigned>(first < 0 ? 0 : first), ~0U, 0);
}

/* As for a number above the limit. */
int dup2(int from, int to) noexcept
{
	return static_cast<int>(or_errno(is_ours(to) ? -EBADF : system_call(SYS_dup2, from, to)));
}

int dup3(int from, int to, int flags) noexcept
{
	return static_cast<int>(
		or_errno(is_ours(to) ? -EBADF : system_call(SYS_dup3, from, to, flags)));
}

/*
 * On a stack lies what a thread waits on for the end of another, and the kernel wakes it up as what
 * processes share, which it cannot in a region: there the memory becomes the kernel's own. That lies at
 * the end, so the page in which the stack ends goes along.
 */
int pthread_attr_setstack(pthread_attr_t *attributes, void *stack, std::size_t size) noexcept
{
	using function = int(pthread_attr_t *, void *, std::size_t);
	const int result = next<function>("pthread_attr_setstack")(attributes, stack, size);
	const auto start = reinterpret_cast<address>(stack);
	const range whole = {to_pages(start), to_pages(start + size)};

	if (result == 0)
		if (heap *const memory = heap_of(whole))
			memory->hand_over(whole);
	return result;
}

/* fork() without handlers. What has to be looked up is before a system call is a signal. */
pid_t _Fork() noexcept
{
	auto *const fork_process = next<pid_t()>("_Fork");

	arm();

	const pid_t pid = fork_process();

	if (pid == 0)
		start_child();
	else
		disarm();
	return pid;
}

int clone(int (*function)(void *), void *stack, int flags, void *argument, ...) noexcept
{
	auto *const make = next<int(int (*)(void *), void *, int, void *, ...)>("clone");
	va_list rest;

	va_start(rest, argument);

	auto *const parent_tid = va_arg(rest, pid_t *);
	void *const tls = va_arg(rest, void *);
	auto *const child_tid = va_arg(rest, pid_t *);

	va_end(rest);
	if (!(flags & CLONE_VM))
		arm();

	const int pid = make(function, stack, flags, argument, parent_tid, tls, child_tid);

	disarm();
	return pid;
}

} // extern "C"
