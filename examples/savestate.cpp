// SPDX-License-Identifier: MIT
/*
 * Save states of an emulator: a ring with one for each of the last frames, and rollback as
 * games over a network do it.
 *
 * A small machine with a CPU, a program in ROM and a RAM that is a region runs frame by
 * frame with the pads of two players. Ours is known at once; theirs arrives some frames
 * late, and until then what they pressed last is taken for it. Where that was wrong, the
 * region is restored to the state of that frame and all since is done again. In the end
 * the machine must be where one is that had the right input from the start, and so must
 * be each state of the ring, to which it is rewound.
 *
 *     g++ -std=c++20 -O2 savestate.cpp $(pkg-config --cflags --libs cowsnap libxxhash) \
 *         -o savestate
 *     ./savestate --frames 3600 --ring 60 --delay 8
 */
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include <xxhash.h>

#include <cowsnap/cowsnap.hpp>

#include "support/expect.hpp"
#include "support/options.hpp"
#include "support/stopwatch.hpp"

namespace {

using example::expect;
using word = std::uint32_t;

enum class code { pad, set, copy, add, add_word, multiply, shift, load, store, loop, frame };

struct instruction {
	code what;
	unsigned to;
	word from;
};

/* Draws places in RAM from all that was pressed so far, and adds to what is there. */
constexpr instruction rom[] = {
	{code::pad, 1, 0},
	{code::add, 0, 1},
	{code::set, 4, 64},
	{code::multiply, 0, 1664525},
	{code::add_word, 0, 1013904223},
	{code::copy, 2, 0},
	{code::shift, 2, 7},
	{code::load, 3, 2},
	{code::add, 3, 0},
	{code::store, 3, 2},
	{code::loop, 4, 3},
	{code::frame, 0, 0},
};

/* All of its state is in the memory that it is given: registers in front, then RAM. */
class machine {
public:
	explicit machine(std::span<word> memory) : registers_(memory.first<8>()), ram_(memory)
	{
	}

	void run_frame(word pad)
	{
		word &pc = registers_[7];

		for (;;) {
			const auto [what, to, from] = rom[pc++];
			word &target = registers_[to];

			switch (what) {
			case code::pad: target = pad; break;
			case code::set: target = from; break;
			case code::copy: target = registers_[from]; break;
			case code::add: target += registers_[from]; break;
			case code::add_word: target += from; break;
			case code::multiply: target *= from; break;
			case code::shift: target >>= from; break;
			case code::load: target = cell(registers_[from]); break;
			case code::store: cell(registers_[from]) = target; break;
			case code::loop:
				if (--target)
					pc = from;
				break;
			case code::frame: pc = from; return;
			}
		}
	}

private:
	word &cell(word address)
	{
		const std::size_t ram = ram_.size() - registers_.size();

		return ram_[registers_.size() + address % ram];
	}

	std::span<word, 8> registers_;
	std::span<word> ram_;
};

std::uint64_t digest_of(std::span<const word> memory)
{
	return XXH3_64bits(memory.data(), memory.size_bytes());
}

/* What a player presses, who keeps it pressed for some frames. */
word pressed(std::uint64_t player, std::uint64_t frame, std::uint64_t seed)
{
	const std::array<std::uint64_t, 3> what = {player, frame / 10, seed};

	return static_cast<word>(XXH3_64bits(what.data(), sizeof(what)) & 0xff);
}

/* What is before each frame, of the last so many. */
class ring {
public:
	ring(cowsnap::region &region, std::uint64_t count) : region_(region), states_(count) {}

	void save(std::uint64_t frame)
	{
		state &slot = states_[frame % states_.size()];
		const example::stopwatch watch;

		slot = {frame, region_.take_snapshot()};
		saves.add(watch.microseconds());
	}
	void load(std::uint64_t frame)
	{
		const state &slot = states_[frame % states_.size()];
		const example::stopwatch watch;

		expect(slot.snapshot && slot.frame == frame, "the frame is in the ring");
		region_.restore(slot.snapshot);
		loads.add(watch.microseconds());
	}

	example::median saves, loads;

private:
	struct state {
		std::uint64_t frame = 0;
		cowsnap::snapshot snapshot;
	};

	cowsnap::region &region_;
	std::vector<state> states_;
};

/* The machine that learns late what they pressed. */
class game {
public:
	game(cowsnap::region &region, std::span<word> memory, std::uint64_t states,
	     std::uint64_t delay, std::uint64_t seed)
		: states_(region, states), machine_(memory), delay_(delay), seed_(seed)
	{
	}

