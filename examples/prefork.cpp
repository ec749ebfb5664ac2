// SPDX-License-Identifier: MIT
/*
 * A prefork server: an index is built once, in a region, and a hundred workers serve it,
 * each from a fork of its own.
 *
 * The workers are children by fork(2) and map their forks where the region was, so that
 * std::pmr containers go on working, and may change the index as they like: what a worker
 * writes takes memory then, and is seen by nobody else. All forks are of one instant. A
 * client connects to all workers, has each go through the whole index, adds up what memory
 * they take (Pss, in which what N processes share counts a Nth for each), has each change
 * the same words in another way, and compares all answers with what they should be.
 *
 *     g++ -std=c++20 -O2 prefork.cpp $(pkg-config --cflags cowsnap) -o prefork
 *     ./prefork --workers 100 --words 1000000
 */
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <map>
#include <memory_resource>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cowsnap/cowsnap.hpp>
#include <cowsnap/memory_resource.hpp>

#include "support/expect.hpp"
#include "support/options.hpp"
#include "support/process.hpp"
#include "support/stopwatch.hpp"

namespace {

using example::expect;
using index_of_words = std::pmr::unordered_map<std::pmr::string, std::uint64_t>;

std::string word(std::uint64_t number)
{
	return "the word with the number " + std::to_string(number);
}

std::uint64_t meaning(std::uint64_t number)
{
	return number * 7;
}

int succeed(int result, const char *what)
{
	if (result < 0)
		throw std::system_error(errno, std::generic_category(), what);
	return result;
}

/* Lines over a socket. */
class channel {
public:
	explicit channel(int fd) : fd_(fd) {}

	void send(const std::string &line)
	{
		const std::string all = line + '\n';

		for (std::size_t done = 0; done < all.size();)
			done += static_cast<std::size_t>(succeed(
				static_cast<int>(::send(fd_.get(), all.data() + done,
							all.size() - done, MSG_NOSIGNAL)),
				"send"));
	}
	/* Not so at the end. */
	bool receive(std::string &line)
	{
		std::size_t end;

		while ((end = read_.find('\n')) == read_.npos) {
			std::array<char, 4096> some;
			const int got = succeed(static_cast<int>(::recv(fd_.get(), some.data(),
									some.size(), 0)),
						"recv");

			if (got == 0)
				return false;
			read_.append(some.data(), static_cast<std::size_t>(got));
		}
		line = read_.substr(0, end);
		read_.erase(0, end + 1);
		return true;
	}
	std::uint64_t ask(const std::string &question)
	{
		std::string answer;

		send(question);
		expect(receive(answer), "a worker answers");
		return std::stoull(answer);
	}

private:
	cowsnap::descriptor fd_;
	std::string read_;
};

/* A name that no file has, and that goes with the process. */
class address {
public:
	address()
	{
		const auto name = "cowsnap-prefork-" + std::to_string(::getpid());

		/* The first byte stays 0. */
		std::ranges::copy(name, at_.sun_path + 1);
	}

	cowsnap::descriptor listen(int waiting) const
	{
		cowsnap::descriptor fd(succeed(::socket(AF_UNIX, SOCK_STREAM, 0), "socket"));

		succeed(::bind(fd.get(), here(), sizeof(at_)), "bind");
		succeed(::listen(fd.get(), waiting), "listen");
		return fd;
	}
	channel connect() const
	{
		cowsnap::descriptor fd(succeed(::socket(AF_UNIX, SOCK_STREAM, 0), "socket"));

		succeed(::connect(fd.get(), here(), sizeof(at_)), "connect");
		return channel(fd.release());
	}

private:
	const sockaddr *here() const { return reinterpret_cast<const sockaddr *>(&at_); }

	sockaddr_un at_ = {.sun_family = AF_UNIX, .sun_path = {}};
};

/*
 * "get W" and "put N W" tell what W means then, "sum" what all words do, and "who" which
 * worker this is.
 */
std::uint64_t answer(index_of_words &index, std::uint64_t me, const std::string &question)
{
	std::istringstream in(question);
	std::string verb, text;
	std::uint64_t value = 0, sum = 0;

	in >> verb;
	if (verb == "who")
		return me;
	if (verb == "sum") {
		for (const auto &each : index)
			sum += each.second;
		return sum;
	}
	if (verb == "put")
		in >> value;
	in >> std::ws;
	std::getline(in, text);

	auto &found = index[std::pmr::string(text, index.get_allocator())];

	return verb == "put" ? found = value : found;
}

/* One connection after the other; killed in the end. */
[[noreturn]] void serve(const cowsnap::descriptor &listener, index_of_words &index,
			std::uint64_t me)
{
	for (;;) {
		channel client(succeed(::accept(listener.get(), nullptr, nullptr), "accept"));

		for (std::string question; client.receive(question);)
			client.send(std::to_string(answer(index, me, question)));
	}
}

struct memory_use {
	std::uint64_t rss = 0;
	std::uint64_t pss = 0;
};

/* In KiB. */
memory_use use_of(pid_t pid)
{
	std::ifstream in("/proc/" + std::to_string(pid) + "/smaps_rollup");
	memory_use use;
	std::string key;

	for (std::uint64_t value; in >> key;)
		if (key == "Rss:" && in >> value)
			use.rss = value;
		else if (key == "Pss:" && in >> value)
			use.pss = value;
	expect(use.pss > 0, "/proc/PID/smaps_rollup tells what a process takes");
	return use;
}

memory_use use_of(const std::vector<example::process> &workers)
{
	memory_use all;

	for (const auto &worker : workers) {
		const auto one = use_of(worker.pid());

		all.rss += one.rss;
		all.pss += one.pss;
	}
	return all;
}

void show(const char *when, memory_use use)
{
	std::cout << when << " the workers take " << use.pss << " KiB (Pss), and " << use.rss
		  << " KiB if each is counted alone (Rss)\n";
}

} // namespace

