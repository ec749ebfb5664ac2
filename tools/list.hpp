// SPDX-License-Identifier: GPL-2.0-only
/* What ls and top show alike. */
#pragma once

#include <string>

#include "proc.hpp"

namespace cowsnap_command {

/* "12:3(sh) 15:map(cat)" */
std::string holders_of(const held_region &region);

/* Says on stderr that not all was seen, where that is so. */
void say_unreadable(const regions_found &found);

} // namespace cowsnap_command
