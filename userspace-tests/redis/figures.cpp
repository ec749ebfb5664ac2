// SPDX-License-Identifier: GPL-2.0-only
#include "figures.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <sched.h>

#include "benchmark.hpp"
#include "demo/measure.hpp"
#include "heap.hpp"
#include "keys.hpp"
#include "meminfo.hpp"
#include "server.hpp"
#include "table.hpp"

namespace cowsnap_redis {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using cowsnap_demo::grouped;
using cowsnap_demo::median;
using cowsnap_demo::mebibytes;
using cowsnap_demo::one_decimal;

/* In seconds: of all that ran on this machine, kernel threads too, and not of what idled. */
double machine_time()
{
	std::ifstream file("/proc/schedstat");
	std::string word;
	double sum = 0;

	while (file >> word) {
		if (!word.starts_with("cpu"))
			continue;

		double field = 0;

		for (int i = 0; i < 7; i++)
			file >> field;
		sum += field / 1e9;
	}
	return sum;
}

double in_mebibytes(std::uint64_t bytes)
{
	return static_cast<double>(bytes) / (1 << 20);
}

/*
 * A server that nobody else runs beside, as where there is more than one CPU:
 * on one, a thread of the kernel that wakes up is enough to have the scheduler
 * go on with the child, and count that as part of the fork.
 */
class alone {
public:
	explicit alone(pid_t process) : process_(process) { set(SCHED_FIFO | SCHED_RESET_ON_FORK, 1); }
	~alone()
	{
		try {
			set(SCHED_OTHER, 0);
		} catch (const std::exception &error) {
			/* It is gone, as who speaks to it will find. */
			std::cout << "    " << error.what() << '\n';
		}
	}
	alone(const alone &) = delete;
	alone &operator=(const alone &) = delete;

private:
	void set(int policy, int priority) const
	{
		sched_param wanted = {};

		wanted.sched_priority = priority;
		cowsnap_test::check(::sched_setscheduler(process_, policy, &wanted), "sched_setscheduler");
	}

	pid_t process_;
};

/* The most memory that was in use while it lives, beyond what was before. */
class peak {
public:
	explicit peak(std::uint64_t available_before)
		: before_(available_before), thread_([this](const std::stop_token &stop) {
			  while (!stop.stop_requested()) {
				  look();
				  std::this_thread::sleep_for(50ms);
			  }
		  })
	{
	}
	std::uint64_t most()
	{
		thread_.request_stop();
		thread_.join();
		look();
		return before_ - std::min(before_, least_);
	}

private:
	void look() { least_ = std::min(least_, cowsnap_test::sum_of("/proc/meminfo", "MemAvailable:") * 1024); }

	std::uint64_t before_, least_ = before_;
	std::jthread thread_;
};

/* Of one save. */
struct save_figures {
	double pause = 0; /* microseconds, as Redis has it */
	double cpu = 0; /* seconds, of parent and child */
	double machine = 0; /* seconds, of all */
	std::uint64_t cow_size = 0;
	std::uint64_t memory = 0;
	std::map<std::string, speed> speeds;
};

struct figures {
	std::uint64_t heap = 0;
	/* Microseconds. */
	double first = 0, row = 0, some = 0, percent = 0, all = 0;
	/* Bytes of pages that setting 1 % of the keys at random writes. */
	std::uint64_t written = 0;
	/* Seconds of the server's CPU time: to set all keys once more, and to prepare what that wrote. */
	double setting = 0;
	save_figures quiet, busy, rewrite;
	std::map<std::string, speed> outside;
};

class measurement {
public:
	measurement(const flavour &memory, const sizes &size)
		: size_(size), available_(cowsnap_test::available_memory()), live_("/tmp/" + memory.name, memory),
		  to_(live_.connect())
	{
		std::cout << memory.name << ": " << size.keys << " keys are set\n";
		set_row(to_, 0, size.keys);
		found_.heap = live_.figure("used_memory");
		say("they are");
	}

	figures all()
	{
		found_.first = pause("the first one");
		some_written();
		say("a save with nothing else to do");
		set_row(to_, 0, size_.keys / 100);
		found_.quiet = save("BGSAVE", false);
		found_.outside = speeds("after a save");
		if (size_.whole) {
			say("a save beside redis-benchmark");
			found_.busy = save("BGSAVE", true);
			say("a rewrite of the AOF beside redis-benchmark");
			found_.rewrite = save("BGREWRITEAOF", true);
		}
		set_everything();
		found_.all = pause("all written");
		live_.stop();
		return found_;
	}

