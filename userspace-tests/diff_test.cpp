// SPDX-License-Identifier: GPL-2.0-only
/*
 * DIFF: which ranges, in which order, in how many calls.  model_test.cpp compares
 * it with a model of who shares what.
 */
#include <array>
#include <atomic>
#include <cstdint>
#include <limits>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "chance.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::uint32_t exact = COWSNAP_DIFF_F_EXACT;

/* As pages: "3+2 7+1 hole". */
std::string text_of(const std::vector<cowsnap_range> &ranges)
{
	std::ostringstream text;

	for (const cowsnap_range &range : ranges) {
		if (range.offset % page_size || range.length % page_size ||
		    !range.length || range.__reserved ||
		    (range.flags & ~COWSNAP_RANGE_F_HOLE))
			text << "malformed ";
		text << (text.tellp() > 0 ? " " : "") << range.offset / page_size
		     << '+' << range.length / page_size
		     << (range.flags & COWSNAP_RANGE_F_HOLE ? " hole" : "");
	}
	return text.str();
}

class differing : public cowsnap_fixture {
protected:
	static constexpr std::size_t pages = 64;

	static void write_pages(const region &file, std::uint64_t first,
				std::uint64_t last, unsigned int value = 99)
	{
		for (std::uint64_t page = first; page <= last; page++)
			file.write(page * page_size, bytes_of(8, value));
	}

	/* A call of DIFF that is right, to have one thing made wrong. */
	cowsnap_diff correct(const region &other)
	{
		cowsnap_diff arg = {};

		arg.size = sizeof(arg);
		arg.other_fd = other.fd();
		arg.count = static_cast<std::uint32_t>(room_.size());
		arg.end = pages * page_size;
		arg.ranges = reinterpret_cast<std::uintptr_t>(room_.data());
		return arg;
	}

	static int error_of(const region &subject, cowsnap_diff arg)
	{
		return ::ioctl(subject.fd(), COWSNAP_IOC_DIFF, &arg) < 0 ? errno : 0;
	}

	std::array<cowsnap_range, 4> room_ = {};
};

TEST_F(differing, nowhere_from_what_is_the_same)
{
	const region subject = dev.create_pages(pages);

	EXPECT_EQ(text_of(subject.diff(subject)), "");
	EXPECT_EQ(text_of(subject.diff(subject.fork())), "");
	number_pages(subject, pages, 1);

	const region child = subject.fork();
	const region snapshot = child.snapshot();

	for (const region *each : {&subject, &child, &snapshot})
		for (const region *other : {&subject, &child, &snapshot})
			EXPECT_EQ(text_of(each->diff(*other)), "");
	child.fill_page(3, 1);
	EXPECT_EQ(text_of(child.diff(child)), "");
	EXPECT_EQ(text_of(child.diff(child, exact)), "");
	child.restore(subject);
	EXPECT_EQ(text_of(child.diff(subject)), "");
}

TEST_F(differing, where_either_wrote)
{
	const region subject = dev.create_pages(pages);

	number_pages(subject, pages, 1);

	const region child = subject.fork();
	const region snapshot = subject.snapshot();
	const mapping map = child.map();

	map.store(3, 1);
	child.fill_page(4, 1);
	write_pages(subject, 7, 7);
	write_pages(subject, 63, 63);
	EXPECT_EQ(text_of(child.diff(subject)), "3+2 7+1 63+1");
	EXPECT_EQ(text_of(subject.diff(child)), "3+2 7+1 63+1");
	EXPECT_EQ(text_of(snapshot.diff(child)), "3+2");
	EXPECT_EQ(text_of(subject.diff(snapshot)), "7+1 63+1");
	/* It looks only: no store of what follows is a copy. */
	EXPECT_EQ(subject.stat().forks, 2u);

	const cowsnap_stat stat = child.stat();

	EXPECT_EQ(text_of(child.diff(subject, exact)), "3+2 7+1 63+1");
	map.store(3, 2);
	EXPECT_EQ(child.stat().faults, stat.faults);
	EXPECT_EQ(child.stat().copies, stat.copies);
	EXPECT_EQ(child.stat().referenced, stat.referenced);
}

