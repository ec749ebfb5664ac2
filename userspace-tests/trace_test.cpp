// SPDX-License-Identifier: GPL-2.0-only
/*
 * What who looks for a cause finds: the tracepoints, through tracefs and through
 * perf_event_open(2), and the dynamic debug messages.
 */
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <fcntl.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "fault.hpp"
#include "fixture.hpp"
#include "ktap.hpp"
#include "page_in_a_pipe.hpp"

using namespace cowsnap_test;

namespace {

namespace fs = std::filesystem;

std::string text_of(const fs::path &path)
{
	std::ifstream file(path);
	const std::string text{std::istreambuf_iterator<char>(file), {}};

	if (!file.is_open())
		throw std::runtime_error("cannot read " + path.string());
	return text;
}

void write_to(const fs::path &path, const std::string &text)
{
	std::ofstream file(path);

	file << text << std::flush;
	if (!file)
		throw std::runtime_error("cannot write " + path.string());
}

/* tracefs, mounted for as long as it lives where it is not mounted already. */
class tracefs {
public:
	tracefs()
	{
		if (fs::exists(path_ / "events"))
			return;

		std::string made = "/tmp/cowsnap-tracing-XXXXXX";

		if (!::mkdtemp(made.data()))
			check(-1, "mkdtemp");
		check(::mount("tracefs", made.c_str(), "tracefs", 0, nullptr),
		      "mount tracefs");
		path_ = mounted_ = made;
	}
	~tracefs()
	{
		if (mounted_.empty())
			return;
		::umount(mounted_.c_str());
		::rmdir(mounted_.c_str());
	}
	tracefs(const tracefs &) = delete;
	tracefs &operator=(const tracefs &) = delete;

	const fs::path &path() const { return path_; }

private:
	fs::path path_ = "/sys/kernel/tracing";
	fs::path mounted_;
};

/* A line of the trace: what happened, and its fields. */
struct event_line {
	std::string name;
	std::map<std::string, std::string> fields;

	std::uint64_t number(const std::string &field) const
	{
		return std::stoull(fields.at(field), nullptr, 0);
	}
};

/*
 * A trace buffer of our own, which other users of tracefs do not notice. It is
 * made while names of commands are not recorded, and inherits that: to record
 * them, the kernel patches its own scheduler whenever an event is enabled, which
 * an emulated CPU that is in the scheduler then may not survive.
 */
class trace {
public:
	explicit trace(const tracefs &mount)
		: path_(mount.path() / "instances" /
			("cowsnap-" + std::to_string(::getpid())))
	{
		const fs::path option = mount.path() / "options/record-cmd";
		const std::string before = text_of(option);

		write_to(option, "0");

		const int status = ::mkdir(path_.c_str(), 0700);
		const int error = errno;

		write_to(option, before);
		errno = error;
		check(status, "mkdir in tracefs");
	}
	~trace()
	{
		std::ofstream(path_ / "events/enable") << 0;
		::rmdir(path_.c_str());
	}
	trace(const trace &) = delete;
	trace &operator=(const trace &) = delete;

	fs::path event(const std::string &name) const
	{
		return path_ / "events/cowsnap" / name;
	}
	void enable(const std::string &name = "") const
	{
		write_to(event(name) / "enable", "1");
	}

	/* What came since the last call, of the events with this name. */
	std::vector<event_line> take(const std::string &name) const
	{
		std::vector<event_line> found;
		std::istringstream text(text_of(path_ / "trace"));
		std::string line;

		while (std::getline(text, line)) {
			const std::size_t start = line.find(": " + name + ": ");

			if (!line.starts_with('#') && start != line.npos)
				found.push_back(
					parse(name, line.substr(
							    start + 4 +
							    name.size())));
		}
		return found;
	}
	void clear() const { write_to(path_ / "trace", "\n"); }

private:
	static event_line parse(const std::string &name, const std::string &text)
	{
		event_line made = {name, {}};
		std::istringstream words(text);
		std::string word;

		while (words >> word) {
			const std::size_t equals = word.find('=');

			made.fields[word.substr(0, equals)] =
				word.substr(equals + 1);
		}
		return made;
	}

