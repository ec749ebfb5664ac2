// SPDX-License-Identifier: MIT
/*
 * System calls without the C library: neither errno nor what the program or this library put in front of
 * its functions. They return -errno as the kernel does.
 */
#pragma once

#include <bit>
#include <cerrno>
#include <cstdint>
#include <type_traits>

#include <sys/syscall.h>

/*
 * All system calls of the library are made by the first of these, and signal handlers of the
 * kernel's kind return by the second, so that one range of addresses has them: see dispatch.cpp.
 */
extern "C" {
long cowsnap_preload_call(long number, long a, long b, long c, long d, long e, long f) noexcept;
void cowsnap_preload_sigreturn() noexcept;
/* Calls @function(@a, @b) on the stack that ends at @top. */
long cowsnap_preload_on_stack(long (*function)(void *, void *), void *a, void *b,
			      void *top) noexcept;
extern const char cowsnap_preload_calls[], cowsnap_preload_calls_end[];
}

namespace cowsnap_preload {

template <typename Argument> long to_register(Argument argument) noexcept
{
	if constexpr (std::is_pointer_v<Argument> || std::is_null_pointer_v<Argument>)
		return std::bit_cast<long>(argument);
	else
		return static_cast<long>(argument);
}

template <typename... Arguments> long system_call(long number, Arguments... arguments) noexcept
{
	const long all[6] = {to_register(arguments)...};

	return cowsnap_preload_call(number, all[0], all[1], all[2], all[3], all[4], all[5]);
}

/* One that a signal may interrupt, and that is to be done all the same. */
template <typename... Arguments> long patient_call(long number, Arguments... arguments) noexcept
{
	long result = system_call(number, arguments...);

	while (result == -EINTR)
		result = system_call(number, arguments...);
	return result;
}

/* One to be made later, whichever it is. */
struct kernel_call {
	long number;
	long arguments[6];

	long make() const noexcept
	{
		return cowsnap_preload_call(number, arguments[0], arguments[1], arguments[2],
					    arguments[3], arguments[4], arguments[5]);
	}
};

/* What -errno is among the results of a call that returns addresses. */
inline bool is_error(long result) noexcept
{
	return static_cast<unsigned long>(result) > static_cast<unsigned long>(-4096L);
}

/* As the functions of the C library return it. */
inline long or_errno(long result) noexcept
{
	if (!is_error(result))
		return result;
	errno = static_cast<int>(-result);
	return -1;
}

} // namespace cowsnap_preload
