// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plugin for QEMU that counts the guest's instructions by symbol, between the
 * markers of profile.hpp.  When the VM ends it reads what the guest printed
 * meanwhile, which has the symbols, and before each pair of markers a line that names
 * what is to come; and it writes a table for each of these names.
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

using tallies = std::map<std::uint64_t, tally>;

std::string log_path, out_path;
/* A deque, because the code that QEMU makes points into it. */
std::deque<block> blocks;
/* What was counted between each pair of markers. */
std::vector<tallies> runs;

void reached_marker(unsigned int, void *data)
{
	const auto mark = static_cast<std::uint32_t>(
		reinterpret_cast<std::uintptr_t>(data));
	tallies found;

	for (block &run : blocks) {
		if (run.runs) {
			tally &sum = found[run.address];

			sum.instructions += run.runs * run.instructions;
			sum.calls += run.runs;
		}
		run.runs = 0;
	}
	if (mark == marker_end)
		runs.push_back(std::move(found));
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
	return mark == marker_begin || mark == marker_end ? mark : 0;
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

/* What the guest printed: its symbols, and what was run between markers. */
struct guest_log {
	std::map<std::uint64_t, std::string> symbols;
	std::vector<std::string> runs;

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
		std::string kind, name;

		words >> kind;
		if (kind == "symbol") {
			std::uint64_t address = 0;

			words >> std::hex >> address >> name;
			symbols.emplace(address, name);
		} else if (kind == "run") {
			words >> name;
			runs.push_back(name);
		}
	}
};

/* The symbols with the most instructions first, down to a half percent of all. */
void write_table(std::ostream &out, const guest_log &log, const std::string &name,
		 const tallies &found, std::size_t times)
{
	std::map<std::string, tally> by_symbol;
	std::uint64_t all = 0;

	for (const auto &[address, sum] : found) {
		tally &symbol = by_symbol[log.symbol_at(address)];

		symbol.instructions += sum.instructions;
		if (log.symbols.contains(address))
			symbol.calls += sum.calls;
		all += sum.instructions;
	}

	std::vector<std::pair<std::string, tally>> sorted(by_symbol.begin(),
							  by_symbol.end());

	std::ranges::sort(sorted, std::ranges::greater(), [](const auto &entry) {
		return entry.second.instructions;
	});
	out << '\n' << name << ": " << all / times << " instructions, on average of "
	    << times << "\ninstructions  share       calls  symbol\n";
	for (const auto &[symbol, sum] : sorted) {
		char text[160];

		if (sum.instructions * 200 < all)
			break;
		std::snprintf(text, sizeof(text), "%12llu %5.1f%% %11llu  %s\n",
			      static_cast<unsigned long long>(sum.instructions / times),
			      100.0 * static_cast<double>(sum.instructions) /
				      static_cast<double>(all),
			      static_cast<unsigned long long>(sum.calls / times),
			      symbol.c_str());
		out << text;
	}
}

void write_tables()
{
	const guest_log log(log_path);
	std::ofstream out(out_path);
	std::map<std::string, std::pair<tallies, std::size_t>> by_name;

	for (std::size_t i = 0; i < std::min(runs.size(), log.runs.size()); i++) {
		auto &[sum, times] = by_name[log.runs[i]];

		times++;
		for (const auto &[address, found] : runs[i]) {
			sum[address].instructions += found.instructions;
			sum[address].calls += found.calls;
		}
	}
	for (const auto &[name, found] : by_name)
		write_table(out, log, name, found.first, found.second);
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
