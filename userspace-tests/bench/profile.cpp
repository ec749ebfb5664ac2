// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plugin for QEMU that counts the guest's instructions by symbol, between the
 * markers of profile.hpp.  When the VM ends it reads what the guest printed
 * meanwhile, which has the symbols and the names of the sections, and writes a
 * table for each section.
 *
 *   -plugin profile.so,log=WHAT-THE-GUEST-PRINTED,out=TABLE
 */
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "profile.hpp"

/*
 * The part of QEMU's plugin interface, version 1, that is used here; Debian does
 * not package its header.
 */
extern "C" {
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
using qemu_plugin_id_t = std::uint64_t;

constexpr int qemu_plugin_cb_no_regs = 0;
constexpr int qemu_plugin_inline_add_u64 = 0;

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id,
					   void (*call)(qemu_plugin_id_t,
							qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(qemu_plugin_tb *tb, int op,
					      void *where, std::uint64_t add);
void qemu_plugin_register_vcpu_insn_exec_cb(qemu_plugin_insn *insn,
					    void (*call)(unsigned int, void *),
					    int flags, void *data);
std::size_t qemu_plugin_tb_n_insns(const qemu_plugin_tb *tb);
std::uint64_t qemu_plugin_tb_vaddr(const qemu_plugin_tb *tb);
qemu_plugin_insn *qemu_plugin_tb_get_insn(const qemu_plugin_tb *tb,
					  std::size_t index);
const void *qemu_plugin_insn_data(const qemu_plugin_insn *insn);
std::size_t qemu_plugin_insn_size(const qemu_plugin_insn *insn);

[[gnu::visibility("default")]] extern const int qemu_plugin_version;
[[gnu::visibility("default")]] int
qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc,
		    char **argv);
}

const int qemu_plugin_version = 1;

namespace {

using namespace cowsnap_bench;

/* A stretch of code without a jump in it, as QEMU translated it. */
struct block {
	std::uint64_t address;
	std::uint64_t instructions;
	std::uint64_t runs = 0;
};

struct tally {
	std::uint64_t instructions = 0;
	std::uint64_t calls = 0;
};

/* What the guest says of a section: how many operations it timed. */
struct section {
	std::uint64_t operations = 1;
	std::string name;
};

std::string log_path, out_path;
/* A deque, because the code that QEMU makes points into it. */
std::deque<block> blocks;
std::map<std::uint32_t, std::map<std::uint64_t, tally>> sections;

void reached_marker(unsigned int, void *data)
{
	const auto mark = static_cast<std::uint32_t>(
		reinterpret_cast<std::uintptr_t>(data));
	const bool ends = (mark & marker_kind) == marker_end;

	for (block &run : blocks) {
		if (ends && run.runs) {
			tally &sum = sections[mark & marker_section][run.address];

			sum.instructions += run.runs * run.instructions;
			sum.calls += run.runs;
		}
		run.runs = 0;
	}
}

std::uint32_t marker_in(const qemu_plugin_insn *insn)
{
	const auto *bytes = static_cast<const unsigned char *>(
		qemu_plugin_insn_data(insn));
	std::uint32_t mark = 0;

	if (qemu_plugin_insn_size(insn) != 7 || bytes[0] != 0x0f ||
	    bytes[1] != 0x1f || bytes[2] != 0x80)
		return 0;
	std::memcpy(&mark, bytes + 3, sizeof(mark));
	return (mark & marker_magic_mask) == marker_magic ? mark : 0;
}

void translated(qemu_plugin_id_t, qemu_plugin_tb *tb)
{
	const std::size_t instructions = qemu_plugin_tb_n_insns(tb);
	block &made = blocks.emplace_back(
		block{qemu_plugin_tb_vaddr(tb), instructions});

	qemu_plugin_register_vcpu_tb_exec_inline(tb, qemu_plugin_inline_add_u64,
						 &made.runs, 1);
	for (std::size_t i = 0; i < instructions; i++) {
		qemu_plugin_insn *const insn = qemu_plugin_tb_get_insn(tb, i);
		const std::uint32_t mark = marker_in(insn);

		if (mark)
			qemu_plugin_register_vcpu_insn_exec_cb(
				insn, reached_marker, qemu_plugin_cb_no_regs,
				reinterpret_cast<void *>(std::uintptr_t{mark}));
	}
}

/* What the guest printed: its symbols, and what the sections are. */
struct guest_log {
	std::map<std::uint64_t, std::string> symbols;
	std::map<std::uint32_t, section> sections;

