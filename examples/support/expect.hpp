// SPDX-License-Identifier: MIT
/* What an example claims, and checks. */
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace example {

/* Ends the program, by way of main, when @claim does not hold. */
inline void expect(bool holds, std::string_view claim)
{
	if (!holds)
		throw std::runtime_error("it is not so that " + std::string(claim));
}

} // namespace example
