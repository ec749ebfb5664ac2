// SPDX-License-Identifier: GPL-2.0-only
/*
 * Races on purpose: processes and threads that store, fork, restore, truncate, punch,
 * compare and close at once, of which some are killed in the middle of it and begin
 * again, while what they find is checked (round_writer.hpp).  Where the module was
 * built for it they are delayed in turn at each point where two may meet.
 */
#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <csignal>
#include <cstdio>
#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "chance.hpp"
#include "delays.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"
#include "round_writer.hpp"

using namespace cowsnap_test;

namespace {

/*
 * Behind the pages of the rounds (round_writer.hpp), each in granules of its own: what
 * only the mirror changes, what write(2) counts in, what is filled and punched, and what
 * is cut off.
 */
constexpr std::size_t kept_start = 2112;
constexpr std::size_t kept_pages = 16;
constexpr std::uint64_t kept_value = 7;
constexpr std::size_t counted_page = 2144;
constexpr std::size_t punched_start = 2208;
constexpr std::size_t punched_pages = 32;
constexpr std::size_t cut_start = 2304;
constexpr std::size_t cut_pages = 16;
/* A store through a mapping reaches what is behind this in its page. */
const std::uint64_t short_length = cut_start * page_size + 512;
const std::uint64_t long_length = (cut_start + cut_pages) * page_size;
constexpr std::size_t word_behind_the_end = 128;
/* What no member but the mirror ever has. */
constexpr std::uint64_t mirrors_own = 1ull << 60;

/* What the processes of a test tell each other. */
struct race_state : progress {
	std::atomic<std::uint64_t> forks = 0;
	std::atomic<std::uint64_t> restores = 0;
	std::atomic<std::uint64_t> punches = 0;
	std::atomic<std::uint64_t> cuts = 0;
};

/* Are @values, which are filled in order and then made zero at once, of one instant? */
bool filled_in_order(const std::vector<std::uint64_t> &values)
{
	return std::ranges::all_of(values, [&](std::uint64_t value) {
		       return value == values[0] || value == 0;
	       }) &&
	       std::ranges::is_sorted(values, std::greater());
}

/* All that is checked in a member of the family. */
struct scene {
	picture rounds;
	std::uint64_t counted = 0;
	std::uint64_t length = 0;
	std::vector<std::uint64_t> punched, cut, kept;

	bool operator==(const scene &) const = default;
};

std::vector<std::uint64_t> words_of(const mapping &map, std::size_t first,
				    std::size_t pages)
{
	std::vector<std::uint64_t> words;

	for (std::size_t page = first; page < first + pages; page++)
		words.push_back(map.load(page));
	return words;
}

std::uint64_t counted_in(const region &member)
{
	std::uint64_t count = 0;

	member.read(counted_page * page_size,
		    std::as_writable_bytes(std::span(&count, 1)));
	return count;
}

scene scene_of(const region &member, bool by_mapping)
{
	const mapping map = member.map(PROT_READ);
	scene taken;

	taken.rounds = picture_of(member, by_mapping);
	taken.counted = counted_in(member);
	taken.length = member.length();
	taken.punched = words_of(map, punched_start, punched_pages);
	taken.kept = words_of(map, kept_start, kept_pages);
	if (taken.length == long_length)
		taken.cut = words_of(map, cut_start + 1, cut_pages - 1);
	return taken;
}

void require_one_instant(const scene &taken)
{
	const auto fault = fault_of(taken.rounds);

	require(!fault, fault.value_or(""));
	require(taken.length == short_length || taken.length == long_length,
		"a length that was never set");
	require(filled_in_order(taken.punched), "a hole was punched in part");
	require(taken.cut.empty() || filled_in_order(taken.cut),
		"what was cut off shows in part");
	require(std::ranges::all_of(taken.kept,
				    [](std::uint64_t value) {
					    return value == kept_value;
				    }),
		"a store to another member shows");
}

/* Runs bodies as threads of this process; the first that throws speaks for all. */
class crew {
public:
	explicit crew(race_state &state) : state_(state) {}
	crew(const crew &) = delete;
	crew &operator=(const crew &) = delete;

