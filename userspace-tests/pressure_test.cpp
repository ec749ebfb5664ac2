// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the machine does to memory: it moves pages about, takes memory out of
 * service, finds it broken, and runs out of it.  Pages of a region stay where
 * they are and what they are.
 */
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <linux/mempolicy.h>

#include "fault.hpp"
#include "fixture.hpp"
#include "huge_pages.hpp"
#include "ktap.hpp"
#include "memory_group.hpp"
#include "page_in_a_pipe.hpp"
#include "process.hpp"
#include "view.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::size_t pages = 64;

/* Not in the headers of every libc. */
constexpr int advice_soft_offline = 101;

/* errno of a write of @text, which fails or not as a whole; 0 when it works. */
int write_error(const std::string &path, std::string_view text)
{
	const unique_fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));

	if (!file)
		return errno;
	return ::write(file.get(), text.data(), text.size()) < 0 ? errno : 0;
}

/* A region that was written after it was forked, so that half is shared. */
class pressure : public cowsnap_fixture {
protected:
	pressure()
	{
		number_pages(parent, pages, 1);
		snapshot = parent.snapshot();
		map = parent.map();
		shown = snapshot.map(PROT_READ);
		for (std::size_t page = 0; page < pages; page += 2)
			fill(map.page(page), 99);
		touch();
	}

	/* Nothing is left when the counters are looked at. */
	void TearDown() override
	{
		map.reset();
		shown.reset();
		parent.close();
		snapshot.close();
		cowsnap_fixture::TearDown();
	}

	/* Makes every page one that is mapped. */
	void touch() const
	{
		for (std::size_t page = 0; page < pages; page++) {
			(void)map.load(page);
			(void)shown.load(page);
		}
	}

	/* Where the pages are, in both mappings. */
	std::vector<std::uint64_t> frames() const
	{
		std::vector<std::uint64_t> all;

		for (const mapping *mapped : {&map, &shown}) {
			for (std::size_t page = 0; page < pages; page++) {
				const page_entry entry(mapped->page(page).data());

				EXPECT_TRUE(entry.present());
				all.push_back(entry.frame());
			}
		}
		return all;
	}

	void expect_whole() const
	{
		for (std::size_t page = 0; page < pages; page++) {
			const auto number = static_cast<unsigned int>(page + 1);

			EXPECT_TRUE(is_all(map.page(page), page % 2 ? number : 99));
			EXPECT_TRUE(is_all(shown.page(page), number));
		}
		EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	}

	/* That a FORK and a COW break after it work. */
	void expect_to_fork() const
	{
		const region child = parent.fork();
		const mapping child_map = child.map();

		fill(child_map.bytes(), 50);
		expect_whole();
		EXPECT_TRUE(is_all(child.read(0, map.size()), 50));
	}

	region parent = dev.create_pages(pages);
	region snapshot;
	mapping map, shown;
};

TEST_F(pressure, of_compaction_and_of_dropped_caches_moves_nothing)
{
	const std::vector<std::uint64_t> before_it = frames();

	EXPECT_EQ(write_error("/proc/sys/vm/compact_memory", "1"), 0);
	EXPECT_EQ(write_error("/proc/sys/vm/drop_caches", "3"), 0);
	EXPECT_EQ(frames(), before_it);
	expect_whole();
	expect_to_fork();
}

/* The kernel looks which node uses what by taking entries away for a moment. */
class no_node_balancing {
public:
	no_node_balancing()
	{
		std::ifstream(file) >> before_;
		std::ofstream(file) << 0;
	}
	~no_node_balancing() { std::ofstream(file) << before_; }
	no_node_balancing(const no_node_balancing &) = delete;
	no_node_balancing &operator=(const no_node_balancing &) = delete;

private:
	static constexpr const char *file = "/proc/sys/kernel/numa_balancing";
	std::string before_;
};

class nodes : public pressure {
protected:
	/* With every page mapped from now on. */
	void SetUp() override { touch(); }

