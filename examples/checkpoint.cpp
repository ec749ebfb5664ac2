// SPDX-License-Identifier: MIT
/*
 * Checkpoints on disk, of which each has what changed since the last one, and a process
 * that is killed while it writes them.
 *
 * A child works on a region. After every round it takes a snapshot, and writes where that
 * differs from the last one into a file with a checksum, which gets its name when all of it
 * is on the disk. SIGKILL ends it in the middle of a file, and the next child recovers what
 * the files have, all in order, and goes on from there. What was recovered must be, to the
 * byte, what that many rounds make of plain memory; and files that are torn, or where one
 * bit has changed, must be noticed.
 *
 *     g++ -std=c++20 -O2 checkpoint.cpp $(pkg-config --cflags --libs cowsnap libxxhash) \
 *         -o checkpoint
 *     ./checkpoint --memory 256 --kills 10 --directory /var/tmp/checkpoints
 */
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <xxhash.h>

#include <cowsnap/cowsnap.hpp>

#include "support/expect.hpp"
#include "support/options.hpp"
#include "support/process.hpp"
#include "support/stopwatch.hpp"

namespace {

namespace fs = std::filesystem;
using example::expect;

constexpr std::uint64_t never = std::numeric_limits<std::uint64_t>::max();
constexpr std::size_t piece = 1 << 16;

struct header {
	std::uint64_t number;
	/* The checksum of the file before, without which this one means nothing. */
	std::uint64_t follows;
};

/* Its bytes come next, unless it is a hole. */
struct part {
	std::uint64_t offset;
	std::uint64_t length;
	std::uint64_t hole;
};

template <typename T> std::span<const std::byte> bytes_of(const T &object)
{
	return std::as_bytes(std::span(&object, 1));
}

cowsnap::descriptor open_file(const fs::path &path, int flags)
{
	cowsnap::descriptor fd(::open(path.c_str(), flags | O_CLOEXEC, 0600));

	if (!fd)
		throw std::system_error(errno, std::generic_category(), path);
	return fd;
}

void sync(const cowsnap::descriptor &fd)
{
	if (::fsync(fd.get()) != 0)
		throw std::system_error(errno, std::generic_category(), "fsync");
}

/* A file on its way, whose writer may be doomed to end behind so many bytes. */
class checkpoint_file {
public:
	checkpoint_file(const fs::path &path, std::uint64_t dies_behind)
		: fd_(open_file(path, O_WRONLY | O_CREAT | O_TRUNC)), dies_behind_(dies_behind),
		  state_(XXH3_createState(), XXH3_freeState)
	{
		if (!state_)
			throw std::bad_alloc();
		XXH3_64bits_reset(state_.get());
	}

	void write(std::span<const std::byte> bytes)
	{
		XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
		while (!bytes.empty()) {
			const auto left = std::min<std::uint64_t>(bytes.size(),
								  dies_behind_ - written_);
			const ssize_t done = ::write(fd_.get(), bytes.data(), left);

			if (done < 0)
				throw std::system_error(errno, std::generic_category(), "write");
			written_ += static_cast<std::uint64_t>(done);
			bytes = bytes.subspan(static_cast<std::size_t>(done));
			if (written_ == dies_behind_)
				die();
		}
	}
	/* Its checksum, which closes it. */
	std::uint64_t finish()
	{
		const std::uint64_t checksum = XXH3_64bits_digest(state_.get());

		write(bytes_of(checksum));
		sync(fd_);
		/* There were fewer bytes: so it dies before the file has its name. */
		if (dies_behind_ != never)
			die();
		return checksum;
	}
	std::uint64_t written() const { return written_; }

private:
	static void die() { ::raise(SIGKILL); }

