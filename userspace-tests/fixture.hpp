// SPDX-License-Identifier: GPL-2.0-only
/*
 * What every test starts and ends with: the module's counters return to where
 * they were, and the kernel's log says nothing that it should not.
 */
#pragma once

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <ostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include "meminfo.hpp"
#include "region.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

/* True as soon as @holds() is, false when it is not within @patience. */
template <typename Condition>
bool eventually(Condition &&holds,
		std::chrono::milliseconds patience = std::chrono::seconds(30))
{
	const auto end = std::chrono::steady_clock::now() + patience;

	while (!holds()) {
		if (std::chrono::steady_clock::now() >= end)
			return false;
		std::this_thread::sleep_for(std::chrono::milliseconds(5));
	}
	return true;
}

/* What the module holds; other users of it disturb the tests. */
struct counters {
	std::uint64_t held_bytes = 0;
	std::uint64_t regions = 0;
	std::uint64_t nodes = 0;

	explicit counters(const device &dev)
	{
		const cowsnap_query query = dev.query();

		held_bytes = query.held_bytes;
		regions = query.regions;
		nodes = query.nodes;
	}
	bool operator==(const counters &) const = default;

	/* How GoogleTest prints one. */
	friend void PrintTo(const counters &value, std::ostream *out)
	{
		*out << value.held_bytes << " bytes held, " << value.regions
		     << " regions, " << value.nodes << " nodes";
	}
};

inline void expect_back(const device &dev, const counters &before,
			std::chrono::milliseconds patience = std::chrono::seconds(30))
{
	eventually([&] { return counters(dev) == before; }, patience);
	EXPECT_EQ(counters(dev), before);
}

inline void expect_memory_back(std::uint64_t before, std::uint64_t slack)
{
	eventually([=] { return available_memory() + slack >= before; },
		   std::chrono::seconds(30));
	EXPECT_GE(available_memory() + slack, before)
		<< "the memory that is available did not return";
}

/* The kernel's messages from the moment that this object was made. */
class kernel_log {
public:
	kernel_log() : fd_(::open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC))
	{
		if (!fd_)
			check(-1, "cannot open /dev/kmsg; run the tests as root");
		check(::lseek(fd_.get(), 0, SEEK_END), "lseek /dev/kmsg");
	}

	/*
	 * The new messages that have one of @words in them, but for what is in a trace
	 * only.  Where two meet in a data race is the console's reader to judge, who
	 * sees more than a line.
	 */
	std::vector<std::string> lines_with(const std::vector<std::string> &words)
	{
		std::vector<std::string> found;
		std::vector<char> record(8192);

		for (;;) {
			const ssize_t size =
				::read(fd_.get(), record.data(), record.size());

			if (size < 0 && errno == EPIPE)
				continue; /* some were overwritten */
			if (size <= 0)
				return found;

			std::string line(record.data(),
					 static_cast<std::size_t>(size));

			line = line.substr(0, line.find('\n'));
			if (line.find("KCSAN:") != std::string::npos ||
			    line.ends_with("[cowsnap]"))
				continue;
			for (const std::string &word : words) {
				if (line.find(word) != std::string::npos) {
					found.push_back(line);
					break;
				}
			}
		}
	}

private:
	unique_fd fd_;
};

class cowsnap_fixture : public testing::Test {
protected:
	void TearDown() override
	{
		std::vector<std::string> words = {"BUG", "WARNING:", "Oops",
						  "INFO: task", "detected stall"};

		expect_back(dev, before);
		if (quiet)
			words.emplace_back("cowsnap");
		for (const std::string &line : log.lines_with(words))
			ADD_FAILURE() << "the kernel said: " << line;
	}

	/* What the test's regions hold together, shared pages counted once. */
	std::uint64_t held_pages() const
	{
		return (counters(dev).held_bytes - before.held_bytes) / page_size;
	}

	/* A region of @pages that are filled with their numbers, from 1 on. */
	region numbered(std::size_t pages) const
	{
		region made = dev.create_pages(pages);

		number_pages(made, pages, 1);
		return made;
	}

	device dev;
	counters before{dev};
	kernel_log log;
	/* False where the kernel has a reason to name the module. */
	bool quiet = true;
};

} // namespace cowsnap_test
