// SPDX-License-Identifier: GPL-2.0-only
/*
 * A snapshot is of one instant while others write: two processes count rounds in
 * their pages (sequence.hpp) with plain stores or with write(2), a third copies
 * from one page to another what it finds, all of them disturbed in several ways,
 * and FORKs come in pairs, a moment apart; or FORKs that PREPARE helped, or RESTOREs
 * of other members.  Also that no store is lost, that no
 * store shows late, and that a snapshot read again later is the same.
 */
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include <sys/mman.h>

#include "chance.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"
#include "round_writer.hpp"

using namespace cowsnap_test;

namespace {

struct kept {
	region member;
	picture taken;
};

/* How what a parent holds is taken. */
enum class taking {
	fork,
	/* With so much dirty that FORK goes over it once while writers go on. */
	fork_of_much,
	/* While another process PREPAREs all the time. */
	fork_prepared,
	restore,
};

const char *name_of(taking how)
{
	switch (how) {
	case taking::fork:
		return "by_fork";
	case taking::fork_of_much:
		return "by_fork_of_much";
	case taking::fork_prepared:
		return "by_fork_prepared";
	case taking::restore:
		return "by_restore";
	}
	return "";
}

constexpr std::size_t much = 1000;

/* Makes members of the family that hold what the parent holds at an instant. */
class taker {
public:
	taker(const region &parent, taking how, chance &random)
		: parent_(parent), how_(how), random_(random)
	{
		if (how == taking::fork_of_much)
			map_ = mapping(parent.fd(), much * page_size,
				       PROT_READ | PROT_WRITE, MAP_SHARED,
				       region_pages * page_size);
	}

	region take()
	{
		for (std::size_t page = 0; page < map_.pages(); page++)
			map_.store(page, ++stored_);
		if (how_ != taking::restore)
			return random_.one_in(2) ? parent_.fork()
						 : parent_.snapshot();

		/* Over something older, which is mapped or not. */
		region made = latest_.fd() >= 0 ? latest_.fork() : parent_.fork();
		const mapping map = random_.one_in(2) ? made.map() : mapping();

		for (std::size_t page = 0; page < map.pages(); page += 3)
			if (random_.one_in(2))
				map.store(page, 1ull << 60);
			else
				(void)map.load(page);
		made.restore(parent_);
		latest_ = made.fork();
		return made;
	}

private:
	const region &parent_;
	taking how_;
	chance &random_;
	mapping map_;
	std::uint64_t stored_ = 0;
	region latest_;
};

class consistent_cut_base : public cowsnap_fixture {
protected:
	static constexpr std::uint64_t least_rounds = 3;

	/* Forks in pairs, checks what comes out, and the older ones once more. */
	template <typename Condition>
	static void fork_and_check(const region &parent, taking by,
				   std::uint64_t stream, Condition &&enough)
	{
		std::deque<kept> older;
		chance random(stream);
		taker from(parent, by, random);
		std::array<std::uint64_t, writers> last = {};

		while (!enough()) {
			std::array<region, 2> pair;

			pair[0] = from.take();
			std::this_thread::sleep_for(std::chrono::microseconds(
				random.one_in(2) ? random.below(100)
						 : random.below(2500)));
			pair[1] = from.take();
			for (region &member : pair) {
				picture taken = picture_of(member, random.one_in(2));
				const auto fault = fault_of(taken);

				require(!fault, fault.value_or(""));
				for (std::size_t i = 0; i < writers; i++) {
					require(taken.rounds[i][0] >= last[i],
						"a later snapshot is older");
					last[i] = taken.rounds[i][0];
				}
				older.push_back({std::move(member), std::move(taken)});
			}
			while (older.size() > 6) {
				require(picture_of(older.front().member,
						   random.one_in(2)) ==
						older.front().taken,
					"a snapshot changed");
				older.pop_front();
			}
		}
		for (const kept &one : older)
			require(picture_of(one.member, true) == one.taken,
				"a snapshot changed");
	}

