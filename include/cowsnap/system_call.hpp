// SPDX-License-Identifier: MIT
/*
 * How the library calls the kernel: what all of its headers share, and nothing for
 * those who use it.
 *
 * What can fail has two forms. One sets a std::error_code, or clears it; the other
 * calls that one and throws std::system_error. Errors are errno values in
 * std::generic_category(), so that they compare with std::errc.
 */
#pragma once

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <type_traits>
#include <utility>

#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/types.h>

namespace cowsnap::detail {

/*
 * What @call returns: a system call, where -1 is failure. This is the one place where
 * calls that a signal interrupted are made again: FORK, RESTORE, PREPARE and STAT may be
 * by any signal, and others only where the process is about to end.
 */
template <typename Call>
auto system_call(std::error_code &error, Call &&call) noexcept
{
	auto result = call();

	while (result == -1 && errno == EINTR)
		result = call();
	if (result == -1)
		error.assign(errno, std::generic_category());
	else
		error.clear();
	return result;
}

inline bool control(int fd, unsigned long request, void *arg,
		    std::error_code &error) noexcept
{
	return system_call(error, [=] { return ::ioctl(fd, request, arg); }) != -1;
}

/* A zeroed argument of an ioctl, which knows its size. */
template <typename Argument> Argument sized() noexcept
{
	Argument arg = {};

	arg.size = sizeof(arg);
	return arg;
}

inline void fail(std::error_code &error, std::errc reason) noexcept
{
	error = std::make_error_code(reason);
}

/* EOVERFLOW instead of another value where off_t cannot hold this one. */
inline off_t to_off(std::uint64_t value, std::error_code &error) noexcept
{
	if (std::in_range<off_t>(value))
		error.clear();
	else
		fail(error, std::errc::value_too_large);
	return static_cast<off_t>(value);
}

inline std::uint64_t file_length(int fd, std::error_code &error) noexcept
{
	struct stat status = {};

	system_call(error, [&] { return ::fstat(fd, &status); });
	return static_cast<std::uint64_t>(status.st_size);
}

/* What @call returns, unless it sets the error that it is given. */
template <typename Call> auto or_throw(const char *what, Call &&call)
{
	std::error_code error;

	if constexpr (std::is_void_v<std::invoke_result_t<Call, std::error_code &>>) {
		call(error);
		if (error)
			throw std::system_error(error, what);
	} else {
		auto result = call(error);

		if (error)
			throw std::system_error(error, what);
		return result;
	}
}

} // namespace cowsnap::detail
