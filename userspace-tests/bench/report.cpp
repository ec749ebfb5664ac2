// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes of what cowsnap-bench printed, one log or more for each kernel, a table for people, one file of JSON, the data
 * of the curves and, if asked to, the figures in doc/benchmarks.md, and the few of them that the README has:
 *
 *   cowsnap-report [--json FILE] [--curves DIR] [--benchmarks FILE] [--readme FILE] KERNEL=LOG...
 *   cowsnap-report ... --from FILE, which --json made before, in place of the logs
 *
 * Exits 0 when every must is met, 1 when one is missed, 2 when there is something wrong with the logs.
 */
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/core.h>
#include <nlohmann/json.hpp>

namespace {

using nlohmann::ordered_json;

constexpr std::string_view made_begin = "<!-- made by `make bench README=1` -->\n";
constexpr std::string_view made_end = "<!-- end of what is made -->\n";

/* What tells somebody in a minute where it wins and where it loses. */
constexpr std::array<std::string_view, 8> told_in_readme = {"fork-clean",   "fork-1-percent-random", "writer-stall",
							    "copy-present", "read-all-4k",	     "restore",
							    "diff-random",  "idle-memory"};

std::string grouped(double value)
{
	if (std::abs(value) < 100 && value != std::floor(value))
		return fmt::format("{:.1f}", value);

	std::string text = fmt::format("{:.0f}", value);

	for (std::size_t at = text.size(); at > 3 + (value < 0); at -= 3)
		text.insert(at - 3, 1, ',');
	return text;
}

/* A multiple, or a part: "2.5", "1/80". */
std::string ratio(double value)
{
	if (value <= 0 || value > 0.125001)
		return fmt::format("{:.3g}", value);

	/* To one decimal where that tells something. */
	const double parts = std::round(10 / value) / 10;

	return "1/" + grouped(parts < 100 ? parts : std::round(parts));
}

std::string described(const ordered_json &bound)
{
	if (bound.is_null())
		return "";

	const bool of_ratio = bound["of"] == "ratio";
	const auto text = [&](double value) {
		return of_ratio ? ratio(value) + " ×" : grouped(value);
	};

	if (bound.contains("low") && bound.contains("high"))
		return text(bound["low"]) + " … " + text(bound["high"]);
	return bound.contains("high") ? "≤ " + text(bound["high"]) : "≥ " + text(bound["low"]);
}

/* Nothing where there is no such bound, or no peer to be compared with. */
std::optional<bool> is_met(const ordered_json &row, const ordered_json &bound)
{
	if (bound.is_null())
		return {};
	if (bound["of"] == "ratio" && !row.contains("ratio"))
		return false;

	const double value = bound["of"] == "ratio" ? row["ratio"] : row["ours"];

	return value >= bound.value("low", -INFINITY) && value <= bound.value("high", INFINITY);
}

void judge(ordered_json &row)
{
	if (row.contains("peer") && row["peer"].get<double>() > 0)
		row["ratio"] = row["ours"].get<double>() / row["peer"].get<double>();
	for (const char *which : {"must", "aim"})
		if (const std::optional<bool> met = is_met(row, row[which]))
			row[std::string(which) + "-met"] = *met;
}

class report {
public:
	void read(const std::string &kernel, const std::string &path)
	{
		std::ifstream log(path);
		ordered_json &run = run_of(kernel);
		std::string unit, text;

		if (!log)
			throw std::runtime_error("cannot read " + path);
		while (std::getline(log, text)) {
			const std::size_t start = text.find("# {");

			if (start == text.npos)
				continue;

			ordered_json line = ordered_json::parse(text.substr(start + 2));

			if (line.contains("release")) {
				unit = line["unit"];
				run["machines"].push_back(line);
			} else if (line.contains("row")) {
				line["unit"] = unit;
				judge(line);
				run["rows"].push_back(line);
			} else if (line.contains("curve")) {
				run["curves"].push_back(line);
			}
		}
		if (run["rows"].empty())
			throw std::runtime_error("no row was measured in " + path);
	}

