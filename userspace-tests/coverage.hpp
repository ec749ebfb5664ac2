// SPDX-License-Identifier: GPL-2.0-only
/*
 * What calls reach in the module, as far as it was built for that, and random numbers
 * that are kept, so that those that reached something new can be tried again.
 */
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <unordered_set>
#include <utility>
#include <vector>

#include <fcntl.h>
#include <linux/kcov.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "chance.hpp"
#include "mapping.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

/* While it lives, where this thread comes in the kernel (kcov.rst in its documentation). */
class coverage {
public:
	static bool supported() { return ::access(path, R_OK | W_OK) == 0; }

	coverage() : fd_(check(::open(path, O_RDWR | O_CLOEXEC), path))
	{
		check(::ioctl(fd_.get(), KCOV_INIT_TRACE, most), "KCOV_INIT_TRACE");
		words_ = mapping(fd_.get(), most * sizeof(std::uint64_t));
		check(::ioctl(fd_.get(), KCOV_ENABLE, KCOV_TRACE_PC), "KCOV_ENABLE");
	}
	~coverage() { ::ioctl(fd_.get(), KCOV_DISABLE, 0); }
	coverage(const coverage &) = delete;
	coverage &operator=(const coverage &) = delete;

	/* Where it came since the last time; what is too much is not there. */
	template <typename Each> void take(Each &&each)
	{
		auto *const words = reinterpret_cast<std::uint64_t *>(words_.data());
		const std::uint64_t count =
			std::atomic_ref(words[0]).load(std::memory_order_relaxed);

		for (const std::uint64_t place : std::span(words + 1, count))
			each(place);
		std::atomic_ref(words[0]).store(0, std::memory_order_relaxed);
	}

private:
	static constexpr const char *path = "/sys/kernel/debug/kcov";
	static constexpr unsigned long most = 1 << 18;

	unique_fd fd_;
	mapping words_;
};

/* Random numbers that can be had again. */
class tape : public drawn<tape> {
public:
	using numbers = std::vector<std::uint64_t>;

	explicit tape(std::uint64_t stream) : random_(stream) {}

	/* From now on come those of @given, and new ones behind them. */
	void play(numbers given)
	{
		played_ = std::move(given);
		next_ = 0;
	}
	std::uint64_t number()
	{
		if (next_ == played_.size())
			played_.push_back(random_.number());
		return played_[next_++];
	}
	/* All that were taken since then. */
	numbers played() const
	{
		return {played_.begin(),
			played_.begin() + static_cast<std::ptrdiff_t>(next_)};
	}

private:
	chance random_;
	numbers played_;
	std::size_t next_ = 0;
};

/* What several threads reached, and with which numbers. */
class experience {
public:
	/* To begin with: nothing, or what reached something new, changed somewhere. */
	tape::numbers advice(chance &random)
	{
		const std::lock_guard guard(lock_);

		if (tapes_.empty() || random.one_in(2))
			return {};

		tape::numbers some = tapes_[random.below(tapes_.size())];

		for (std::size_t i = random.between(1, 4); i > 0; i--)
			some[random.below(some.size())] = random.number();
		if (random.one_in(2))
			some.resize(random.between(1, some.size()));
		return some;
	}
	/* Keeps @played when it came to a place where nobody was before. */
	void judge(const tape::numbers &played,
		   const std::unordered_set<std::uint64_t> &places)
	{
		const std::lock_guard guard(lock_);
		const std::size_t before = places_.size();

		places_.insert(places.begin(), places.end());
		if (places_.size() > before)
			tapes_.push_back(played);
	}
	std::size_t places() const { return places_.size(); }
	std::size_t tapes() const { return tapes_.size(); }

private:
	std::mutex lock_;
	std::unordered_set<std::uint64_t> places_;
	std::vector<tape::numbers> tapes_;
};

} // namespace cowsnap_test
