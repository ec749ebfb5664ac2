// SPDX-License-Identifier: GPL-2.0-only
/* What the tests of the C++ library share. */
#pragma once

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <fcntl.h>

#include <cowsnap/cowsnap.hpp>

#include "fixture.hpp"

namespace cowsnap_test::of_library {

/* Whether @fd is open. */
inline bool is_open(int fd) { return ::fcntl(fd, F_GETFD) != -1; }

inline cowsnap::descriptor another(int fd)
{
	return cowsnap::descriptor(check(::fcntl(fd, F_DUPFD_CLOEXEC, 0), "fcntl"));
}

/* std::move() of what is looked at afterwards, which clang-tidy would warn of. */
template <typename Type> Type &&given(Type &value) { return static_cast<Type &&>(value); }

inline std::size_t open_descriptors()
{
	return static_cast<std::size_t>(std::ranges::distance(
		std::filesystem::directory_iterator("/proc/self/fd"),
		std::filesystem::directory_iterator()));
}

inline std::vector<std::byte> page_of(unsigned int value)
{
	return bytes_of(page_size, value);
}

inline std::byte first_byte(const cowsnap::member &of, std::uint64_t offset = 0)
{
	std::array<std::byte, 1> byte = {};

	EXPECT_EQ(of.read(offset, byte), 1u);
	return byte[0];
}

/* @call, which is given an error_code or nothing, fails with @code, and says that it is @name. */
template <typename Call>
void expect_error(int code, std::string_view name, Call &&call)
{
	const std::error_code expected(code, std::generic_category());
	std::error_code error;

	SCOPED_TRACE(name);
	call(error);
	EXPECT_EQ(error, expected) << error.message();
	try {
		call();
		ADD_FAILURE() << "did not throw";
	} catch (const std::system_error &thrown) {
		EXPECT_EQ(thrown.code(), expected) << thrown.what();
		EXPECT_TRUE(std::string_view(thrown.what())
				    .starts_with("cowsnap: " + std::string(name) + ": "))
			<< thrown.what();
	}
}

/* Returns what the second form gives; both forms succeed, and an old error is gone. */
template <typename Call> auto both(Call &&call)
{
	std::error_code error(EIO, std::generic_category());

	call(error);
	EXPECT_EQ(error, std::error_code());
	return call();
}

class library : public cowsnap_fixture {
protected:
	void TearDown() override
	{
		lib.close();
		EXPECT_EQ(open_descriptors(), descriptors);
		cowsnap_fixture::TearDown();
	}

	/* A region of @pages, each filled with its number, from 1 on. */
	cowsnap::region numbered_pages(std::size_t pages) const
	{
		cowsnap::region made = lib.create({.length = pages * page_size});

		for (std::size_t page = 0; page < pages; page++)
			made.write(page * page_size,
				   page_of(static_cast<unsigned int>(page + 1) & 0xff));
		return made;
	}

	std::size_t descriptors = open_descriptors();
	cowsnap::device lib = cowsnap::device::open();
};

} // namespace cowsnap_test::of_library
