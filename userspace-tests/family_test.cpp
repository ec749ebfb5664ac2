// SPDX-License-Identifier: GPL-2.0-only
/*
 * Families: every order of writing to and of closing the members, long lines of
 * descent, many siblings.  After each step every survivor holds what it held, its
 * figures are what the others leave to it, and at the end all memory is back.
 */
#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <sys/resource.h>

#include "fixture.hpp"
#include "ktap.hpp"

using namespace cowsnap_test;

namespace {

/* How the members are made, and what keeps them alive. */
enum class kind { writable, mapped, read_only };

constexpr std::size_t members = 4;
constexpr std::size_t pages = 20;

/* Grandparent, child, grandchild, and a sibling of the child. */
class family_of_four {
public:
	family_of_four(const device &dev, kind what) : kind_(what)
	{
		const bool read_only = what == kind::read_only;
		const auto make = [read_only](const region &parent) {
			return read_only ? parent.snapshot() : parent.fork();
		};

		files_[0] = dev.create_pages(pages);
		add(0, std::nullopt);
		for (std::size_t page = 0; page < pages - 4; page++)
			write(0, page);
		files_[1] = make(files_[0]);
		add(1, 0);
		write(0, 0);
		write(1, 0);
		write(1, 1);
		files_[2] = make(files_[1]);
		add(2, 1);
		write(0, 2);
		write(1, 2);
		write(2, 2);
		write(2, 17);
		files_[3] = make(files_[0]);
		add(3, 0);
		for (std::size_t member = 0; member < members; member++) {
			write(member, 3 + member);
			write(member, 10);
			write(member, 18);
		}
	}

	bool alive(std::size_t member) const { return alive_[member]; }

	/* Writes a byte that nobody else has written, where it may. */
	void write(std::size_t member, std::size_t page)
	{
		if (kind_ == kind::read_only && member > 0)
			return;

		const std::size_t offset = 100 * member;

		if (kind_ == kind::mapped)
			fill(maps_[member].page(page).subspan(offset, 50), ++value_);
		else
			files_[member].write(page * page_size + offset,
					     bytes_of(50, ++value_));
		fill(std::span(contents_[member])
			     .subspan(page * page_size + offset, 50),
		     value_);
		versions_[member][page] = ++version_;
	}

	void close(std::size_t member)
	{
		files_[member].close();
		maps_[member].reset();
		alive_[member] = false;
	}

	/* What differs from what should be, for each survivor. */
	void expect_intact(const device &dev, const counters &before) const
	{
		std::set<std::uint64_t> distinct;

		for (std::size_t member = 0; member < members; member++) {
			if (!alive_[member])
				continue;
			for (const std::uint64_t version : versions_[member])
				if (version)
					distinct.insert(version);
			if (kind_ == kind::mapped) {
				EXPECT_TRUE(std::ranges::equal(
					maps_[member].bytes(), contents_[member]))
					<< "member " << member;
				continue;
			}
			EXPECT_EQ(files_[member].read(0, pages * page_size),
				  contents_[member])
				<< "member " << member;

			const cowsnap_stat stat = files_[member].stat();

			EXPECT_EQ(stat.referenced, page_size * referenced(member));
			EXPECT_EQ(stat.exclusive, page_size * exclusive(member));
		}
		EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
			  distinct.size() * page_size);
	}

private:
	void add(std::size_t member, std::optional<std::size_t> parent)
	{
		alive_[member] = true;
		contents_[member] = parent ? contents_[*parent]
					   : bytes_of(pages * page_size, 0);
		versions_[member] = parent ? versions_[*parent]
					   : std::array<std::uint64_t, pages>{};
		if (kind_ == kind::mapped) {
			maps_[member] = files_[member].map();
			if (member == members - 1)
				for (region &file : files_)
					file.close();
		}
	}

	std::size_t referenced(std::size_t member) const
	{
		return pages - static_cast<std::size_t>(std::ranges::count(
				       versions_[member], std::uint64_t{0}));
	}

	std::size_t exclusive(std::size_t member) const
	{
		std::size_t count = 0;

		for (std::size_t page = 0; page < pages; page++) {
			std::size_t holders = 0;

			for (std::size_t other = 0; other < members; other++)
				holders += alive_[other] &&
					   versions_[other][page] ==
						   versions_[member][page];
			count += versions_[member][page] && holders == 1;
		}
		return count;
	}