	/* All that an earlier run made of its logs. */
	void read_again(const std::string &path)
	{
		std::ifstream file(path);

		if (!file)
			throw std::runtime_error("cannot read " + path);

		const ordered_json whole = ordered_json::parse(file);

		for (const ordered_json &run : whole.at("kernels"))
			runs_.push_back(run);
		if (runs_.empty())
			throw std::runtime_error("no kernel was measured in " + path);
	}

	/* What a clock says is different every time, and is told only. */
	bool every_must_is_met() const
	{
		for (const ordered_json &run : runs_)
			for (const ordered_json &row : run["rows"])
				if (row["unit"] == "instructions" && !row.value("must-met", true))
					return false;
		return true;
	}

	void print_tables() const
	{
		for (const ordered_json &run : runs_)
			print_table(run);
	}

	void write_json(const std::string &path) const
	{
		std::ofstream file(path);

		file << ordered_json{{"kernels", runs_}}.dump(1, '\t') << '\n';
		finish(file, path);
	}

	/* KERNEL-CURVE.dat: a block for each line, under its name. */
	void write_curves(const std::filesystem::path &directory) const
	{
		for (const ordered_json &run : runs_)
			for (const ordered_json &curve : run["curves"])
				write_curve(curve, directory / fmt::format("{}-{}.dat", text_of(run, "kernel"),
									   text_of(curve, "curve")));
	}

	void write_benchmarks(const std::string &path) const
	{
		write_between_the_marks(path, all_rows() + ways() + pictures());
	}

	void write_readme(const std::string &path) const
	{
		write_between_the_marks(path, few_rows());
	}

private:
	static void write_between_the_marks(const std::string &path, const std::string &made)
	{
		std::ifstream in(path);
		std::string text{std::istreambuf_iterator<char>(in), {}};
		const std::size_t begin = text.find(made_begin), end = text.find(made_end);

		if (begin == text.npos || end == text.npos || end < begin)
			throw std::runtime_error(path + " does not have the two lines between which the figures go");
		text.replace(begin + made_begin.size(), end - begin - made_begin.size(), made);

		std::ofstream out(path);

		out << text;
		finish(out, path);
	}

	static void finish(std::ofstream &file, const std::string &path)
	{
		file.flush();
		if (!file)
			throw std::runtime_error("cannot write " + path);
	}

	ordered_json &run_of(const std::string &kernel)
	{
		for (ordered_json &run : runs_)
			if (run["kernel"] == kernel)
				return run;
		runs_.push_back({{"kernel", kernel},
				 {"machines", ordered_json::array()},
				 {"rows", ordered_json::array()},
				 {"curves", ordered_json::array()}});
		return runs_.back();
	}

	static std::string text_of(const ordered_json &of, const char *key)
	{
		return of[key].get<std::string>();
	}

	static void write_curve(const ordered_json &curve, const std::string &path)
	{
		std::ofstream file(path);
		const char *between = "";

		for (const ordered_json &line : curve["lines"]) {
			file << std::exchange(between, "\n\n") << '"' << text_of(line, "name") << "\"\n";
			for (const ordered_json &point : line["points"])
				file << point[0] << ' ' << point[1] << '\n';
		}
		finish(file, path);
	}

	static std::string verdict(const ordered_json &row)
	{
		if (!row.contains("must-met") && !row.contains("aim-met"))
			return "";
		if (!row.value("must-met", true))
			return "MISSED";
		if (!row.contains("aim-met"))
			return "met";
		return row["aim-met"] ? "met, and the aim" : row.contains("must-met") ? "met" : "aim missed";
	}

	/* "per page": what the cost is of, or what else is counted. */
	static std::string unit_of(const ordered_json &row)
	{
		std::string per = row["per"];
		const std::string unit = row["unit"];

		if (per == "bytes" || per == "faults" || per == "snapshots")
			return per;
		return per.empty() ? unit : unit + " per " + per;
	}

