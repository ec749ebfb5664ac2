// SPDX-License-Identifier: GPL-2.0-only
/* A child process and the socket that it is spoken to through. */
#pragma once

#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include <sys/socket.h>
#include <sys/wait.h>

#include "process.hpp"

namespace cowsnap_demo {

template <typename Message>
void send_message(int socket, const Message &message)
{
	cowsnap_test::check(::send(socket, &message, sizeof(message), MSG_NOSIGNAL),
			    "cannot speak to another process of the demo");
}

/* False when the other side is gone. */
template <typename Message>
bool receive_message(int socket, Message &message)
{
	return ::recv(socket, &message, sizeof(message), MSG_WAITALL) ==
	       static_cast<ssize_t>(sizeof(message));
}

class party {
public:
	/* @body gets the child's end of the socket and returns to end the child. */
	template <typename Body>
	party(std::string name, Body body)
		: name_(std::move(name)), child_([&] {
			  sockets_.ours.reset();
			  body(sockets_.theirs.get());
		  })
	{
		/* So that the child's death reads as the end of the stream. */
		sockets_.theirs.reset();
	}

	void give(int fd) const { cowsnap_test::send_fd(sockets_.ours.get(), fd); }

	template <typename Message>
	void tell(const Message &message) const
	{
		send_message(sockets_.ours.get(), message);
	}

	template <typename Message>
	Message hear()
	{
		Message message;

		if (receive_message(sockets_.ours.get(), message))
			return message;

		const int status = child_.finish();

		throw std::runtime_error(
			"the " + name_ + " ended early (" +
			(WIFSIGNALED(status) ? ::strsignal(WTERMSIG(status)) : "an error") +
			"): it takes more memory, max_bytes of the module included, or "
			"a smaller FILE");
	}

	/* The child sees the end of the stream and ends. */
	void end()
	{
		sockets_.ours.reset();
		child_.finish();
	}

private:
	std::string name_;
	cowsnap_test::socket_pair sockets_;
	cowsnap_test::child child_;
};

} // namespace cowsnap_demo
