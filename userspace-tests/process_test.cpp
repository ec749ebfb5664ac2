// SPDX-License-Identifier: GPL-2.0-only
/*
 * What happens to a process happens to its mappings and descriptors, not to the
 * region: fork, exec, the end by every way, limits, and being watched.
 */
#include <array>
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <linux/mempolicy.h>

#include "chance.hpp"
#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"
#include "sequence.hpp"

using namespace cowsnap_test;

namespace {

constexpr std::size_t pages = 32;

bool shows_numbers(const mapping &map, unsigned int first = 1)
{
	for (std::size_t page = 0; page < map.pages(); page++)
		if (!is_all(map.page(page),
			    static_cast<unsigned int>(first + page) & 0xff))
			return false;
	return true;
}

/* Two threads, each of which counts rounds in the pages of its half. */
class counting_threads {
public:
	static constexpr std::size_t half = 24;
	static constexpr std::size_t pages = 2 * half;

	explicit counting_threads(const mapping &map)
	{
		for (std::size_t writer = 0; writer < 2; writer++)
			threads_.emplace_back([this, &map, writer] {
				count(map, writer * half);
			});
	}
	~counting_threads() { stop(); }

	void stop()
	{
		stop_ = true;
		for (std::thread &thread : threads_)
			if (thread.joinable())
				thread.join();
	}
	/* Until each page has a number. */
	static void wait_for_first_round(const mapping &map)
	{
		while (!map.load(half - 1) || !map.load(pages - 1))
			std::this_thread::yield();
	}
	/* Stores that were not there any more when they were looked for. */
	std::uint64_t lost() const { return lost_; }

	/* Where a copy of their pages is not of one instant. */
	static std::optional<std::string> torn_in(const mapping &map)
	{
		for (std::size_t first : {std::size_t{0}, half}) {
			std::vector<std::uint64_t> values;

			for (std::size_t page = 0; page < half; page++)
				values.push_back(map.load(first + page));
			if (const std::optional<std::string> where = torn(values))
				return where;
		}
		return std::nullopt;
	}

private:
	void count(const mapping &map, std::size_t first)
	{
		for (std::uint64_t round = 1; !stop_; round++) {
			for (std::size_t page = first; page < first + half; page++) {
				lost_ += map.load(page) != round - 1;
				map.store(page, round);
			}
		}
	}

	std::atomic<bool> stop_ = false;
	std::atomic<std::uint64_t> lost_ = 0;
	std::vector<std::thread> threads_;
};

/* The nodes are 0 ... this one. */
int last_node()
{
	int node = 0;

	while (std::filesystem::exists("/sys/devices/system/node/node" +
				       std::to_string(node + 1)))
		node++;
	return node;
}

/* Has the kernel look at short intervals which node uses what. */
class node_balancing {
public:
	node_balancing()
	{
		for (const auto &[name, value] : wanted) {
			std::ifstream(directory + name) >> before_.emplace_back();
			std::ofstream(directory + name) << value;
		}
	}
	~node_balancing()
	{
		for (std::size_t i = 0; i < wanted.size(); i++)
			std::ofstream(directory + wanted[i].first) << before_[i];
	}
	node_balancing(const node_balancing &) = delete;
	node_balancing &operator=(const node_balancing &) = delete;

private:
	static inline const std::string directory =
		"/sys/kernel/debug/sched/numa_balancing/";
	static constexpr std::array<std::pair<const char *, int>, 3> wanted = {
		{{"scan_delay_ms", 1},
		 {"scan_period_min_ms", 10},
		 {"scan_period_max_ms", 20}}};

	std::vector<std::string> before_;
};

class processes : public cowsnap_fixture {};

/*
 * fork(2) of who maps a snapshot privately: from then on each of the two has the
 * private copies of its own, and the snapshot has none of them.
 */
TEST_F(processes, that_fork_copy_what_is_private)
{
	const region parent = numbered(pages);
	const region snapshot = parent.snapshot();
	const mapping map = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);
	const event written, done;