	cowsnap::descriptor fd_;
	std::uint64_t dies_behind_;
	std::uint64_t written_ = 0;
	std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state_;
};

fs::path name_of(const fs::path &directory, std::uint64_t number)
{
	return directory / ("checkpoint." + std::to_string(number));
}

/* What the file has that was not ready. */
fs::path unfinished(const fs::path &directory)
{
	return directory / "checkpoint.new";
}

struct saved {
	std::uint64_t checksum;
	std::uint64_t bytes;
};

/* Writes where @now differs from @last. */
saved save(const fs::path &directory, const header &head, const cowsnap::snapshot &now,
	   const cowsnap::snapshot &last, std::uint64_t dies_behind)
{
	const auto fresh = unfinished(directory);
	checkpoint_file file(fresh, dies_behind);
	std::vector<std::byte> buffer(piece);

	file.write(bytes_of(head));
	for (const auto &[offset, length, hole] : now.diff(last)) {
		file.write(bytes_of(part{offset, length, hole}));
		for (std::uint64_t at = 0; !hole && at < length; at += piece) {
			const auto some = std::span(buffer).first(
				std::min<std::uint64_t>(piece, length - at));

			expect(now.read(offset + at, some) == some.size(), "a snapshot reads");
			file.write(some);
		}
	}

	const auto checksum = file.finish();

	fs::rename(fresh, name_of(directory, head.number));
	sync(open_file(directory, O_RDONLY | O_DIRECTORY));
	return {checksum, file.written()};
}

/* What the files make. */
struct recovered {
	cowsnap::region region;
	std::uint64_t number = 0;
	std::uint64_t checksum = 0;
	/* Why there is no more, if a file is there and of no use. */
	std::string complaint = {};
};

std::vector<std::byte> read_file(const fs::path &path)
{
	const auto fd = open_file(path, O_RDONLY);
	std::vector<std::byte> bytes(fs::file_size(path));
	std::size_t done = 0;

	while (done < bytes.size()) {
		const ssize_t some = ::read(fd.get(), bytes.data() + done, bytes.size() - done);

		if (some <= 0)
			throw std::system_error(some ? errno : EIO, std::generic_category(), path);
		done += static_cast<std::size_t>(some);
	}
	return bytes;
}

/* The next @T, which is taken off the front. */
template <typename T> T take(std::span<const std::byte> &from)
{
	T object;

	if (from.size() < sizeof(T))
		throw std::runtime_error("a file with the right checksum ends too early");
	std::memcpy(&object, from.data(), sizeof(T));
	from = from.subspan(sizeof(T));
	return object;
}

/* What is between header and checksum, or nothing when it is not what was written. */
bool is_whole(std::span<const std::byte> file, const recovered &before, std::uint64_t &checksum)
{
	if (file.size() < sizeof(header) + sizeof(checksum))
		return false;

	const auto content = file.first(file.size() - sizeof(checksum));
	auto rest = file.last(sizeof(checksum));
	auto front = content;
	const auto head = take<header>(front);

	checksum = take<std::uint64_t>(rest);
	return XXH3_64bits(content.data(), content.size()) == checksum &&
	       head.number == before.number + 1 && head.follows == before.checksum;
}

recovered recover(const fs::path &directory, std::uint64_t length)
{
	recovered to{cowsnap::device::open().create({.length = length, .name = "recovered"})};

	for (; fs::exists(name_of(directory, to.number + 1)); to.number++) {
		const auto path = name_of(directory, to.number + 1);
		const auto file = read_file(path);
		std::uint64_t checksum = 0;

		if (!is_whole(file, to, checksum)) {
			to.complaint = path.string() + " is not what was written";
			break;
		}
		to.checksum = checksum;

		auto rest = std::span(file).first(file.size() - sizeof(checksum));

		take<header>(rest);
		while (!rest.empty()) {
			const auto [offset, size, hole] = take<part>(rest);

			if (hole) {
				to.region.punch(offset, size);
				continue;
			}
			expect(size <= rest.size(), "a part is as long as it says");
			to.region.write(offset, rest.first(size));
			rest = rest.subspan(size);
		}
	}
	return to;
}

/* What a round does is the same each time: numbers go anywhere, and a part is dropped. */
template <typename Drop>
void work(std::span<std::uint64_t> memory, std::uint64_t round, std::uint64_t seed, Drop &&drop)
{
	constexpr std::uint64_t dropped = 1 << 15;
	std::mt19937_64 dice(seed << 32 | round);
	const std::uint64_t length = memory.size_bytes();

	/* The first one goes over all of it. */
	for (std::size_t i = 0; round == 1 && i < memory.size() / 2; i++)
		memory[i * 2] = dice();
	for (int i = 0; i < 200; i++)
		memory[dice() % memory.size()] += dice();
	drop(dice() % (length / dropped) * dropped, dropped);
}

/* What so many rounds make of memory that is no region's. */
std::vector<std::uint64_t> expected(std::uint64_t length, std::uint64_t rounds,
				    std::uint64_t seed)
{
	std::vector<std::uint64_t> memory(length / sizeof(std::uint64_t));

	for (std::uint64_t round = 1; round <= rounds; round++)
		work(memory, round, seed, [&](std::uint64_t offset, std::uint64_t size) {
			std::memset(reinterpret_cast<std::byte *>(memory.data()) + offset, 0,
				    size);
		});
	return memory;
}

struct settings {
	std::uint64_t length;
	std::uint64_t seed;
	fs::path directory;
};

/* In a child: goes on from what is there, up to the round in which it ends. */
void work_until_killed(const settings &all, std::uint64_t last_round, std::uint64_t dies_behind)
{
	auto from = recover(all.directory, all.length);
	auto &region = from.region;
	const auto live = region.map();
	/* A region without anything is where the first one begins. */
	auto last = region.take_snapshot();

	expect(from.complaint.empty(), "all files can be used");
	for (std::uint64_t round = from.number + 1; round <= last_round; round++) {
		work(live.as<std::uint64_t>(), round, all.seed,
		     [&](std::uint64_t offset, std::uint64_t size) { region.punch(offset, size); });

		const example::stopwatch watch;
		auto now = region.take_snapshot();

		const double fork = watch.microseconds();

		if (round == last_round)
			std::cout << "  from checkpoint " << from.number << " to " << round
				  << ", and killed there behind " << dies_behind << " bytes\n"
				  << std::flush;

		const auto made = save(all.directory, {round, from.checksum}, now, last,
				       round == last_round ? dies_behind : never);

		from.checksum = made.checksum;
		last = std::move(now);
		std::cout << "  checkpoint " << round << ": " << made.bytes / 1024 << " KiB, FORK "
			  << fork << " us, on the disk after " << watch.milliseconds() << " ms\n";
	}
}

void expect_recovered(const settings &all, std::uint64_t rounds, bool complaint,
		      std::string_view when)
{
	const example::stopwatch watch;
	const auto found = recover(all.directory, all.length);
	const double took = watch.milliseconds();
	const auto map = found.region.map();
	const auto memory = expected(all.length, rounds, all.seed);

	expect(found.complaint.empty() != complaint,
	       std::string(when) + (complaint ? " that is noticed" : " all files can be used"));
	expect(found.number == rounds,
	       std::string(when) + " the last whole checkpoint is " + std::to_string(rounds));
	expect(std::ranges::equal(map.as<std::uint64_t>(), memory),
	       std::string(when) + " the region is what " + std::to_string(rounds) +
		       " rounds make");
	std::cout << "  " << when << " there are " << found.number << " checkpoints, recovered in "
		  << took << " ms\n";
}

} // namespace

