// SPDX-License-Identifier: MIT
/* How long something takes. */
#pragma once

#include <algorithm>
#include <chrono>
#include <iterator>
#include <vector>

namespace example {

class stopwatch {
public:
	double microseconds() const
	{
		return std::chrono::duration<double, std::micro>(clock::now() - start_)
			.count();
	}
	double milliseconds() const { return microseconds() / 1e3; }
	double seconds() const { return microseconds() / 1e6; }

private:
	using clock = std::chrono::steady_clock;

	clock::time_point start_ = clock::now();
};

/* The median of what was added, which is at least one value. */
class median {
public:
	void add(double value) { values_.push_back(value); }
	double get()
	{
		const auto middle = values_.begin() + std::ssize(values_) / 2;

		std::ranges::nth_element(values_, middle);
		return *middle;
	}

private:
	std::vector<double> values_;
};

} // namespace example
