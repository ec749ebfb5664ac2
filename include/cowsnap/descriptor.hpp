// SPDX-License-Identifier: MIT
/* A file descriptor with an owner. */
#pragma once

#include <utility>

#include <unistd.h>

namespace cowsnap {

/* Closes the descriptor that it has, if any. */
class descriptor {
public:
	descriptor() noexcept = default;
	/* Takes over @fd; a negative one is none. */
	explicit descriptor(int fd) noexcept : fd_(fd) {}
	descriptor(descriptor &&other) noexcept : fd_(other.release()) {}
	descriptor &operator=(descriptor &&other) noexcept
	{
		if (this != &other) {
			close();
			fd_ = other.release();
		}
		return *this;
	}
	~descriptor() { close(); }

	/* -1 or less when there is none. */
	int get() const noexcept { return fd_; }
	explicit operator bool() const noexcept { return fd_ >= 0; }

	/* Gives the descriptor to the caller, who closes it. */
	[[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }

	void close() noexcept
	{
		if (fd_ >= 0)
			::close(release());
	}

private:
	int fd_ = -1;
};

} // namespace cowsnap