TEST_F(differing, by_holes_in_both_directions)
{
	const region subject = dev.create_pages(pages);
	const region child = subject.fork();

	write_pages(subject, 3, 4);
	write_pages(child, 5, 6);
	write_pages(subject, 8, 8);
	write_pages(child, 8, 8);
	EXPECT_EQ(text_of(subject.diff(child)), "3+2 5+2 hole 8+1");
	EXPECT_EQ(text_of(child.diff(subject)), "3+2 hole 5+2 8+1");
	EXPECT_EQ(text_of(subject.diff(child, exact)), "3+2 5+2 hole");
	/* What is behind the end is a hole as well. */
	child.truncate(6 * page_size);
	EXPECT_EQ(text_of(child.diff(subject)), "3+2 hole 5+1 8+1 hole");
	EXPECT_EQ(text_of(subject.diff(child)), "3+2 5+1 hole 8+1");
}

/* Runs go on over what the tree has borders at. */
TEST_F(differing, in_runs_across_borders)
{
	const region subject = dev.create((std::uint64_t{1} << 34) * page_size);
	const region child = subject.fork();
	std::ostringstream text;

	write_pages(child, 14, 17);
	write_pages(child, 32, 79);
	text << "14+4 32+48";
	/* A leaf has 16 slots, a node of each level above it 64. */
	for (std::uint64_t border = 1024; border < std::uint64_t{1} << 34;
	     border *= 64) {
		for (const std::uint64_t at : {border, 3 * border}) {
			write_pages(child, at - 20, at + 20);
			text << ' ' << at - 20 << "+41";
		}
	}
	EXPECT_EQ(text_of(child.diff(subject)), text.str());
	EXPECT_EQ(text_of(child.diff(subject, exact)), text.str());
	EXPECT_EQ(text_of(child.diff(subject, 0, 0, largest_length, 1)), text.str());
	EXPECT_EQ(text_of(child.diff(child.snapshot())), "");
}

TEST_F(differing, as_far_away_as_a_file_reaches)
{
	const region subject = dev.create(largest_length);
	const region child = subject.fork();
	const std::uint64_t last = largest_length / page_size;

	EXPECT_EQ(text_of(child.diff(subject)), "");
	/* Up to the end: nothing can be written behind it. */
	child.write(last * page_size + page_size - 9, bytes_of(8, 1));
	write_pages(child, last - 20, last - 18);
	write_pages(child, std::uint64_t{1} << 40, std::uint64_t{1} << 40);

	const auto expected = [=](const std::string &kind) {
		return std::to_string(std::uint64_t{1} << 40) + "+1" + kind + " " +
		       std::to_string(last - 20) + "+3" + kind + " " +
		       std::to_string(last) + "+1" + kind;
	};
	const std::string text = expected("");

	EXPECT_EQ(text_of(child.diff(subject)), text);
	EXPECT_EQ(text_of(child.diff(subject, exact)), text);
	EXPECT_EQ(text_of(child.diff(subject, 0, 0, largest_length, 1)), text);
	EXPECT_EQ(text_of(subject.diff(child)), expected(" hole"));
	/* And with trees of different height. */
	write_pages(subject, 5, 5);
	EXPECT_EQ(text_of(child.diff(subject)), "5+1 hole " + text);
	EXPECT_EQ(text_of(child.diff(subject, 0, 6 * page_size)), text);
	EXPECT_EQ(text_of(child.diff(subject, 0, last * page_size)),
		  std::to_string(last) + "+1");
	EXPECT_EQ(text_of(child.diff(subject, 0, largest_length - 1)),
		  std::to_string(last) + "+1");
}

TEST_F(differing, exactly_leaves_out_equal_bytes)
{
	const region subject = dev.create_pages(pages);

	number_pages(subject, 40, 1);

	const region child = subject.fork();

	/* Written with what was there, in the middle and at the ends of runs. */
	number_pages(child, 20, 1);
	child.fill_page(0, 99);
	child.fill_page(5, 99);
	child.fill_page(6, 99);
	child.write(16 * page_size - 1, bytes_of(2, 99));
	/* Zeroes against a hole, on either side. */
	child.fill_page(50, 0);
	subject.fill_page(51, 0);
	child.fill_page(52, 0);
	child.write(53 * page_size - 1, bytes_of(1, 1));
	EXPECT_EQ(text_of(child.diff(subject)), "0+20 50+1 51+1 hole 52+1");
	EXPECT_EQ(text_of(child.diff(subject, exact)), "0+1 5+2 15+2 52+1");
	EXPECT_EQ(text_of(subject.diff(child, exact)), "0+1 5+2 15+2 52+1 hole");
	EXPECT_EQ(text_of(child.diff(subject, exact, 0, largest_length, 1)),
		  "0+1 5+2 15+2 52+1");
	EXPECT_EQ(text_of(child.diff(subject, exact, 6 * page_size,
				     16 * page_size)),
		  "6+1 15+1");
	number_pages(child, 40, 1);
	child.fill_page(52, 0);
	EXPECT_EQ(text_of(child.diff(subject, exact)), "");
}

