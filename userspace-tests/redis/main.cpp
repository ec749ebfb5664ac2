// SPDX-License-Identifier: GPL-2.0-only
/*
 * cowsnap-redis: runs Redis with and without forks of memory, in a VM that is
 * there for that. In the environment: REDIS_DO=checks or figures, REDIS_KEYS,
 * REDIS_REQUESTS, REDIS_RATE, REDIS_WHOLE=1; see figures.hpp.
 */
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "checks.hpp"
#include "figures.hpp"
#include "demo/results.hpp"
#include "demo/setting.hpp"
#include "unique_fd.hpp"

namespace {

using namespace cowsnap_redis;

/* A replica speaks to its server over TCP. */
void bring_loopback_up()
{
	const cowsnap_test::unique_fd any(
		cowsnap_test::check(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket"));
	ifreq loopback = {};

	std::strcpy(loopback.ifr_name, "lo");
	loopback.ifr_flags = IFF_UP;
	cowsnap_test::check(::ioctl(any.get(), SIOCSIFFLAGS, &loopback), "SIOCSIFFLAGS");
}

/* So that a batch of keys is on its way at once: an emulated CPU takes its time to go from one program to another. */
void widen_sockets()
{
	for (const char *const name : {"wmem_max", "wmem_default"}) {
		std::ofstream file(std::string("/proc/sys/net/core/") + name);

		file << (4 << 20) << std::flush;
		if (!file)
			throw std::runtime_error(std::string("cannot set net.core.") + name);
	}
}

int run()
{
	const std::string what = cowsnap_demo::setting("REDIS_DO");
	const sizes size = {std::stoull(cowsnap_demo::setting("REDIS_KEYS")),
			    std::stoull(cowsnap_demo::setting("REDIS_REQUESTS")),
			    std::stoull(cowsnap_demo::setting("REDIS_RATE")),
			    cowsnap_demo::setting("REDIS_WHOLE") == "1"};
	cowsnap_demo::results results;

	bring_loopback_up();
	widen_sockets();
	if (what == "checks") {
		for (const flavour &memory : {plain, forked})
			check_saves(memory, size.keys, results);
		if (size.whole)
			check_save(forked, 4 * size.keys, results);
	} else {
		compare(size, results);
	}
	std::cout << "redis-" << what << ": " << results.passed() << " passed, " << results.failed() << " failed\n";
	return results.failed() ? EXIT_FAILURE : EXIT_SUCCESS;
}

} // namespace

int main()
{
	/* For who watches. */
	std::cout << std::unitbuf;
	try {
		return run();
	} catch (const std::exception &error) {
		std::cout << "cowsnap-redis: " << error.what() << '\n';
		return EXIT_FAILURE;
	}
}