	fs::path path_;
};

const std::map<std::string, std::set<std::string>> known_events = {
	{"cowsnap_fork", {"parent", "child", "referenced", "readonly"}},
	{"cowsnap_restore", {"region", "source", "changed"}},
	{"cowsnap_fault", {"region", "offset", "write", "error"}},
	{"cowsnap_copy", {"region", "offset", "bytes", "pinned"}},
	{"cowsnap_close", {"region", "family"}},
};

class traces : public cowsnap_fixture {
protected:
	/* The one event of this name; its number of them must be that. */
	std::vector<event_line> expect(const std::string &name,
				       std::size_t count) const
	{
		std::vector<event_line> found = buffer.take(name);

		EXPECT_EQ(found.size(), count) << name;
		found.resize(count);
		return found;
	}

	tracefs mount;
	trace buffer{mount};
};

TEST_F(traces, have_the_events_that_the_module_has)
{
	std::set<std::string> names, wanted;

	for (const auto &entry : fs::directory_iterator(buffer.event("")))
		if (entry.is_directory())
			names.insert(entry.path().filename());
	for (const auto &[name, fields] : known_events)
		wanted.insert(name);
	EXPECT_EQ(names, wanted);
}

/* As perf and bpftrace read them: fields with types and places, and a format. */
TEST_F(traces, have_formats_that_can_be_read)
{
	for (const auto &[name, wanted] : known_events) {
		std::istringstream text(text_of(buffer.event(name) / "format"));
		std::set<std::string> fields;
		std::string line, print;

		while (std::getline(text, line)) {
			const std::size_t end = line.find(';');
			const std::size_t space = line.rfind(' ', end);

			if (line.find("field:") != line.npos &&
			    line.find("common_") == line.npos)
				fields.insert(
					line.substr(space + 1, end - space - 1));
			if (line.starts_with("print fmt: "))
				print = line;
		}
		EXPECT_EQ(fields, wanted) << name;
		/* What is printed are fields, nothing that only the kernel has. */
		EXPECT_NE(print.find("REC->"), print.npos) << name;
		EXPECT_EQ(print.find("(region)"), print.npos) << name;
	}
}

TEST_F(traces, are_silent_until_they_are_enabled)
{
	const region subject = dev.create_pages(1);

	subject.map().store(0, 1);
	(void)subject.fork();
	for (const auto &[name, fields] : known_events)
		expect(name, 0);
}

TEST_F(traces, tell_of_forks)
{
	const region parent = dev.create_pages(4);

	parent.fill_page(0, 1);
	parent.fill_page(1, 1);
	buffer.enable("cowsnap_fork");

	const region child = parent.fork();
	const region snapshot = child.snapshot();
	const auto events = expect("cowsnap_fork", 2);

	EXPECT_EQ(events[0].number("region"), parent.stat().id);
	EXPECT_EQ(events[0].number("child"), child.stat().id);
	EXPECT_EQ(events[0].number("readonly"), 0u);
	EXPECT_EQ(events[0].number("referenced"), 2 * page_size);
	EXPECT_EQ(events[1].number("region"), child.stat().id);
	EXPECT_EQ(events[1].number("child"), snapshot.stat().id);
	EXPECT_EQ(events[1].number("readonly"), 1u);
}

TEST_F(traces, tell_of_each_child_of_many)
{
	const region first = dev.create_pages(1);
	const region second = dev.create_pages(1);

	buffer.enable("cowsnap_fork");

	const std::vector<const region *> parents = {&first, &second, &first};
	const std::vector<region> forks = dev.fork_all(parents);
	const auto events = expect("cowsnap_fork", forks.size());

	for (std::size_t i = 0; i < forks.size(); i++) {
		EXPECT_EQ(events[i].number("region"), parents[i]->stat().id);
		EXPECT_EQ(events[i].number("child"), forks[i].stat().id);
	}
}

TEST_F(traces, tell_of_faults_and_copies)
{
	const region parent = dev.create_pages(8);
	const mapping map = parent.map();

	parent.fill_page(5, 1);

	const region snapshot = parent.snapshot();

	buffer.enable();
	map.store(2, 1);
	(void)map.load(3);
	map.store(5, 1);

	const auto faults = expect("cowsnap_fault", 3);
	const auto copies = expect("cowsnap_copy", 1);
	const std::uint64_t id = parent.stat().id;
	const std::array<std::uint64_t, 3> pages = {2, 3, 5};

	for (std::size_t i = 0; i < 3; i++) {
		EXPECT_EQ(faults[i].number("region"), id);
		EXPECT_EQ(faults[i].number("offset"), pages[i] * page_size);
		EXPECT_EQ(faults[i].number("write"), i == 1 ? 0u : 1u);
		EXPECT_EQ(faults[i].number("error"), 0u);
	}
	EXPECT_EQ(copies[0].number("region"), id);
	EXPECT_EQ(copies[0].number("offset"), 5 * page_size);
	EXPECT_EQ(copies[0].number("bytes"), page_size);
	EXPECT_EQ(copies[0].number("pinned"), 0u);

	/* By write(2), without a fault. */
	const region other = parent.snapshot();

	buffer.clear();
	parent.fill_page(2, 2);
	expect("cowsnap_fault", 0);
	EXPECT_EQ(expect("cowsnap_copy", 1)[0].number("offset"), 2 * page_size);

	/* A snapshot's faults are its own. */
	buffer.clear();
	(void)snapshot.map(PROT_READ).load(5);
	EXPECT_EQ(expect("cowsnap_fault", 1)[0].number("region"),
		  snapshot.stat().id);
}

/* Offsets are in bytes whatever the granule, and beyond 32 bits. */
TEST_F(traces, tell_of_copies_of_large_granules)
{
	constexpr std::uint64_t offset = std::uint64_t{5} << 32;
	const std::uint64_t granule = 16 * page_size;
	const region parent = dev.create(2 * offset, 0, {}, page_shift + 4);

	parent.write(offset, bytes_of(1, 1));

	const region snapshot = parent.snapshot();
	const mapping map(parent.fd(), granule, PROT_READ | PROT_WRITE, MAP_SHARED,
			  offset);

	buffer.enable();
	map.store(3, 1);

	const auto copies = expect("cowsnap_copy", 1);

	EXPECT_EQ(copies[0].number("offset"), offset);
	EXPECT_EQ(copies[0].number("bytes"), granule);
	EXPECT_EQ(expect("cowsnap_fault", 1)[0].number("offset"),
		  offset + 3 * page_size);
}

TEST_F(traces, tell_of_faults_that_fail)
{
	const region subject = dev.create(4 * page_size, page_size);
	const mapping map(subject.fd(), 5 * page_size);

	map.store(0, 1);
	buffer.enable("cowsnap_fault");
	EXPECT_EQ(signal_of_store(map.page(1).data()), SIGBUS);
	EXPECT_EQ(signal_of_load(map.page(4).data()), SIGBUS);

	const auto events = expect("cowsnap_fault", 2);

	EXPECT_EQ(events[0].fields.at("error"), std::to_string(-ENOSPC));
	EXPECT_EQ(events[0].number("offset"), page_size);
	EXPECT_EQ(events[1].fields.at("error"), std::to_string(-EFAULT));
	EXPECT_EQ(events[1].number("offset"), 4 * page_size);
}

TEST_F(traces, tell_of_copies_for_pins)
{
	const region parent = dev.create_pages(4);
	const mapping map = parent.map();

	map.store(3, 1);

	const page_in_a_pipe held(map.page(3));

	buffer.enable();
	(void)parent.fork();

	const auto copies = expect("cowsnap_copy", 1);

	EXPECT_EQ(copies[0].number("region"), parent.stat().id);
	EXPECT_EQ(copies[0].number("offset"), 3 * page_size);
	EXPECT_EQ(copies[0].number("pinned"), 1u);
}

TEST_F(traces, tell_of_restores)
{
	const region parent = dev.create_pages(4);
	const region snapshot = parent.snapshot();

	parent.fill_page(1, 1);
	buffer.enable("cowsnap_restore");
	parent.restore(snapshot);

	const auto events = expect("cowsnap_restore", 1);

	EXPECT_EQ(events[0].number("region"), parent.stat().id);
	EXPECT_EQ(events[0].number("source"), snapshot.stat().id);
	EXPECT_EQ(events[0].number("changed"), page_size);
}

TEST_F(traces, tell_when_nothing_refers_to_a_region_any_more)
{
	region parent = dev.create_pages(4);
	region child = parent.fork();
	mapping map = child.map();
	const std::uint64_t first = parent.stat().id, second = child.stat().id;

	buffer.enable("cowsnap_close");
	child.close();
	parent.close();

	auto events = expect("cowsnap_close", 1);

	EXPECT_EQ(events[0].number("region"), first);
	EXPECT_EQ(events[0].number("family"), first);
	buffer.clear();
	map.reset();
	events = expect("cowsnap_close", 1);
	EXPECT_EQ(events[0].number("region"), second);
	EXPECT_EQ(events[0].number("family"), first);
}

TEST_F(traces, can_be_filtered)
{
	const region parent = dev.create_pages(4);

	write_to(buffer.event("cowsnap_fork") / "filter",
		 "readonly == 1 && parent == " +
			 std::to_string(parent.stat().id));
	buffer.enable("cowsnap_fork");

	const region child = parent.fork();
	const region snapshot = parent.snapshot();
	const region other = child.snapshot();

	EXPECT_EQ(expect("cowsnap_fork", 1)[0].number("child"),
		  snapshot.stat().id);
}

/*
 * Counts an event of this process, as perf does: on each CPU and with a filter,
 * as for counters that follow a thread the kernel patches its scheduler, too.
 */
class perf_counter {
public:
	perf_counter(const tracefs &mount, const std::string &name)
	{
		const std::string filter =
			"common_pid == " + std::to_string(::getpid());
		perf_event_attr attr = {};

		attr.type = PERF_TYPE_TRACEPOINT;
		attr.size = sizeof(attr);
		attr.config = std::stoull(text_of(
			mount.path() / "events/cowsnap" / name / "id"));
		for (int cpu = 0; cpu < ::get_nprocs(); cpu++) {
			fds_.emplace_back(static_cast<int>(check(
				::syscall(SYS_perf_event_open, &attr, -1, cpu,
					  -1, PERF_FLAG_FD_CLOEXEC),
				"perf_event_open")));
			check(::ioctl(fds_.back().get(),
				      PERF_EVENT_IOC_SET_FILTER,
				      filter.c_str()),
			      "PERF_EVENT_IOC_SET_FILTER");
		}
	}