	void add(std::function<void()> body)
	{
		threads_.emplace_back([this, body = std::move(body)] {
			try {
				body();
			} catch (const std::exception &error) {
				if (!failed_.exchange(true))
					failure_ = error.what();
				state_.stop = true;
			}
		});
	}
	void finish()
	{
		threads_.clear();
		require(!failed_, failure_);
	}

private:
	race_state &state_;
	std::atomic<bool> failed_ = false;
	std::string failure_;
	std::vector<std::jthread> threads_;
};

/* Leaves the CPUs to others for a moment. */
void pause_a_moment(chance &random)
{
	std::this_thread::sleep_for(std::chrono::microseconds(random.below(1000)));
}

/* Counts rounds, and goes on where another that was killed stopped. */
void write_rounds(const region &live, std::size_t number, race_state &state)
{
	static constexpr std::array ways = {
		disturbance::none,	     disturbance::mprotect,
		disturbance::dontneed,	     disturbance::mremap,
		disturbance::second_mapping, disturbance::write_calls,
		disturbance::remote_writes,
	};
	chance random(10 + static_cast<std::uint64_t>(::getpid()));
	round_writer writer(live, number, ways[random.below(ways.size())], state);

	writer.resume();
	writer.run();
}

void copy_pages(const region &live, race_state &state)
{
	const mapping map = live.map();
	chance random(15);

	while (!state.stop) {
		for (std::size_t i = 0; i < copied_pages; i++)
			map.store(copies_start + i, map.load(original_of(i)));
		pause_a_moment(random);
	}
}

/* Counts in one page by write(2), so that a fork mostly meets it there. */
void count_by_calls(const region &live, race_state &state)
{
	chance random(18);
	std::uint64_t count = 0;

	while (!state.stop) {
		count++;
		live.write(counted_page * page_size,
			   std::as_bytes(std::span(&count, 1)));
		require(counted_in(live) == count, "a write does not show");
		if (random.one_in(4))
			pause_a_moment(random);
	}
}

/* Fills pages in order and punches them all at once, with other calls in between. */
void fill_and_punch(const region &live, const mapping &map, race_state &state)
{
	chance random(20);
	std::uint64_t round = 0;

	while (!state.stop) {
		round++;
		for (std::size_t i = 0; i < punched_pages; i++) {
			const std::size_t page = punched_start + i;

			require(map.load(page) == 0, "a hole is not empty");
			map.store(page, round);
			require(map.load(page) == round, "a store does not show");
		}
		pause_a_moment(random);
		if (random.one_in(2))
			live.punch(punched_start * page_size,
				   punched_pages * page_size);
		else
			live.zero(punched_start * page_size,
				  punched_pages * page_size,
				  FALLOC_FL_KEEP_SIZE);
		state.punches++;
	}
}

/* Grows the region, fills what is there then in order, and cuts it off again. */
void grow_and_cut(const region &live, const mapping &map, race_state &state)
{
	std::uint64_t round = 0;
	auto *const behind =
		reinterpret_cast<volatile std::uint64_t *>(map.page(cut_start).data()) +
		word_behind_the_end;

	while (!state.stop) {
		round++;
		*behind = round;
		live.truncate(long_length);
		require(*behind == 0, "what is behind the end shows when it moves");
		for (std::size_t page = cut_start + 1; page < cut_start + cut_pages;
		     page++) {
			require(map.load(page) == 0, "what was cut off shows again");
			map.store(page, round);
			require(map.load(page) == round, "a store does not show");
		}
		live.truncate(short_length);
		state.cuts++;
	}
}

/* Reads what is punched and cut off meanwhile; what is beyond the end is no error. */
void read_what_goes(const mapping &map, race_state &state)
{
	chance random(25);

	while (!state.stop) {
		std::array<std::uint64_t, 1> word = {};
		const std::size_t page = random.one_in(2)
						 ? punched_start +
							   random.below(punched_pages)
						 : cut_start + random.below(cut_pages);
		const iovec local = {word.data(), sizeof(word)};
		const iovec remote = {map.page(page).data(), sizeof(word)};

		if (::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0) < 0)
			require(errno == EFAULT && page >= cut_start,
				"what is there cannot be read");
		if (random.one_in(8))
			pause_a_moment(random);
	}
}