	/* Of each page of @mapped, after a move to @node unless that is -1. */
	static std::vector<int> status(const mapping &mapped, int node, int flags)
	{
		std::vector<void *> addresses;
		std::vector<int> wanted(mapped.pages(), node);
		std::vector<int> told(mapped.pages(), 12345);

		for (std::size_t page = 0; page < mapped.pages(); page++)
			addresses.push_back(mapped.page(page).data());
		EXPECT_GE(::syscall(SYS_move_pages, 0, addresses.size(),
				    addresses.data(),
				    node < 0 ? nullptr : wanted.data(), told.data(),
				    flags),
			  0);
		return told;
	}

	static bool all_are(const std::vector<int> &values, int value)
	{
		return std::ranges::all_of(values,
					   [=](int each) { return each == value; });
	}

	/* errno of set_mempolicy(2) for this thread. */
	static int set_policy(int mode, unsigned long mask)
	{
		return ::syscall(SYS_set_mempolicy, mode, mask ? &mask : nullptr,
				 mask ? 64 : 0)
			       ? errno
			       : 0;
	}

	static constexpr int other = 1;

	static bool are_several()
	{
		return std::filesystem::exists("/sys/devices/system/node/node1");
	}

	const no_node_balancing still;
};

/* A machine of one node takes the same calls, and has nowhere to move to. */
TEST_F(nodes, move_nothing_when_they_are_asked)
{
	const std::vector<std::uint64_t> before_it = frames();
	const int target = are_several() ? other : 0;
	const std::vector<int> where = status(map, -1, 0);

	for (const int flags : {MPOL_MF_MOVE, MPOL_MF_MOVE_ALL}) {
		for (const mapping *mapped : {&map, &shown}) {
			const std::vector<int> home = status(*mapped, -1, 0);
			const std::vector<int> moved =
				status(*mapped, target, flags);

			/* The odd pages are mapped twice. */
			for (std::size_t page = 0; page < pages; page++) {
				const bool shared =
					page % 2 && flags == MPOL_MF_MOVE;

				EXPECT_EQ(moved[page],
					  home[page] == target ? target :
					  shared	       ? -EACCES :
								 -EBUSY)
					<< page;
			}
		}
	}
	EXPECT_EQ(status(map, -1, 0), where);

	const unsigned long from = 1, to = 1UL << target;
	const auto bind = [&](unsigned int flags) {
		return ::syscall(SYS_mbind, map.data(), map.size(), MPOL_BIND, &to,
				 64, flags)
			       ? errno
			       : 0;
	};

	EXPECT_GE(::syscall(SYS_migrate_pages, 0, 64, &from, &to), 0);
	EXPECT_EQ(bind(MPOL_MF_MOVE), 0);
	EXPECT_EQ(bind(MPOL_MF_MOVE | MPOL_MF_STRICT),
		  all_are(where, target) ? 0 : EIO);
	EXPECT_EQ(frames(), before_it);
	expect_whole();
	expect_to_fork();
}

/*
 * A page is taken where the policy of the thread that stores says; a policy of
 * the mapping is accepted and has no effect.
 */
TEST_F(nodes, are_chosen_by_the_thread_that_stores)
{
	if (!are_several())
		GTEST_SKIP() << "this machine has one node only";

	for (const int wanted : {other, 0}) {
		const region subject = dev.create_pages(pages);
		const mapping subject_map = subject.map();
		const unsigned long opposite = 1UL << (wanted ? 0 : other);

		EXPECT_EQ(::syscall(SYS_mbind, subject_map.data(),
				    subject_map.size(), MPOL_BIND, &opposite, 64, 0),
			  0);
		EXPECT_EQ(set_policy(MPOL_BIND, 1UL << wanted), 0);
		fill(subject_map.bytes(), 1);
		EXPECT_TRUE(all_are(status(subject_map, -1, 0), wanted));

		/* A copy as well. */
		const region child = subject.fork();
		const mapping child_map = child.map();

		EXPECT_EQ(set_policy(MPOL_BIND, opposite), 0);
		fill(child_map.bytes(), 2);
		EXPECT_EQ(set_policy(MPOL_DEFAULT, 0), 0);
		EXPECT_TRUE(all_are(status(child_map, -1, 0), wanted ? 0 : other));
		EXPECT_TRUE(is_all(subject_map.bytes(), 1));
	}
}