	fill(map.page(0), 50);
	EXPECT_TRUE(is_all(map.page(1), 2));

	child heir([&] {
		written.wait();
		require(is_all(map.page(0), 50), "what was private is not there");
		require(is_all(map.page(1), 2), "a later write shows in page 1");
		require(is_all(map.page(2), 3), "a later write shows in page 2");
		fill(map.bytes(), 60);
		done.tell();
	});

	for (std::size_t page = 0; page < 4; page++)
		fill(map.page(page), 70);
	fill(parent.map().bytes(), 99);
	written.tell();
	done.wait();
	EXPECT_TRUE(heir.succeeded());
	EXPECT_TRUE(is_all(map.page(0), 70));
	EXPECT_TRUE(is_all(map.page(3), 70));
	EXPECT_TRUE(is_all(map.page(4), 5));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

TEST_F(processes, that_fork_while_their_threads_store)
{
	const region parent =
		dev.create_pages(counting_threads::pages + 1);
	const mapping map = parent.map();
	const std::size_t own_page = counting_threads::pages;
	const deadline end = scaled_deadline(std::chrono::seconds(1));
	counting_threads counting(map);
	std::uint64_t round = 0;

	while (!passed(end) || round < 5) {
		round++;

		/* It has the mapping but not the threads, which go on. */
		child heir([&] {
			const std::uint64_t then = map.load(0);
			const region snapshot = parent.snapshot();
			const mapping shown = snapshot.map(PROT_READ);

			map.store(own_page, round);
			require(map.load(0) >= then, "an older value came back");
			require(shown.load(0) >= then, "the snapshot is older");
			require(shown.load(own_page) == round - 1,
				"the snapshot is younger");
			require(!counting_threads::torn_in(shown),
				"the child's snapshot is torn");
		});
		const region snapshot = parent.snapshot();
		const std::optional<std::string> where =
			counting_threads::torn_in(snapshot.map(PROT_READ));

		ASSERT_TRUE(heir.succeeded());
		ASSERT_FALSE(where) << *where;
		ASSERT_EQ(map.load(own_page), round);
	}
	counting.stop();
	EXPECT_EQ(counting.lost(), 0u);
}

/* What a program finds that a process which maps a region became by exec. */
void after_exec(const std::vector<int> &fds)
{
	const region kept{unique_fd(fds[0])};
	const int closed = fds[1];
	std::ifstream maps("/proc/self/maps");
	std::string line;

	while (std::getline(maps, line))
		require(line.find("/cowsnap:") == line.npos, "it is still mapped");
	require(::fcntl(closed, F_GETFD) < 0 && errno == EBADF,
		"the descriptor is still open");
	require(::fcntl(kept.fd(), F_GETFD) == 0, "it is closed on exec");
	require(misnumbered_page(kept, pages, 1) == -1, "it holds something else");

	const mapping map = kept.map();
	const region snapshot = kept.snapshot();

	fill(map.bytes(), 99);
	require(misnumbered_page(snapshot, pages, 1) == -1, "the snapshot changed");
	require(::fcntl(snapshot.fd(), F_GETFD) == FD_CLOEXEC,
		"the snapshot is not closed on exec");
}

[[noreturn]] void exec_self(const char *what, const std::vector<int> &fds)
{
	std::vector<std::string> words = {"process_test", what};
	std::vector<char *> arguments;

	for (const int fd : fds)
		words.push_back(std::to_string(fd));
	for (std::string &word : words)
		arguments.push_back(word.data());
	arguments.push_back(nullptr);
	::execv("/proc/self/exe", arguments.data());
	check(-1, "execv");
	std::abort();
}

/* Not closed on exec. */
int inheritable(int fd)
{
	return check(::fcntl(fd, F_DUPFD, 100), "fcntl");
}

TEST_F(processes, that_exec_keep_the_descriptor_that_they_want_to)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	const region snapshot = parent.snapshot();

