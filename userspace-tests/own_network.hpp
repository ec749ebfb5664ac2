// SPDX-License-Identifier: GPL-2.0-only
/* A network of its own, with nothing in it but a loopback device that is up. */
#pragma once

#include <cstring>
#include <exception>
#include <thread>

#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "unique_fd.hpp"

namespace cowsnap_test {

/* The loopback device's number, in any network. */
inline constexpr unsigned int loopback_index = 1;

/* Runs @action in a network that lasts as long as the sockets made there. */
template <typename Action>
void in_own_network(Action action)
{
	std::exception_ptr error;

	std::thread([&] {
		try {
			ifreq loopback = {};

			check(::unshare(CLONE_NEWNET), "unshare");

			const unique_fd any(check(
				::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0),
				"socket"));

			std::strcpy(loopback.ifr_name, "lo");
			loopback.ifr_flags = IFF_UP;
			check(::ioctl(any.get(), SIOCSIFFLAGS, &loopback),
			      "SIOCSIFFLAGS");
			action();
		} catch (...) {
			error = std::current_exception();
		}
	}).join();
	if (error)
		std::rethrow_exception(error);
}

} // namespace cowsnap_test