	/* Characters, not bytes: the tables have a few that are not ASCII. */
	static std::string padded(const std::string &text, std::size_t width)
	{
		std::size_t length = 0;

		for (const char byte : text)
			length += (byte & 0xc0) != 0x80;
		return length < width ? std::string(width - length, ' ') + text : text;
	}

	static void print_table(const ordered_json &run)
	{
		const ordered_json &machine = run["machines"].at(0);

		fmt::print("\n{} ({}), in {}; what reading the clock takes, {}, is taken off\n\n",
			   text_of(run, "kernel"), text_of(machine, "release"), text_of(machine, "unit"),
			   grouped(machine["clock-cost"]));
		fmt::print("{:<24} {:>14} {:>14} {:>9} {:>15} {:>12}\n", "row", "ours", "peer", "ratio", "must",
			   "aim");
		for (const ordered_json &row : run["rows"])
			print_row(row);
	}

	static void print_beside(double value, const std::string &name)
	{
		fmt::print("      {:>34}   {}\n", grouped(value), name);
	}

	static void print_row(const ordered_json &row)
	{
		fmt::print("{:<24} {:>14} {:>14} {:>9} {} {}  {}\n", text_of(row, "row"), grouped(row["ours"]),
			   row.contains("peer") ? grouped(row["peer"]) : "",
			   row.contains("ratio") ? ratio(row["ratio"]) : "",
			   padded(described(row["must"]), 15), padded(described(row["aim"]), 12), verdict(row));
		fmt::print("    {}; {}{}\n", text_of(row, "what"), unit_of(row),
			   row.contains("peer-is") ? "; peer: " + text_of(row, "peer-is") : "");
		if (row.contains("others"))
			for (const ordered_json &other : row["others"])
				print_beside(other["value"], other["name"]);
		for (const std::string whose : {"ours", "peer"})
			if (row.contains(whose + "-counters"))
				for (const auto &[name, value] : row[whose + "-counters"].items())
					print_beside(value, name + ", " + whose);
		if (row.contains("note"))
			fmt::print("    {}\n", text_of(row, "note"));
	}

	const ordered_json *find_row(const ordered_json &run, const std::string &name) const
	{
		for (const ordered_json &row : run["rows"])
			if (row["row"] == name)
				return &row;
		return nullptr;
	}

	static std::string cell(const ordered_json *row)
	{
		if (!row)
			return "";

		std::string text = grouped((*row)["ours"]);

		if (row->contains("peer"))
			text += " : " + grouped((*row)["peer"]);
		if (row->contains("ratio"))
			text += fmt::format(" = {}", ratio((*row)["ratio"]));
		if (!row->value("must-met", true))
			text += ", **missed**";
		return text;
	}

	/* The rows on the ways to a snapshot, turned around: one for each way. */
	std::string ways() const
	{
		const ordered_json &run = runs_.back();
		const std::vector<std::string> names = {"ways-pause", "ways-write", "ways-find"};
		std::vector<std::string> order = {"cowsnap"};
		std::string text = fmt::format("\n| {}: a way to know what is written |", text_of(run, "kernel"));
		const auto value = [&](const ordered_json &row, const std::string &way) {
			if (way == "cowsnap")
				return grouped(row["ours"]);
			for (const ordered_json &other : row["others"])
				if (other["name"] == way)
					return grouped(other["value"]);
			return std::string();
		};

		for (const std::string &name : names)
			if (const ordered_json *const row = find_row(run, name)) {
				text += fmt::format(" {} |", (*row)["what"].get<std::string>());
				for (const ordered_json &other : (*row)["others"])
					if (std::ranges::find(order, text_of(other, "name")) == order.end())
						order.push_back(other["name"]);
			} else {
				return "";
			}
		text += "\n| --- | --- | --- | --- |\n";
		for (const std::string &way : order) {
			text += "| " + way + " |";
			for (const std::string &name : names)
				text += fmt::format(" {} |", value(*find_row(run, name), way));
			text += '\n';
		}
		return text;
	}

