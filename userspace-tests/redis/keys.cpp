// SPDX-License-Identifier: GPL-2.0-only
#include "keys.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <stdexcept>

namespace cowsnap_redis {
namespace {

constexpr std::size_t pool_size = 1 << 20;

template <typename Number>
void set(client &to, std::size_t count, values &from, const Number &number)
{
	for (std::size_t done = 0; done < count;) {
		const std::size_t now = std::min(batch, count - done);

		for (std::size_t i = 0; i < now; i++)
			to.send({"SET", key_name(number(done + i)), from.next()});
		for (std::size_t i = 0; i < now; i++)
			if (to.receive() != "OK")
				throw std::runtime_error("a SET was not answered by OK");
		done += now;
	}
}

} // namespace

std::string key_name(std::size_t number)
{
	const std::string digits = std::to_string(number);

	return "key:" + std::string(12 - digits.size(), '0') + digits;
}

values::values() : dice_(std::random_device{}())
{
	pool_.resize(pool_size + value_size);
	for (std::size_t at = 0; at < pool_.size(); at += sizeof(std::uint64_t)) {
		const std::uint64_t word = dice_();

		std::memcpy(&pool_[at], &word, sizeof(word));
	}
	value_.resize(value_size);
}

/* Parts of a pool, which costs less than dice for each byte, with a number that makes each one unique. */
std::string_view values::next()
{
	const std::uint64_t word = dice_();

	std::memcpy(value_.data(), &pool_[word % pool_size], value_size);
	std::memcpy(value_.data(), &word, sizeof(word));
	return value_;
}

void set_row(client &to, std::size_t first, std::size_t count)
{
	values from;

	set(to, count, from, [&](std::size_t i) { return first + i; });
}

void set_some(client &to, std::size_t keys, std::size_t count, std::uint64_t seed)
{
	std::mt19937_64 dice(seed);
	values from;

	set(to, count, from, [&](std::size_t) { return dice() % keys; });
}

writer::writer(const server &to, std::size_t keys) : client_(to.connect()), thread_([this, keys] { run(keys); })
{
}

void writer::run(std::size_t keys)
{
	/* Few at once, so that it stops soon. */
	constexpr std::size_t at_once = 16;
	std::mt19937_64 dice{std::random_device{}()};
	values from;

	try {
		while (!stop_) {
			set(client_, at_once, from, [&](std::size_t) { return dice() % keys; });
			written_ += at_once;
		}
	} catch (...) {
		error_ = std::current_exception();
		failed_ = true;
	}
}

void writer::wait_for(std::uint64_t written) const
{
	while (written_ < written && !failed_)
		std::this_thread::sleep_for(std::chrono::milliseconds(1));
	if (failed_)
		std::rethrow_exception(error_);
}

void writer::stop()
{
	stop_ = true;
	if (thread_.joinable())
		thread_.join();
	if (error_)
		std::rethrow_exception(error_);
}

} // namespace cowsnap_redis
