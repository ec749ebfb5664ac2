// SPDX-License-Identifier: GPL-2.0-only
/* Figures side by side, each with the bar that it is held to. */
#pragma once

#include <cstdio>
#include <iostream>
#include <optional>
#include <string>

#include "demo/measure.hpp"
#include "demo/results.hpp"

namespace cowsnap_redis {

/* How many times plain it may be, at most or at least. */
struct bar {
	double times = 0;
	bool at_least = false;

	bool is_met_by(double times_plain) const { return at_least ? times_plain >= times : times_plain <= times; }
};

class table {
public:
	explicit table(cowsnap_demo::results &results) : results_(results) { row("", "plain", "cowsnap", "times", ""); }

	void add(const std::string &what, double plain, double with, std::optional<bar> wanted = std::nullopt)
	{
		const double times = with / plain;
		std::string verdict;

		if (wanted) {
			const bool met = wanted->is_met_by(times);

			verdict = std::string(wanted->at_least ? "at least " : "at most ") + cowsnap_demo::as_times(wanted->times) +
				  (met ? ": met" : ": MISSED");
			results_.count(met);
		}
		row(what, cowsnap_demo::figure(plain), cowsnap_demo::figure(with), cowsnap_demo::as_times(times),
		    verdict);
	}

	void head(const std::string &text) { std::cout << '\n' << text << '\n'; }

private:
	static void row(const std::string &what, const std::string &plain, const std::string &with,
			const std::string &times, const std::string &verdict)
	{
		char text[256];

		std::snprintf(text, sizeof(text), "  %-58s %11s %11s %8s  %s", what.c_str(), plain.c_str(),
			      with.c_str(), times.c_str(), verdict.c_str());
		std::cout << text << '\n';
	}

	cowsnap_demo::results &results_;
};

} // namespace cowsnap_redis
