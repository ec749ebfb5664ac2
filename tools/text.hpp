// SPDX-License-Identifier: GPL-2.0-only
/* Figures and tables for people. */
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iostream>
#include <string>
#include <vector>

#include <fmt/format.h>

namespace cowsnap_command {

/* As ls -h has it: 4.0K, 12M. */
inline std::string human(std::uint64_t bytes)
{
	constexpr std::array units = {"", "K", "M", "G", "T", "P", "E"};
	auto value = static_cast<double>(bytes);
	std::size_t unit = 0;

	for (; value >= 1024; unit++)
		value /= 1024;
	if (unit == 0)
		return std::to_string(bytes);
	return value < 9.95 ? fmt::format("{:.1f}{}", value, units[unit])
			    : fmt::format("{:.0f}{}", value, units[unit]);
}

/* Names come from others: what a terminal would act on is shown instead. */
inline std::string printable(std::string_view text)
{
	std::string shown;

	for (const char c : text) {
		if (static_cast<unsigned char>(c) < ' ' || c == '\x7f')
			shown += fmt::format("\\{:03o}", static_cast<unsigned char>(c));
		else
			shown += c;
	}
	return shown;
}

/*
 * Rows with a head. libsmartcols, which does this for others, comes without a static
 * library.
 */
class table {
public:
	enum class align { left, right };
	struct column {
		std::string title;
		align side = align::right;
	};

	explicit table(std::vector<column> columns) : columns_(std::move(columns)) {}

	void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

	friend std::ostream &operator<<(std::ostream &out, const table &shown)
	{
		std::vector<std::string> head;
		std::vector<std::size_t> widths;

		for (std::size_t i = 0; i < shown.columns_.size(); i++) {
			head.push_back(shown.columns_[i].title);
			widths.push_back(head[i].size());
			for (const auto &row : shown.rows_)
				widths[i] = std::max(widths[i], row[i].size());
		}
		shown.print(out, head, widths);
		for (const auto &row : shown.rows_)
			shown.print(out, row, widths);
		return out;
	}

private:
	void print(std::ostream &out, const std::vector<std::string> &row,
		   const std::vector<std::size_t> &widths) const
	{
		std::string line;

		for (std::size_t i = 0; i < row.size(); i++) {
			if (i > 0)
				line += ' ';
			line += columns_[i].side == align::right
					? fmt::format("{:>{}}", row[i], widths[i])
					: fmt::format("{:<{}}", row[i], widths[i]);
		}
		line.erase(line.find_last_not_of(' ') + 1);
		out << line << '\n';
	}

	std::vector<column> columns_;
	std::vector<std::vector<std::string>> rows_;
};

} // namespace cowsnap_command