int main(int count, char **options)
try {
	std::uint64_t workers = 100, words = 100000, requests = 10000, seed = 1;

	example::read_options(count, options,
			      {{"workers", &workers, "how many processes serve"},
			       {"words", &words, "how many are in the index"},
			       {"requests", &requests, "how many are made at random"},
			       {"seed", &seed, "for these"}});
	if (words < 2)
		throw std::invalid_argument("--words takes a number from 2 on");
	if (workers > COWSNAP_FORK_MANY_MAX)
		throw std::invalid_argument("--workers takes " +
					    std::to_string(COWSNAP_FORK_MANY_MAX) + " at most");

	const auto device = cowsnap::device::open();
	auto region = device.create({.length = (words + 10000) * 512, .name = "index"});
	auto live = region.map();
	auto segment = cowsnap::create_segment(live);
	cowsnap::segment_resource memory(segment);
	auto &index = *segment.construct<index_of_words>("index")(&memory);

	for (std::uint64_t number = 0; number < words; number++)
		index.emplace(word(number), meaning(number));

	const auto total = words * (words - 1) / 2 * meaning(1);
	const auto warm = region.stat().referenced / 1024;
	const void *const where = live.data();
	const address here;
	const auto listener = here.listen(static_cast<int>(workers));
	std::vector<example::process> processes;

	{
		const example::stopwatch watch;
		auto forks = device.fork_many(region, workers);

		std::cout << "an index of " << warm << " KiB, " << workers << " forks of it in "
			  << watch.microseconds() << " us\n";
		for (std::uint64_t me = 0; me < workers; me++)
			processes.emplace_back([&] {
				auto own = std::move(forks[me]);

				/* The others are none of its business. */
				forks.clear();
				live.unmap();

				const auto map = own.map({.address = where});

				serve(listener, index, me);
			});
	}

	/* A worker has one client at a time, so that each of these has a worker to itself. */
	std::map<std::uint64_t, channel> clients;

	for (std::uint64_t i = 0; i < workers; i++) {
		auto client = here.connect();
		const auto who = client.ask("who");

		clients.emplace(who, std::move(client));
	}
	expect(clients.size() == workers, "each worker has a client");
	for (auto &[who, client] : clients)
		expect(client.ask("sum") == total, "each worker has the whole index");

	const auto before = use_of(processes);

	show("after all have read all,", before);
	/* And have some KiB of their own each. */
	expect(before.pss < 2 * warm + workers * 256, "the workers share the index");

	/* The word that all change, and one that only this worker does. */
	for (auto &[who, client] : clients) {
		client.ask("put " + std::to_string(1000 + who) + ' ' + word(0));
		client.ask("put 1 a word of worker " + std::to_string(who));
	}
	for (auto &[who, client] : clients) {
		expect(client.ask("get " + word(0)) == 1000 + who,
		       "what a worker writes is what it reads, whatever others write");
		expect(client.ask("sum") == total + 1000 + who + 1,
		       "nothing else has changed in a worker's index");
	}
	show("after all have written,", use_of(processes));
	expect(index.size() == words &&
		       index.at(std::pmr::string(word(0), &memory)) == meaning(0),
	       "the index that was forked is as it was");

	std::mt19937_64 dice(seed);
	const example::stopwatch watch;

	for (std::uint64_t i = 0; i < requests; i++) {
		const auto who = dice() % workers, number = 1 + dice() % (words - 1);

		expect(clients.at(who).ask("get " + word(number)) == meaning(number),
		       "an answer is right");
	}
	std::cout << static_cast<double>(requests) / watch.seconds() << " requests/s\n"
		  << requests << " answers of " << workers << " workers, all right\n";
} catch (const std::exception &error) {
	std::cerr << error.what() << '\n';
	return EXIT_FAILURE;
}
