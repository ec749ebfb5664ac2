// SPDX-License-Identifier: GPL-2.0-only
/* Containers in regions: std::pmr and Boost.Interprocess, forked, read and restored. */
#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory_resource>
#include <new>
#include <random>
#include <scoped_allocator>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/containers/map.hpp>
#include <boost/interprocess/containers/string.hpp>

#include <cowsnap/cowsnap.hpp>
#include <cowsnap/interprocess.hpp>
#include <cowsnap/memory_resource.hpp>

#include "chance.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"

namespace {

using cowsnap_test::chance;
using cowsnap_test::page_size;

constexpr std::size_t length = 4 << 20;

class segments : public cowsnap_test::cowsnap_fixture {
protected:
	cowsnap::device lib = cowsnap::device::open();
	cowsnap::region live = lib.create({.length = length});
	cowsnap::mapping map = live.map();
	cowsnap::segment heap = cowsnap::create_segment(map);
	cowsnap::segment_resource resource{heap};

	void TearDown() override
	{
		map.unmap();
		live.close();
		cowsnap_fixture::TearDown();
	}
};

struct piece {
	std::byte *data;
	std::size_t size;
	std::size_t alignment;
	std::byte value;

	bool is_whole() const
	{
		return std::ranges::count(std::span(data, size), value) ==
		       static_cast<std::ptrdiff_t>(size);
	}
};

TEST_F(segments, pieces_lie_apart_aligned_and_within)
{
	chance random(0);
	std::vector<piece> pieces;
	std::size_t refused = 0;
	/* Enough to fill it: a round adds half a KiB or so. */
	const std::size_t rounds = std::max<std::size_t>(20000, cowsnap_test::scaled(20000));

	for (std::size_t round = 0; round < rounds; round++) {
		if (!pieces.empty() && random.below(100) < 40) {
			std::swap(pieces[random.below(pieces.size())], pieces.back());

			const piece last = pieces.back();

			ASSERT_TRUE(last.is_whole());
			resource.deallocate(last.data, last.size, last.alignment);
			pieces.pop_back();
			continue;
		}

		const std::size_t size = random.below(random.below(20) ? 300 : 100000);
		const std::size_t alignment = std::size_t(1) << random.below(13);

		try {
			auto *const data = static_cast<std::byte *>(
				resource.allocate(size, alignment));

			pieces.push_back({data, size, alignment,
					  static_cast<std::byte>(round & 0xff)});
			ASSERT_EQ(reinterpret_cast<std::uintptr_t>(data) % alignment, 0u);
			ASSERT_GE(data, map.data());
			ASSERT_LE(data + size, map.data() + map.size());
			std::ranges::fill(std::span(data, size), pieces.back().value);
		} catch (const std::bad_alloc &) {
			refused++;
		}
	}
	for (const piece &last : pieces) {
		ASSERT_TRUE(last.is_whole());
		resource.deallocate(last.data, last.size, last.alignment);
	}
	EXPECT_TRUE(heap.check_sanity());
	EXPECT_TRUE(heap.all_memory_deallocated());
	EXPECT_GT(refused, 0u);
}

TEST_F(segments, memory_that_is_given_back_is_used_again)
{
	const std::size_t free = heap.get_free_memory();

	for (int times = 0; times < 100; times++) {
		void *const most = resource.allocate(length / 4 * 3);

		EXPECT_THROW((void)resource.allocate(length / 2), std::bad_alloc);
		resource.deallocate(most, length / 4 * 3);
	}
	EXPECT_EQ(heap.get_free_memory(), free);
}

TEST_F(segments, what_cannot_be_allocated_is_refused)
{
	constexpr std::size_t most = std::numeric_limits<std::size_t>::max();
	const std::size_t free = heap.get_free_memory();

	for (const std::size_t size : {length, most - 1, most, most / 2 + 1})
		EXPECT_THROW((void)resource.allocate(size), std::bad_alloc) << size;
	for (const std::size_t size : {most, most - (1 << 20), length})
		EXPECT_THROW((void)resource.allocate(size, 1 << 20), std::bad_alloc) << size;
	EXPECT_THROW((void)resource.allocate(1, std::size_t(1) << 31), std::bad_alloc);
	EXPECT_EQ(heap.get_free_memory(), free);

	void *const nothing = resource.allocate(0);
	void *const another = resource.allocate(0);

	EXPECT_NE(nothing, another);
	resource.deallocate(nothing, 0);
	resource.deallocate(another, 0);

	const cowsnap::mapping small = live.map({.length = 100});
	std::error_code error;

	(void)cowsnap::create_segment(small, error);
	EXPECT_EQ(error, std::errc::invalid_argument);
	EXPECT_THROW((void)cowsnap::create_segment(small), std::system_error);
}

TEST_F(segments, resources_are_equal_when_their_memory_is)
{
	const cowsnap::segment_resource same(heap);
	cowsnap::region other = lib.create({.length = length});
	const cowsnap::mapping of_other = other.map();
	cowsnap::segment others = cowsnap::create_segment(of_other);
	const cowsnap::segment_resource different(others);

	EXPECT_TRUE(resource == same);
	EXPECT_FALSE(resource == different);
	EXPECT_FALSE(resource == *std::pmr::new_delete_resource());
}

TEST_F(segments, only_what_is_used_takes_memory)
{
	void *const made = resource.allocate(1000);

	EXPECT_LT(live.stat().referenced, 8 * page_size);
	resource.deallocate(made, 1000);
}

using words = std::pmr::map<int, std::pmr::string>;
using plain_words = std::map<int, std::string>;

/* Changes both alike, and nothing else. */
void change(words &subject, plain_words &model, chance &random, std::size_t times)
{
	while (times-- > 0) {
		const int key = static_cast<int>(random.below(2000));

		if (random.below(3)) {
			const std::string value(random.below(200),
						static_cast<char>('a' + random.below(26)));

			subject[key] = value;
			model[key] = value;
		} else {
			subject.erase(key);
			model.erase(key);
		}
	}
}

bool equal(const words &subject, const plain_words &model)
{
	return std::ranges::equal(subject, model, [](const auto &one, const auto &other) {
		return one.first == other.first &&
		       std::string_view(one.second) == other.second;
	});
}

TEST_F(segments, pmr_containers_are_read_in_a_snapshot_at_their_address)
{
	chance random(0);
	words &subject = *heap.construct<words>("words")(&resource);
	const void *const address = map.data();
	plain_words model;

	for (int round = 0; round < 5; round++) {
		change(subject, model, random, 2000);

		const cowsnap::snapshot taken = live.take_snapshot();
		const plain_words then = model;

		change(subject, model, random, 2000);
		ASSERT_TRUE(equal(subject, model));
		ASSERT_FALSE(equal(subject, then));

		/* Here, where the region was, ... */
		map.unmap();
		{
			const cowsnap::const_mapping shown = taken.map({.address = address});
			const words *const read =
				cowsnap::find_in_segment<words>(shown, "words");

			ASSERT_NE(read, nullptr);
			EXPECT_TRUE(equal(*read, then));
			EXPECT_EQ(cowsnap::find_in_segment<words>(shown, "others"), nullptr);
		}
		map = live.map({.address = address});
		ASSERT_TRUE(equal(subject, model));
	}
	EXPECT_TRUE(heap.destroy<words>("words"));
	EXPECT_TRUE(heap.check_sanity());
}

TEST_F(segments, pmr_containers_are_read_and_changed_by_a_child_process)
{
	chance random(0);
	words &subject = *heap.construct<words>("words")(&resource);
	plain_words model;

	change(subject, model, random, 1000);

	const cowsnap::region forked = live.fork();
	const plain_words then = model;

	change(subject, model, random, 1000);

	cowsnap_test::child child([&] {
		const void *const address = map.data();
		plain_words own = then;

		map.unmap();

		const cowsnap::mapping mine =
			cowsnap::region::adopt(cowsnap::descriptor(::dup(forked.fd())))
				.map({.address = address});

		cowsnap_test::require(equal(subject, own), "it is what was forked");
		change(subject, own, random, 1000);
		cowsnap_test::require(equal(subject, own), "it is what was made of it");
	});

	EXPECT_TRUE(child.succeeded());
	EXPECT_TRUE(equal(subject, model));
	EXPECT_TRUE(heap.check_sanity());
	heap.destroy<words>("words");
}

TEST_F(segments, restore_takes_the_bookkeeping_back_with_the_containers)
{
	chance random(0);
	words &subject = *heap.construct<words>("words")(&resource);
	plain_words model;

	change(subject, model, random, 1000);
	for (int round = 0; round < 5; round++) {
		const cowsnap::snapshot taken = live.take_snapshot();
		const plain_words then = model;
		const std::size_t free = heap.get_free_memory();

		change(subject, model, random, 1000);
		if (random.below(2)) {
			live.restore(taken);
			EXPECT_EQ(heap.get_free_memory(), free);
			model = then;
		}
		ASSERT_TRUE(equal(subject, model));
		change(subject, model, random, 100);
		ASSERT_TRUE(equal(subject, model));
	}
	EXPECT_TRUE(heap.destroy<words>("words"));
	EXPECT_TRUE(heap.check_sanity());
	EXPECT_TRUE(heap.all_memory_deallocated());
}

namespace bip = boost::interprocess;

template <typename T>
using in_segment = bip::allocator<T, cowsnap::segment::segment_manager>;
using text = bip::basic_string<char, std::char_traits<char>, in_segment<char>>;
using table = bip::map<int, text, std::less<>, in_segment<std::pair<const int, text>>>;

void expect_squares(const table &subject, int count)
{
	ASSERT_EQ(subject.size(), static_cast<std::size_t>(count));
	for (const auto &[key, value] : subject)
		ASSERT_EQ(value, std::to_string(key * key).c_str());
}

TEST_F(segments, boost_containers_are_read_at_any_address)
{
	table &subject = *heap.construct<table>("squares")(
		std::less<>(), in_segment<char>(heap.get_segment_manager()));
	const auto add = [&](int key) {
		subject.emplace(key, text(std::to_string(key * key).c_str(),
					  in_segment<char>(heap.get_segment_manager())));
	};

	for (int key = 0; key < 500; key++)
		add(key);

	const cowsnap::snapshot taken = live.take_snapshot();

	for (int key = 500; key < 1000; key++)
		add(key);

	const cowsnap::const_mapping shown = taken.map();
	const table *const read = cowsnap::find_in_segment<table>(shown, "squares");

	ASSERT_NE(shown.data(), map.data());
	ASSERT_NE(read, nullptr);
	ASSERT_NE(read, &subject);
	expect_squares(*read, 500);
	expect_squares(subject, 1000);

	/* And changed there, in a fork and in a private mapping. */
	cowsnap::region forked = taken.fork();

	for (const cowsnap::mapping &own : {forked.map(), taken.map_private()}) {
		cowsnap::segment opened = cowsnap::open_segment(own);
		table &mine = *opened.find<table>("squares").first;

		mine.erase(mine.find(250), mine.end());
		expect_squares(mine, 250);
		EXPECT_TRUE(opened.check_sanity());
	}
	expect_squares(*read, 500);
	expect_squares(subject, 1000);
	heap.destroy<table>("squares");
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