/* DIFF finds every page of the rounds that differs in two snapshots. */
void require_diff_finds(const region &a, const scene &in_a, const region &b,
			const scene &in_b)
{
	const std::vector<cowsnap_range> ranges = a.diff(b);

	for (std::size_t writer = 0; writer < writers; writer++) {
		const std::vector<std::size_t> pages = pages_of(writer);

		for (std::size_t i = 0; i < pages.size(); i++) {
			const std::uint64_t at = pages[i] * page_size;

			require(in_a.rounds.rounds[writer][i] ==
						in_b.rounds.rounds[writer][i] ||
					std::ranges::any_of(
						ranges,
						[&](const cowsnap_range &range) {
							return range.offset <= at &&
							       at < range.offset +
									    range.length;
						}),
				"DIFF leaves a page out");
		}
	}
}

struct kept_member {
	region member;
	scene taken;
};

/* Takes members in pairs, checks them, and those that are older once more. */
void fork_and_check(const region &live, const device &dev, std::uint64_t stream,
		    race_state &state)
{
	std::deque<kept_member> older;
	chance random(stream);
	std::uint64_t last = 0;

	while (!state.stop) {
		const bool together = random.one_in(4);
		std::array<region, 2> pair;
		std::array<scene, 2> scenes;
		std::array<std::uint64_t, 2> counted;

		/* Each at once: a write that comes too late comes soon. */
		pair[0] = live.snapshot();
		counted[0] = counted_in(pair[0]);
		if (together) {
			pair[1] = std::move(dev.fork_all({&live, &pair[0]}, 0)[0]);
		} else {
			std::this_thread::sleep_for(
				std::chrono::microseconds(random.below(2000)));
			pair[1] = random.one_in(2) ? live.fork() : live.snapshot();
		}
		counted[1] = counted_in(pair[1]);
		for (std::size_t i = 0; i < pair.size(); i++) {
			scenes[i] = scene_of(pair[i], random.one_in(2));
			require_one_instant(scenes[i]);
			require(scenes[i].counted == counted[i],
				"a member that nobody writes changed at first");
			require(scenes[i].rounds.rounds[0][0] >= last,
				"a later member is older");
			last = scenes[i].rounds.rounds[0][0];
			state.forks++;
		}
		require_diff_finds(pair[0], scenes[0], pair[1], scenes[1]);
		for (std::size_t i = 0; i < pair.size(); i++)
			older.push_back({std::move(pair[i]), std::move(scenes[i])});
		while (older.size() > 4) {
			/* Closed in some order, not the one they were made in. */
			const auto which = older.begin() + static_cast<std::ptrdiff_t>(
								   random.below(3));

			require(scene_of(which->member, random.one_in(2)) ==
					which->taken,
				"a member that nobody writes changed");
			older.erase(which);
		}
	}
}

/* Forks, writes to its forks and restores them, until it is killed. */
void live_dangerously(const region &live, race_state &state)
{
	chance random(30 + static_cast<std::uint64_t>(::getpid()));

	while (!state.stop) {
		const region mine = live.fork();
		const mapping map = mine.map();

		for (int i = 0; i < 40; i++)
			map.store(random.below(region_pages), mirrors_own);
		const region child = mine.snapshot();

		mine.restore(random.one_in(2) ? live : child);
		for (int i = 0; i < 20; i++)
			map.store(kept_start + random.below(kept_pages), mirrors_own);
		mine.truncate(random.below(cut_start) * page_size);
	}
}

/* A member that is restored to what the live one holds, over and over. */
class mirror {
public:
	mirror(const region &live, race_state &state)
		: live_(live), state_(state), member_(live.fork()), map_(member_.map())
	{
	}

	void restore()
	{
		chance random(40);

		while (!state_.stop) {
			if (random.one_in(2))
				member_.restore(live_);
			else
				member_.restore(live_.snapshot());
			state_.restores++;
		}
	}

	/* What is stored here the next RESTORE undoes, and nobody else sees. */
	void scribble() const
	{
		chance random(41);

		while (!state_.stop) {
			map_.store(kept_start + random.below(kept_pages), mirrors_own);
			map_.store(punched_start + random.below(punched_pages),
				   mirrors_own);
			pause_a_moment(random);
		}
	}