	kind kind_;
	std::array<region, members> files_;
	std::array<mapping, members> maps_;
	std::array<bool, members> alive_ = {};
	/* What each holds, and which write each page is of: 0 for a hole. */
	std::array<std::vector<std::byte>, members> contents_;
	std::array<std::array<std::uint64_t, pages>, members> versions_ = {};
	unsigned int value_ = 0;
	std::uint64_t version_ = 0;
};

class families : public cowsnap_fixture,
		 public testing::WithParamInterface<kind> {
protected:
	/* Calls @visit with each of the 24 orders. */
	template <typename Visit>
	static void every_order(Visit &&visit)
	{
		std::array<std::size_t, members> order = {0, 1, 2, 3};
		std::size_t count = 0;

		do {
			SCOPED_TRACE(testing::PrintToString(order));
			visit(order);
			count++;
		} while (std::ranges::next_permutation(order).found);
		EXPECT_EQ(count, 24u);
	}
};

INSTANTIATE_TEST_SUITE_P(, families,
			 testing::Values(kind::writable, kind::mapped,
					 kind::read_only),
			 [](const auto &info) {
				 switch (info.param) {
				 case kind::writable:
					 return "writable";
				 case kind::mapped:
					 return "mapped";
				 default:
					 return "read_only";
				 }
			 });

TEST_P(families, of_four_closed_in_every_order)
{
	every_order([this](const auto &order) {
		family_of_four family(dev, GetParam());

		family.expect_intact(dev, before);
		for (const std::size_t member : order) {
			family.close(member);
			family.expect_intact(dev, before);
			/* What is left to a survivor alone can be written still. */
			for (std::size_t other = 0; other < members; other++)
				if (family.alive(other))
					family.write(other, 11);
			family.expect_intact(dev, before);
		}
		EXPECT_EQ(counters(dev), before);
	});
}

TEST_P(families, of_four_written_in_every_order)
{
	every_order([this](const auto &order) {
		family_of_four family(dev, GetParam());

		for (const std::size_t member : order) {
			for (const std::size_t page : {0, 2, 5, 10, 12, 16, 17, 18, 19})
				family.write(member, page);
			family.expect_intact(dev, before);
		}
	});
}

/* Room for a thousand members' descriptors. */
void allow_descriptors(rlim_t count)
{
	rlimit limit = {};

	check(::getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
	if (limit.rlim_cur >= count)
		return;
	limit.rlim_cur = count;
	limit.rlim_max = std::max(limit.rlim_max, count);
	check(::setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
}

/*
 * A line of a thousand regions, each forked from the one before, each with the
 * page of its number changed and a page that all change.
 */
class long_line : public cowsnap_fixture {
protected:
	static constexpr std::size_t depth = 1000;

	void SetUp() override
	{
		allow_descriptors(depth + 100);
		line.push_back(dev.create_pages(depth + 1));
		line.back().write(depth * page_size, bytes_of(8, 1));
		for (std::size_t i = 1; i < depth; i++) {
			line.push_back(line.back().fork());
			mark(i);
		}
	}

	void mark(std::size_t member)
	{
		const std::uint64_t value = member;
		const auto bytes = std::as_bytes(std::span(&value, 1));

		line[member].write(member * page_size, bytes);
		line[member].write(depth * page_size, bytes);
	}

	std::uint64_t word(std::size_t member, std::size_t page) const
	{
		std::uint64_t value = 0;

		line[member].read(page * page_size,
				  std::as_writable_bytes(std::span(&value, 1)));
		return value;
	}

	void expect_intact(std::size_t member) const
	{
		const cowsnap_stat stat = line[member].stat();

		ASSERT_EQ(stat.generation, member);
		ASSERT_EQ(stat.referenced, (member + 1) * page_size);
		for (const std::size_t page :
		     {std::size_t{1}, member / 2, member,
		      std::min(member + 1, depth - 1), depth - 1})
			ASSERT_EQ(word(member, page), page <= member ? page : 0)
				<< member << ' ' << page;
		/* The first has it from before the line. */
		ASSERT_EQ(word(member, depth),
			  member ? member : 0x0101010101010101);
	}

	void TearDown() override
	{
		line.clear();
		cowsnap_fixture::TearDown();
	}

	std::vector<region> line;
};

TEST_F(long_line, holds_each_change_once)
{
	/* One page each for its own, and each one's of the common page. */
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
		  (2 * depth - 1) * page_size);
	for (std::size_t member = 0; member < depth; member += 111)
		expect_intact(member);
	expect_intact(depth - 1);
	EXPECT_EQ(line[depth - 1].stat().exclusive, 2 * page_size);
	EXPECT_EQ(line[500].stat().exclusive, 1 * page_size);
}

TEST_F(long_line, closed_from_the_oldest)
{
	for (std::size_t member = 0; member + 1 < depth; member++) {
		line[member].close();
		if (member % 100 == 99) {
			expect_intact(member + 1);
			expect_intact(depth - 1);
		}
	}
	expect_intact(depth - 1);
	EXPECT_EQ(line[depth - 1].stat().exclusive, depth * page_size);
}

TEST_F(long_line, closed_from_the_youngest)
{
	for (std::size_t member = depth - 1; member > 0; member--) {
		line[member].close();
		if (member % 100 == 1) {
			expect_intact(member - 1);
			expect_intact(0);
		}
	}
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes, page_size);
}

