// SPDX-License-Identifier: GPL-2.0-only
/*
 * Stands in for a test program in the check of run-vm itself. The name it is run under says what becomes of it.
 */
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <map>
#include <string>

namespace {

void report(int planned, int passed)
{
	std::printf("TAP version 13\n1..%d\n", planned);
	for (int number = 1; number <= passed; ++number)
		std::printf("ok %d case %d\n", number, number);
	std::fflush(stdout);
}

const std::map<std::string, int (*)()> endings = {
	{"sample-pass", [] { report(2, 2); return 0; }},
	{"sample-skip", [] { report(2, 1); std::puts("ok 2 second case # SKIP not here"); return 0; }},
	{"sample-fail", [] { report(2, 1); std::puts("not ok 2 second case"); return 1; }},
	{"sample-hide", [] { report(2, 1); std::puts("not ok 2 hidden case"); return 0; }},
	{"sample-short", [] { report(3, 2); return 0; }},
	{"sample-silent", [] { return 0; }},
	{"sample-crash", [] { report(2, 1); raise(SIGSEGV); return 0; }},
	// A child in another session, which the limit must reach too.
	{"sample-hang", [] {
		report(2, 1);
		if (fork() == 0)
			setsid();
		for (;;)
			pause();
		return 0;
	}},
	{"sample-splat", [] {
		report(1, 1);
		std::ofstream("/dev/kmsg") << "<4>WARNING: CPU: 0 PID: 1 at sample.c:1 sample+0x0/0x1\n";
		return 0;
	}},
	{"sample-panic", [] {
		report(1, 1);
		std::ofstream("/proc/sysrq-trigger") << 'c';
		return 0;
	}},
};

} // namespace

int main(int, char **arguments)
{
	const std::string path = arguments[0];
	return endings.at(path.substr(path.rfind('/') + 1))();
}