	child caller([&] {
		exec_self("--after-exec", {inheritable(parent.fd()), parent.fd()});
	});
	EXPECT_TRUE(caller.succeeded());
	EXPECT_TRUE(is_all(map.bytes(), 99));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
}

enum class ending { exit, exit_of_one_thread, kill, exec };

const char *name_of(ending how)
{
	switch (how) {
	case ending::exit:
		return "exit";
	case ending::exit_of_one_thread:
		return "exit_of_one_thread";
	case ending::kill:
		return "kill";
	case ending::exec:
		return "exec";
	}
	return "";
}

class processes_that_end : public processes,
			   public testing::WithParamInterface<ending> {
protected:
	static constexpr std::size_t own_size = 8 << 20;

	/* Stores and forks until it is told to end, and that way. */
	static void live(const device &dev, const region &parent, const event &ready,
			 const event &go, const event &ended)
	{
		const region own = dev.create(own_size);
		const mapping own_map = own.map();
		const mapping map = parent.map();

		fill(own_map.bytes(), 1);

		const region own_snapshot = own.snapshot();
		counting_threads counting(map);
		std::thread forker([&] {
			for (;;) {
				(void)parent.fork().map().load(0);
				std::this_thread::sleep_for(
					std::chrono::milliseconds(1));
			}
		});

		counting_threads::wait_for_first_round(map);
		ready.tell();
		go.wait();
		switch (GetParam()) {
		case ending::exit:
			::_exit(0);
		case ending::exit_of_one_thread:
			std::thread([] { ::_exit(0); }).join();
			break;
		case ending::exec:
			exec_self("--tell", {inheritable(ended.fd()),
					     inheritable(go.fd())});
		case ending::kill:
			::kill(::getpid(), SIGKILL);
		}
	}
};

INSTANTIATE_TEST_SUITE_P(, processes_that_end,
			 testing::Values(ending::exit, ending::exit_of_one_thread,
					 ending::kill, ending::exec),
			 [](const auto &info) { return name_of(info.param); });

/* In the middle of their threads' stores, forks and faults. */
TEST_P(processes_that_end, leave_each_store_done_or_not)
{
	const std::size_t rounds = scaled(3);
	std::uint64_t available = 0;

	for (std::size_t round = 0; round < rounds; round++) {
		/* The first is for what the kernel keeps for each CPU. */
		if (round == 1)
			available = available_memory();

		const region parent = dev.create_pages(counting_threads::pages);
		const mapping map = parent.map();
		const event ready, go, ended;
		child process([&] { live(dev, parent, ready, go, ended); });

		ready.wait();
		go.tell();
		if (GetParam() == ending::exec) {
			ended.wait();
		} else if (GetParam() == ending::kill) {
			ASSERT_TRUE(process.killed_by(SIGKILL));
		} else {
			ASSERT_TRUE(process.succeeded());
		}

		/* The other regions close in their own time. */
		ASSERT_TRUE(eventually([&] {
			return counters(dev).regions == before.regions + 1;
		})) << counters(dev).regions;
		EXPECT_EQ(parent.stat().referenced, map.size());
		ASSERT_FALSE(counting_threads::torn_in(map)) << round;

		const std::vector<std::byte> then = parent.read(0, map.size());

		std::this_thread::sleep_for(std::chrono::milliseconds(10));
		EXPECT_EQ(parent.read(0, map.size()), then) << "somebody stores";
		if (GetParam() == ending::exec) {
			go.tell();
			EXPECT_TRUE(process.succeeded());
		}
	}
	expect_memory_back(available, own_size);
}