TEST_F(long_line, closed_from_the_middle)
{
	for (std::size_t i = 0; i < depth / 2 - 1; i++) {
		line[depth / 2 + i].close();
		line[depth / 2 - 1 - i].close();
		if (i % 100 == 99) {
			expect_intact(0);
			expect_intact(depth / 2 + i + 1);
			expect_intact(depth - 1);
		}
	}
	expect_intact(0);
	expect_intact(depth - 1);
}

/* Each fork replaces its parent: what a history of one costs stays the same. */
TEST_F(long_line, of_which_only_the_last_lives)
{
	region last = dev.create_pages(10);

	number_pages(last, 10, 1);
	line.clear();

	const std::uint64_t nodes = counters(dev).nodes;

	for (unsigned int i = 0; i < 3000; i++) {
		last = last.fork();
		last.write((i % 10) * page_size + 8, bytes_of(8, i & 0xff));
	}
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes, 10 * page_size);
	EXPECT_EQ(counters(dev).nodes, nodes);
	EXPECT_EQ(last.stat().generation, 3000u);
	EXPECT_EQ(last.stat().exclusive, 10 * page_size);
}

class siblings : public cowsnap_fixture {};

TEST_F(siblings, a_thousand)
{
	constexpr std::size_t count = 1000;
	const region parent = dev.create_pages(64);
	const mapping map = parent.map();
	std::vector<region> forks;

	allow_descriptors(count + 100);
	number_pages(parent, 64, 1);
	for (std::size_t i = 0; i < count; i++) {
		forks.push_back(i % 3 ? parent.fork() : parent.snapshot());
		if (i % 3)
			forks.back().write(i % 64 * page_size, bytes_of(16, 0xff));
	}
	EXPECT_EQ(parent.stat().forks, count);
	EXPECT_EQ(counters(dev).regions, before.regions + 1 + count);
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes,
		  (64 + count - (count + 2) / 3) * page_size);
	fill(map.bytes(), 0xee);
	for (std::size_t i = 0; i < count; i += 7) {
		const std::size_t own = i % 64;
		std::vector<std::byte> expected =
			bytes_of(page_size, static_cast<unsigned int>(own + 1));

		if (i % 3)
			fill(std::span(expected).first(16), 0xff);
		EXPECT_EQ(forks[i].read_page(own), expected) << i;
		EXPECT_TRUE(is_all(forks[i].read_page((own + 1) % 64),
				   static_cast<unsigned int>((own + 1) % 64 + 1)))
			<< i;
	}
	/* In an order that is neither the first nor the last one's. */
	for (std::size_t i = 0; i < count; i++)
		forks[i * 7 % count].close();
	EXPECT_EQ(counters(dev).held_bytes - before.held_bytes, 64 * page_size);
	EXPECT_EQ(parent.stat().exclusive, 64 * page_size);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
