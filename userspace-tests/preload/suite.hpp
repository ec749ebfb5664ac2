// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the cases start and end with, and the roles that this program plays when a case
 * starts it once more.
 *
 * Cases whose suite begins with "served" hold with the library only; the others hold of
 * any memory, and without the library show that what they ask for is what fork(2) does.
 */
#pragma once

#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <spawn.h>

#include "fixture.hpp"
#include "ktap.hpp"
#include "process.hpp"
#include "served.hpp"

extern char **environ;

namespace cowsnap_test {

class suite : public testing::Test {
protected:
	void SetUp() override
	{
		if (this_kind() == kind::plain)
			return;
		dev.emplace();
		before.emplace(*dev);
	}

	void TearDown() override
	{
		if (dev) {
			eventually([this] { return counters(*dev).regions == before->regions; });
			EXPECT_EQ(counters(*dev).regions, before->regions) << "regions were left behind";
			EXPECT_EQ(region_descriptors().size(), 1u);
		}
		EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a child was left behind";
		for (const std::string &line :
		     log.lines_with({"BUG", "WARNING:", "Oops", "INFO: task", "detected stall"}))
			ADD_FAILURE() << "the kernel said: " << line;
	}

	/* What the module holds for all, less than at the start if it comes to that. */
	std::int64_t held_more() const
	{
		return static_cast<std::int64_t>(counters(*dev).held_bytes - before->held_bytes);
	}

	std::optional<device> dev;
	std::optional<counters> before;
	kernel_log log;
};

/* The module's figures may differ by what the allocator does meanwhile, where that uses the region. */
inline constexpr std::int64_t held_slack = 4 << 20;

/* A part that the program can play; it returns the exit status. */
class role {
public:
	role(const std::string &name, std::function<int()> body) { all()[name] = std::move(body); }

	static int play(const std::string &name)
	{
		const auto found = all().find(name);

		if (found == all().end())
			return 99;
		try {
			return found->second();
		} catch (const std::exception &error) {
			std::printf("# as %s: %s\n", name.c_str(), error.what());
			return 1;
		}
	}

private:
	static std::map<std::string, std::function<int()>> &all()
	{
		static std::map<std::string, std::function<int()>> roles;

		return roles;
	}
};

/* The environment with changes: "NAME=VALUE" sets, "NAME" unsets. */
class environment {
public:
	explicit environment(std::initializer_list<std::string> changes)
	{
		for (char **setting = environ; *setting; setting++)
			if (!changed(*setting, changes))
				settings_.emplace_back(*setting);
		for (const std::string &change : changes)
			if (change.find('=') != change.npos)
				settings_.push_back(change);
		for (std::string &setting : settings_)
			pointers_.push_back(setting.data());
		pointers_.push_back(nullptr);
	}

	char **get() { return pointers_.data(); }

private:
	static bool changed(std::string_view setting, std::initializer_list<std::string> changes)
	{
		const std::string_view name = setting.substr(0, setting.find('='));

		for (const std::string &change : changes)
			if (name == std::string_view(change).substr(0, change.find('=')))
				return true;
		return false;
	}

	std::vector<std::string> settings_;
	std::vector<char *> pointers_;
};

/* Executes this program once more. */
[[noreturn]] inline void become(std::vector<std::string> arguments, std::initializer_list<std::string> changes = {})
{
	environment settings(changes);
	std::vector<char *> pointers;
	std::string name = "preload_test";

	pointers.push_back(name.data());
	for (std::string &argument : arguments)
		pointers.push_back(argument.data());
	pointers.push_back(nullptr);
	::execve("/proc/self/exe", pointers.data(), settings.get());
	::_exit(127);
}

inline int exit_status(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* The exit status of this program in a role, -1 when it was killed. */
inline int played(const std::string &name, std::initializer_list<std::string> changes = {})
{
	child process([&] { become({"--role", name}, changes); });

	return exit_status(process.finish());
}

/* Waits for what fork(2) and its like returned. */
inline int status_of(pid_t pid)
{
	int status = -1;

	check(pid, "fork");
	while (::waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

template <typename Body> void expect_child(Body &&body, std::source_location where = std::source_location::current())
{
	EXPECT_TRUE(child(std::forward<Body>(body)).succeeded()) << "a child of line " << where.line() << " failed";
}

} // namespace cowsnap_test
