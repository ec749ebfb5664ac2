// SPDX-License-Identifier: GPL-2.0-only
/* The module's parameter max_bytes. */
#pragma once

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>

namespace cowsnap_test {

/* Sets max_bytes, and sets it back at the end. */
class max_bytes_parameter {
public:
	max_bytes_parameter() { std::ifstream(path) >> before_; }
	explicit max_bytes_parameter(std::uint64_t bytes) : max_bytes_parameter()
	{
		set(bytes);
	}
	~max_bytes_parameter() { std::ofstream(path) << before_; }
	max_bytes_parameter(const max_bytes_parameter &) = delete;
	max_bytes_parameter &operator=(const max_bytes_parameter &) = delete;

	static void set(std::uint64_t bytes)
	{
		std::ofstream file(path);

		file << bytes << std::flush;
		if (!file)
			throw std::runtime_error(std::string("cannot write ") +
						 path);
	}

private:
	static constexpr const char *path =
		"/sys/module/cowsnap/parameters/max_bytes";
	std::string before_;
};

} // namespace cowsnap_test
