// SPDX-License-Identifier: GPL-2.0-only
/* Time, and numbers that a person can read. */
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace cowsnap_demo {

using clock = std::chrono::steady_clock;

template <typename Work>
double nanoseconds(Work &&work)
{
	const clock::time_point start = clock::now();

	work();
	return std::chrono::duration<double, std::nano>(clock::now() - start).count();
}

template <typename Value>
Value median(std::vector<Value> values)
{
	const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);

	std::ranges::nth_element(values, middle);
	return *middle;
}

/* 1234567 as "1,234,567". */
inline std::string grouped(std::uint64_t value)
{
	std::string text = std::to_string(value);

	for (std::size_t at = text.size(); at > 3; at -= 3)
		text.insert(at - 3, 1, ',');
	return text;
}

inline std::string one_decimal(double value)
{
	const auto tenths = static_cast<std::uint64_t>(std::lround(value * 10));

	return grouped(tenths / 10) + '.' + std::to_string(tenths % 10);
}

inline std::string mebibytes(std::uint64_t bytes)
{
	return one_decimal(static_cast<double>(bytes) / (1024 * 1024));
}

/* As many digits as say something. */
inline std::string figure(double value)
{
	return value < 100 ? one_decimal(value) : grouped(static_cast<std::uint64_t>(std::llround(value)));
}

/* 1.04, and 1/80 for what is less than half. */
inline std::string as_times(double times)
{
	char text[32];

	if (times < 0.5 && times > 0)
		std::snprintf(text, sizeof(text), "1/%.*f", 1 / times < 10 ? 1 : 0, 1 / times);
	else
		std::snprintf(text, sizeof(text), "%.*f", times < 10 ? 2 : 0, times);
	return text;
}

} // namespace cowsnap_demo
