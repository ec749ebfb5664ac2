// SPDX-License-Identifier: GPL-2.0-only
/*
 * Random numbers that can be had again, and how long a test goes on.
 *
 * COWSNAP_SEED=N repeats a run; COWSNAP_SCALE=X makes what is counted in rounds
 * or seconds X times as long.
 */
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

#include <unistd.h>

namespace cowsnap_test {

inline double scale()
{
	const char *const text = std::getenv("COWSNAP_SCALE");
	const double value = text ? std::strtod(text, nullptr) : 1.0;

	return value > 0 ? value : 1.0;
}

inline std::size_t scaled(std::size_t rounds)
{
	return std::max<std::size_t>(
		1, static_cast<std::size_t>(static_cast<double>(rounds) * scale()));
}

using deadline = std::chrono::steady_clock::time_point;

inline deadline scaled_deadline(std::chrono::duration<double> duration)
{
	return std::chrono::steady_clock::now() +
	       std::chrono::duration_cast<std::chrono::steady_clock::duration>(
		       duration * scale());
}

inline bool passed(deadline end)
{
	return std::chrono::steady_clock::now() >= end;
}

/*
 * For tests of what meets only now and then: true at @end when what @happened is enough,
 * and on a machine that is slow, or busy otherwise, when it is, but a minute later anyway.
 */
template <typename Condition> bool passed(deadline end, Condition &&happened)
{
	return passed(end) && (happened() || passed(end + std::chrono::minutes(1)));
}

/* The seed of this run, printed the first time that it is asked for. */
inline std::uint64_t seed()
{
	static const std::uint64_t value = [] {
		const char *const text = std::getenv("COWSNAP_SEED");
		const std::uint64_t chosen =
			text ? std::strtoull(text, nullptr, 0)
			     : static_cast<std::uint64_t>(
				       std::chrono::system_clock::now()
					       .time_since_epoch()
					       .count()) ^
				       static_cast<std::uint64_t>(::getpid());

		std::printf("# seed %llu\n",
			    static_cast<unsigned long long>(chosen));
		return chosen;
	}();

	return value;
}

/* What is drawn from a @Source, which has number(). */
template <typename Source> class drawn {
public:
	/* One of 0 ... @bound - 1. */
	std::size_t below(std::size_t bound)
	{
		return static_cast<Source *>(this)->number() % bound;
	}
	std::size_t between(std::size_t first, std::size_t last)
	{
		return first + below(last - first + 1);
	}
	bool one_in(std::size_t n) { return below(n) == 0; }

private:
	drawn() = default;
	friend Source;
};

class chance : public drawn<chance> {
public:
	/* Users that differ in @stream see different numbers of one seed. */
	explicit chance(std::uint64_t stream) : engine_(seed() + stream * 0x9e3779b9) {}

	std::uint64_t number() { return engine_(); }

private:
	std::mt19937_64 engine_;
};

} // namespace cowsnap_test
