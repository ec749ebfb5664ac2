// SPDX-License-Identifier: GPL-2.0-only
/* ls and stat. */
#include <iostream>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "list.hpp"
#include "proc.hpp"
#include "reference.hpp"
#include "text.hpp"

namespace cowsnap_command {
namespace {

using json = nlohmann::ordered_json;

json to_json(const region_info &info)
{
	json object;

	for (const figure &shown : figures)
		object[shown.name] = info.*shown.value;
	object["name"] = info.name;
	object["readonly"] = info.readonly;
	return object;
}

json to_json(const held_region &region)
{
	json object = region.info ? to_json(*region.info) : json{{"name", region.name}};

	object["holders"] = json::array();
	for (const holder &one : region.holders) {
		json entry = {{"pid", one.pid}, {"command", one.command}};

		if (one.fd >= 0)
			entry["fd"] = one.fd;
		object["holders"].push_back(std::move(entry));
	}
	return object;
}

/* Names are bytes: what is no UTF-8 in them is replaced. */
void print(const json &value)
{
	std::cout << value.dump(2, ' ', false, json::error_handler_t::replace) << '\n';
}

} // namespace

std::string holders_of(const held_region &region)
{
	std::string text;

	for (const holder &one : region.holders) {
		if (!text.empty())
			text += ' ';
		text += one.fd >= 0 ? fmt::format("{}:{}", one.pid, one.fd)
				    : fmt::format("{}:map", one.pid);
		text += fmt::format("({})", printable(one.command));
	}
	return text;
}

void say_unreadable(const regions_found &found)
{
	if (found.unreadable > 0)
		std::cerr << fmt::format("cowsnap: {} processes could not be looked into; run "
					 "this as root to see their regions, too\n",
					 found.unreadable);
}

outcome list(const list_options &options)
{
	const regions_found found = find_regions();

	say_unreadable(found);
	if (options.json) {
		json all = {{"regions", json::array()}, {"unreadable", found.unreadable}};

		for (const held_region &region : found.regions)
			all["regions"].push_back(to_json(region));
		print(all);
		return outcome::done;
	}

	using enum table::align;
	table shown({{"ID"},
		     {"PARENT"},
		     {"NAME", left},
		     {"KIND", left},
		     {"LENGTH"},
		     {"REFERENCED"},
		     {"EXCLUSIVE"},
		     {"FAULTS"},
		     {"HELD BY", left}});

	for (const held_region &region : found.regions) {
		if (const auto &info = region.info)
			shown.add({std::to_string(info->id), std::to_string(info->parent),
				   printable(region.name),
				   info->readonly ? "snapshot" : "region", human(info->length),
				   human(info->referenced), human(info->exclusive),
				   std::to_string(info->faults), holders_of(region)});
		else
			shown.add({"?", "?", printable(region.name), "mapped", "?", "?", "?",
				   "?", holders_of(region)});
	}
	std::cout << shown;
	return outcome::done;
}

outcome stat(const stat_options &options)
{
	const any_member member = member_of(options.region);
	const auto info = info_of(base_of(member).fd());

	if (!info)
		throw failure(outcome::failed,
			      "/proc/self/fdinfo does not tell of the region; mount /proc");
	if (options.json) {
		print(to_json(*info));
		return outcome::done;
	}
	std::cout << fmt::format("{:<13}{}\n", "name", printable(info->name))
		  << fmt::format("{:<13}{}\n", "kind", info->readonly ? "snapshot" : "region");
	for (const figure &shown : figures)
		std::cout << fmt::format("{:<13}{}\n", shown.name, info.value().*shown.value);
	return outcome::done;
}

} // namespace cowsnap_command