	explicit guest_log(const std::string &path)
	{
		std::ifstream file(path);
		std::string line;

		while (std::getline(file, line))
			read(line);
	}

	std::string symbol_at(std::uint64_t address) const
	{
		const auto next = symbols.upper_bound(address);

		if (!(address >> 63))
			return "(the program)";
		return next == symbols.begin() ? "(nobody knows)" :
						 std::prev(next)->second;
	}

private:
	void read(const std::string &line)
	{
		const std::size_t at = line.find('@');
		std::istringstream words(
			at == std::string::npos ? "" : line.substr(at + 1));
		std::string kind;

		words >> kind;
		if (kind == "symbol") {
			std::uint64_t address = 0;
			std::string name;

			words >> std::hex >> address >> name;
			symbols.emplace(address, name);
		} else if (kind == "section") {
			std::uint32_t id = 0;
			section found;

			words >> id >> found.operations >> std::ws;
			std::getline(words, found.name);
			sections[id] = found;
		}
	}
};

/* The symbols with the most instructions first, down to a half percent of all. */
void write_section(std::ostream &out, const guest_log &log, const section &what,
		   const std::map<std::uint64_t, tally> &found)
{
	std::map<std::string, tally> by_symbol;
	std::uint64_t all = 0;

	for (const auto &[address, sum] : found) {
		const std::string name = log.symbol_at(address);
		const auto start = log.symbols.find(address);

		by_symbol[name].instructions += sum.instructions;
		if (start != log.symbols.end())
			by_symbol[name].calls += sum.calls;
		all += sum.instructions;
	}

	std::vector<std::pair<std::string, tally>> sorted(by_symbol.begin(),
							  by_symbol.end());
	const auto each = [&](std::uint64_t count) {
		return static_cast<double>(count) /
		       static_cast<double>(what.operations);
	};
	const auto line = [&](double instructions, double calls,
			      std::string_view name) {
		char text[160];

		std::snprintf(text, sizeof(text), "%12.1f %10.2f  %.*s\n",
			      instructions, calls,
			      static_cast<int>(name.size()), name.data());
		out << text;
	};

	std::ranges::sort(sorted, std::ranges::greater(), [](const auto &entry) {
		return entry.second.instructions;
	});
	out << "\n" << what.name << ", each of " << what.operations << "\n"
	    << "instructions      calls  symbol\n";
	line(each(all), 0, "in all");
	for (const auto &[name, sum] : sorted) {
		if (sum.instructions * 200 < all)
			break;
		line(each(sum.instructions), each(sum.calls), name);
	}
}

void write_tables()
{
	const guest_log log(log_path);
	std::ofstream out(out_path);

	for (const auto &[id, found] : sections) {
		const auto what = log.sections.find(id);

		if (what != log.sections.end())
			write_section(out, log, what->second, found);
	}
}

/* QEMU's own call at its exit comes when what is static here is gone already. */
struct at_exit {
	~at_exit() { write_tables(); }
};

const at_exit writes_tables;

} // namespace

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *, int argc,
			char **argv)
{
	for (int i = 0; i < argc; i++) {
		const std::string_view argument(argv[i]);

		if (argument.starts_with("log="))
			log_path = argument.substr(4);
		else if (argument.starts_with("out="))
			out_path = argument.substr(4);
	}
	if (log_path.empty() || out_path.empty()) {
		std::fputs("profile: name log= and out=\n", stderr);
		return -1;
	}
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