	/* Nothing gets older, and each RESTORE is of all pages at once. */
	void read() const
	{
		const std::vector<std::size_t> pages = pages_of(0);
		std::vector<std::uint64_t> seen(pages.size());
		chance random(42);

		while (!state_.stop) {
			pause_a_moment(random);
			for (std::size_t i = pages.size(); i-- > 0;) {
				const std::uint64_t value = map_.load(pages[i]);

				require(value >= seen[i], "RESTORE went back");
				require(i + 1 == pages.size() || value >= seen[i + 1],
					"RESTORE exchanged a part");
				seen[i] = value;
			}
		}
	}

private:
	const region &live_;
	race_state &state_;
	region member_;
	mapping map_;
};

/* A process that is killed now and then, and takes up its work again. */
class mortal {
public:
	explicit mortal(std::function<void()> body) : body_(std::move(body)) { live(); }

	void die_and_live()
	{
		const int status = process_->finish(SIGKILL);

		EXPECT_TRUE(WIFSIGNALED(status)) << "it ended before it was killed";
		live();
	}
	bool succeeded() { return process_->succeeded(); }

private:
	void live() { process_.emplace(body_); }

	std::function<void()> body_;
	std::optional<child> process_;
};

class race_base : public cowsnap_fixture {
protected:
	void make(std::uint32_t granule_shift)
	{
		(void)seed(); /* printed once, not by each child */
		live_ = dev.create(short_length, 0, {}, granule_shift);

		const mapping map = live_.map();

		for (std::size_t i = 0; i < kept_pages; i++)
			map.store(kept_start + i, kept_value);
	}

	void TearDown() override
	{
		live_.close();
		cowsnap_fixture::TearDown();
	}

	/* The processes that nobody kills. */
	std::vector<child> start(race_state &state)
	{
		std::vector<child> processes;

		processes.emplace_back([&] {
			const mapping map(live_.fd(), long_length);
			crew all(state);

			all.add([&] { write_rounds(live_, 0, state); });
			all.add([&] { count_by_calls(live_, state); });
			all.add([&] { fill_and_punch(live_, map, state); });
			all.add([&] { grow_and_cut(live_, map, state); });
			all.add([&] { read_what_goes(map, state); });
			all.finish();
		});
		processes.emplace_back([&] {
			crew all(state);

			all.add([&] { fork_and_check(live_, dev, 100, state); });
			all.add([&] { fork_and_check(live_, dev, 101, state); });
			all.finish();
		});
		processes.emplace_back([&] {
			crew all(state);
			mirror other(live_, state);

			all.add([&] { other.restore(); });
			all.add([&] { other.scribble(); });
			all.add([&] { other.read(); });
			all.finish();
		});
		processes.emplace_back([&] {
			chance random(60);

			while (!state.stop) {
				live_.prepare(random.below(60));
				(void)live_.stat();
				(void)::lseek(live_.fd(), 0, SEEK_HOLE);
				pause_a_moment(random);
			}
		});
		return processes;
	}

	/* Runs until @enough, for @seconds at the least. */
	void race(double seconds, const std::function<bool()> &enough)
	{
		const shared<race_state> state;
		std::vector<child> processes = start(*state);
		std::vector<mortal> mortals;
		const deadline end =
			scaled_deadline(std::chrono::duration<double>(seconds));
		chance random(2);

		mortals.emplace_back([&] { write_rounds(live_, 1, *state); });
		mortals.emplace_back([&] { copy_pages(live_, *state); });
		mortals.emplace_back([&] { live_dangerously(live_, *state); });
		mortals.emplace_back([&] { live_dangerously(live_, *state); });
		while (!state->stop && !passed(end, [&] {
			return all_got_somewhere(*state) && enough();
		})) {
			std::this_thread::sleep_for(
				std::chrono::milliseconds(random.between(5, 60)));
			if (!state->stop)
				mortals[random.below(mortals.size())].die_and_live();
		}
		EXPECT_TRUE(all_got_somewhere(*state)) << "not all got somewhere";
		state->stop = true;
		for (mortal &process : mortals)
			EXPECT_TRUE(process.succeeded());
		for (child &process : processes)
			EXPECT_TRUE(process.succeeded());
		check_what_is_left(*state);
	}