/*
 * Memory goes out of service in blocks.  One with holes in it, as the first and
 * the last may have, is refused as such; so pages are taken until one lies in
 * another block.
 */
TEST_F(pressure, to_take_memory_out_of_service_is_refused)
{
	const std::string directory = "/sys/devices/system/memory/";
	const region subject = dev.create(256 << 20);
	const mapping taken = subject.map();
	std::ifstream file(directory + "block_size_bytes");
	std::uint64_t block_size = 0, frame = 0;
	std::size_t page = 0;
	std::set<std::uint64_t> tried;
	int error = EINVAL;

	if (!(file >> std::hex >> block_size))
		GTEST_SKIP() << "this kernel cannot take memory out of service";
	for (; error == EINVAL && page < taken.pages(); page++) {
		taken.store(page, 1);
		frame = page_entry(taken.page(page).data()).frame();

		const std::uint64_t block = frame * page_size / block_size;

		if (tried.insert(block).second)
			error = write_error(directory + "memory" +
						    std::to_string(block) + "/state",
					    "offline");
	}
	EXPECT_EQ(error, EBUSY) << tried.size() << " blocks were tried";
	EXPECT_EQ(page_entry(taken.page(page - 1).data()).frame(), frame);
	EXPECT_EQ(taken.load(page - 1), 1u);
	expect_whole();
	expect_to_fork();
}

/* What is meant to be taken out of service has no page of a region in it. */
TEST_F(pressure, leaves_movable_memory_alone)
{
	std::ifstream zones("/proc/zoneinfo");
	std::vector<std::uint64_t> all = frames();
	std::string word, zone;
	std::uint64_t spanned = 0, start = 0;

	while (zones >> word) {
		if (word == "zone") {
			zones >> zone;
		} else if (word == "spanned") {
			zones >> spanned;
		} else if (word == "start_pfn:" && zones >> start &&
			   zone == "Movable") {
			EXPECT_TRUE(std::ranges::none_of(
				all, [=](std::uint64_t frame) {
					return frame >= start &&
					       frame < start + spanned;
				}));
		}
	}
	EXPECT_FALSE(zone.empty());
}

/* The mappings of whole folios, which the kernel has more to do to. */
class large_granules : public cowsnap_fixture,
		       public testing::WithParamInterface<unsigned int> {
protected:
	large_granules()
	{
		for (std::size_t page = 0; page < map.pages(); page++)
			map.store(page, page + 1);
		snapshot = parent.snapshot();
		shown = {snapshot.fd(), 0, size, PROT_READ, MAP_SHARED, granule};
		for (std::size_t page = 0; page < map.pages() / 2; page++)
			map.store(page, page + 101);
	}
	void TearDown() override
	{
		map = {};
		shown = {};
		parent.close();
		snapshot.close();
		cowsnap_fixture::TearDown();
	}

	static std::uint64_t load(const view &mapped, std::size_t page)
	{
		std::uint64_t value = 0;

		std::memcpy(&value, mapped.page(page).data(), sizeof(value));
		return value;
	}

	/* Also makes each page one that is mapped. */
	void expect_whole(const char *after) const
	{
		for (std::size_t page = 0; page < map.pages(); page++) {
			ASSERT_EQ(map.load(page),
				  page + (page < map.pages() / 2 ? 101 : 1))
				<< after;
			ASSERT_EQ(load(shown, page), page + 1) << after;
		}
	}

	std::vector<std::uint64_t> frames() const
	{
		std::vector<std::uint64_t> all;

		for (std::size_t page = 0; page < map.pages(); page++) {
			all.push_back(page_entry(map.page(page).data()).frame());
			all.push_back(page_entry(shown.page(page).data()).frame());
		}
		return all;
	}

	const std::size_t granule = std::size_t{1} << GetParam();
	const std::size_t size = 2 * granule;
	region parent = dev.create(size, 0, {}, GetParam());
	region snapshot;
	mapping map = parent.map();
	view shown;
};

