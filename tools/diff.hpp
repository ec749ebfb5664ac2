// SPDX-License-Identifier: GPL-2.0-only
/* What diff and send find alike. */
#pragma once

#include <functional>

#include <cowsnap/cowsnap.hpp>

namespace cowsnap_command {

/* Throws where they are not of one family. */
void require_relatives(const cowsnap::member &one, const cowsnap::member &other);

/* In the order of the offsets; may go beyond the end, with the last granule. */
void for_each_difference(const cowsnap::member &of, const cowsnap::member &other, bool exact,
			 const std::function<void(const cowsnap::range &)> &visit);

} // namespace cowsnap_command
