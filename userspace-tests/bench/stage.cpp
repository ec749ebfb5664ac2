// SPDX-License-Identifier: GPL-2.0-only
#include "stage.hpp"

#include <algorithm>
#include <numeric>
#include <unordered_set>

#include <sys/mman.h>

namespace cowsnap_bench {

using cowsnap_test::check;

sizes sizes::full()
{
	return {.big = gibibyte,
		.middle = gibibyte / 4,
		.small = gibibyte / 16,
		.huge = 4 * gibibyte,
		.snapshots = 100'000,
		.more_snapshots = 1'000'000,
		.resets = 100'000,
		.frames = 32,
		.rounds = 7,
		.long_rounds = 2};
}

sizes sizes::quick()
{
	return {.big = gibibyte / 4,
		.middle = gibibyte / 16,
		.small = gibibyte / 16,
		.huge = gibibyte / 2,
		.snapshots = 10'000,
		.more_snapshots = 10'000,
		.resets = 2'000,
		.frames = 16,
		.rounds = 5,
		.long_rounds = 1};
}

std::string named_size(std::uint64_t bytes)
{
	return bytes % gibibyte ? std::to_string(bytes / mebibyte) + " MiB"
				: std::to_string(bytes / gibibyte) + " GiB";
}

std::string named_count(std::size_t count)
{
	std::string text = std::to_string(count);

	for (std::size_t at = text.size(); at > 3; at -= 3)
		text.insert(at - 3, 1, ',');
	return text;
}

pages in_a_row(std::size_t count, std::size_t first)
{
	pages chosen(count);

	std::iota(chosen.begin(), chosen.end(), first);
	return chosen;
}

pages at_random(std::size_t all, std::size_t count, std::uint64_t seed)
{
	std::mt19937_64 engine(seed);
	std::unordered_set<std::size_t> seen;
	pages chosen;

	while (chosen.size() < std::min(count, all))
		if (const std::size_t page = engine() % all; seen.insert(page).second)
			chosen.push_back(page);
	return chosen;
}

pages in_runs(std::size_t all, std::size_t count, std::size_t run)
{
	pages chosen;

	for (const std::size_t start : at_random(all / run, (count + run - 1) / run))
		for (std::size_t i = 0; i < run && chosen.size() < count; i++)
			chosen.push_back(start * run + i);
	return chosen;
}

region filled(const device &dev, std::uint64_t bytes, std::uint32_t granule_shift)
{
	const std::vector<std::byte> piece = cowsnap_test::bytes_of(2 * mebibyte, 1);
	region made = dev.create(bytes, 0, "bench", granule_shift);

	for (std::uint64_t offset = 0; offset < bytes; offset += piece.size())
		made.write(offset, std::span(piece).first(std::min<std::uint64_t>(
					   piece.size(), bytes - offset)));
	return made;
}

mapping small_pages(std::uint64_t bytes, bool populate)
{
	mapping memory = cowsnap_test::anonymous(bytes);

	/* Refused only where there are no huge pages. */
	::madvise(memory.data(), memory.size(), MADV_NOHUGEPAGE);
	if (populate)
		memory.advise(MADV_POPULATE_WRITE);
	return memory;
}

std::uint64_t differences::between(const region &one, const region &other)
{
	std::uint64_t bytes = 0;
	cowsnap_diff arg = {};

	arg.size = sizeof(arg);
	arg.other_fd = other.fd();
	arg.end = cowsnap_test::largest_length;
	arg.ranges = reinterpret_cast<std::uintptr_t>(ranges_.data());
	for (; arg.start < arg.end; arg.start = arg.next) {
		arg.count = static_cast<std::uint32_t>(ranges_.size());
		check(::ioctl(one.fd(), COWSNAP_IOC_DIFF, &arg), "COWSNAP_IOC_DIFF");
		for (const cowsnap_range &range : std::span(ranges_).first(arg.count))
			bytes += range.length;
	}
	return bytes;
}

live &stage::region_of(std::uint64_t bytes, std::uint32_t granule_shift)
{
	if (!region_ || region_->map.size() != bytes || shift_ != granule_shift) {
		region_.reset();
		region_.emplace(live{filled(dev, bytes, granule_shift), {}});
		region_->map = region_->memory.map();
		shift_ = granule_shift;
	}
	return *region_;
}

mapping &stage::private_of(std::uint64_t bytes)
{
	if (private_.size() != bytes) {
		private_.reset();
		private_ = small_pages(bytes);
	}
	return private_;
}

void stage::clear()
{
	region_.reset();
	private_.reset();
}

cost stage::process_fork(std::uint64_t bytes, bool written)
{
	auto known = process_forks_.find({bytes, written});

	if (known == process_forks_.end()) {
		mapping &memory = private_of(bytes);
		const cost measured = meter::repeat(size.long_rounds, [&] {
			std::optional<child> process;

			if (written)
				store_all(memory);
			return measure.timed([&] { process.emplace(waiting_child()); });
		});

		known = process_forks_.emplace(std::pair(bytes, written), measured).first;
	}
	return known->second;
}

} // namespace cowsnap_bench
