// SPDX-License-Identifier: GPL-2.0-only
/* Regions as the command line names them. */
#pragma once

#include <string>
#include <variant>

#include <cowsnap/cowsnap.hpp>

namespace cowsnap_command {

/*
 * The device. What keeps it from being opened is said with what mends it.
 */
cowsnap::device open_device();

/* @descriptor of this process, or PID:FD of another, as a descriptor of one's own. */
cowsnap::descriptor descriptor_of(const std::string &reference);

/* A region or a snapshot, as the reference has it. */
using any_member = std::variant<cowsnap::region, cowsnap::snapshot>;

any_member member_of(const std::string &reference);

inline const cowsnap::member &base_of(const any_member &any)
{
	return std::visit([](const auto &member) -> const cowsnap::member & { return member; },
			  any);
}

/* One that can be changed. */
cowsnap::region region_of(const std::string &reference);

/* What does not change while it is read: a snapshot as it is, or one of the region. */
cowsnap::snapshot still_of(const std::string &reference);

} // namespace cowsnap_command
