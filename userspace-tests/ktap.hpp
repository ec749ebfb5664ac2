// SPDX-License-Identifier: GPL-2.0-only
/*
 * GoogleTest that talks KTAP and exits as kselftests do: 0 passed, 1 failed,
 * 4 all skipped.
 */
#pragma once

#include <cstdio>
#include <memory>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

namespace ktap {

inline void print_diagnostic(const std::string &text)
{
	std::istringstream lines(text);
	std::string line;

	while (std::getline(lines, line))
		std::printf("# %s\n", line.c_str());
}

class listener : public testing::EmptyTestEventListener {
private:
	void OnTestIterationStart(const testing::UnitTest &unit, int) override
	{
		std::printf("KTAP version 1\n1..%d\n", unit.test_to_run_count());
	}

	void OnTestStart(const testing::TestInfo &) override { reason_.clear(); }

	void OnTestPartResult(const testing::TestPartResult &part) override
	{
		std::ostringstream where;

		if (part.skipped()) {
			reason_ = part.message();
			return;
		}
		if (!part.failed())
			return;
		if (part.file_name())
			where << part.file_name() << ':' << part.line_number() << ' ';
		print_diagnostic(where.str() + part.message());
	}

	void OnTestEnd(const testing::TestInfo &test) override
	{
		const testing::TestResult &result = *test.result();

		std::printf("%s %d %s.%s", result.Failed() ? "not ok" : "ok",
			    ++number_, test.test_suite_name(), test.name());
		if (result.Skipped())
			std::printf(" # SKIP %s",
				    reason_.substr(0, reason_.find('\n')).c_str());
		std::printf("\n");
	}

	int number_ = 0;
	std::string reason_;
};

inline int run(int argc, char **argv)
{
	/* A child of a test must find nothing unwritten in the buffer. */
	std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
	testing::InitGoogleTest(&argc, argv);

	testing::UnitTest &unit = *testing::UnitTest::GetInstance();
	testing::TestEventListeners &listeners = unit.listeners();

	delete listeners.Release(listeners.default_result_printer());
	listeners.Append(std::make_unique<listener>().release());
	if (RUN_ALL_TESTS())
		return 1;
	return unit.test_to_run_count() > 0 &&
			       unit.skipped_test_count() == unit.test_to_run_count()
		       ? 4
		       : 0;
}

} // namespace ktap
