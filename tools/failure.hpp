// SPDX-License-Identifier: GPL-2.0-only
/* How the command ends, and what it says when that is not well. */
#pragma once

#include <stdexcept>
#include <string>

namespace cowsnap_command {

/* Those that cowsnap(1) documents; env(1) has the last two. */
enum class outcome {
	done = 0,
	failed = 1,
	misused = 2,
	refused = 3,
	unfinished = 4,
	not_executable = 126,
	not_found = 127,
};

/* A sentence for the user, which names the cause and what mends it. */
class failure : public std::runtime_error {
public:
	failure(outcome how, const std::string &sentence)
		: std::runtime_error(sentence), how_(how)
	{
	}

	outcome how() const noexcept { return how_; }

private:
	outcome how_;
};

} // namespace cowsnap_command
