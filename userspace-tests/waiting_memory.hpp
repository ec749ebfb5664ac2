// SPDX-License-Identifier: GPL-2.0-only
/* System calls that stop in the middle until the test lets them go on. */
#pragma once

#include <cerrno>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include "mapping.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

/* A system call in a thread of its own, which must end before the object goes. */
class call_in_a_thread {
public:
	template <typename Call>
	explicit call_in_a_thread(Call call)
		: thread_([this, call = std::move(call)] {
			  result_ = call();
			  if (result_ < 0)
				  result_ = -errno;
		  })
	{
	}
	call_in_a_thread(const call_in_a_thread &) = delete;

	/* Waits for the end; what the call returned, or -errno. */
	ssize_t result()
	{
		thread_.join();
		return result_;
	}
	/* Throws unless that is @wanted. */
	void expect(ssize_t wanted)
	{
		if (result() != wanted)
			throw std::runtime_error("a call in a thread returned " +
						 std::to_string(result_));
	}

private:
	ssize_t result_ = 0;
	std::jthread thread_;
};

/*
 * Memory whose first touch waits until the test says what it holds: a system call
 * that copies from or to it stops in the middle, with what it pinned.
 */
class waiting_memory {
public:
	waiting_memory()
		: uffd_(static_cast<int>(::syscall(SYS_userfaultfd,
						   O_CLOEXEC | O_NONBLOCK))),
		  memory_(anonymous(page_size))
	{
		if (!uffd_)
			return;

		uffdio_api api = {UFFD_API, 0, 0};
		uffdio_register arg = {address_range(),
				       UFFDIO_REGISTER_MODE_MISSING, 0};

		check(::ioctl(uffd_.get(), UFFDIO_API, &api), "UFFDIO_API");
		check(::ioctl(uffd_.get(), UFFDIO_REGISTER, &arg),
		      "UFFDIO_REGISTER");
	}

	bool supported() const { return static_cast<bool>(uffd_); }
	std::byte *data() const { return memory_.data(); }

	/* Waits until somebody waits. */
	void await() const
	{
		pollfd wanted = {uffd_.get(), POLLIN, 0};
		uffd_msg message = {};

		if (check(::poll(&wanted, 1, 30'000), "poll") == 0)
			throw std::runtime_error("nobody touched the memory");
		check(::read(uffd_.get(), &message, sizeof(message)), "read");
	}

	/* Lets who waits go on, with @value in the page. */
	void provide(unsigned int value) const
	{
		std::vector<std::byte> bytes = bytes_of(page_size, value);
		uffdio_copy arg = {};

		arg.dst = reinterpret_cast<std::uintptr_t>(memory_.data());
		arg.src = reinterpret_cast<std::uintptr_t>(bytes.data());
		arg.len = page_size;
		check(::ioctl(uffd_.get(), UFFDIO_COPY, &arg), "UFFDIO_COPY");
	}

private:
	uffdio_range address_range() const
	{
		return {reinterpret_cast<std::uintptr_t>(memory_.data()),
			memory_.size()};
	}

	unique_fd uffd_;
	mapping memory_;
};

/* Pins a page from the start, and writes to it by that when it is told to. */
class pinned_write {
public:
	explicit pinned_write(std::span<std::byte> page)
	{
		call_.emplace([this, page] {
			const iovec local = {source_.data(), page.size()};
			const iovec remote = {page.data(), page.size()};

			return ::process_vm_writev(::getpid(), &local, 1, &remote,
						   1, 0);
		});
		source_.await();
	}

	void write(unsigned int value)
	{
		source_.provide(value);
		call_->expect(page_size);
	}

private:
	waiting_memory source_;
	std::optional<call_in_a_thread> call_;
};

} // namespace cowsnap_test