	void run(std::uint64_t frames)
	{
		for (std::uint64_t now = 0; now < frames + delay_; now++) {
			if (now >= delay_)
				learn(now - delay_, std::min(now, frames));
			if (now < frames)
				play(now);
		}
	}

	/* Goes back to what was before @frame. */
	void rewind(std::uint64_t frame) { states_.load(frame); }
	/* With the input that is known by now. */
	void play(std::uint64_t frame)
	{
		const word theirs =
			known_ ? pressed(2, std::min(frame, known_ - 1), seed_) : 0;

		states_.save(frame);
		assumed_.resize(std::max<std::size_t>(assumed_.size(), frame + 1));
		assumed_[frame] = theirs;
		machine_.run_frame(pressed(1, frame, seed_) | theirs << 8);
	}

	ring &states() { return states_; }
	std::uint64_t rollbacks() const { return rollbacks_; }

private:
	/* What they pressed in @frame arrives when @now is the next one. */
	void learn(std::uint64_t frame, std::uint64_t now)
	{
		known_ = frame + 1;
		if (assumed_[frame] == pressed(2, frame, seed_))
			return;
		rollbacks_++;
		rewind(frame);
		for (; frame < now; frame++)
			play(frame);
	}

	ring states_;
	machine machine_;
	std::uint64_t delay_, seed_;
	/* How many frames of theirs have arrived. */
	std::uint64_t known_ = 0;
	std::uint64_t rollbacks_ = 0;
	std::vector<word> assumed_;
};

} // namespace

int main(int count, char **words)
try {
	std::uint64_t frames = 1200, states = 30, delay = 7, megabytes = 16, seed = 1;

	example::read_options(count, words,
			      {{"frames", &frames, "how many are played"},
			       {"ring", &states, "how many states are kept"},
			       {"delay", &delay, "in frames, until their input arrives"},
			       {"memory", &megabytes, "of the machine, in MiB"},
			       {"seed", &seed, "for what is pressed"}});
	if (delay >= states || states > frames)
		throw std::invalid_argument("the ring has to be longer than the delay, and not "
					    "longer than the game");

	/* What is before each frame of a machine that always knows. */
	std::vector<word> plain((megabytes << 20) / sizeof(word));
	machine right(plain);
	std::vector<std::uint64_t> digests;
	const std::uint64_t first = frames - states;

	for (std::uint64_t frame = 0; frame < frames; frame++) {
		if (frame >= first)
			digests.push_back(digest_of(plain));
		right.run_frame(pressed(1, frame, seed) | pressed(2, frame, seed) << 8);
	}
	digests.push_back(digest_of(plain));

	const auto device = cowsnap::device::open();
	const auto held = device.query().held_bytes;
	auto region = device.create({.length = megabytes << 20, .name = "machine"});
	const auto live = region.map();
	const auto memory = live.as<word>();
	game played(region, memory, states, delay, seed);

	played.run(frames);
	expect(digest_of(memory) == digests.back(),
	       "the game is where the right input takes it");
	expect(played.rollbacks() > 0, "their input came as a surprise");

	const auto taken = device.query().held_bytes - held;
	const example::stopwatch watch;

	std::memcpy(plain.data(), memory.data(), live.size());

	const double copy = watch.microseconds();

	for (std::uint64_t frame = frames; frame-- > first;) {
		played.rewind(frame);
		expect(digest_of(memory) == digests[frame - first],
		       "frame " + std::to_string(frame) + " is in the ring as it should be");
	}
	for (std::uint64_t frame = first; frame < frames; frame++)
		played.play(frame);
	expect(digest_of(memory) == digests.back(), "played again it ends the same");

	std::cout << "a state of " << (megabytes << 10) << " KiB is saved in "
		  << played.states().saves.get() << " us and loaded in "
		  << played.states().loads.get() << " us; to copy one takes " << copy
		  << " us\nthe game and " << states << " states take " << taken / 1024
		  << " KiB, copies would take " << ((states + 1) * megabytes << 10)
		  << " KiB\n"
		  << frames << " frames, " << played.rollbacks()
		  << " rollbacks, and all is where the right input takes it\n";
} catch (const std::exception &error) {
	std::cerr << error.what() << '\n';
	return EXIT_FAILURE;
}
