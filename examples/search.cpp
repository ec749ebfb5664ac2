// SPDX-License-Identifier: MIT
/*
 * A tree search that forks its state at every node, so that nothing has to be undone.
 *
 * It solves a Sudoku. The state is a vector of sets, of the values that each cell may
 * still have, in containers of Boost.Interprocess that live in a region. A guess is tried
 * in a fork of the region, and what follows from it, which changes and frees a lot, stays
 * there; guesses that come next are tried in forks of that fork. A state also has a book,
 * of which a node writes one line. The same search is done with containers of the standard
 * library that are copied at every node, and must go through the same nodes to the same
 * solutions; and a node must be as it was when all below it is done.
 *
 * What a fork costs does not depend on the book: copies are faster where it is small.
 *
 *     g++ -std=c++20 -O2 search.cpp $(pkg-config --cflags cowsnap) -o search
 *     ./search --order 5 --nodes 5000
 */
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/containers/set.hpp>
#include <boost/interprocess/containers/vector.hpp>

#include <cowsnap/cowsnap.hpp>
#include <cowsnap/interprocess.hpp>

#include "support/expect.hpp"
#include "support/options.hpp"
#include "support/stopwatch.hpp"

namespace {

namespace bip = boost::interprocess;
using example::expect;

using manager = cowsnap::segment::segment_manager;
using shared_cell = bip::set<int, std::less<>, bip::allocator<int, manager>>;
using shared_board = bip::vector<shared_cell, bip::allocator<shared_cell, manager>>;
using shared_book = bip::vector<std::size_t, bip::allocator<std::size_t, manager>>;
using plain_board = std::vector<std::set<int>>;

/* The rules: each value once in a row, a column and a box, whose side is the order. */
struct rules {
	int order;

	int side() const { return order * order; }
	int cells() const { return side() * side(); }
	bool meet(int one, int other) const
	{
		const int row = one / side(), column = one % side();
		const int other_row = other / side(), other_column = other % side();

		return one != other &&
		       (row == other_row || column == other_column ||
			(row / order == other_row / order &&
			 column / order == other_column / order));
	}
};

/* Gives the cell a value, with all that follows; not so when another has none left. */
template <typename Board> bool settle(const rules &rule, Board &board, int at, int value)
{
	auto &cell = board[static_cast<std::size_t>(at)];

	cell.clear();
	cell.insert(value);
	for (int other = 0; other < rule.cells(); other++) {
		auto &met = board[static_cast<std::size_t>(other)];

		if (!rule.meet(at, other) || met.erase(value) == 0)
			continue;
		if (met.empty() || (met.size() == 1 && !settle(rule, board, other, *met.begin())))
			return false;
	}
	return true;
}

template <typename Board> std::string text_of(const Board &board)
{
	std::string text;

	for (const auto &cell : board) {
		for (const int value : cell)
			text += static_cast<char>('A' + value);
		text += ' ';
	}
	return text;
}

/* A state whose children are copies of it. */
class copied {
public:
	copied(plain_board board, std::size_t lines) : board_(std::move(board)), book_(lines) {}

	copied child() const { return *this; }
	plain_board &board() { return board_; }
	std::vector<std::size_t> &book() { return book_; }
	void done() const {}

private:
	plain_board board_;
	std::vector<std::size_t> book_;
};

/* What the nodes took. */
struct cost {
	std::uint64_t nodes = 0;
	std::uint64_t bytes = 0;
	std::uint64_t depth = 0;
};

/* One whose children are forks of it, wherever they are mapped. */
class forked {
public:
	forked(cowsnap::region region, cost &costs)
		: region_(std::move(region)), map_(region_.map()),
		  segment_(cowsnap::open_segment(map_)),
		  board_(segment_.find<shared_board>("board").first),
		  book_(segment_.find<shared_book>("book").first), costs_(&costs)
	{
	}

	forked child() const { return {region_.fork(), *costs_}; }
	shared_board &board() { return *board_; }
	shared_book &book() { return *book_; }
	std::uint64_t bytes() const { return region_.stat().referenced; }
	/* What nobody else has goes with this node. */
	void done() const
	{
		const auto stat = region_.stat();

		costs_->nodes++;
		costs_->bytes += stat.exclusive;
		costs_->depth = std::max<std::uint64_t>(costs_->depth, stat.generation);
	}

private:
	cowsnap::region region_;
	cowsnap::mapping map_;
	cowsnap::segment segment_;
	shared_board *board_;
	shared_book *book_;
	cost *costs_;
};

/* What a search went through: the digests of all nodes, in order. */
struct trail {
	std::uint64_t limit;
	std::vector<std::size_t> nodes = {};
	std::vector<std::string> solutions = {};
	std::vector<std::size_t> lines = {};

