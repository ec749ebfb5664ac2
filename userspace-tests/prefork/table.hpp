// SPDX-License-Identifier: GPL-2.0-only
/* Figures of all flavours side by side, each with how many times the first one it is. */
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <vector>

#include "demo/measure.hpp"

namespace cowsnap_prefork {

using cowsnap_demo::as_times;
using cowsnap_demo::figure;

inline void print_head(const std::string &what, const std::vector<std::string> &names)
{
	std::printf("\n  %-50s", what.c_str());
	for (std::size_t i = 0; i < names.size(); i++)
		std::printf(i ? " : %-18s" : " %12s", names[i].c_str());
	std::printf("\n");
	std::fflush(stdout);
}

inline void print_row(const std::string &what, const std::vector<double> &values)
{
	std::printf("  %-50s %12s", what.c_str(), figure(values.front()).c_str());
	for (std::size_t i = 1; i < values.size(); i++)
		std::printf(" : %9s = %-6s", figure(values[i]).c_str(), as_times(values[i] / values.front()).c_str());
	std::printf("\n");
	std::fflush(stdout);
}

} // namespace cowsnap_prefork