INSTANTIATE_TEST_SUITE_P(, large_granules, testing::Values(page_shift + 4, 21),
			 [](const auto &info) {
				 return "of_" +
					std::to_string(1U << info.param >> 10) + "k";
			 });

TEST_P(large_granules, stay_where_they_are)
{
	expect_whole("mapping");

	const std::vector<std::uint64_t> before_it = frames();
	const auto advise = [this](int advice, std::size_t bytes) {
		const bool unknown =
			(advice == MADV_HUGEPAGE || advice == MADV_NOHUGEPAGE) &&
			!kernel_has_huge_pages();
		const int expected = unknown ? -1 : 0;

		EXPECT_EQ(::madvise(map.data(), bytes, advice), expected) << advice;
		EXPECT_EQ(::madvise(shown.data(), bytes, advice), expected)
			<< advice;
		expect_whole("madvise");
	};

	for (const std::size_t bytes : {page_size, size - page_size, size}) {
		for (const int advice : {MADV_COLD, MADV_PAGEOUT, MADV_HUGEPAGE,
					 MADV_NOHUGEPAGE, MADV_DONTNEED})
			advise(advice, bytes);
		EXPECT_EQ(::mlock(shown.data(), bytes), 0);
		EXPECT_EQ(::munlock(shown.data(), bytes), 0);
		EXPECT_EQ(frames(), before_it);
	}
	for (const char *const what : {"1", "4"}) {
		EXPECT_EQ(write_error("/proc/self/clear_refs", what), 0);
		expect_whole("clear_refs");
	}
	EXPECT_NE(::madvise(shown.data(), page_size, advice_soft_offline), 0);
	EXPECT_EQ(write_error("/proc/sys/vm/compact_memory", "1"), 0);
	expect_whole("compaction");
	EXPECT_EQ(frames(), before_it);

	/* Nothing of it keeps a store from what it may do. */
	const region child = parent.fork();
	const mapping child_map = child.map();

	fill(child_map.bytes(), 50);
	expect_whole("a copy");
}

/*
 * A memory error, made up on request.  The kernel cannot take the page away from
 * those who use it: it marks it, and sees to it that nobody gets it next.  So
 * this costs the machine two pages until it boots; a larger granule it would
 * cost as a whole.
 */
class broken_memory : public pressure {
protected:
	static constexpr std::size_t broken = 4;

	/* errno of madvise. */
	static int advise_error(std::span<std::byte> page, int advice)
	{
		return ::madvise(page.data(), page.size(), advice) ? errno : 0;
	}

	void break_page()
	{
		const int error = advise_error(map.page(broken), MADV_HWPOISON);

		if (error == EINVAL)
			GTEST_SKIP() << "this kernel does not handle memory errors";
		ASSERT_EQ(error, EBUSY);
	}
};

TEST_F(broken_memory, that_still_works_is_not_exchanged)
{
	const std::vector<std::uint64_t> before_it = frames();
	const int error = advise_error(map.page(broken), advice_soft_offline);

	if (error == EINVAL)
		GTEST_SKIP() << "this kernel does not handle memory errors";
	EXPECT_EQ(error, EIO);
	EXPECT_EQ(frames(), before_it);
	expect_whole();
	expect_to_fork();
}

