// SPDX-License-Identifier: GPL-2.0-only
/* The command: what it prints, how it ends, and that a stream arrives whole or not at all. */
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "chance.hpp"
#include "command.hpp"
#include "ktap.hpp"
#include "library.hpp"
#include "process.hpp"

namespace {

using namespace cowsnap_test;
using namespace cowsnap_test::of_library;
using nlohmann::json;

namespace fs = std::filesystem;

constexpr int refused = 3;
constexpr int unfinished = 4;

/* The whole output must be JSON. */
json json_of(const ended &result)
{
	EXPECT_EQ(result.status, 0) << result.err;
	return json::parse(result.out, nullptr, false);
}

std::string bytes_in(const cowsnap::member &of)
{
	std::string all(of.length(), '\0');

	EXPECT_EQ(of.read(0, std::as_writable_bytes(std::span(all))), all.size());
	return all;
}

void put(cowsnap::region &into, std::uint64_t offset, std::string_view bytes)
{
	into.write(offset, std::as_bytes(std::span(bytes)));
}

class command : public library {
protected:
	/* A folder for the test's files, which goes with it. */
	void SetUp() override { fs::create_directory(folder); }
	void TearDown() override
	{
		fs::remove_all(folder);
		library::TearDown();
	}

	/* Stores, holes and changes of the length. */
	static void change(cowsnap::region &region, chance &dice)
	{
		for (std::size_t i = dice.between(1, 12); i > 0; i--) {
			const std::uint64_t length = region.length();
			const std::uint64_t offset = dice.below(length);
			const std::size_t size = dice.between(1, 3 * page_size);

			if (dice.one_in(8))
				region.truncate(dice.between(1, 64 * page_size));
			else if (dice.one_in(4))
				region.punch(offset, size);
			else
				put(region, offset,
				    std::string(std::min<std::uint64_t>(size, length - offset),
						static_cast<char>(dice.below(4))));
		}
	}

