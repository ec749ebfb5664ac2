// SPDX-License-Identifier: GPL-2.0-only
/* What programs are made of, which with jemalloc lies in the region. */
#include <array>
#include <list>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "chance.hpp"
#include "suite.hpp"

using namespace cowsnap_test;

namespace {

class objects : public suite {};

TEST_F(objects, are_where_the_allocator_has_its_memory)
{
	const auto small = std::make_unique<std::array<char, 100>>();
	const auto large = std::make_unique<std::array<char, 10 << 20>>();
	const bool ours = this_kind() == kind::jemalloc;

	EXPECT_EQ(served(small.get()), ours);
	EXPECT_EQ(served(large.get()), ours);
}

/* Containers that are changed at random, and what they should add up to. */
struct containers {
	std::map<std::uint64_t, std::string> ordered;
	std::unordered_map<std::string, std::uint64_t> hashed;
	std::list<std::vector<std::uint64_t>> lists;
	std::uint64_t sum = 0;

	void change(chance &dice, std::size_t times)
	{
		for (std::size_t i = 0; i < times; i++) {
			const std::uint64_t key = dice.below(5000);
			const std::string text(dice.below(200), static_cast<char>('a' + key % 26));

			sum += text.size() - ordered[key].size();
			ordered[key] = text;
			sum += key - std::exchange(hashed[text + std::to_string(key % 100)], key);
			lists.emplace_back(dice.below(100), key);
			sum += key * lists.back().size();
			if (lists.size() > 500) {
				for (const std::uint64_t number : lists.front())
					sum -= number;
				lists.pop_front();
			}
		}
	}
	bool right() const
	{
		std::uint64_t found = 0;

		for (const auto &[key, text] : ordered) {
			if (text != std::string(text.size(), static_cast<char>('a' + key % 26)))
				return false;
			found += text.size();
		}
		for (const auto &[text, key] : hashed)
			found += key;
		for (const auto &list : lists)
			for (const std::uint64_t number : list)
				found += number;
		return found == sum;
	}
};

TEST_F(objects, are_changed_by_parents_and_children_each_on_its_own)
{
	containers all;
	chance dice(5);

	all.change(dice, 20'000);
	ASSERT_TRUE(all.right());
	for (std::size_t round = 0; round < scaled(10); round++) {
		child process([&] {
			chance own(50 + round);

			require(all.right(), "a child has its parent's objects");
			all.change(own, 3000);
			require(all.right(), "and changes them");
			require(child([&] {
					all.change(own, 1000);
					require(all.right(), "and so does its child");
				}).succeeded(),
				"a child's child");
			require(all.right(), "each on its own");
			all = {};
			all.change(own, 1000);
			require(all.right(), "and makes others");
		});

		all.change(dice, 3000);
		EXPECT_TRUE(all.right());
		EXPECT_TRUE(process.succeeded());
		EXPECT_TRUE(all.right());
	}
}

TEST_F(objects, are_thrown_and_caught_in_children)
{
	expect_child([] {
		for (int i = 0; i < 1000; i++) {
			std::string what;

			try {
				throw std::runtime_error("number " + std::to_string(i));
			} catch (const std::runtime_error &error) {
				what = error.what();
			}
			require(what == "number " + std::to_string(i), "what is thrown is caught");
		}
	});
}

} // namespace
