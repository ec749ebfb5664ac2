// SPDX-License-Identifier: GPL-2.0-only
/* Child processes: run, wait for, step along, hand descriptors to. */
#pragma once

#include <array>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mapping.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

/* As execve(2) takes them, for as long as @texts stay as they are. */
inline std::vector<char *> pointers_to(std::vector<std::string> &texts)
{
	std::vector<char *> result;

	for (std::string &text : texts)
		result.push_back(text.data());
	result.push_back(nullptr);
	return result;
}

/* The EXPECT of a child process, which must not run GoogleTest's listeners. */
inline void require(bool holds, std::string_view what,
		    std::source_location where = std::source_location::current())
{
	if (!holds)
		throw std::runtime_error(std::string(where.file_name()) + ":" +
					 std::to_string(where.line()) + " " +
					 std::string(what));
}

/*
 * A process that runs @body and exits: 0, or 1 when @body threw.  It dies with
 * its parent, and at the latest when the object goes.
 */
class child {
public:
	template <typename Body>
	explicit child(Body &&body)
	{
		std::fflush(stdout);
		pid_ = check(::fork(), "fork");
		if (pid_ == 0)
			run(std::forward<Body>(body));
	}
	child(child &&other) noexcept
		: pid_(std::exchange(other.pid_, -1)), status_(other.status_)
	{
	}
	child &operator=(child &&) = delete;
	~child()
	{
		if (pid_ > 0)
			finish(SIGKILL);
	}

	pid_t pid() const noexcept { return pid_; }

	/* The wait status; kills with @signal first unless that is 0. */
	int finish(int signal = 0) noexcept
	{
		if (pid_ <= 0)
			return status_;
		if (signal)
			::kill(pid_, signal);
		while (::waitpid(pid_, &status_, 0) < 0 && errno == EINTR)
			;
		pid_ = -1;
		return status_;
	}
	bool succeeded() noexcept
	{
		const int status = finish();

		return WIFEXITED(status) && WEXITSTATUS(status) == 0;
	}
	bool killed_by(int signal) noexcept
	{
		const int status = finish();

		return WIFSIGNALED(status) && WTERMSIG(status) == signal;
	}

private:
	template <typename Body>
	[[noreturn]] static void run(Body &&body)
	{
		int status = 0;

		::prctl(PR_SET_PDEATHSIG, SIGKILL);
		try {
			body();
		} catch (const std::exception &error) {
			std::printf("# in a child: %s\n", error.what());
			std::fflush(stdout);
			status = 1;
		}
		::_exit(status);
	}

	pid_t pid_ = -1;
	int status_ = 0;
};

/* What one process waits for and another tells. */
class event {
public:
	event() : fd_(check(::eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE), "eventfd")) {}
	/* One that another program made. */
	explicit event(unique_fd fd) : fd_(std::move(fd)) {}

	int fd() const noexcept { return fd_.get(); }

	void tell() const
	{
		const std::uint64_t one = 1;

		check(::write(fd_.get(), &one, sizeof(one)), "eventfd write");
	}
	/* Throws when nobody tells for a minute: the teller died or hangs. */
	void wait() const
	{
		std::uint64_t count = 0;
		pollfd wanted = {fd_.get(), POLLIN, 0};
		const int ready = check(::poll(&wanted, 1, 60'000), "poll");

		if (!ready)
			throw std::runtime_error("waited a minute for an event in vain");
		check(::read(fd_.get(), &count, sizeof(count)), "eventfd read");
	}

private:
	unique_fd fd_;
};

/* An object that children share with the process that made it. */
template <typename Object>
class shared {
public:
	shared()
		: memory_(-1, sizeof(Object), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS),
		  object_(std::construct_at(
			  reinterpret_cast<Object *>(memory_.data())))
	{
	}
	Object *operator->() const noexcept { return object_; }
	Object &operator*() const noexcept { return *object_; }

private:
	mapping memory_;
	Object *object_;
};

struct pipe_pair {
	unique_fd read_end, write_end;

	pipe_pair()
	{
		std::array<int, 2> fds = {};

		check(::pipe2(fds.data(), O_CLOEXEC), "pipe2");
		read_end = unique_fd(fds[0]);
		write_end = unique_fd(fds[1]);
	}
};

struct socket_pair {
	unique_fd ours, theirs;

	socket_pair()
	{
		std::array<int, 2> fds = {};

		check(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0,
				   fds.data()),
		      "socketpair");
		ours = unique_fd(fds[0]);
		theirs = unique_fd(fds[1]);
	}
};

inline void send_fd(int socket, int fd)
{
	alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control = {};
	char payload = 'f';
	iovec vector = {&payload, 1};
	msghdr message = {};

	message.msg_iov = &vector;
	message.msg_iovlen = 1;
	message.msg_control = control.data();
	message.msg_controllen = control.size();

	cmsghdr *const header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	check(::sendmsg(socket, &message, 0), "sendmsg");
}

inline unique_fd receive_fd(int socket)
{
	alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control = {};
	char payload = 0;
	iovec vector = {&payload, 1};
	msghdr message = {};
	int fd = -1;

	message.msg_iov = &vector;
	message.msg_iovlen = 1;
	message.msg_control = control.data();
	message.msg_controllen = control.size();
	check(::recvmsg(socket, &message, MSG_CMSG_CLOEXEC), "recvmsg");

	const cmsghdr *const header = CMSG_FIRSTHDR(&message);

	if (!header || header->cmsg_type != SCM_RIGHTS)
		throw std::runtime_error("a message came without a descriptor");
	std::memcpy(&fd, CMSG_DATA(header), sizeof(fd));
	return unique_fd(fd);
}

} // namespace cowsnap_test
