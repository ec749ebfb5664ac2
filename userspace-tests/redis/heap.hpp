// SPDX-License-Identifier: GPL-2.0-only
/* The region that a server has its memory in, seen from outside. */
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include <sys/syscall.h>
#include <unistd.h>

#include "region.hpp"
#include "server.hpp"
#include "unique_fd.hpp"

namespace cowsnap_redis {

class heap {
public:
	explicit heap(const server &of)
	{
		const std::filesystem::path files = "/proc/" + std::to_string(of.pid()) + "/fd";
		const cowsnap_test::unique_fd process(call(SYS_pidfd_open, of.pid(), 0, 0));

		for (const auto &file : std::filesystem::directory_iterator(files))
			if (std::filesystem::read_symlink(file).string().find("cowsnap") != std::string::npos)
				region_ = cowsnap_test::region(cowsnap_test::unique_fd(
					call(SYS_pidfd_getfd, process.get(), std::stoi(file.path().filename()), 0)));
	}

	/* False where the memory is the kernel's. */
	explicit operator bool() const { return region_.fd() >= 0; }

	/* Bytes of pages that changed since the last fork. */
	std::uint64_t written() const { return region_.stat().dirty; }

private:
	/* One that the C library has no function for. */
	static int call(long number, int first, int second, int third)
	{
		return static_cast<int>(cowsnap_test::check(::syscall(number, first, second, third), "pidfd"));
	}

	cowsnap_test::region region_;
};

} // namespace cowsnap_redis
