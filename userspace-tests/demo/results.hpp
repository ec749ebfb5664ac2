// SPDX-License-Identifier: GPL-2.0-only
/* What held and what did not. */
#pragma once

#include <cstddef>
#include <iostream>
#include <string_view>

namespace cowsnap_demo {

class results {
public:
	bool add(bool holds, std::string_view what)
	{
		count(holds);
		std::cout << (holds ? "  ok      " : "  FAILED  ") << what << '\n';
		return holds;
	}

	void count(bool holds) { (holds ? passed_ : failed_)++; }

	std::size_t passed() const { return passed_; }
	std::size_t failed() const { return failed_; }

private:
	std::size_t passed_ = 0, failed_ = 0;
};

} // namespace cowsnap_demo
