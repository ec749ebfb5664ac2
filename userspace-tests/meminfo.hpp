// SPDX-License-Identifier: GPL-2.0-only
/* What the kernel tells of memory: how much is left, and what a page is. */
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <string_view>

#include <fcntl.h>

#include "mapping.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

/* The sum of the numbers that follow the word @key in a file of /proc. */
inline std::uint64_t sum_of(const char *path, std::string_view key)
{
	std::ifstream file(path);
	std::string word;
	std::uint64_t value = 0, sum = 0;

	while (file >> word)
		if (word == key && file >> value)
			sum += value;
	return sum;
}

/*
 * In bytes: MemAvailable, and the free pages in the CPUs' own lists, which it
 * leaves out.
 */
inline std::uint64_t available_memory()
{
	return sum_of("/proc/meminfo", "MemAvailable:") * 1024 +
	       sum_of("/proc/zoneinfo", "count:") * page_size;
}

/* The figures of /proc/self/smaps for the mapping at @address, in bytes. */
inline std::map<std::string, std::uint64_t> smaps(const void *address)
{
	std::ifstream file("/proc/self/smaps");
	std::map<std::string, std::uint64_t> figures;
	std::ostringstream start;
	std::string line;
	bool ours = false;

	start << std::hex << reinterpret_cast<std::uintptr_t>(address) << '-';
	while (std::getline(file, line)) {
		std::istringstream words(line);
		std::string key;
		std::uint64_t value = 0;

		if (line.find('-') < line.find(' ') && line.find(':') > line.find(' '))
			ours = line.starts_with(start.str());
		else if (ours && words >> key >> value)
			figures[key] = value * 1024;
	}
	return figures;
}

/* What /proc/PID/pagemap tells of one page of this process; frames to root. */
class page_entry {
public:
	explicit page_entry(const std::byte *address)
	{
		const unique_fd file(check(
			::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC),
			"open pagemap"));
		const std::uintptr_t page =
			reinterpret_cast<std::uintptr_t>(address) / page_size;

		check(::pread(file.get(), &bits_, sizeof(bits_),
			      static_cast<off_t>(page * sizeof(bits_))),
		      "read pagemap");
	}

	bool present() const { return bits_ >> 63 & 1; }
	/* Of a file, or of shared anonymous memory. */
	bool of_a_file() const { return bits_ >> 61 & 1; }
	bool soft_dirty() const { return bits_ >> 55 & 1; }
	std::uint64_t frame() const
	{
		return bits_ & ((std::uint64_t{1} << 55) - 1);
	}

private:
	std::uint64_t bits_ = 0;
};

} // namespace cowsnap_test