	const fs::path folder = fs::temp_directory_path() /
				("command-" + std::to_string(::getpid()));
};

TEST_F(command, tells_its_version)
{
	const ended result = run_command({"--version"});

	EXPECT_EQ(result.status, 0);
	EXPECT_TRUE(result.out.starts_with("cowsnap 0.")) << result.out;
}

TEST_F(command, refuses_misuse)
{
	const std::vector<std::vector<std::string>> wrong = {
		{}, {"unknown"}, {"stat"}, {"stat", "x"}, {"stat", "1:x"}, {"run"},
		{"run", "--create", "much", "--", "/x"}, {"run", "--name", "n", "--", "/x"},
		{"run", "--create", "1M", "--granule", "3", "--", "/x"}, {"load", "-"},
		{"run", "--creat", "1M", "--", "/x"}, {"fork", "3", "--snap", "--", "/x"},
		{"recv"}, {"recv", "--tell"}, {"bench", "--size", "1"}, {"ls", "--unknown"}};

	for (const auto &words : wrong) {
		const ended result = run_command(words);

		EXPECT_EQ(result.status, 2) << result.err;
		EXPECT_FALSE(result.err.empty());
		EXPECT_TRUE(result.out.empty()) << result.out;
	}
}

TEST_F(command, says_what_is_no_region)
{
	const scratch file;

	EXPECT_EQ(run_command({"stat", "99"}).status, 1);
	EXPECT_NE(run_command({"stat", "99"}).err.find("not open"), std::string::npos);
	EXPECT_EQ(run_command({"stat", "9"}, {.fds = {{9, file.fd()}}}).status, 1);
	EXPECT_NE(run_command({"stat", "999999:3"}).err.find("no process"), std::string::npos);
}

const json *entry_of(const json &listed, std::uint64_t id)
{
	for (const json &entry : listed.at("regions"))
		if (entry.value("id", std::uint64_t(0)) == id)
			return &entry;
	return nullptr;
}

TEST_F(command, lists_each_region_once)
{
	const auto region = lib.create({.length = 8 * page_size, .name = "alpha\nbeta"});
	const auto again = another(region.fd());
	const auto snapshot = region.take_snapshot();
	const json listed = json_of(run_command({"ls", "--json"}));
	const json *const entry = entry_of(listed, region.stat().id);
	const json *const other = entry_of(listed, snapshot.stat().id);

	ASSERT_TRUE(entry && other) << listed;
	EXPECT_EQ(listed["regions"].size(), 2u);
	EXPECT_EQ((*entry)["name"], "alpha\nbeta");
	EXPECT_EQ((*entry)["length"], 8 * page_size);
	EXPECT_EQ((*entry)["readonly"], false);
	EXPECT_EQ((*other)["readonly"], true);
	EXPECT_EQ((*other)["parent"], (*entry)["id"]);

	const json &holders = (*entry)["holders"];

	ASSERT_EQ(holders.size(), 2u) << listed;
	for (const json &holder : holders) {
		EXPECT_EQ(holder["pid"], ::getpid());
		EXPECT_TRUE(holder["fd"] == region.fd() || holder["fd"] == again.get());
		EXPECT_EQ(holder["command"], "command_test");
	}

	const ended shown = run_command({"ls"});

	EXPECT_EQ(shown.status, 0);
	EXPECT_NE(shown.out.find("alpha\\012beta"), std::string::npos) << shown.out;
	EXPECT_EQ(std::ranges::count(shown.out, '\n'), 3) << shown.out;
}

TEST_F(command, lists_what_is_mapped_alone)
{
	auto region = lib.create({.length = page_size, .name = "mapped"});
	const auto mapped = region.map();

	region.close();

	const json listed = json_of(run_command({"ls", "--json"}));

	ASSERT_EQ(listed["regions"].size(), 1u) << listed;
	EXPECT_EQ(listed["regions"][0]["name"], "mapped");
	EXPECT_FALSE(listed["regions"][0].contains("id"));
	EXPECT_EQ(listed["regions"][0]["holders"][0]["pid"], ::getpid());
}

TEST_F(command, says_what_stat_says)
{
	const auto region = numbered_pages(5);
	const auto snapshot = region.take_snapshot();
	const cowsnap_stat expected = snapshot.stat();

	for (const std::string &name :
	     {std::string("7"), std::to_string(::getpid()) + ":" + std::to_string(snapshot.fd())}) {
		const json told = json_of(
			run_command({"stat", name, "--json"}, {.fds = {{7, snapshot.fd()}}}));

		EXPECT_EQ(told["id"], expected.id) << name;
		EXPECT_EQ(told["referenced"], expected.referenced);
		EXPECT_EQ(told["generation"], 1);
		EXPECT_EQ(told["readonly"], true);
	}
}

TEST_F(command, may_not_look_into_everybody)
{
	const auto region = numbered_pages(1);
	const std::string name =
		std::to_string(::getpid()) + ":" + std::to_string(region.fd());
	child stranger([&] {
		check(::setresgid(1000, 1000, 1000), "setresgid");
		check(::setresuid(1000, 1000, 1000), "setresuid");

		const ended refused_one = run_command({"stat", name});
		const ended listed = run_command({"ls", "--json"});

		require(refused_one.status == 1, "stat of another's region");
		require(refused_one.err.find("ptrace") != std::string::npos, refused_one.err);
		require(listed.status == 0, listed.err);
		require(json::parse(listed.out)["unreadable"] > 0, listed.out);
		require(listed.err.find("root") != std::string::npos, listed.err);
	});

	EXPECT_TRUE(stranger.succeeded());
}

TEST_F(command, runs_programs_that_have_regions)
{
	const std::string self = beside("cowsnap");
	const json made = json_of(run_command({"run", "--create", "1M", "--name", "made",
					       "--granule", "64K", "--limit", "512K", "--", self,
					       "stat", "3", "--json"}));

	EXPECT_EQ(made["name"], "made");
	EXPECT_EQ(made["length"], 1 << 20);
	EXPECT_EQ(made["granule"], 64 << 10);

	const json forked =
		json_of(run_command({"run", "--create", "1M", "--", self, "fork", "3", "--snapshot",
				     "--", self, "stat", "4", "--json"}));

	EXPECT_EQ(forked["readonly"], true);
	EXPECT_EQ(forked["generation"], 1);

	const auto region = numbered_pages(2);
	const ended told = run_command({"run", "--region", "9", "--create", "4K", "--", self,
					"fork", "4", "--", beside("command_test"), "environment"},
				       {.fds = {{9, region.fd()}}});

	EXPECT_EQ(told.status, 0) << told.err;
	EXPECT_EQ(told.out, "3 4 5\n");

	const json second = json_of(
		run_command({"run", "--region", "9", "--region", "10", "--", self, "stat", "4", "--json"},
			    {.fds = {{9, region.fd()}, {10, lib.create({.name = "second"}).fd()}}}));

	EXPECT_EQ(second["name"], "second");
	EXPECT_EQ(run_command({"run", "--", "/nothing"}).status, 127);
	EXPECT_EQ(run_command({"run", "--", "/"}).status, 126);
}

TEST_F(command, lists_differences)
{
	auto region = numbered_pages(16);
	const auto snapshot = region.take_snapshot();

	put(region, 3 * page_size, std::string(2 * page_size, 'x'));
	region.punch(9 * page_size, page_size);
	put(region, 12 * page_size, std::string(page_size, 13));

	const given_to both_of_them = {.fds = {{3, region.fd()}, {4, snapshot.fd()}}};
	const ended all = run_command({"diff", "3", "4"}, both_of_them);
	const json exact = json_of(run_command({"diff", "3", "4", "--exact", "--json"},
					       both_of_them));

	EXPECT_EQ(all.out, "12288 8192 data\n36864 4096 hole\n49152 4096 data\n");
	ASSERT_EQ(exact.size(), 2u) << exact;
	EXPECT_EQ(exact[0]["offset"], 3 * page_size);
	EXPECT_EQ(exact[1]["hole"], true);

	const auto stranger = lib.create({.length = page_size});
	const ended apart =
		run_command({"diff", "3", "4"}, {.fds = {{3, region.fd()}, {4, stranger.fd()}}});

	EXPECT_EQ(apart.status, 1);
	EXPECT_NE(apart.err.find("family"), std::string::npos) << apart.err;
}

TEST_F(command, saves_and_loads)
{
	auto region = lib.create({.length = (8 << 20) + 77});
	const std::string file = folder / "image";

	put(region, (3 << 20) + 5, "here");
	put(region, (8 << 20) + 70, "the end");

	const std::string expected = bytes_in(region);
	struct stat status = {};

	ASSERT_EQ(run_command({"save", "3", file}, {.fds = {{3, region.fd()}}}).status, 0);
	ASSERT_EQ(::stat(file.c_str(), &status), 0);
	EXPECT_EQ(status.st_size, (8 << 20) + 77);
	EXPECT_LE(status.st_blocks * 512, 64 << 10);
	EXPECT_EQ(run_command({"save", "3", "-"}, {.fds = {{3, region.fd()}}}).out, expected);

	auto into = numbered_pages(3);
	const json stat = json_of(run_command({"load", file, "--name", "loaded", "--",
					       beside("cowsnap"), "stat", "3", "--json"}));

	EXPECT_EQ(stat["name"], "loaded");
	EXPECT_EQ(stat["length"], (8 << 20) + 77);
	EXPECT_LE(stat["referenced"], 64 << 10);
	EXPECT_EQ(run_command({"load", "--into", "3", file}, {.fds = {{3, into.fd()}}}).status, 0);
	EXPECT_TRUE(bytes_in(into) == expected);
	into.truncate(1);
	EXPECT_EQ(run_command({"load", "--into", "3", "-"},
			      {.fds = {{3, into.fd()}}, .input = expected})
			  .status,
		  0);
	EXPECT_TRUE(bytes_in(into) == expected);
	EXPECT_LE(into.stat().referenced, 4u << 20);
	EXPECT_EQ(run_command({"save", "3", folder / "none/image"}, {.fds = {{3, region.fd()}}})
			  .status,
		  1);

	/* A device must not be replaced by a file. */
	EXPECT_EQ(run_command({"save", "3", "/dev/null"}, {.fds = {{3, region.fd()}}}).status, 1);
	EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(command, sends_what_changed)
{
	chance dice(1);
	auto source = numbered_pages(40);
	auto replica = lib.create({});
	auto last = source.take_snapshot();
	const ended first = run_command({"send", "3"}, {.fds = {{3, last.fd()}}});

	ASSERT_EQ(first.status, 0) << first.err;
	ASSERT_EQ(run_command({"recv", "3"}, {.fds = {{3, replica.fd()}}, .input = first.out})
			  .status,
		  0);
	ASSERT_TRUE(bytes_in(replica) == bytes_in(last));
	for (std::size_t round = 0; round < scaled(25); round++) {
		change(source, dice);

		auto now = source.take_snapshot();
		const ended sent = run_command({"send", "-i", "3", "4"},
					       {.fds = {{3, last.fd()}, {4, now.fd()}}});
		const ended received = run_command(
			{"recv", "3"}, {.fds = {{3, replica.fd()}}, .input = sent.out});

		ASSERT_EQ(sent.status, 0) << sent.err;
		ASSERT_EQ(received.status, 0) << received.err;
		ASSERT_TRUE(bytes_in(replica) == bytes_in(now)) << "round " << round;
		last = std::move(now);
	}

	/* Of a page that changed little more than it is sent. */
	put(source, 0, "!");

	const ended small = run_command({"send", "-i", "3", "4"},
					{.fds = {{3, last.fd()}, {4, source.fd()}}});

	EXPECT_LT(small.out.size(), page_size + 200);
}

TEST_F(command, sends_more_than_a_piece)
{
	auto source = lib.create({.length = (5 << 20) + 321, .granule = 64 << 10});
	auto replica = numbered_pages(9);

	put(source, (1 << 20) - 7, std::string((2 << 20) + 9, 'a'));
	put(source, (5 << 20) + 320, "z");

	const auto base = source.take_snapshot();
	const ended whole = run_command({"send", "3"}, {.fds = {{3, base.fd()}}});

	ASSERT_EQ(run_command({"recv", "3"}, {.fds = {{3, replica.fd()}}, .input = whole.out})
			  .status,
		  0);
	EXPECT_TRUE(bytes_in(replica) == bytes_in(base));

	put(source, (2 << 20) - 1, "bc");
	source.punch(1 << 20, 128 << 10);

	/* Two streams behind each other. */
	const auto now = source.take_snapshot();
	const ended first = run_command({"send", "-i", "3", "4"},
					{.fds = {{3, base.fd()}, {4, now.fd()}}});
	const ended back = run_command({"send", "-i", "4", "3"},
				       {.fds = {{3, base.fd()}, {4, now.fd()}}});

	EXPECT_LT(first.out.size(), 200u << 10);
	ASSERT_EQ(run_command({"recv", "3"},
			      {.fds = {{3, replica.fd()}}, .input = first.out + back.out})
			  .status,
		  0);
	EXPECT_TRUE(bytes_in(replica) == bytes_in(base));
}

/* A source with a snapshot, a change since, a replica of the snapshot, and the stream. */
class stream : public command {
protected:
	void SetUp() override
	{
		command::SetUp();
		source = numbered_pages(4);
		base = source.take_snapshot();
		put(source, 5, "changed");
		source.punch(2 * page_size, page_size);
		replica = lib.create({});
		put(replica, 0, bytes_in(base));
		before_it = bytes_in(replica);
		sent = send().out;
		ASSERT_GT(sent.size(), page_size);
	}
	void TearDown() override
	{
		source.close();
		base.close();
		replica.close();
		command::TearDown();
	}

	ended send(const std::vector<std::string> &more = {})
	{
		std::vector<std::string> words = {"send", "-i", "3", "4"};

		words.insert(words.end(), more.begin(), more.end());
		return run_command(words, {.fds = {{3, base.fd()}, {4, source.fd()}}});
	}
	ended receive(std::string_view bytes, const std::vector<std::string> &more = {})
	{
		std::vector<std::string> words = {"recv", "3"};

		words.insert(words.end(), more.begin(), more.end());
		return run_command(words, {.fds = {{3, replica.fd()}}, .input = bytes});
	}

	void expect_unchanged() { EXPECT_TRUE(bytes_in(replica) == before_it); }

	cowsnap::region source;
	cowsnap::snapshot base;
	cowsnap::region replica;
	std::string before_it;
	std::string sent;
};

/* The header, two records, the page between them, and the end. */
constexpr std::size_t header_size = 72, record_size = 32;

TEST_F(stream, is_refused_when_a_byte_is_another)
{
	chance dice(2);

	ASSERT_EQ(sent.size(), header_size + 3 * record_size + page_size);
	/* A third of them; each run and each kernel has others. */
	for (std::size_t at = dice.below(5); at < sent.size();) {
		std::string damaged = sent;

		damaged[at] = static_cast<char>(damaged[at] ^ (1 << at % 8));

		const ended result = receive(damaged);

		EXPECT_TRUE(result.status == refused || result.status == unfinished)
			<< "byte " << at << ": " << result.status << ' ' << result.err;
		expect_unchanged();

		/* Of the page some are enough. */
		const bool in_page = at >= header_size + record_size &&
				     at < header_size + record_size + page_size - 401;
		at += in_page ? 401 : dice.between(1, 5);
	}
	EXPECT_EQ(receive(sent).status, 0);
	EXPECT_TRUE(bytes_in(replica) == bytes_in(source));
}

TEST_F(stream, is_refused_when_it_ends_early)
{
	for (std::size_t size = 0; size < sent.size(); size += size < 80 ? 9 : 333) {
		const ended result = receive(std::string_view(sent).substr(0, size));

		EXPECT_EQ(result.status, unfinished) << size << ' ' << result.err;
		expect_unchanged();
	}
	EXPECT_EQ(receive(std::string_view(sent).substr(0, sent.size() - 1)).status, unfinished);
	expect_unchanged();
}

TEST_F(stream, is_refused_when_records_are_exchanged_or_missing)
{
	const std::string head = sent.substr(0, header_size);
	const std::string data = sent.substr(header_size, record_size + page_size);
	const std::string hole = sent.substr(header_size + data.size(), record_size);
	const std::string end = sent.substr(sent.size() - record_size);

	ASSERT_EQ(head + data + hole + end, sent);
	for (const std::string &other :
	     {head + hole + data + end, head + hole + end, head + data + end, head + end,
	      head + data + data + hole + end, data + hole + end}) {
		EXPECT_EQ(receive(other).status, refused);
		expect_unchanged();
	}
}

TEST_F(stream, is_refused_where_something_else_is)
{
	put(replica, 3 * page_size, "?");
	before_it = bytes_in(replica);

	const ended result = receive(sent);

	EXPECT_EQ(result.status, refused);
	EXPECT_NE(result.err.find("-i"), std::string::npos) << result.err;
	expect_unchanged();

	/* All of it needs nothing there. */
	const ended whole = run_command({"send", "4"}, {.fds = {{4, source.fd()}}});

	EXPECT_EQ(receive(whole.out).status, 0);
	EXPECT_TRUE(bytes_in(replica) == bytes_in(source));
}

TEST_F(stream, goes_on_where_it_ended)
{
	const std::string kept = folder / "kept";
	const std::vector<std::string> partial = {"--partial", kept};

	EXPECT_EQ(run_command({"recv", "--partial", kept, "--tell"}).out, "0\n");

	const ended early =
		receive(std::string_view(sent).substr(0, header_size + record_size + page_size + 7),
			partial);

	EXPECT_EQ(early.status, unfinished);
	EXPECT_NE(early.err.find("--from 4096"), std::string::npos) << early.err;
	expect_unchanged();
	EXPECT_EQ(run_command({"recv", "--partial", kept, "--tell"}).out, "4096\n");

	/* From elsewhere, or without what was kept, it is refused. */
	const std::string rest = send({"--from", "4096"}).out;

	EXPECT_LT(rest.size(), page_size);
	EXPECT_EQ(receive(rest).status, refused);
	EXPECT_EQ(receive(send({"--from", "8192"}).out, partial).status, refused);
	expect_unchanged();

	EXPECT_EQ(receive(rest, partial).status, 0);
	EXPECT_TRUE(bytes_in(replica) == bytes_in(source));
	EXPECT_FALSE(fs::exists(kept));
}

TEST_F(stream, does_not_go_on_with_what_was_damaged)
{
	const std::string kept = folder / "kept";

	EXPECT_EQ(receive(std::string_view(sent).substr(0, sent.size() - 1), {"--partial", kept})
			  .status,
		  unfinished);

	std::fstream file(kept, std::ios::in | std::ios::out | std::ios::binary);

	file.seekp(header_size + record_size + 10);
	file.put('?');
	file.close();
	EXPECT_EQ(receive(send({"--from", "12288"}).out, {"--partial", kept}).status, refused);
	expect_unchanged();
}

/* A tree as the doctor sees it, in which all is well. */
class doctor : public command {
protected:
	void SetUp() override
	{
		command::SetUp();
		put_file("proc/sys/kernel/osrelease", "6.12.1-test\n");
		put_file("proc/meminfo", "MemTotal: 1000000 kB\n");
		put_file("sys/module/cowsnap/version", version());
		put_file("sys/module/cowsnap/parameters/max_bytes", "500000\n");
		put_file("lib/modules/6.12.1-test/build/include/config/kernel.release", "");
		fs::create_directories(folder / "dev");
		fs::create_symlink("/dev/cowsnap", folder / "dev/cowsnap");
	}

	void put_file(const std::string &name, const std::string &text)
	{
		fs::create_directories((folder / name).parent_path());
		std::ofstream(folder / name) << text;
	}

	static std::string version()
	{
		return run_command({"--version"}).out.substr(std::string("cowsnap ").size());
	}

	/* The checks that find something wrong. */
	std::vector<std::string> wrong()
	{
		const ended result = run_command({"doctor", "--json", "--root", folder});
		std::vector<std::string> names;

		for (const json &entry : json::parse(result.out)) {
			if (!entry["ok"]) {
				names.push_back(entry["check"].get<std::string>());
				EXPECT_FALSE(entry["mend"].get<std::string>().empty());
			}
		}
		EXPECT_EQ(result.status, names.empty() ? 0 : 1);
		return names;
	}

	using names = std::vector<std::string>;
};

TEST_F(doctor, finds_nothing_where_all_is_well)
{
	EXPECT_EQ(wrong(), names());
}

TEST_F(doctor, finds_what_is_wrong)
{
	put_file("sys/module/cowsnap/parameters/max_bytes", "0\n");
	EXPECT_EQ(wrong(), names({"max_bytes"}));
	put_file("sys/module/cowsnap/version", "0.0.9\n");
	EXPECT_EQ(wrong(), names({"module", "max_bytes"}));
	fs::remove(folder / "dev/cowsnap");
	EXPECT_EQ(wrong(), names({"module", "device", "max_bytes"}));
	fs::remove_all(folder / "sys/module");
	put_file("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c",
		 std::string("\6\0\0\0\1", 5));
	EXPECT_EQ(wrong(), names({"Secure Boot", "module", "device"}));
	fs::remove_all(folder / "lib");
	EXPECT_EQ(wrong(), names({"headers", "Secure Boot", "module", "device"}));
	for (const char *old : {"5.10.0\n", "6.0.19\n", "6\n", "\n"}) {
		put_file("proc/sys/kernel/osrelease", old);
		EXPECT_EQ(wrong(), names({"kernel", "headers", "Secure Boot", "module", "device"}))
			<< old;
	}
	for (const char *recent : {"6.1.0-56-amd64\n", "6.8.0-45-generic\n", "7.0\n"}) {
		put_file("proc/sys/kernel/osrelease", recent);
		EXPECT_EQ(wrong(), names({"headers", "Secure Boot", "module", "device"})) << recent;
	}
}

TEST_F(command, watches)
{
	const auto region = lib.create({.length = page_size, .name = "watched"});
	const ended result = run_command({"top", "--count", "2", "--interval", "0.05"});

	EXPECT_EQ(result.status, 0) << result.err;
	EXPECT_NE(result.out.find("watched"), std::string::npos) << result.out;
	EXPECT_NE(result.out.find("watched"), result.out.rfind("watched"));
	EXPECT_EQ(result.out.find('\033'), std::string::npos);
}

/* Both ends of one; what a program says on it is read when the program ended. */
class terminal {
public:
	terminal() : master_(check(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), "posix_openpt"))
	{
		check(::grantpt(master_.get()), "grantpt");
		check(::unlockpt(master_.get()), "unlockpt");
		slave_ = unique_fd(check(::open(::ptsname(master_.get()),
						O_RDWR | O_NOCTTY | O_CLOEXEC),
					 "open a terminal"));
	}

	int fd() const noexcept { return slave_.get(); }

	std::string text() const
	{
		std::string all(1 << 16, '\0');

		check(::fcntl(master_.get(), F_SETFL, O_NONBLOCK), "fcntl");
		all.resize(static_cast<std::size_t>(
			std::max<ssize_t>(::read(master_.get(), all.data(), all.size()), 0)));
		return all;
	}

private:
	unique_fd master_;
	unique_fd slave_;
};

TEST_F(command, watches_on_a_terminal)
{
	const terminal screen;
	const ended result = run_command({"top", "--count", "2", "--interval", "0.05"},
					 {.fds = {{1, screen.fd()}}});

	EXPECT_EQ(result.status, 0) << result.err;
	EXPECT_TRUE(screen.text().starts_with("\033[H\033[J")) << screen.text();
}

TEST_F(command, says_how_far_it_is_on_a_terminal)
{
	auto region = lib.create({.length = 4 << 20});
	const std::string bytes(region.length(), 'x');
	const terminal screen;
	pipe_pair pipe;

	put(region, 0, bytes);

	std::string arrived;
	std::thread slow([&] {
		std::string some(256 << 10, '\0');

		while (const ssize_t got = ::read(pipe.read_end.get(), some.data(), some.size())) {
			if (got < 0)
				break;
			arrived.append(some, 0, static_cast<std::size_t>(got));
			/* Long enough for it to be worth a word. */
			std::this_thread::sleep_for(std::chrono::milliseconds(20));
		}
	});
	const ended result =
		run_command({"save", "3", "-"},
			    {.fds = {{1, pipe.write_end.get()}, {2, screen.fd()}, {3, region.fd()}}});

	pipe.write_end.reset();
	slow.join();
	EXPECT_EQ(result.status, 0);
	EXPECT_TRUE(arrived == bytes);

	const std::string said = screen.text();

	EXPECT_NE(said.find("\r\033[Ksaving [#"), std::string::npos) << said;
	EXPECT_NE(said.find("% "), std::string::npos) << said;
	/* And nothing of it stays. */
	EXPECT_TRUE(said.ends_with("\r\033[K")) << said;
}

TEST_F(command, measures)
{
	const json figures = json_of(run_command({"bench", "--size", "1M", "--json"}));

	EXPECT_EQ(figures["size"], 1 << 20);
	EXPECT_EQ(figures["microseconds"].size(), 5u);
	for (const auto &figure : figures["microseconds"])
		EXPECT_GT(figure, 0.0);
}

} // namespace

int main(int argc, char **argv)
{
	if (argc == 2 && std::string_view(argv[1]) == "environment") {
		const char *const fds = std::getenv("COWSNAP_FDS");

		std::printf("%s\n", fds ? fds : "");
		return 0;
	}
	return ktap::run(argc, argv);
}
