// SPDX-License-Identifier: GPL-2.0-only
/* Programs that are given regions. */
#pragma once

#include <string>
#include <vector>

#include <cowsnap/cowsnap.hpp>

#include "commands.hpp"

namespace cowsnap_command {

cowsnap::region create(const new_region &wanted);

/*
 * Becomes @program, which has @added at the lowest free descriptors from 3 on, and in
 * COWSNAP_FDS the numbers of all that it was given by this and the commands around it,
 * the newest last.
 */
[[noreturn]] void execute(const std::vector<std::string> &program,
			  std::vector<cowsnap::descriptor> added);

} // namespace cowsnap_command
