// SPDX-License-Identifier: GPL-2.0-only
/* How far long work is: on a terminal, and when it takes long; nothing otherwise. */
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <string>

#include <unistd.h>

#include <fmt/format.h>

#include "text.hpp"

namespace cowsnap_command {

class progress {
public:
	/* @total may be 0 where it is not known. */
	progress(std::string what, std::uint64_t total)
		: what_(std::move(what)), total_(total), shown_(::isatty(STDERR_FILENO) == 1)
	{
	}
	progress(const progress &) = delete;
	progress &operator=(const progress &) = delete;
	~progress()
	{
		if (drawn_)
			std::cerr << "\r\033[K";
	}

	/* @done of the total are. */
	void at(std::uint64_t done)
	{
		const auto now = std::chrono::steady_clock::now();

		if (!shown_ || now < next_)
			return;
		next_ = now + std::chrono::milliseconds(200);
		drawn_ = true;
		std::cerr << "\r\033[K" << what_ << ' ' << bar(done) << human(done)
			  << std::flush;
	}

private:
	std::string bar(std::uint64_t done) const
	{
		constexpr std::size_t width = 40;

		if (total_ == 0)
			return "";

		const double part =
			std::min(1.0, static_cast<double>(done) / static_cast<double>(total_));
		const auto full = static_cast<std::size_t>(part * width);

		return fmt::format("[{}{}] {:3.0f}% ", std::string(full, '#'),
				   std::string(width - full, ' '), part * 100);
	}

	std::string what_;
	std::uint64_t total_;
	bool shown_;
	bool drawn_ = false;
	/* What is over soon need not be shown. */
	std::chrono::steady_clock::time_point next_ =
		std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
};

} // namespace cowsnap_command