	std::uint64_t count() const
	{
		std::uint64_t sum = 0;

		for (const unique_fd &fd : fds_) {
			std::uint64_t value = 0;

			check(::read(fd.get(), &value, sizeof(value)), "read");
			sum += value;
		}
		return sum;
	}

private:
	std::vector<unique_fd> fds_;
};

TEST_F(traces, are_counted_by_perf)
{
	const perf_counter forks(mount, "cowsnap_fork");
	const perf_counter restores(mount, "cowsnap_restore");
	const perf_counter faults(mount, "cowsnap_fault");
	const perf_counter copies(mount, "cowsnap_copy");
	const perf_counter closes(mount, "cowsnap_close");

	{
		const region parent = dev.create_pages(16);
		const mapping map = parent.map();

		for (std::size_t page = 0; page < 16; page++)
			map.store(page, 1);

		const region first = parent.snapshot();
		const region second = parent.fork();

		for (std::size_t page = 0; page < 5; page++)
			map.store(page, 2);
		parent.restore(first);
		dev.fork_all({&first, &second});
		EXPECT_EQ(faults.count(), parent.stat().faults);
		EXPECT_EQ(copies.count(), parent.stat().copies);
		EXPECT_EQ(copies.count(), 5u);
	}
	EXPECT_EQ(forks.count(), 4u);
	EXPECT_EQ(restores.count(), 1u);
	EXPECT_EQ(faults.count(), 21u);
	EXPECT_EQ(closes.count(), 5u);
}

/* The module's debug messages are shown while it lives. */
class debug_messages {
public:
	debug_messages() { write_to(path, "module cowsnap +p"); }
	~debug_messages() { std::ofstream(path) << "module cowsnap -p"; }
	debug_messages(const debug_messages &) = delete;
	debug_messages &operator=(const debug_messages &) = delete;