/* MCL_CURRENT locks nothing of a region, MCL_FUTURE only maps it at once. */
TEST_F(processes, that_lock_all_their_memory)
{
	child locker([&] {
		const auto locked = [] {
			return sum_of("/proc/self/status", "VmLck:");
		};
		const region subject = numbered(pages);
		const region empty = dev.create_pages(pages);
		const mapping map = subject.map();

		check(::mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall");
		require(page_entry(map.page(3).data()).present(), "not populated");

		const std::uint64_t before = locked();
		const mapping late = empty.map();

		require(before > 0, "nothing at all is locked");
		require(locked() == before, "a region is counted as locked");
		require(page_entry(late.page(3).data()).present(), "not populated");
		require(empty.stat().referenced == 0, "holes were filled");

		const region snapshot = subject.snapshot();

		fill(map.bytes(), 99);
		require(misnumbered_page(snapshot, pages, 1) == -1,
			"the snapshot changed");
		check(::munlockall(), "munlockall");
		check(::mlockall(MCL_FUTURE | MCL_ONFAULT), "mlockall");
		require(shows_numbers(snapshot.map(PROT_READ)), "not to be read");
	});
	EXPECT_TRUE(locker.succeeded());
}

void limit(decltype(RLIMIT_AS) resource, std::uint64_t value)
{
	const rlimit limits = {value, value};

	check(::setrlimit(resource, &limits), "setrlimit");
}

/* Gives up what root may. */
void become_nobody()
{
	constexpr uid_t nobody = 65534;

	check(::setresuid(nobody, nobody, nobody), "setresuid");
}

TEST_F(processes, that_may_not_lock_memory)
{
	const region subject = numbered(pages);
	const mapping map = subject.map();

	child refused([&] {
		limit(RLIMIT_MEMLOCK, 0);
		become_nobody();
		require(::mlock(map.data(), map.size()) < 0 && errno == EPERM,
			"locked beyond the limit");
		/* What is locked in fact is not the business of this limit. */
		fill(subject.snapshot().map(PROT_READ | PROT_WRITE, MAP_PRIVATE)
			     .bytes(),
		     98);
		fill(map.bytes(), 99);
	});
	EXPECT_TRUE(refused.succeeded());
	EXPECT_TRUE(is_all(map.bytes(), 99));

	child limited([&] {
		limit(RLIMIT_MEMLOCK, 4 * page_size);
		become_nobody();
		require(::mlock(map.data(), 5 * page_size) < 0 && errno == ENOMEM,
			"locked beyond the limit");
		for (std::size_t page = 0; page + 4 <= pages; page += 4)
			require(::mlock(map.page(page).data(), 4 * page_size) == 0,
				"what was locked before counts");
	});
	EXPECT_TRUE(limited.succeeded());
}

TEST_F(processes, that_have_little_address_space)
{
	constexpr std::size_t size = std::size_t{1} << 30;

	child cramped([&] {
		limit(RLIMIT_AS,
		      sum_of("/proc/self/status", "VmSize:") * 1024 + (16 << 20));

		/* The length of a region is nobody's address space. */
		const region subject = dev.create(size);

		require(::mmap(nullptr, size, PROT_READ, MAP_SHARED, subject.fd(),
			       0) == MAP_FAILED &&
				errno == ENOMEM,
			"mapped beyond the limit");
		subject.write(size / 2, bytes_of(page_size, 1));

		const mapping part(subject.fd(), 1 << 20, PROT_READ | PROT_WRITE,
				   MAP_SHARED, size / 2);
		const region snapshot = subject.snapshot();

		fill(part.bytes(), 2);
		require(is_all(snapshot.read(size / 2, page_size), 1),
			"the snapshot changed");
	});
	EXPECT_TRUE(cramped.succeeded());
}

/* RLIMIT_DATA counts what is private and writable. */
TEST_F(processes, that_may_have_little_data)
{
	const region subject = dev.create(64 << 20);
	const region snapshot = subject.snapshot();

	child cramped([&] {
		limit(RLIMIT_DATA,
		      sum_of("/proc/self/status", "VmData:") * 1024 + (4 << 20));
		fill(subject.map().page(7), 1);
		(void)snapshot.map(PROT_READ);
		(void)snapshot.map(PROT_READ, MAP_PRIVATE);
		require(::mmap(nullptr, 64 << 20, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE, snapshot.fd(), 0) == MAP_FAILED &&
				errno == ENOMEM,
			"mapped beyond the limit");
	});
	EXPECT_TRUE(cramped.succeeded());
}

TEST_F(processes, advised_by_others_keep_what_they_hold)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	const event ready, done;
	child target([&] {
		require(shows_numbers(map), "not inherited");
		ready.tell();
		done.wait();
		require(is_all(map.bytes(), 99), "it shows something else");
	});
	const unique_fd handle(static_cast<int>(
		check(::syscall(SYS_pidfd_open, target.pid(), 0), "pidfd_open")));
	const iovec range = {map.data(), map.size()};
	const region snapshot = parent.snapshot();

	ready.wait();
	fill(map.bytes(), 99);
	for (const int advice : {MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED})
		EXPECT_EQ(::syscall(SYS_process_madvise, handle.get(), &range, 1,
				    advice, 0),
			  static_cast<ssize_t>(map.size()))
			<< advice;
	/* What would lose data is not for others to say. */
	EXPECT_EQ(::syscall(SYS_process_madvise, handle.get(), &range, 1,
			    MADV_DONTNEED, 0),
		  -1);
	EXPECT_EQ(errno, EINVAL);
	EXPECT_TRUE(is_all(map.bytes(), 99));
	EXPECT_EQ(misnumbered_page(snapshot, pages, 1), -1);
	done.tell();
	EXPECT_TRUE(target.succeeded());
}

