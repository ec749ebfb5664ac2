// SPDX-License-Identifier: GPL-2.0-only
/* The delays of a module that was built with COWSNAP_DEBUG=1; see module/delay.h. */
#pragma once

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace cowsnap_test {

inline constexpr const char *delay_path = "/sys/module/cowsnap/parameters/delay";

/* Where there can be delays; nowhere in a normal module. */
inline std::vector<std::string> delay_points()
{
	std::vector<std::string> points;
	std::ifstream file(delay_path);
	std::string line;

	while (std::getline(file, line))
		points.push_back(line.substr(0, line.find(':')));
	return points;
}

/* While it lives, threads wait at @point for up to @most microseconds. */
class delay {
public:
	delay(std::string_view point, unsigned int most) : point_(point)
	{
		set(most);
	}
	delay(const delay &) = delete;
	delay &operator=(const delay &) = delete;
	~delay()
	{
		try {
			set(0);
		} catch (const std::exception &) {
			/* Then the module is gone. */
		}
	}

	/* How often there was one. */
	unsigned long met() const
	{
		std::ifstream file(delay_path);
		std::string line;

		while (std::getline(file, line)) {
			if (line.starts_with(point_ + ":"))
				return std::stoul(line.substr(line.find(' ')));
		}
		return 0;
	}

private:
	void set(unsigned int most) const
	{
		std::ofstream file(delay_path);

		file << point_ << ":0-" << most << std::flush;
		if (!file)
			throw std::runtime_error("the module takes no delay " + point_);
	}

	std::string point_;
};

} // namespace cowsnap_test
