// SPDX-License-Identifier: GPL-2.0-only
/* bench: what a fork takes here, beside copying; a quick figure. */
#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <iostream>
#include <vector>

#include <sys/mman.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "commands.hpp"
#include "reference.hpp"
#include "text.hpp"

namespace cowsnap_command {
namespace {

constexpr std::size_t page = 4096;
constexpr int rounds = 25;

double microseconds(const std::function<void()> &call)
{
	const auto start = std::chrono::steady_clock::now();

	call();
	return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() -
							 start)
		.count();
}

double median(std::vector<double> times)
{
	const auto middle = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2);

	std::ranges::nth_element(times, middle);
	return *middle;
}

/* The median of some rounds of @measured, each after @before. */
double typical(const std::function<void()> &before, const std::function<void()> &measured)
{
	std::vector<double> times;

	for (int i = 0; i < rounds; i++) {
		before();
		times.push_back(microseconds(measured));
	}
	return median(std::move(times));
}

struct result {
	const char *name;
	const char *what;
	double microseconds;
};

std::vector<result> measure(std::size_t size)
{
	cowsnap::region region = open_device().create({.length = size, .name = "bench"});
	const cowsnap::mapping mapped = region.map();
	cowsnap::snapshot fork;
	const auto bytes = mapped.bytes();
	const auto store = [&](std::size_t step) {
		for (std::size_t at = 0; at < size; at += step)
			bytes[at] = std::byte(static_cast<unsigned char>(bytes[at]) + 1);
	};
	const auto take = [&] { fork = region.take_snapshot(); };
	const auto drop = [&] { fork.close(); };

	store(page);

	std::vector<result> results;

	results.push_back({"fork-untouched", "snapshot, nothing written since the last",
			   typical(drop, take)});
	results.push_back({"fork-dirty-1%", "snapshot, 1% of the pages written since the last",
			   typical([&] {
				   drop();
				   take();
				   store(100 * page);
				   drop();
			   },
				   take)});
	results.push_back({"fork-dirty", "snapshot, all pages written since the last",
			   typical([&] {
				   drop();
				   store(page);
			   },
				   take)});
	results.push_back({"store-after-fork", "first store to each page after it, per page",
			   typical([&] {
				   drop();
				   take();
			   },
				   [&] { store(page); }) /
				   static_cast<double>(size / page)});

	std::vector<std::byte> copy(size);

	results.push_back({"copy", "memcpy of all of it instead", typical([] {}, [&] {
				   std::memcpy(copy.data(), bytes.data(), size);
			   })});
	return results;
}

} // namespace

outcome bench(const bench_options &options)
{
	if (options.size < page || options.size % page != 0)
		throw failure(outcome::misused, "the size is no multiple of 4K; give another");

	const std::vector<result> results = measure(options.size);

	if (options.json) {
		nlohmann::ordered_json all = {{"size", options.size}};

		for (const result &one : results)
			all["microseconds"][one.name] = one.microseconds;
		std::cout << all.dump(2) << '\n';
		return outcome::done;
	}
	std::cout << fmt::format("a region of {}, medians of {}:\n", human(options.size), rounds);
	for (const result &one : results)
		std::cout << fmt::format("{:>10.2f} us  {}\n", one.microseconds, one.what);
	return outcome::done;
}

} // namespace cowsnap_command