void clear_refs(int what)
{
	std::ofstream file("/proc/self/clear_refs");

	file << what << std::flush;
	if (!file)
		throw std::runtime_error("cannot write to clear_refs");
}

/*
 * 1, 2 and 3 make entries old, 4 write-protects them and leaves them dirty, 5 is
 * for a figure.
 */
TEST_F(processes, whose_references_are_cleared)
{
	for (int what = 1; what <= 5; what++) {
		const region parent = numbered(pages);
		const mapping map = parent.map();

		EXPECT_TRUE(shows_numbers(map));
		clear_refs(what);
		fill(map.bytes(), 50);
		clear_refs(what);

		const region first = parent.snapshot();

		clear_refs(what);
		fill(map.page(0), 51);
		EXPECT_TRUE(is_all(map.page(1), 50));
		clear_refs(what);
		fill(map.bytes(), 52);
		clear_refs(what);
		map.protect(PROT_READ);

		const region second = parent.snapshot();

		map.protect(PROT_READ | PROT_WRITE);
		clear_refs(what);
		fill(map.bytes(), 53);
		EXPECT_TRUE(is_all(first.read(0, map.size()), 50)) << what;
		EXPECT_TRUE(is_all(second.read(0, map.size()), 52)) << what;
		EXPECT_TRUE(is_all(parent.read(0, map.size()), 53)) << what;
		EXPECT_TRUE(is_all(map.bytes(), 53)) << what;
	}
}

