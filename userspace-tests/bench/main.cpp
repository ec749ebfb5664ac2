// SPDX-License-Identifier: GPL-2.0-only
/*
 * Measures the rows one after another and prints what they gave, a line of JSON each, as KTAP's diagnostics.
 *
 *   BENCH_CLOCK=instructions   in a VM where a nanosecond is one; otherwise the clock and perf's counters are used
 *   BENCH_ROWS=REGEX           only these rows and curves
 *   BENCH_QUICK=1              small sizes, and only the rows that have a must
 *   BENCH_PROFILE=1            tell the profiler what is measured when, and the kernel's symbols
 *   BENCH_PARALLEL=1           the rows that need two CPUs, and no others
 */
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <regex>
#include <string>
#include <string_view>
#include <vector>

#include <sys/utsname.h>

#include <nlohmann/json.hpp>

#include "max_bytes.hpp"
#include "row.hpp"

namespace cowsnap_bench {
namespace {

using nlohmann::ordered_json;

std::string setting(const char *name)
{
	const char *const value = std::getenv(name);

	return value ? value : "";
}

void tell(const ordered_json &line)
{
	std::printf("# %s\n", line.dump().c_str());
}

ordered_json as_json(const std::optional<bound> &wanted)
{
	if (!wanted)
		return nullptr;

	ordered_json json = {{"of", wanted->of_ratio ? "ratio" : "ours"}};

	if (wanted->low > -std::numeric_limits<double>::infinity())
		json["low"] = wanted->low;
	if (wanted->high < std::numeric_limits<double>::infinity())
		json["high"] = wanted->high;
	return json;
}

void tell_counters(ordered_json &json, const std::string &whose, const cost &measured, const meter &with)
{
	if (with.has_counters())
		for (std::size_t i = 0; i < meter::counters.size(); i++)
			json[whose + "-counters"][meter::counters[i]] = measured.of[i + 1];
}

void tell_result(const row &one, const result &measured, const meter &with)
{
	ordered_json json = {{"row", one.name}, {"what", one.what}, {"per", one.per},
			     {"ours", measured.ours.time()}};

	tell_counters(json, "ours", measured.ours, with);
	if (measured.peer) {
		json["peer"] = measured.peer->time();
		json["peer-is"] = one.peer;
		tell_counters(json, "peer", *measured.peer, with);
	}
	for (const another_peer &other : measured.others)
		json["others"].push_back({{"name", other.name}, {"value", other.measured.time()}});
	json["must"] = as_json(one.must);
	json["aim"] = as_json(one.aim);
	if (!measured.note.empty())
		json["note"] = measured.note;
	tell(json);
}

void tell_curve(const std::string &name, const std::vector<line> &lines)
{
	ordered_json json = {{"curve", name}, {"lines", ordered_json::array()}};

	for (const line &one : lines) {
		ordered_json points = ordered_json::array();

		for (const point &at : one.points)
			points.push_back({at.x, at.y});
		json["lines"].push_back({{"name", one.name}, {"points", points}});
	}
	tell(json);
}

/* Of those that the environment asks for. */
class session {
public:
	session()
		: wanted_(setting("BENCH_ROWS").empty() ? ".*" : setting("BENCH_ROWS")),
		  quick_(setting("BENCH_QUICK") == "1"), parallel_(setting("BENCH_PARALLEL") == "1"),
		  profile_(setting("BENCH_PROFILE") == "1"),
		  meter_(setting("BENCH_CLOCK") == "instructions"),
		  on_(quick_ ? sizes::quick() : sizes::full(), meter_)
	{
		for (const auto &group : {method_rows, fork_rows, stall_rows, fault_rows, read_rows, restore_rows,
					  process_rows, tracking_rows, scale_rows, huge_rows, parallel_rows})
			for (const row &one : group(on_.size))
				if (is_wanted(one))
					rows_.push_back(one);
		if (!quick_ && !parallel_)
			for (const curve &one : curves())
				if (std::regex_search("curve-" + one.name, wanted_))
					curves_.push_back(one);
	}

	int run()
	{
		std::printf("KTAP version 1\n1..%zu\n", rows_.size() + curves_.size());
		tell_machine();
		for (const row &one : rows_) {
			if (profile_)
				meter_.profile(one.name);
			step(one.name, [&] { tell_result(one, one.measure(on_), meter_); });
		}
		for (const curve &one : curves_)
			step("curve-" + one.name, [&] { tell_curve(one.name, one.measure(on_)); });
		if (profile_)
			tell_symbols();
		return failed_ ? 1 : 0;
	}

private:
	bool is_wanted(const row &one) const
	{
		/* Two CPUs are there where the clock is one. */
		if (one.parallel ? meter_.counted() : parallel_)
			return false;
		return std::regex_search(one.name, wanted_) &&
		       (!quick_ || one.must || one.quick || one.parallel);
	}

	void tell_machine() const
	{
		utsname names = {};

		::uname(&names);
		tell({{"machine", names.machine},
		      {"release", names.release},
		      {"unit", meter_.counted() ? "instructions" : "ns"},
		      {"clock-cost", meter_.own_cost(whose::thread).time()}});
	}

	/* Of code. */
	static void tell_symbols()
	{
		std::ifstream file("/proc/kallsyms");
		std::string address, type, name, rest;

		while (file >> address >> type >> name && std::getline(file, rest))
			if (std::string("tTwW").find(type) != std::string::npos)
				std::printf("# @symbol %s %s\n", address.c_str(), name.c_str());
	}

	template <typename Action>
	void step(const std::string &name, Action &&action)
	{
		const double start = meter::shared_clock();
		bool good = true;

		try {
			action();
		} catch (const std::exception &error) {
			std::printf("# %s: %s\n", name.c_str(), error.what());
			good = false;
			failed_ = true;
			on_.clear();
		}
		std::printf("# took %.1f s\n%s %zu - %s\n", (meter::shared_clock() - start) / 1e9,
			    good ? "ok" : "not ok", ++number_, name.c_str());
	}

	/* The rows want more than half of a VM's memory. */
	cowsnap_test::max_bytes_parameter no_cap_{0};
	std::regex wanted_;
	bool quick_, parallel_, profile_;
	meter meter_;
	stage on_;
	std::vector<row> rows_;
	std::vector<curve> curves_;
	std::size_t number_ = 0;
	bool failed_ = false;
};

} // namespace
} // namespace cowsnap_bench

int main()
{
	std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
	try {
		return cowsnap_bench::session().run();
	} catch (const std::exception &error) {
		std::printf("Bail out! %s\n", error.what());
		return 1;
	}
}
