// SPDX-License-Identifier: GPL-2.0-only
/*
 * Run in a VM that holds what `dkms install` installed: loads and unloads the module as a user does, with modprobe.
 */
#include <spawn.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

bool runs(std::vector<std::string> words)
{
	std::vector<char *> arguments;
	for (auto &word : words)
		arguments.push_back(word.data());
	arguments.push_back(nullptr);
	pid_t child = 0;
	int status = 0;
	return posix_spawn(&child, arguments[0], nullptr, nullptr, arguments.data(), environ) == 0 &&
	       waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

int number = 0;
int failures = 0;

void report(bool good, const char *what)
{
	failures += good ? 0 : 1;
	std::printf("%sok %d %s\n", good ? "" : "not ", ++number, what);
}

} // namespace

int main()
{
	const fs::path device = "/dev/cowsnap";
	std::setvbuf(stdout, nullptr, _IOLBF, 0);
	std::puts("KTAP version 1\n1..5");
	report(!fs::exists(device), "no device before the module is loaded");
	report(runs({"/usr/sbin/modprobe", "cowsnap"}), "modprobe loads the module");
	report(fs::is_character_file(device), "the device is there");
	report(runs({"/usr/sbin/modprobe", "-r", "cowsnap"}), "modprobe unloads the module");
	report(!fs::exists(device), "the device is gone");
	return failures == 0 ? 0 : 1;
}
