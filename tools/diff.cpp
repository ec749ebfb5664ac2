// SPDX-License-Identifier: GPL-2.0-only
/* diff. */
#include <iostream>
#include <vector>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "diff.hpp"
#include "reference.hpp"

namespace cowsnap_command {

void require_relatives(const cowsnap::member &one, const cowsnap::member &other)
{
	if (one.stat().family_id != other.stat().family_id)
		throw failure(outcome::failed,
			      "the two regions are not of one family, and share nothing; "
			      "`cowsnap ls` shows who was forked from whom");
}

void for_each_difference(const cowsnap::member &of, const cowsnap::member &other, bool exact,
			 const std::function<void(const cowsnap::range &)> &visit)
{
	require_relatives(of, other);
	for (const cowsnap::range &part : of.diff(other, {.exact = exact}))
		visit(part);
}

outcome diff(const diff_command_options &options)
{
	const any_member one = member_of(options.region);
	const any_member other = member_of(options.other);
	nlohmann::ordered_json ranges = nlohmann::ordered_json::array();

	for_each_difference(base_of(one), base_of(other), options.exact,
			    [&](const cowsnap::range &part) {
				    if (options.json)
					    ranges.push_back({{"offset", part.offset},
							      {"length", part.length},
							      {"hole", part.hole}});
				    else
					    std::cout << fmt::format(
						    "{} {} {}\n", part.offset, part.length,
						    part.hole ? "hole" : "data");
			    });
	if (options.json)
		std::cout << ranges.dump(2) << '\n';
	return outcome::done;
}

} // namespace cowsnap_command