TEST_F(broken_memory, harms_only_what_is_in_it)
{
	ASSERT_NO_FATAL_FAILURE(break_page());
	if (IsSkipped())
		return;

	const region child = parent.fork();

	for (std::size_t page = 0; page < pages; page++) {
		if (page == broken)
			continue;

		const std::vector<std::byte> then = parent.read_page(page);

		EXPECT_EQ(child.read_page(page), then);
		child.fill_page(page, 50);
		EXPECT_EQ(parent.read_page(page), then);
	}
	/* The snapshot is older than what was written to that page. */
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);

	/* Who has such a snapshot has what to repair it with. */
	const std::uint64_t frame = page_entry(map.page(broken).data()).frame();

	EXPECT_EQ(parent.restore(snapshot), pages / 2 * page_size);
	EXPECT_TRUE(is_all(map.page(broken), broken + 1));
	EXPECT_NE(page_entry(map.page(broken).data()).frame(), frame);
	EXPECT_EQ(misnumbered_page(parent, pages, 1), -1);
}

TEST_F(broken_memory, is_told_to_who_touches_it)
{
	ASSERT_NO_FATAL_FAILURE(break_page());
	if (IsSkipped())
		return;

	const region child = parent.fork();
	const region read_only = parent.snapshot();
	const mapping child_map = child.map();
	const mapping read_only_map = read_only.map(PROT_READ);
	std::vector<std::byte> bytes(page_size);

	for (const mapping *touched :
	     {&std::as_const(map), &child_map, &read_only_map})
		EXPECT_EQ(signal_of_load(touched->page(broken).data()), SIGBUS);
	for (const mapping *touched : {&std::as_const(map), &child_map})
		EXPECT_EQ(signal_of_store(touched->page(broken).data()), SIGBUS);
	for (const region *file : {&std::as_const(parent), &child, &read_only}) {
		EXPECT_EQ(::pread(file->fd(), bytes.data(), bytes.size(),
				  broken * page_size),
			  -1);
		EXPECT_TRUE(errno == EIO || errno == EHWPOISON) << errno;
	}
	EXPECT_EQ(signal_of_load(map.page(broken + 1).data()), 0);
}

/*
 * The kernel keeps single pages that failed from its allocator, but not those that
 * are freed as a part of a large folio.
 */
TEST_F(broken_memory, is_given_to_nobody_else)
{
	constexpr std::uint64_t in_a_folio = 1 << 15 | 1 << 16, failed = 1 << 19;
	const unique_fd flags(::open("/proc/kpageflags", O_RDONLY | O_CLOEXEC));
	std::uint64_t found = 0;

	if (!kernel_has_huge_pages())
		GTEST_SKIP() << "this kernel has no large folios";
	ASSERT_TRUE(flags);
	for (const bool shared : {false, true}) {
		const region large =
			dev.create(16 * page_size, 0, {}, page_shift + 4);
		const mapping large_map = large.map();

		large_map.store(0, 1);

		const std::uint64_t frame =
			page_entry(large_map.page(broken).data()).frame();
		const int error = advise_error(large_map.page(broken),
					       MADV_HWPOISON);

		if (error == EINVAL)
			GTEST_SKIP() << "this kernel does not handle memory errors";
		/* 6.12 has a word of its own for large folios. */
		ASSERT_TRUE(error == EBUSY || error == EHWPOISON) << error;
		if (shared)
			(void)large.snapshot();
		large.punch(0, 16 * page_size);
		ASSERT_EQ(large.stat().referenced, 0u);
		ASSERT_EQ(::pread(flags.get(), &found, sizeof(found),
				  static_cast<off_t>(frame * sizeof(found))),
			  static_cast<ssize_t>(sizeof(found)));
		EXPECT_EQ(found & failed, failed);
		EXPECT_NE(found & in_a_folio, 0u);
	}
}

/* In a region of one granule, which no large folio can be had for. */
class broken_granule_in_pieces : public broken_memory {
protected:
	static constexpr unsigned int shift = 21;
	static constexpr std::size_t granule = 1 << shift;