	/* The same as in debugfs, but always there. */
	static constexpr const char *path = "/proc/dynamic_debug/control";
};

class messages : public cowsnap_fixture {
protected:
	void SetUp() override
	{
		if (!fs::exists(debug_messages::path))
			GTEST_SKIP() << "this kernel has no dynamic debug";
		quiet = false;
	}
	void TearDown() override
	{
		subject.close();
		snapshot.close();
		cowsnap_fixture::TearDown();
	}

	/* Calls that fail, each in another way; how many there are. */
	std::size_t fail_in_many_ways() const
	{
		cowsnap_stat stat = {};
		cowsnap_create create = {};
		cowsnap_restore restore = {};

		stat.size = 5;
		EXPECT_EQ(::ioctl(subject.fd(), COWSNAP_IOC_STAT, &stat), -1);
		stat.size = sizeof(stat);
		EXPECT_EQ(::ioctl(dev.fd(), COWSNAP_IOC_STAT, &stat), -1);
		create.size = sizeof(create);
		create.granule_shift = 99;
		EXPECT_EQ(::ioctl(dev.fd(), COWSNAP_IOC_CREATE, &create), -1);
		restore.size = sizeof(restore);
		restore.src_fd = subject.fd();
		EXPECT_EQ(::ioctl(snapshot.fd(), COWSNAP_IOC_RESTORE, &restore),
			  -1);
		return 4;
	}
	void succeed_in_many_ways() const
	{
		const region child = subject.fork();

		child.map().store(0, 1);
		child.prepare();
		subject.restore(child);
		EXPECT_EQ(child.diff(subject).size(), 0u);
		subject.punch(0, page_size);
		subject.truncate(0);
		subject.truncate(4 * page_size);
		dev.fork_all({&subject, &child});
		dev.query();
	}
	std::vector<std::string> said()
	{
		return log.lines_with({"cowsnap", "ioctl"});
	}

