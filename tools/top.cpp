// SPDX-License-Identifier: GPL-2.0-only
/* top: as ls, again and again, with what happened in between. */
#include <chrono>
#include <iostream>
#include <map>
#include <thread>

#include <unistd.h>

#include <fmt/format.h>

#include "commands.hpp"
#include "list.hpp"
#include "proc.hpp"
#include "text.hpp"

namespace cowsnap_command {
namespace {

/* What is counted up. */
struct counted {
	std::uint64_t faults = 0;
	std::uint64_t bytes_copied = 0;
};

class view {
public:
	void show(const regions_found &found)
	{
		using enum table::align;
		table shown({{"ID"},
			     {"NAME", left},
			     {"KIND", left},
			     {"LENGTH"},
			     {"REFERENCED"},
			     {"EXCLUSIVE"},
			     {"DIRTY"},
			     {"FAULTS/s"},
			     {"COPIED/s"},
			     {"HELD BY", left}});
		const auto now = std::chrono::steady_clock::now();
		const double seconds = std::chrono::duration<double>(now - last_).count();
		std::map<std::uint64_t, counted> counts;
		const auto rate = [seconds](std::uint64_t value, std::uint64_t before) {
			return static_cast<std::uint64_t>(
				static_cast<double>(value - before) / seconds);
		};

		for (const held_region &region : found.regions) {
			if (!region.info)
				continue;

			const region_info &info = *region.info;
			const auto known = before_.find(info.id);
			const bool rates = known != before_.end();

			counts[info.id] = {info.faults, info.bytes_copied};
			shown.add({std::to_string(info.id), printable(info.name),
				   info.readonly ? "snapshot" : "region", human(info.length),
				   human(info.referenced), human(info.exclusive),
				   human(info.dirty),
				   rates ? std::to_string(
						   rate(info.faults, known->second.faults))
					 : "-",
				   rates ? human(rate(info.bytes_copied,
						      known->second.bytes_copied))
					 : "-",
				   holders_of(region)});
		}
		std::cout << shown;
		if (found.unreadable > 0)
			std::cout << fmt::format("({} processes could not be looked into)\n",
						 found.unreadable);
		std::cout << std::flush;
		before_ = std::move(counts);
		last_ = now;
	}

private:
	std::map<std::uint64_t, counted> before_;
	std::chrono::steady_clock::time_point last_;
};

} // namespace

outcome top(const top_options &options)
{
	const bool terminal = ::isatty(STDOUT_FILENO) == 1;
	view shown;

	for (std::uint64_t i = 0; options.count == 0 || i < options.count; i++) {
		if (i > 0)
			std::this_thread::sleep_for(
				std::chrono::duration<double>(options.interval));

		const regions_found found = find_regions();

		if (terminal)
			std::cout << "\033[H\033[J";
		else if (i > 0)
			std::cout << '\n';
		shown.show(found);
		/* The reader went away. */
		if (!std::cout)
			break;
	}
	return outcome::done;
}

} // namespace cowsnap_command