	void SetUp() override
	{
		if (lockdep_objects_to_splits())
			GTEST_SKIP() << "lockdep objects to how the kernel splits "
					"what a cgroup is charged for";
		make_scarce(scarce, 16 * granule + (4 << 20));
		if (IsSkipped())
			return;
		number_pages(large, granule / page_size, 1);
		before_it = large.snapshot();
		number_pages(large, granule / page_size, 51);
		large_map = large.map();
		(void)large_map.load(broken);
		if (advise_error(large_map.page(broken), MADV_HWPOISON) == EINVAL)
			GTEST_SKIP() << "this kernel does not handle memory errors";
	}
	void TearDown() override
	{
		large_map.reset();
		large.close();
		before_it.close();
		broken_memory::TearDown();
	}

	std::optional<scarce_memory> scarce;
	region large = dev.create(granule, 0, {}, shift);
	region before_it;
	mapping large_map;
};

/* The core refers to a single page that failed for good, and that is no pin. */
TEST_F(broken_granule_in_pieces, is_not_taken_for_pinned)
{
	const region child = large.fork();
	const mapping child_map = child.map();

	for (const mapping *touched : {&std::as_const(large_map), &child_map}) {
		EXPECT_EQ(signal_of_load(touched->page(broken).data()), SIGBUS);
		for (unsigned int page = 0; page < touched->pages(); page++) {
			if (page == broken)
				continue;
			ASSERT_EQ(signal_of_load(touched->page(page).data()), 0);
			EXPECT_TRUE(is_all(touched->page(page),
					   (page + 51) & 0xff));
		}
		EXPECT_EQ(signal_of_store(touched->page(0).data()), SIGBUS);
	}
	EXPECT_EQ(child.restore(before_it), granule);
	EXPECT_EQ(misnumbered_page(child, child_map.pages(), 1), -1);
}

TEST_F(broken_granule_in_pieces, does_not_hide_a_pin)
{
	{
		const page_in_a_pipe pin(large_map.page(broken + 1));

		try {
			(void)large.fork();
			ADD_FAILURE() << "FORK takes a pin for none";
		} catch (const std::system_error &error) {
			EXPECT_EQ(error.code().value(), EHWPOISON);
		}
	}
	(void)large.fork();
}

/* Of /proc/meminfo, in bytes. */
std::uint64_t meminfo(std::string_view key)
{
	return sum_of("/proc/meminfo", key) * 1024;
}

/* Takes memory, and swap, until only @rest bytes are left. */
std::vector<mapping> take_all_but(std::uint64_t rest)
{
	std::vector<mapping> taken;

	while (meminfo("MemAvailable:") + meminfo("SwapFree:") > rest) {
		taken.push_back(anonymous(4 << 20));
		for (std::size_t page = 0; page < taken.back().pages(); page++)
			taken.back().store(page, page + taken.size());
	}
	return taken;
}

/* Memory that is set aside as huge pages, the quickest way to have little left. */
class ballast {
public:
	explicit ballast(std::uint64_t rest)
	{
		constexpr std::uint64_t huge_page = 2 << 20;
		const std::uint64_t spare =
			std::max(meminfo("MemAvailable:"), rest) - rest;

		std::ifstream(file) >> before_;
		std::ofstream(file) << before_ + spare / huge_page;
	}
	~ballast() { std::ofstream(file) << before_; }
	ballast(const ballast &) = delete;
	ballast &operator=(const ballast &) = delete;

private:
	static constexpr const char *file = "/sys/kernel/mm/hugepages/"
					    "hugepages-2048kB/nr_hugepages";
	std::uint64_t before_ = 0;
};

/* To be killed when the memory ends, and nobody else. */
void volunteer()
{
	std::ofstream("/proc/self/oom_score_adj") << 1000 << std::flush;
}