/* What checkpoints in steps rely on: no store goes unmarked. */
TEST_F(processes, are_told_by_soft_dirty_bits_what_they_stored)
{
	const mapping fresh = anonymous(page_size);

	fresh.store(0, 1);
	if (!page_entry(fresh.data()).soft_dirty())
		GTEST_SKIP() << "this kernel has no soft-dirty bits";

	const region parent = numbered(pages);
	const mapping map = parent.map();
	const auto marked = [&map](std::size_t page) {
		return page_entry(map.page(page).data()).soft_dirty();
	};

	for (std::size_t page = 0; page < 6; page++)
		map.store(page, 1);
	clear_refs(4);
	for (std::size_t page = 0; page < 6; page++)
		EXPECT_FALSE(marked(page)) << page;
	map.store(0, 2);
	EXPECT_TRUE(marked(0)) << "an entry that was there";
	EXPECT_FALSE(marked(1));

	const region snapshot = parent.snapshot();

	map.store(1, 2);
	EXPECT_TRUE(marked(1)) << "no entry since the FORK";
	EXPECT_EQ(map.load(2), 1u);
	map.store(2, 2);
	EXPECT_TRUE(marked(2)) << "an entry that was read since the FORK";
	map.advise(MADV_DONTNEED);
	EXPECT_EQ(map.load(1), 2u);
	map.store(1, 3);
	EXPECT_TRUE(marked(1)) << "an entry of a page that was written before";
	map.store(pages - 1, 3);
	EXPECT_TRUE(marked(pages - 1)) << "an entry of a page never touched";
}

TEST_F(processes, are_shown_what_they_have_mapped)
{
	const region parent = dev.create_pages(pages);
	const mapping map = parent.map();
	const auto at = [](const mapping &where, std::size_t page) {
		return page_entry(where.page(page).data());
	};

	EXPECT_FALSE(at(map, 0).present());
	/* All holes are one page. */
	EXPECT_EQ(map.load(0), 0u);
	EXPECT_EQ(map.load(1), 0u);
	EXPECT_TRUE(at(map, 0).present());
	EXPECT_TRUE(at(map, 0).of_a_file());
	EXPECT_NE(at(map, 0).frame(), 0u);
	EXPECT_EQ(at(map, 0).frame(), at(map, 1).frame());
	map.store(0, 1);
	map.store(1, 2);
	EXPECT_TRUE(at(map, 0).of_a_file());
	EXPECT_NE(at(map, 0).frame(), at(map, 1).frame());

	/* A snapshot's is the region's until one is written. */
	const region snapshot = parent.snapshot();
	const mapping shown = snapshot.map(PROT_READ);
	const mapping copied = snapshot.map(PROT_READ | PROT_WRITE, MAP_PRIVATE);

	EXPECT_EQ(map.load(0), shown.load(0));
	EXPECT_EQ(map.load(1), copied.load(1));
	EXPECT_EQ(at(map, 0).frame(), at(shown, 0).frame());
	EXPECT_EQ(at(map, 1).frame(), at(copied, 1).frame());
	EXPECT_TRUE(at(copied, 1).of_a_file());
	map.store(0, 3);
	copied.store(1, 3);
	EXPECT_NE(at(map, 0).frame(), at(shown, 0).frame());
	EXPECT_NE(at(map, 1).frame(), at(copied, 1).frame());
	EXPECT_FALSE(at(copied, 1).of_a_file());
}

enum class disturbance {
	clear_refs,
	reclaim_advice,
	locks,
	page_moves,
	node_policies,
	compaction,
	node_balancing,
};

const char *name_of(disturbance how)
{
	switch (how) {
	case disturbance::clear_refs:
		return "clear_refs";
	case disturbance::reclaim_advice:
		return "reclaim_advice";
	case disturbance::locks:
		return "locks";
	case disturbance::page_moves:
		return "page_moves";
	case disturbance::node_policies:
		return "node_policies";
	case disturbance::compaction:
		return "compaction";
	case disturbance::node_balancing:
		return "node_balancing";
	}
	return "";
}

