// SPDX-License-Identifier: MIT
/* A child process with an owner. */
#pragma once

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <system_error>
#include <utility>

#include <sys/wait.h>
#include <unistd.h>

namespace example {

/* Runs a function in a child by fork(2). One that nobody waited for is killed at the end. */
class process {
public:
	template <typename Call> explicit process(Call &&call)
	{
		/* What is still to be written would be written by both. */
		std::cout.flush();
		pid_ = ::fork();
		if (pid_ < 0)
			throw std::system_error(errno, std::generic_category(), "fork");
		if (pid_ == 0)
			run(call);
	}
	process(process &&other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
	process &operator=(process &&) = delete;
	~process()
	{
		if (pid_ > 0) {
			::kill(pid_, SIGKILL);
			wait();
		}
	}

	pid_t pid() const { return pid_; }

	/* The status, as waitpid(2) has it: 0 when the function returned. */
	int wait()
	{
		int status = -1;
		const pid_t pid = std::exchange(pid_, -1);

		while (::waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		return status;
	}

private:
	/* The objects of the parent are not the child's to destroy. */
	template <typename Call> [[noreturn]] static void run(Call &call)
	{
		int status = EXIT_SUCCESS;

		try {
			call();
		} catch (const std::exception &error) {
			std::cerr << error.what() << '\n';
			status = EXIT_FAILURE;
		}
		std::cout.flush();
		std::_Exit(status);
	}

	pid_t pid_ = -1;
};

} // namespace example