/* A process that has taken all but @rest bytes, and holds it while it lives. */
class hog {
public:
	explicit hog(std::uint64_t rest)
		: process_([this, rest] {
			  volunteer();

			  const std::vector<mapping> taken = take_all_but(rest);

			  full_.tell();
			  enough_.wait();
		  })
	{
		full_.wait();
	}

	bool ended_well()
	{
		enough_.tell();
		return process_.succeeded();
	}

private:
	event full_, enough_;
	child process_;
};

class short_of_memory : public pressure {
protected:
	static constexpr std::uint64_t too_much = std::uint64_t{4} << 30;
	static constexpr std::uint64_t few = 128 << 20;
	static constexpr std::uint64_t very_few = 32 << 20;
	/* Of the region that is to hold more than there is. */
	static constexpr std::size_t size = 128 << 20;

	static void SetUpTestSuite()
	{
		if (meminfo("MemTotal:") <= too_much)
			most = std::make_unique<ballast>(few);
	}
	static void TearDownTestSuite() { most.reset(); }

	void SetUp() override
	{
		if (!most)
			GTEST_SKIP() << "there is too much memory to take it all";
	}

	/* As the first to be killed, with regions, copies and private memory. */
	template <typename LastStraw>
	static void take_too_much(const device &dev, LastStraw &&last_straw)
	{
		const region own = dev.create(size);
		const mapping map = own.map();

		volunteer();
		fill(map.bytes().first(size / 8), 1);

		const region snapshot = own.snapshot();
		const mapping copied =
			snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);

		fill(copied.bytes().first(size / 16), 2);

		const std::vector<mapping> taken = take_all_but(very_few);

		last_straw(own, map);
	}

	/* A region alone would meet max_bytes before the memory's end. */
	template <typename LastStraw>
	void expect_to_be_killed_at(LastStraw &&last_straw)
	{
		const std::uint64_t available = available_memory();
		const std::uint64_t kills = sum_of("/proc/vmstat", "oom_kill");

		/* The kernel prints the stack of who met the end of the memory. */
		quiet = false;

		child victim([&] { take_too_much(dev, last_straw); });

		EXPECT_TRUE(victim.killed_by(SIGKILL));
		EXPECT_EQ(sum_of("/proc/vmstat", "oom_kill"), kills + 1);
		EXPECT_TRUE(eventually([&] {
			return counters(dev).regions == before.regions + 2;
		}));
		expect_whole();
		expect_to_fork();
		expect_memory_back(available, 16 << 20);
	}

	static inline std::unique_ptr<ballast> most;
};

TEST_F(short_of_memory, regions_stay_in_memory)
{
	const std::vector<std::uint64_t> before_it = frames();
	const std::uint64_t available = available_memory();
	hog greedy(very_few);

	EXPECT_EQ(frames(), before_it);
	expect_whole();
	expect_to_fork();
	EXPECT_EQ(write_error("/proc/sys/vm/drop_caches", "3"), 0);
	EXPECT_EQ(write_error("/proc/sys/vm/compact_memory", "1"), 0);
	map.advise(MADV_PAGEOUT);
	touch();
	EXPECT_EQ(frames(), before_it);
	expect_whole();
	/* Where anything could be swapped out, something was. */
	EXPECT_EQ(sum_of("/proc/vmstat", "pswpout") > 0,
		  meminfo("SwapTotal:") > 0);
	EXPECT_TRUE(greedy.ended_well());
	expect_memory_back(available, 16 << 20);
}

TEST_F(short_of_memory, who_stores_is_killed_and_its_regions_are_given_back)
{
	expect_to_be_killed_at(
		[](const region &, const mapping &map) { fill(map.bytes(), 3); });
}

TEST_F(short_of_memory, who_writes_is_killed_and_its_regions_are_given_back)
{
	expect_to_be_killed_at([](const region &own, const mapping &map) {
		for (std::size_t page = 0; page < map.pages(); page++)
			own.fill_page(page, 3);
	});
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