int main(int count, char **words)
try {
	std::uint64_t megabytes = 32, kills = 5, seed = 1;
	std::string directory = "/tmp/checkpoints";

	example::read_options(count, words,
			      {{"memory", &megabytes, "of the region, in MiB"},
			       {"kills", &kills, "how often a child is killed"},
			       {"seed", &seed, "for what is done, and when it is killed"},
			       {"directory", &directory, "a new one, for the files"}});

	const settings all{megabytes << 20, seed, directory};
	std::mt19937_64 dice(seed);
	std::uint64_t rounds = 0;

	if (!fs::create_directory(directory))
		throw std::invalid_argument(directory + " is there already: remove it, or name "
							"another one by --directory");
	for (std::uint64_t i = 0; i < kills; i++) {
		const std::uint64_t last = rounds + 2 + dice() % 3;
		/* Some where the file is complete and has no name yet. */
		const std::uint64_t behind = 1 + dice() % (i ? 1 << 20 : all.length / 2);
		example::process child([&] { work_until_killed(all, last, behind); });
		const int status = child.wait();

		expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "a child was killed");
		expect(fs::exists(unfinished(directory)), "it was writing a file");
		rounds = last - 1;
		expect_recovered(all, rounds, false, "after a kill");
	}

	/* What disks do. */
	const auto path = name_of(directory, rounds);
	const auto whole = fs::file_size(path);
	const auto file = read_file(path);

	for (int i = 0; i < 3; i++) {
		auto spoilt = file;
		const auto fd = open_file(path, O_WRONLY | O_TRUNC);

		spoilt[dice() % whole] ^= std::byte(1 << dice() % 8);
		expect(::write(fd.get(), spoilt.data(), whole) == static_cast<ssize_t>(whole),
		       "a file can be spoilt");
		expect_recovered(all, rounds - 1, true, "with a bit that changed");
	}
	fs::resize_file(path, whole - 1 - dice() % (whole - 1));
	expect_recovered(all, rounds - 1, true, "with a torn file");
	fs::remove_all(directory);
	std::cout << kills << " kills, and never was a checkpoint lost that was complete\n";
} catch (const std::exception &error) {
	std::cerr << error.what() << '\n';
	return EXIT_FAILURE;
}