	bool operator==(const trail &) const = default;
};

template <typename State> void search(const rules &rule, State &state, trail &gone)
{
	auto &board = state.board();
	auto &book = state.book();
	const auto before = text_of(board);
	int at = -1;

	gone.nodes.push_back(std::hash<std::string>()(before));
	book[gone.nodes.size() % book.size()] = gone.nodes.back();
	for (int cell = 0; cell < rule.cells(); cell++) {
		const auto choice = [&](int which) {
			return board[static_cast<std::size_t>(which)].size();
		};

		if (choice(cell) > 1 && (at < 0 || choice(cell) < choice(at)))
			at = cell;
	}
	if (at < 0) {
		/* The nodes that led here are in the book, and no others. */
		gone.solutions.push_back(before);
		gone.lines.push_back(std::accumulate(book.begin(), book.end(), std::size_t(0)));
		return;
	}

	const auto &cell = board[static_cast<std::size_t>(at)];

	for (const int value : std::vector<int>(cell.begin(), cell.end())) {
		if (gone.nodes.size() >= gone.limit)
			break;

		State trial = state.child();

		if (settle(rule, trial.board(), at, value))
			search(rule, trial, gone);
		trial.done();
	}
	expect(text_of(board) == before, "a node is as it was when all below it is done");
}

/* A board that has a solution, with so many cells of a hundred given. */
plain_board puzzle(const rules &rule, std::uint64_t given, std::uint64_t seed)
{
	std::mt19937_64 dice(seed);
	std::vector<int> names(static_cast<std::size_t>(rule.side()));
	std::set<int> all;

	std::iota(names.begin(), names.end(), 1);
	all.insert(names.begin(), names.end());
	std::ranges::shuffle(names, dice);

	plain_board board(static_cast<std::size_t>(rule.cells()), all);

	for (int at = 0; at < rule.cells(); at++) {
		const int row = at / rule.side(), column = at % rule.side();
		const int value = (row * rule.order + row / rule.order + column) % rule.side();

		if (dice() % 100 < given &&
		    !settle(rule, board, at, names[static_cast<std::size_t>(value)]))
			throw std::logic_error("the puzzle has no solution");
	}
	return board;
}

cowsnap::region put_into_region(const plain_board &board, std::size_t lines)
{
	constexpr std::size_t room = 64 << 20;
	auto region = cowsnap::device::open().create(
		{.length = room + lines * sizeof(std::size_t), .name = "search"});
	const auto map = region.map();
	auto segment = cowsnap::create_segment(map);
	auto *const memory = segment.get_segment_manager();
	auto &shared = *segment.construct<shared_board>("board")(
		bip::allocator<shared_cell, manager>(memory));

	segment.construct<shared_book>("book")(
		lines, bip::allocator<std::size_t, manager>(memory));
	for (const auto &cell : board)
		shared.emplace_back(cell.begin(), cell.end(), std::less<>(),
				    bip::allocator<int, manager>(memory));
	return region;
}

template <typename State> double timed_search(const rules &rule, State &root, trail &gone)
{
	const example::stopwatch watch;

	search(rule, root, gone);
	return static_cast<double>(gone.nodes.size()) / watch.seconds();
}

} // namespace

int main(int count, char **words)
try {
	std::uint64_t order = 4, nodes = 1000, given = 30, book = 4096, seed = 1;

	example::read_options(count, words,
			      {{"order", &order, "side of a box"},
			       {"nodes", &nodes, "how many are gone through at most"},
			       {"given", &given, "cells that have a value, in a hundred"},
			       {"book", &book, "that a state has, in KiB"},
			       {"seed", &seed, "for the puzzle"}});
	if (order > 7)
		throw std::invalid_argument("--order takes 7 at most");

	const rules rule{static_cast<int>(order)};
	const auto board = puzzle(rule, given, seed);
	const auto lines = static_cast<std::size_t>((book << 10) / sizeof(std::size_t));
	cost costs;
	trail by_forks{nodes}, by_copies{nodes};
	forked root(put_into_region(board, lines), costs);
	copied plain(board, lines);
	const double fork_speed = timed_search(rule, root, by_forks);
	const double copy_speed = timed_search(rule, plain, by_copies);

	const auto whole = root.bytes();

	expect(costs.nodes > 0, "there was something to guess");
	expect(by_forks == by_copies, "forks and copies lead through the same nodes");
	std::cout << fork_speed << " nodes/s with forks, " << copy_speed
		  << " with copies of the containers\n"
		  << "a node takes " << costs.bytes / costs.nodes << " bytes on average, "
		  << costs.depth << " forks deep at most; a copy of all would take " << whole
		  << "\n"
		  << by_forks.nodes.size() << " nodes and " << by_forks.solutions.size()
		  << " solutions, the same with forks and with copies\n";
} catch (const std::exception &error) {
	std::cerr << error.what() << '\n';
	return EXIT_FAILURE;
}
