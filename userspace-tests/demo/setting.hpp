// SPDX-License-Identifier: GPL-2.0-only
/* What a program of a VM is told by its environment. */
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace cowsnap_demo {

inline std::string setting(const char *name)
{
	const char *const value = std::getenv(name);

	if (!value)
		throw std::runtime_error(std::string(name) + " is not set");
	return value;
}

} // namespace cowsnap_demo