	static bool all_got_somewhere(const race_state &state)
	{
		return state.rounds[0] && state.rounds[1] && state.forks > 3 &&
		       state.restores > 1 && state.punches > 1 && state.cuts > 1;
	}

	void check_what_is_left(const race_state &state) const
	{
		const scene last = scene_of(live_, true);

		try {
			require_one_instant(last);
		} catch (const std::exception &error) {
			ADD_FAILURE() << error.what();
		}
		EXPECT_EQ(scene_of(live_, false), last);
		EXPECT_EQ(last.length, short_length);
		for (const std::uint64_t value : last.rounds.rounds[0])
			EXPECT_EQ(value, state.rounds[0]);
		std::printf("# %llu and %llu rounds, %llu forks, %llu restores, %llu "
			    "punches, %llu cuts\n",
			    static_cast<unsigned long long>(state.rounds[0]),
			    static_cast<unsigned long long>(state.rounds[1]),
			    static_cast<unsigned long long>(state.forks),
			    static_cast<unsigned long long>(state.restores),
			    static_cast<unsigned long long>(state.punches),
			    static_cast<unsigned long long>(state.cuts));
		std::fflush(stdout);
	}

	region live_;
};

using races = race_base;

TEST_F(races, without_delays)
{
	make(page_shift);
	race(2, [] { return true; });
}

TEST_F(races, without_delays_and_with_large_granules)
{
	make(page_shift + 4);
	race(2, [] { return true; });
}

/* Debian's stress-ng takes memory from it, moves and frees it, and asks for it back. */
TEST_F(races, beside_stress_ng)
{
	static constexpr const char *path = "/usr/bin/stress-ng";
	const std::string seconds = std::to_string(scaled(30)) + "s";
	const std::vector<const char *> command = {
		path,	       "--timeout",	 seconds.c_str(),
		"--temp-path", "/tmp",		 "--oomable",
		"--vm",	       "1",		 "--vm-bytes",
		"128M",	       "--mmap",	 "1",
		"--mmap-bytes", "64M",		 "--memfd",
		"1",	       "--memfd-bytes",	 "32M",
		"--mremap",    "1",		 "--mremap-bytes",
		"32M",	       "--fault",	 "1",
		"--mlock",     "1",		 "--fork",
		"1",	       "--userfaultfd",	 "1",
		"--vm-splice", "1",		 "--rmap",
		"1",	       nullptr};

	make(page_shift);
	if (::access(path, X_OK) < 0)
		GTEST_SKIP() << "there is no stress-ng here; the lane stress has one";

	child stress([&] {
		/* What it says are no results. */
		check(::dup2(STDERR_FILENO, STDOUT_FILENO), "dup2");
		::execv(path, const_cast<char *const *>(command.data()));
		check(-1, path);
	});
	const auto ended = [&] {
		siginfo_t info = {};

		check(::waitid(P_PID, static_cast<id_t>(stress.pid()), &info,
			       WEXITED | WNOHANG | WNOWAIT),
		      "waitid");
		return info.si_pid != 0;
	};

	race(30, ended);
	EXPECT_TRUE(ended());
	EXPECT_EQ(stress.finish(SIGTERM), 0) << "stress-ng's wait status";
}

TEST_F(races, can_be_delayed)
{
	if (delay_points().empty())
		GTEST_SKIP() << "this module has no delays; it has with COWSNAP_DEBUG=1";
	EXPECT_GT(delay_points().size(), 30u);
}

class delayed_races : public race_base,
		      public testing::WithParamInterface<std::string> {};

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(delayed_races);
INSTANTIATE_TEST_SUITE_P(, delayed_races, testing::ValuesIn(delay_points()),
			 [](const auto &info) { return info.param; });

TEST_P(delayed_races, at)
{
	make(page_shift);

	const delay here(GetParam(), 1000);

	race(0.4, [&] { return here.met() > 2; });
	EXPECT_GT(here.met(), 2u);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