/* What the kernel does to page tables, on request or all the time. */
class processes_disturbed_by
	: public processes,
	  public testing::WithParamInterface<
		  std::tuple<disturbance, std::uint32_t>> {
protected:
	const disturbance how = std::get<0>(GetParam());
	const std::uint32_t granule_shift = std::get<1>(GetParam());

	static void write(const char *path, std::string_view text)
	{
		std::ofstream file(path);

		file << text << std::flush;
		if (!file)
			throw std::runtime_error(std::string("cannot write to ") +
						 path);
	}

	static void move_pages(const mapping &map, int node)
	{
		std::vector<void *> addresses;
		std::vector<int> nodes(map.pages(), node), status(map.pages());

		for (std::size_t page = 0; page < map.pages(); page++)
			addresses.push_back(map.page(page).data());
		check(::syscall(SYS_move_pages, 0, addresses.size(),
				addresses.data(), nodes.data(), status.data(),
				MPOL_MF_MOVE_ALL),
		      "move_pages");
	}

	static void bind(const mapping &map, int mode, unsigned long nodes)
	{
		check(::syscall(SYS_mbind, map.data(), map.size(), mode,
				nodes ? &nodes : nullptr, nodes ? 64 : 0,
				MPOL_MF_MOVE),
		      "mbind");
	}

	void disturb(const mapping &map, std::size_t round) const
	{
		switch (how) {
		case disturbance::clear_refs:
			clear_refs(round % 4 ? 4 : 1);
			break;
		case disturbance::reclaim_advice:
			map.advise(round % 2 ? MADV_PAGEOUT : MADV_COLD);
			break;
		case disturbance::locks:
			check(::mlock(map.data(), map.size()), "mlock");
			check(::munlock(map.data(), map.size()), "munlock");
			break;
		case disturbance::page_moves:
			move_pages(map, round % 2 ? last_node() : 0);
			break;
		case disturbance::node_policies:
			bind(map, MPOL_BIND, round % 2 ? 1UL << last_node() : 1);
			bind(map, MPOL_DEFAULT, 0);
			break;
		case disturbance::compaction:
			write("/proc/sys/vm/compact_memory", "1");
			break;
		case disturbance::node_balancing:
			std::this_thread::sleep_for(std::chrono::milliseconds(10));
			break;
		}
	}

	/* Pairs, as what the first leaves wrong only the second shows. */
	static void expect_sound_forks(const region &parent)
	{
		const region first = parent.snapshot();
		const mapping shown = first.map(PROT_READ);
		const std::uint64_t value = shown.load(0);
		const region second = parent.snapshot();

		for (const region *snapshot : {&first, &second}) {
			const std::optional<std::string> where =
				counting_threads::torn_in(
					snapshot->map(PROT_READ));

			EXPECT_FALSE(where) << *where;
		}
		EXPECT_EQ(shown.load(0), value);
	}
};

INSTANTIATE_TEST_SUITE_P(
	, processes_disturbed_by,
	testing::Combine(
		testing::Values(disturbance::clear_refs,
				disturbance::reclaim_advice, disturbance::locks,
				disturbance::page_moves, disturbance::node_policies,
				disturbance::compaction,
				disturbance::node_balancing),
		testing::Values(page_shift, page_shift + 4)),
	[](const auto &info) {
		return std::string(name_of(std::get<0>(info.param))) + "_" +
		       std::to_string(1U << std::get<1>(info.param) >> 10) + "k";
	});

TEST_P(processes_disturbed_by, fork_at_one_instant)
{
	const region parent = dev.create(counting_threads::pages * page_size, 0, {},
					 granule_shift);
	const mapping map = parent.map();
	const bool balancing = how == disturbance::node_balancing;
	std::optional<node_balancing> fast;
	std::atomic<std::size_t> disturbances = 0;
	std::size_t forks = 0;

	if (balancing && last_node() == 0)
		GTEST_SKIP() << "this machine has one node only";
	if (balancing)
		fast.emplace();

	const std::uint64_t updates = sum_of("/proc/vmstat", "numa_pte_updates");
	counting_threads counting(map);
	std::jthread disturber([&](const std::stop_token &stop) {
		while (!stop.stop_requested())
			disturb(map, disturbances++);
	});
	const deadline end = scaled_deadline(std::chrono::milliseconds(300));
	const auto balanced = [&] {
		return !balancing ||
		       sum_of("/proc/vmstat", "numa_pte_updates") > updates;
	};
	const auto enough = [&] {
		return passed(end, [&] {
			return disturbances > 3 && forks > 3 && balanced();
		});
	};

	for (; !enough() && !HasFailure(); forks++)
		expect_sound_forks(parent);
	disturber.request_stop();
	disturber.join();
	counting.stop();
	EXPECT_EQ(counting.lost(), 0u);
	EXPECT_GT(disturbances, 3u);
	EXPECT_GT(forks, 3u);
	EXPECT_TRUE(balanced()) << "the kernel looked at nothing";
}