	/* The columns that both tables have. */
	std::string table_row(const ordered_json &row) const
	{
		const std::string of = row["per"].get<std::string>().empty() ? "" : "; " + unit_of(row);
		std::string text =
			fmt::format("| {}{} | {} |", text_of(row, "what"), of, row.value("peer-is", ""));

		for (const ordered_json &run : runs_)
			text += fmt::format(" {} |", cell(find_row(run, row["row"])));
		return text;
	}

	std::string table_head(std::string_view names, std::string_view rules) const
	{
		std::string text = "| measure | beside |", rule = "| --- | --- |";

		for (const ordered_json &run : runs_) {
			text += fmt::format(" {} |", text_of(run, "kernel"));
			rule += " --- |";
		}
		return fmt::format("{}{}\n{}{}\n", text, names, rule, rules);
	}

	/* A kernel that was measured in part leaves cells empty, not rows out. */
	const ordered_json &fullest() const
	{
		return *std::ranges::max_element(runs_, {},
						 [](const ordered_json &run) { return run["rows"].size(); });
	}

	std::string all_rows() const
	{
		std::string text = table_head(" must | aim |", " --- | --- |");

		for (const ordered_json &row : fullest()["rows"]) {
			/* The method's own, and those which have a table of their own. */
			if (row["row"] == "method" || row["row"].get<std::string>().starts_with("ways-"))
				continue;
			text += fmt::format("{} {} | {} |\n", table_row(row), described(row["must"]),
					    described(row["aim"]));
		}
		return text;
	}

	std::string few_rows() const
	{
		std::string text = table_head("", "");

		for (const std::string_view name : told_in_readme) {
			const ordered_json *const row = find_row(fullest(), std::string(name));

			if (!row)
				throw std::runtime_error(fmt::format("{} was not measured, which the README tells", name));
			text += table_row(*row) + '\n';
		}
		return text;
	}

	std::string pictures() const
	{
		std::string text;

		for (const ordered_json &curve : runs_.back()["curves"])
			text += fmt::format("\n![cost over {0}](bench-{0}.svg)\n", text_of(curve, "curve"));
		return text;
	}

	std::vector<ordered_json> runs_;
};

struct options {
	std::string json, curves, readme, benchmarks, from;
	std::vector<std::pair<std::string, std::string>> logs;

	explicit options(std::span<char *> arguments)
	{
		for (std::size_t i = 1; i < arguments.size(); i++) {
			const std::string one = arguments[i];
			std::string *const value = one == "--json"	   ? &json
						   : one == "--curves"	   ? &curves
						   : one == "--readme"	   ? &readme
						   : one == "--benchmarks" ? &benchmarks
						   : one == "--from"	   ? &from
									   : nullptr;

			if (value && i + 1 < arguments.size())
				*value = arguments[++i];
			else if (const std::size_t sign = one.find('='); !value && sign != one.npos)
				logs.emplace_back(one.substr(0, sign), one.substr(sign + 1));
			else
				throw std::runtime_error("cannot make anything of " + one);
		}
		if (logs.empty() == from.empty())
			throw std::runtime_error("name a log at least, as KERNEL=LOG, or what --json made, by --from");
	}
};

} // namespace

int main(int argc, char **argv)
{
	try {
		const options wanted(std::span(argv, static_cast<std::size_t>(argc)));
		report made;

		for (const auto &[kernel, path] : wanted.logs)
			made.read(kernel, path);
		if (!wanted.from.empty())
			made.read_again(wanted.from);
		made.print_tables();
		if (!wanted.json.empty())
			made.write_json(wanted.json);
		if (!wanted.curves.empty())
			made.write_curves(wanted.curves);
		if (!wanted.benchmarks.empty())
			made.write_benchmarks(wanted.benchmarks);
		if (!wanted.readme.empty())
			made.write_readme(wanted.readme);
		return made.every_must_is_met() ? 0 : 1;
	} catch (const std::exception &problem) {
		fmt::print(stderr, "cowsnap-report: {}\n", problem.what());
		return 2;
	}
}
