// SPDX-License-Identifier: GPL-2.0-only
/* A run of warm.py, by the machine's Python. */
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <sys/types.h>

#include "process.hpp"

namespace cowsnap_prefork {

/* What Python's memory is. */
struct flavour {
	std::string name;
	/* What is preloaded, if anything. */
	std::string libraries;
};

struct size {
	std::uint64_t items = 0, workers = 0;
};

/* Times in nanoseconds. */
struct served {
	double made = 0, work = 0, read = 0;
	std::vector<double> pauses;
	std::uint64_t heap = 0, pss = 0;
	bool unchanged = false;
	std::vector<std::uint64_t> answers;
	std::vector<pid_t> workers;
};

struct closed {
	std::vector<std::uint64_t> heaps;
	std::vector<int> statuses;
};

class python {
public:
	python(const flavour &memory, const size &size);

	/* All the workers still live then. */
	served wait_until_served();
	closed close();

private:
	std::string line();

	std::string name_;
	cowsnap_test::pipe_pair input_, output_;
	cowsnap_test::child process_;
};

} // namespace cowsnap_prefork