/* From Linux 6.7; not in the headers of every libc. */
struct scan_range {
	std::uint64_t start, end, categories;
};

struct scan_argument {
	std::uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	std::uint64_t category_inverted, category_mask, category_anyof_mask;
	std::uint64_t return_mask;
};

constexpr unsigned long pagemap_scan = _IOWR('f', 16, scan_argument);
constexpr std::uint64_t scan_write_protect = 1 << 0;
constexpr std::uint64_t scan_check_write_protect = 1 << 1;
constexpr std::uint64_t category_file = 1 << 2;
constexpr std::uint64_t category_present = 1 << 3;

TEST_F(processes, are_scanned_for_what_they_have_mapped)
{
	const region parent = numbered(pages);
	const mapping map = parent.map();
	const unique_fd pagemap(check(
		::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC), "pagemap"));
	std::array<scan_range, 4> found = {};
	scan_argument scan = {};

	scan.size = sizeof(scan);
	scan.start = reinterpret_cast<std::uintptr_t>(map.data());
	scan.end = scan.start + map.size();
	scan.vec = reinterpret_cast<std::uintptr_t>(found.data());
	scan.vec_len = found.size();
	scan.category_mask = category_present | category_file;
	scan.return_mask = scan.category_mask;
	map.store(4, 1);
	map.store(5, 1);
	map.store(9, 1);

	const int ranges = ::ioctl(pagemap.get(), pagemap_scan, &scan);

	if (ranges < 0 && errno == ENOTTY)
		GTEST_SKIP() << "this kernel has no PAGEMAP_SCAN";
	ASSERT_EQ(ranges, 2);
	EXPECT_EQ(found[0].start, scan.start + 4 * page_size);
	EXPECT_EQ(found[0].end, scan.start + 6 * page_size);
	EXPECT_EQ(found[1].start, scan.start + 9 * page_size);

	/* It cannot write-protect what userfaultfd does not register on. */
	const region snapshot = parent.snapshot();

	scan.flags = scan_write_protect;
	EXPECT_EQ(::ioctl(pagemap.get(), pagemap_scan, &scan), 0);
	scan.flags = scan_write_protect | scan_check_write_protect;
	EXPECT_EQ(::ioctl(pagemap.get(), pagemap_scan, &scan), -1);
	EXPECT_EQ(errno, EPERM);
	fill(map.bytes(), 99);
	EXPECT_TRUE(is_all(snapshot.read_page(8), 9));
	EXPECT_TRUE(is_all(snapshot.read_page(31), 32));
}

} // namespace

/* What the programs do that the tests above exec. */
int run_helper(const std::string_view what, const std::vector<int> &fds)
{
	try {
		if (what == "--after-exec") {
			after_exec(fds);
		} else {
			event(unique_fd(fds[0])).tell();
			event(unique_fd(fds[1])).wait();
		}
	} catch (const std::exception &error) {
		std::printf("# after exec: %s\n", error.what());
		return 1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 2 && std::string_view(argv[1]).starts_with("--")) {
		std::vector<int> fds;

		for (int i = 2; i < argc; i++)
			fds.push_back(std::atoi(argv[i]));
		return run_helper(argv[1], fds);
	}
	return ktap::run(argc, argv);
}
