// SPDX-License-Identifier: MIT
/*
 * A map of Boost.Interprocess that lives in a region, read in a snapshot and changed in
 * a fork, all mapped at once at addresses of their own.
 */
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/containers/map.hpp>

#include <cowsnap/cowsnap.hpp>
#include <cowsnap/interprocess.hpp>

namespace {

namespace bip = boost::interprocess;

using entry = std::pair<const int, double>;
using allocator = bip::allocator<entry, cowsnap::segment::segment_manager>;
using prices = bip::map<int, double, std::less<>, allocator>;

void expect(bool holds, std::string_view what)
{
	if (!holds)
		throw std::runtime_error("it is not so that " + std::string(what));
}

double sum_of(const prices &all)
{
	double sum = 0;

	for (const entry &each : all)
		sum += each.second;
	return sum;
}

} // namespace

int main()
try {
	const auto device = cowsnap::device::open();
	auto region = device.create({.length = 64 << 20, .name = "prices"});
	const auto live = region.map();
	auto segment = cowsnap::create_segment(live);
	auto &now = *segment.construct<prices>("prices")(
		std::less<>(), allocator(segment.get_segment_manager()));

	for (int item = 1; item <= 1000; item++)
		now.emplace(item, 0.5);

	/* Both of one instant. */
	const auto snapshot = region.take_snapshot();
	auto trial = snapshot.fork();

	now.erase(now.begin(), now.find(501));
	expect(sum_of(now) == 250, "500 prices are left");

	const auto shown = snapshot.map();
	const auto *const then = cowsnap::find_in_segment<prices>(shown, "prices");

	expect(then && shown.data() != live.data(), "the snapshot is at another address");
	expect(then->size() == 1000 && sum_of(*then) == 500, "the snapshot has all prices");

	const auto tried = trial.map();
	auto other = cowsnap::open_segment(tried);
	auto &raised = *other.find<prices>("prices").first;

	for (auto &each : raised)
		each.second *= 2;
	raised.emplace(1001, 1.0);
	expect(sum_of(raised) == 1001 && other.check_sanity(), "the fork was changed");
	expect(sum_of(*then) == 500 && sum_of(now) == 250, "the others were not");
	std::cout << "now " << sum_of(now) << ", then " << sum_of(*then) << ", raised "
		  << sum_of(raised) << '\n';

	/* What was tried out is taken over. */
	region.restore(trial);
	expect(sum_of(now) == 1001, "the region has what the fork had");
} catch (const std::exception &error) {
	std::cerr << error.what() << '\n';
	return EXIT_FAILURE;
}