	/* With a thread that prepares while the server waits. */
	figures with_preparation()
	{
		settle();
		found_.first = pause("the first one");
		some_written();
		set_everything();
		found_.all = pause("all written");
		found_.outside = speeds("after a save");
		live_.stop();
		return found_;
	}

private:
	void say(const std::string &what) { std::cout << "    " << what << '\n'; }

	/* Lets threads of Redis's allocator, which give memory back, come to an end with it. */
	static void rest() { std::this_thread::sleep_for(250ms); }

	double pause(const std::string &what)
	{
		rest();

		const std::uint64_t written = heap_ ? heap_.written() : 0;

		fork("BGSAVE");

		const double result = std::stod(live_.info("latest_fork_usec"));

		live_.end_child();
		say("fork, " + what + ": " + one_decimal(result) + " us" +
		    (written ? ", " + mebibytes(written) + " MiB of pages written" : ""));
		return result;
	}

	void fork(const char *command)
	{
		const alone server(live_.pid());

		live_.control().call({command});
	}

	template <typename Write>
	double median_pause(const std::string &what, const Write &write)
	{
		std::vector<double> pauses;

		for (std::size_t i = 0; i < 3; i++) {
			write(i);
			pauses.push_back(pause(what));
		}
		return median(pauses);
	}

	/*
	 * Each of these is 1 %; what writes a value writes pages of Redis's and
	 * its allocator's own, too. All is the same to plain Redis.
	 */
	void some_written()
	{
		const std::size_t percent = size_.keys / 100;

		found_.row = median_pause("1 % of the keys, in a row", [&](std::size_t i) {
			set_row(to_, (i + 1) * size_.keys / 5, percent);
		});
		found_.percent = median_pause("1 % of the keys, at random", [&](std::size_t) {
			set_some(to_, size_.keys, percent, seed_++);
			found_.written = heap_ ? heap_.written() : 0;
		});
		found_.some = median_pause("1 % of the pages, at random", [&](std::size_t) {
			while (heap_ && heap_.written() < found_.heap / 100)
				set_some(to_, size_.keys, 16, seed_++);
		});
	}

	void set_everything()
	{
		const double before = live_.cpu_time();

		set_row(to_, 0, size_.keys);
		settle();
		found_.setting = live_.cpu_time() - before;
		say("to set all keys, the server ran for " + one_decimal(found_.setting * 1e3) + " ms");
	}

	/* Until the library's thread, where there is one, has had the time to go over everything. */
	void settle() const
	{
		const double seconds = 1.5 + 2 * static_cast<double>(found_.heap) / static_cast<double>(size_.rate);

		std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
	}

	std::map<std::string, speed> speeds(const std::string &when)
	{
		/* What pages cost at their first use is not what is asked. */
		benchmark(live_, size_.keys, size_.requests / 2);

		const auto result = benchmark(live_, size_.keys, size_.requests);

		say("redis-benchmark " + when + ": " + one_decimal(result.at("SET").requests) + " SET/s, " +
		    one_decimal(result.at("GET").requests) + " GET/s");
		return result;
	}

	/* One beside redis-benchmark is ended when that is done. */
	save_figures save(const char *command, bool busy)
	{
		fs::remove(live_.folder() / "dump.rdb");

		save_figures result;

		rest();

		const double cpu = live_.cpu_time(), machine = machine_time();

		fork(command);
		result.pause = std::stod(live_.info("latest_fork_usec"));

		/* Its thread would be measured with the fork. */
		peak memory(available_);

		if (busy)
			result.speeds = benchmark(live_, size_.keys, size_.requests);

		const bool lasted = live_.has_child();

		if (busy && lasted)
			live_.end_child();
		else
			live_.wait_for_child();
		result.memory = memory.most();
		result.cpu = live_.cpu_time() - cpu;
		result.machine = machine_time() - machine;
		result.cow_size = live_.figure(std::string_view(command) == "BGSAVE" ? "rdb_last_cow_size"
										     : "aof_last_cow_size");
		say(std::string(command) + ": fork " + one_decimal(result.pause) + " us, CPU time " +
		    one_decimal(result.cpu * 1e3) + " ms (the machine's " + one_decimal(result.machine * 1e3) +
		    "), copied " + mebibytes(result.cow_size) + " MiB, most memory " +
		    mebibytes(result.memory) + " MiB");
		for (const auto &[test, speed] : result.speeds)
			say(test + ": " + one_decimal(speed.requests) + "/s, the slowest " +
			    one_decimal(speed.slowest) + " ms");
		if (busy && !lasted)
			say("it was done before redis-benchmark was");
		return result;
	}

