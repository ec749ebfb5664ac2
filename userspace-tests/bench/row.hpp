// SPDX-License-Identifier: GPL-2.0-only
/* A row of the table: what is measured, beside what, and what it has to be. */
#pragma once

#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "meter.hpp"
#include "stage.hpp"

namespace cowsnap_bench {

/* What a figure may be: ours, or ours as a multiple of the peer's. */
struct bound {
	bool of_ratio;
	double low = -std::numeric_limits<double>::infinity();
	double high = std::numeric_limits<double>::infinity();
};

constexpr bound times_the_peer(double most)
{
	return {.of_ratio = true, .high = most};
}
constexpr bound at_most(double most)
{
	return {.of_ratio = false, .high = most};
}
constexpr bound at_least(double least)
{
	return {.of_ratio = false, .low = least};
}

/* The same thing done by other means, for comparison only. */
struct another_peer {
	std::string name;
	cost measured;
};

struct result {
	cost ours;
	std::optional<cost> peer = {};
	std::vector<another_peer> others = {};
	/* What a reader has to know of this run, such as a size that was scaled. */
	std::string note = {};
};

struct row {
	std::string name;
	/* What is measured, and of what the peer is. */
	std::string what;
	std::string peer = {};
	/* What the cost is of: "page", or nothing for all of it; or another unit. */
	std::string per = {};
	std::optional<bound> must = {};
	std::optional<bound> aim = {};
	std::function<result(stage &)> measure;
	/* Is in `QUICK=1` too; all that have a must are. */
	bool quick = false;
	/* Needs two CPUs, and so a clock that is one. */
	bool parallel = false;
};

struct point {
	double x, y;
};

struct line {
	std::string name;
	std::vector<point> points;
};

struct curve {
	std::string name;
	std::function<std::vector<line>(stage &)> measure;
};

/* One group in each file, in the order in which they are measured. */
std::vector<row> method_rows(const sizes &size);
std::vector<row> fork_rows(const sizes &size);
std::vector<row> fault_rows(const sizes &size);
std::vector<row> read_rows(const sizes &size);
std::vector<row> stall_rows(const sizes &size);
std::vector<row> restore_rows(const sizes &size);
std::vector<row> process_rows(const sizes &size);
std::vector<row> tracking_rows(const sizes &size);
std::vector<row> scale_rows(const sizes &size);
std::vector<row> huge_rows(const sizes &size);
std::vector<row> parallel_rows(const sizes &size);
std::vector<curve> curves();

} // namespace cowsnap_bench