	void run(disturbance how, std::size_t forkers, taking by = taking::fork)
	{
		const region parent = dev.create_pages(
			region_pages + (by == taking::fork_of_much ? much : 0));
		const shared<progress> state;
		std::vector<child> processes;

		(void)seed(); /* printed once, not by each child */
		for (std::size_t i = 0; i < writers; i++)
			processes.emplace_back([&, i] {
				round_writer(parent, i, how, *state).run();
			});
		processes.emplace_back([&] {
			const mapping map = parent.map();

			while (!state->stop)
				for (std::size_t i = 0; i < copied_pages; i++)
					map.store(copies_start + i,
						  map.load(original_of(i)));
		});
		if (by == taking::fork_prepared)
			processes.emplace_back([&] {
				chance random(50);

				while (!state->stop)
					parent.prepare(random.below(60));
			});

		const deadline end = scaled_deadline(std::chrono::milliseconds(1200));
		const auto enough = [&] {
			return passed(end, [&] {
				return std::ranges::all_of(
					state->rounds, [](const auto &rounds) {
						return rounds >= least_rounds;
					});
			});
		};

		for (std::size_t i = 1; i < forkers; i++)
			processes.emplace_back([&, i] {
				fork_and_check(parent, by, 100 + i, enough);
			});
		try {
			fork_and_check(parent, by, 100, enough);
		} catch (const std::exception &error) {
			ADD_FAILURE() << error.what();
		}
		state->stop = true;
		for (child &process : processes)
			EXPECT_TRUE(process.succeeded());

		const picture last = picture_of(parent, true);

		for (std::size_t i = 0; i < writers; i++) {
			/* Not once stopped by a fork for good. */
			EXPECT_GE(state->rounds[i], least_rounds);
			for (const std::uint64_t value : last.rounds[i])
				EXPECT_EQ(value, state->rounds[i]);
		}
		EXPECT_EQ(picture_of(parent, false), last);
		std::printf("# %llu forks while %llu and %llu rounds were written\n",
			    static_cast<unsigned long long>(parent.stat().forks),
			    static_cast<unsigned long long>(state->rounds[0]),
			    static_cast<unsigned long long>(state->rounds[1]));
	}
};

class consistent_cut : public consistent_cut_base,
		       public testing::WithParamInterface<disturbance> {};

INSTANTIATE_TEST_SUITE_P(
	, consistent_cut,
	testing::Values(disturbance::none, disturbance::mprotect,
			disturbance::remap, disturbance::dontneed,
			disturbance::mremap, disturbance::process_fork,
			disturbance::second_mapping, disturbance::write_calls,
			disturbance::remote_writes, disturbance::grow_and_truncate),
	[](const auto &info) { return name_of(info.param); });

TEST_P(consistent_cut, under_writers)
{
	run(GetParam(), 1);
}

using consistent_cuts = consistent_cut_base;

TEST_F(consistent_cuts, by_two_forkers_at_once)
{
	run(disturbance::none, 2);
}

TEST_F(consistent_cuts, by_two_forkers_under_mprotect)
{
	run(disturbance::mprotect, 2);
}

/* What FORK does before its writers have to stop, and who does it for FORK. */
using ways_to_take = std::tuple<taking, disturbance>;

class consistent_cut_taken : public consistent_cut_base,
			     public testing::WithParamInterface<ways_to_take> {};

INSTANTIATE_TEST_SUITE_P(
	, consistent_cut_taken,
	testing::Combine(testing::Values(taking::fork_of_much, taking::fork_prepared,
					 taking::restore),
			 testing::Values(disturbance::none, disturbance::mprotect,
					 disturbance::process_fork,
					 disturbance::write_calls,
					 disturbance::remote_writes)),
	[](const auto &info) {
		return std::string(name_of(std::get<taking>(info.param))) + "_" +
		       name_of(std::get<disturbance>(info.param));
	});

TEST_P(consistent_cut_taken, under_writers)
{
	run(std::get<disturbance>(GetParam()), 1, std::get<taking>(GetParam()));
}

TEST_F(consistent_cuts, by_two_restorers_at_once)
{
	run(disturbance::none, 2, taking::restore);
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