	const sizes &size_;
	std::uint64_t available_;
	server live_;
	client to_;
	heap heap_{live_};
	std::uint64_t seed_ = 1;
	figures found_;
};

void print_busy(const figures &before, const figures &with, table &table)
{
	const auto each = [&](double speed::*member) {
		for (const std::string &test : {std::string("SET"), std::string("GET")}) {
			table.add(test + ", during BGSAVE", before.busy.speeds.at(test).*member,
				  with.busy.speeds.at(test).*member);
			table.add(test + ", during BGREWRITEAOF", before.rewrite.speeds.at(test).*member,
				  with.rewrite.speeds.at(test).*member);
		}
	};

	each(&speed::requests);
	table.head("The slowest request, ms");
	for (const char *const test : {"SET", "GET"})
		table.add(std::string(test) + ", after a save", before.outside.at(test).slowest,
			  with.outside.at(test).slowest);
	each(&speed::slowest);
	table.head("While redis-benchmark goes on, until it is done: MiB");
	table.add("most memory in use, BGSAVE", in_mebibytes(before.busy.memory), in_mebibytes(with.busy.memory));
	table.add("most memory in use, BGREWRITEAOF", in_mebibytes(before.rewrite.memory),
		  in_mebibytes(with.rewrite.memory));
}

} // namespace

void compare(const sizes &size, cowsnap_demo::results &results)
{
	const figures before = measurement(plain, size).all();
	const figures with = measurement(forked, size).all();
	const figures ready = measurement(prepared(size.rate), size).with_preparation();
	const auto whole = [&](double times, bool at_least = false) {
		return size.whole ? std::optional<bar>({times, at_least}) : std::nullopt;
	};
	/* With little data most of a fork is what a process has besides. */
	const auto scaled = [&](double times) { return bar{size.whole ? times : 1.0 / 3}; };

	std::cout << "\nREDIS with " << grouped(size.keys) << " keys of " << value_size << " bytes, "
		  << mebibytes(before.heap)
		  << " MiB of heap, on one CPU, where a microsecond is a thousand instructions\n";

	table table(results);

	table.head("The pause of the fork, latest_fork_usec: thousands of instructions");
	table.add("1 % written since the last one, keys in a row", before.row, with.row, scaled(1.0 / 25));
	table.add("1 % of the pages written, by keys at random", before.some, with.some, whole(1.0 / 8));
	table.add("1 % of the keys at random, " +
			  one_decimal(100.0 * in_mebibytes(with.written) / in_mebibytes(with.heap)) + " % of the pages",
		  before.percent, with.percent);
	table.add("the same, prepared in the background", before.percent, ready.percent, whole(1.0 / 25));
	table.add("all written", before.all, with.all, whole(3));
	table.add("all written, prepared in the background", before.all, ready.all, scaled(1.0 / 50));
	table.add("the first one", before.first, with.first);
	table.add("the first one, prepared in the background", before.first, ready.first);

	table.head("All keys set once more, CPU time of the server: millions of instructions");
	table.add("without preparation", before.setting * 1e3, with.setting * 1e3);
	table.add("prepared in the background", before.setting * 1e3, ready.setting * 1e3);

	table.head("A whole BGSAVE, with 1 % written and nothing else to do: millions of instructions");
	table.add("parent and child", before.quiet.cpu * 1e3, with.quiet.cpu * 1e3, whole(1.2));
	table.add("the whole machine, threads of the kernel too", before.quiet.machine * 1e3,
		  with.quiet.machine * 1e3, whole(1.2));
	table.add("rdb_last_cow_size, MiB", in_mebibytes(before.quiet.cow_size), in_mebibytes(with.quiet.cow_size));

	table.head("Requests per second, by redis-benchmark");
	for (const char *const test : {"SET", "GET"}) {
		table.add(std::string(test) + ", after a save", before.outside.at(test).requests,
			  with.outside.at(test).requests, whole(0.95, true));
		table.add(std::string(test) + ", after a save, prepared in the background",
			  before.outside.at(test).requests, ready.outside.at(test).requests);
	}
	if (size.whole)
		print_busy(before, with, table);

	table.head("The most memory in use, with the file that is written: MiB");
	table.add("BGSAVE with nothing else to do", in_mebibytes(before.quiet.memory), in_mebibytes(with.quiet.memory));
	std::cout << '\n';
	if (size.whole)
		results.add(before.heap >= 1 << 30, "the heap has a GiB");
}

} // namespace cowsnap_redis