TEST_F(differing, within_a_window)
{
	const region subject = dev.create_pages(pages);
	const region child = subject.fork();
	const auto within = [&](std::uint64_t start, std::uint64_t end) {
		return text_of(child.diff(subject, 0, start, end));
	};

	write_pages(child, 10, 40);
	EXPECT_EQ(within(0, 10 * page_size), "");
	EXPECT_EQ(within(0, 10 * page_size + 1), "10+1");
	EXPECT_EQ(within(12 * page_size, 14 * page_size), "12+2");
	/* Whole granules, of which a byte is asked for. */
	EXPECT_EQ(within(12 * page_size - 1, 14 * page_size + 1), "11+4");
	EXPECT_EQ(within(20 * page_size + 5, 20 * page_size + 6), "20+1");
	EXPECT_EQ(within(40 * page_size, 41 * page_size), "40+1");
	EXPECT_EQ(within(41 * page_size, largest_length), "");
	EXPECT_EQ(within(35 * page_size, 1 << 30), "35+6");
}

TEST_F(differing, in_small_calls)
{
	const region subject = dev.create_pages(500);
	const region child = subject.fork();
	chance random(1);

	for (std::size_t page = 0; page < 500; page++) {
		if (random.one_in(2))
			write_pages(child, page, page, page % 3 ? 1 : 0);
		if (random.one_in(3))
			write_pages(subject, page, page, page % 2);
	}
	for (const std::uint32_t flags : {std::uint32_t{0}, exact}) {
		const std::string all = text_of(child.diff(subject, flags));

		EXPECT_NE(all, "");
		for (const std::uint32_t count : {1u, 2u, 7u, 64u})
			EXPECT_EQ(text_of(child.diff(subject, flags, 0,
						     largest_length, count)),
				  all);
	}
}

TEST_F(differing, tells_where_to_go_on_from)
{
	const region subject = dev.create_pages(pages);
	const region child = subject.fork();

	write_pages(child, 3, 4);
	write_pages(child, 8, 8);
	write_pages(child, 20, 20);
	fill(std::as_writable_bytes(std::span(room_)), 0xcc);

	cowsnap_diff arg = correct(subject);

	arg.count = 2;
	arg.next = ~0ull;
	ASSERT_EQ(::ioctl(child.fd(), COWSNAP_IOC_DIFF, &arg), 0);
	EXPECT_EQ(arg.count, 2u);
	EXPECT_GT(arg.next, 8 * page_size);
	EXPECT_LE(arg.next, 20 * page_size);
	EXPECT_EQ(text_of({room_[0], room_[1]}), "3+2 8+1");
	/* No more is written than there is room for. */
	EXPECT_TRUE(is_all(std::as_bytes(std::span(room_).subspan(2)), 0xcc));

	arg.start = arg.next;
	ASSERT_EQ(::ioctl(child.fd(), COWSNAP_IOC_DIFF, &arg), 0);
	EXPECT_EQ(arg.count, 1u);
	EXPECT_GE(arg.next, arg.end);
	EXPECT_EQ(text_of({room_[0]}), "20+1");

	arg.start = 21 * page_size;
	arg.count = 4;
	ASSERT_EQ(::ioctl(child.fd(), COWSNAP_IOC_DIFF, &arg), 0);
	EXPECT_EQ(arg.count, 0u);
	EXPECT_GE(arg.next, arg.end);

	/* Just enough room. */
	arg.start = 0;
	arg.count = 3;
	ASSERT_EQ(::ioctl(child.fd(), COWSNAP_IOC_DIFF, &arg), 0);
	EXPECT_EQ(arg.count, 3u);
	EXPECT_GE(arg.next, arg.end);
}

TEST_F(differing, where_a_fork_copied_pinned_pages)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();

	for (std::size_t page = 0; page < pages; page++)
		map.store(page, 1);

	const page_in_a_pipe held(map.page(30));
	const region child = parent.fork();

	EXPECT_EQ(text_of(child.diff(parent)), "30+1");
	EXPECT_EQ(text_of(child.diff(parent, exact)), "");
}

