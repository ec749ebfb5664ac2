// SPDX-License-Identifier: GPL-2.0-only
/* A file descriptor that closes itself, and errno as an exception. */
#pragma once

#include <cerrno>
#include <string>
#include <system_error>
#include <utility>

#include <unistd.h>

namespace cowsnap_test {

/* Throws what errno says when a call that returns -1 on failure failed. */
template <typename Result>
Result check(Result result, const std::string &what)
{
	if (result == static_cast<Result>(-1))
		throw std::system_error(errno, std::generic_category(), what);
	return result;
}

class unique_fd {
public:
	unique_fd() = default;
	explicit unique_fd(int fd) noexcept : fd_(fd) {}
	unique_fd(unique_fd &&other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
	unique_fd &operator=(unique_fd &&other) noexcept
	{
		std::swap(fd_, other.fd_);
		other.reset();
		return *this;
	}
	~unique_fd() { reset(); }

	int get() const noexcept { return fd_; }
	explicit operator bool() const noexcept { return fd_ >= 0; }

	void reset() noexcept
	{
		if (fd_ >= 0)
			::close(std::exchange(fd_, -1));
	}

private:
	int fd_ = -1;
};

} // namespace cowsnap_test
