// SPDX-License-Identifier: GPL-2.0-only
/*
 * Failures to order: of what this thread asks the kernel for, the nth allocation or
 * user copy fails, or all pages from the nth on (fault-injection.rst in the kernel's
 * documentation).
 */
#pragma once

#include <array>
#include <cerrno>
#include <fstream>
#include <map>
#include <stdexcept>
#include <string>

#include <fcntl.h>
#include <unistd.h>

#include "unique_fd.hpp"

namespace cowsnap_test {

class fault_injection {
public:
	static bool supported()
	{
		return ::access(path, W_OK) == 0 &&
		       ::access((knobs + "failslab").c_str(), X_OK) == 0;
	}

	/* All allocations are to take part, and to fail without a word. */
	fault_injection()
		: nth_(check(::open(path, O_RDWR | O_CLOEXEC), path)),
		  always_(check(::open(always_path, O_RDWR | O_CLOEXEC),
				always_path))
	{
		set("failslab/ignore-gfp-wait", "N");
		set("fail_page_alloc/ignore-gfp-wait", "N");
		set("fail_page_alloc/ignore-gfp-highmem", "N");
		set("fail_page_alloc/min-order", "0");
		for (const char *what : {"failslab", "fail_page_alloc", "fail_usercopy"})
			set(what + std::string("/verbose"), "0");
		set("fail_page_alloc/task-filter", "Y");
		set("fail_page_alloc/probability", "100");
		set("fail_page_alloc/times", "0");
		set("fail_page_alloc/space", "0");
	}
	~fault_injection()
	{
		for (const auto &[knob, value] : before_)
			std::ofstream(knobs + knob) << value;
	}
	fault_injection(const fault_injection &) = delete;
	fault_injection &operator=(const fault_injection &) = delete;

	/*
	 * Runs @action, whose @nth attempt to get something fails; false when it made
	 * fewer.  It must touch no memory that is not there.
	 */
	template <typename Action>
	bool strike(unsigned int nth, Action &&action) const
	{
		write(nth_, std::to_string(nth));
		action();

		/* To ask, and to end it, is an attempt too, and may be the nth. */
		std::array<char, 16> left = {};
		const bool struck =
			::pread(nth_.get(), left.data(), left.size(), 0) > 0 &&
			left[0] == '0';

		write(nth_, "0");
		return struck;
	}

	/* Runs @action, which can have @pages; false when it asked for no more. */
	template <typename Action>
	bool run_out(unsigned int pages, Action &&action)
	{
		set("fail_page_alloc/times", most);
		/* What is as large as the space that is left is refused. */
		set("fail_page_alloc/space", std::to_string(pages + 1));
		write(always_, "1");
		action();
		write(always_, "0");

		std::string left;

		std::ifstream(knobs + "fail_page_alloc/times") >> left;
		set("fail_page_alloc/times", "0");
		return left != most;
	}

private:
	static constexpr const char *path = "/proc/thread-self/fail-nth";
	static constexpr const char *always_path =
		"/proc/thread-self/make-it-fail";
	static constexpr const char *most = "1000000";
	static inline const std::string knobs = "/sys/kernel/debug/";

	void set(const std::string &knob, const std::string &value)
	{
		std::string old;

		if (!(std::ifstream(knobs + knob) >> old) ||
		    !(std::ofstream(knobs + knob) << value << std::flush))
			throw std::runtime_error("cannot set " + knob);
		before_.try_emplace(knob, old);
	}

	static void write(const unique_fd &file, const std::string &number)
	{
		while (::pwrite(file.get(), number.data(), number.size(), 0) < 0)
			if (errno != EFAULT)
				check(-1, "fault injection");
	}

	unique_fd nth_, always_;
	std::map<std::string, std::string> before_;
};

} // namespace cowsnap_test