/* Each range lies where something was written, whatever is found of it. */
TEST_F(differing, while_both_are_written)
{
	const region subject = dev.create_pages(500);

	write_pages(subject, 0, 499);

	const region child = subject.fork();

	write_pages(child, 7, 7, 1);
	write_pages(subject, 490, 490, 1);

	std::atomic<bool> stop = false;
	std::thread writer([&] {
		const mapping map = subject.map();
		const mapping child_map = child.map();

		for (std::uint64_t round = 1; !stop; round++) {
			for (std::size_t page = 100; page < 200; page += 3) {
				map.store(page, round);
				child_map.store(page + 100, round);
			}
			(void)subject.fork();
			(void)child.snapshot().fork();
		}
	});
	const deadline end = scaled_deadline(std::chrono::milliseconds(800));
	std::size_t calls = 0;

	for (; !passed(end, [&] { return calls >= 5; }); calls++) {
		std::size_t found = 0;

		for (const cowsnap_range &range :
		     child.diff(subject, calls % 2 ? exact : 0, 0, largest_length,
				calls % 3 ? 1000 : 1)) {
			const std::uint64_t first = range.offset / page_size;
			const std::uint64_t last =
				first + range.length / page_size - 1;

			found += first == 7 || first == 490;
			EXPECT_EQ(range.flags, 0u);
			EXPECT_TRUE((first == last && (first == 7 || first == 490)) ||
				    (first >= 100 && last < 300))
				<< first << ' ' << last;
		}
		EXPECT_EQ(found, 2u);
	}
	stop = true;
	writer.join();
	EXPECT_GE(calls, 5u);
}

using diff_errors = differing;

TEST_F(diff_errors, other_fd)
{
	const region subject = dev.create_pages(pages);
	const region stranger = dev.create_pages(pages);
	const memory_file file = make_memfd(page_size);
	cowsnap_diff arg = correct(subject);

	EXPECT_EQ(error_of(subject, arg), 0);
	arg.other_fd = -1;
	EXPECT_EQ(error_of(subject, arg), EBADF);
	arg.other_fd = 1'000'000;
	EXPECT_EQ(error_of(subject, arg), EBADF);
	arg.other_fd = file.fd();
	EXPECT_EQ(error_of(subject, arg), EINVAL);
	arg.other_fd = dev.fd();
	EXPECT_EQ(error_of(subject, arg), EINVAL);
	arg.other_fd = stranger.fd();
	EXPECT_EQ(error_of(subject, arg), EXDEV);
}

TEST_F(diff_errors, count)
{
	const region subject = dev.create_pages(pages);
	cowsnap_diff arg = correct(subject);

	for (const std::uint32_t count : {0u, COWSNAP_DIFF_MAX + 1u, 0xffffffffu}) {
		arg.count = count;
		EXPECT_EQ(error_of(subject, arg), EINVAL) << count;
	}
	arg.count = COWSNAP_DIFF_MAX;
	EXPECT_EQ(error_of(subject, arg), 0);
}

TEST_F(diff_errors, end)
{
	const region subject = dev.create_pages(pages);
	cowsnap_diff arg = correct(subject);

	arg.start = 5;
	for (const std::uint64_t end :
	     {std::uint64_t{0}, std::uint64_t{4}, std::uint64_t{5},
	      largest_length + 1, ~std::uint64_t{0}}) {
		arg.end = end;
		EXPECT_EQ(error_of(subject, arg), EINVAL) << end;
	}
	for (const std::uint64_t end : {std::uint64_t{6}, largest_length}) {
		arg.end = end;
		EXPECT_EQ(error_of(subject, arg), 0) << end;
	}
	arg.start = ~std::uint64_t{0};
	EXPECT_EQ(error_of(subject, arg), EINVAL);
}

TEST_F(diff_errors, ranges)
{
	const region subject = dev.create_pages(pages);
	const region child = subject.fork();
	const mapping memory = anonymous(page_size);
	cowsnap_diff arg = correct(subject);

	memory.protect(PROT_READ);
	arg.ranges = 0;
	/* Where there is nothing to write nothing fails. */
	EXPECT_EQ(error_of(child, arg), 0);
	write_pages(child, 3, 3);
	for (const std::uintptr_t address :
	     {std::uintptr_t{0}, reinterpret_cast<std::uintptr_t>(memory.data()),
	      std::numeric_limits<std::uintptr_t>::max() - page_size + 1}) {
		arg.ranges = address;
		EXPECT_EQ(error_of(child, arg), EFAULT) << address;
	}
	/* The second range does not fit into what can be written. */
	write_pages(child, 5, 5);

	mapping two = anonymous(2 * page_size);

	arg.ranges = reinterpret_cast<std::uintptr_t>(two.data() + page_size) -
		     sizeof(cowsnap_range);
	EXPECT_EQ(error_of(child, arg), 0);
	two.shrink(page_size);
	EXPECT_EQ(error_of(child, arg), EFAULT);
	arg.count = 1;
	EXPECT_EQ(error_of(child, arg), 0);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