	region subject = dev.create(4 * page_size, 2 * page_size);
	region snapshot = subject.snapshot();
};

TEST_F(messages, are_none_by_default)
{
	const mapping map(subject.fd(), 5 * page_size);

	fail_in_many_ways();
	succeed_in_many_ways();
	EXPECT_EQ(signal_of_load(map.page(4).data()), SIGBUS);
	EXPECT_TRUE(said().empty());
}

TEST_F(messages, say_what_failed_on_request)
{
	const debug_messages shown;
	const std::size_t failures = fail_in_many_ways();
	const std::vector<std::string> lines = said();

	ASSERT_EQ(lines.size(), failures);
	for (const std::string &line : lines)
		EXPECT_NE(line.find(std::to_string(::getpid())), line.npos)
			<< line;
	for (const auto &[i, error] : std::map<std::size_t, int>{
		     {0, EINVAL}, {1, ENOTTY}, {2, EINVAL}, {3, EPERM}})
		EXPECT_NE(lines[i].find("error " + std::to_string(-error)),
			  lines[i].npos)
			<< lines[i];
	/* The number of the ioctl, as in the header. */
	EXPECT_NE(lines[2].find("0xe701"), lines[2].npos) << lines[2];
	EXPECT_NE(lines[3].find("0xe711"), lines[3].npos) << lines[3];
}

TEST_F(messages, say_which_store_raised_sigbus_on_request)
{
	const mapping map(subject.fd(), 5 * page_size);
	const debug_messages shown;

	map.store(0, 1);
	map.store(1, 1);
	EXPECT_EQ(signal_of_store(map.page(2).data()), SIGBUS);

	const std::vector<std::string> lines = said();
	std::ostringstream offset;

	offset << std::hex << std::showbase << 2 * page_size;
	ASSERT_EQ(lines.size(), 1u);
	for (const std::string &wanted :
	     {std::to_string(::getpid()), offset.str() + ' ',
	      "region " + std::to_string(subject.stat().id),
	      "error " + std::to_string(-ENOSPC)})
		EXPECT_NE(lines[0].find(wanted), lines[0].npos) << lines[0];
}

TEST_F(messages, say_nothing_of_what_works)
{
	const debug_messages shown;

	succeed_in_many_ways();
	EXPECT_TRUE(said().empty());
}

} // namespace

int main(int argc, char **argv)
{
	return ktap::run(argc, argv);
}
