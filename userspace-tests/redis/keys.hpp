// SPDX-License-Identifier: GPL-2.0-only
/* The keys of the test, and who writes them: by SET, as programs do. */
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <random>
#include <string>
#include <string_view>
#include <thread>

#include "client.hpp"
#include "server.hpp"

namespace cowsnap_redis {

/* With what Redis puts before it and behind it, a value fills a page. */
inline constexpr std::size_t value_size = 4000;

/* Of commands that are on their way together. */
inline constexpr std::size_t batch = 128;

/* As redis-benchmark names them. */
std::string key_name(std::size_t number);

/* Values that no compression shortens, and that do not come again. */
class values {
public:
	values();
	std::string_view next();

private:
	std::mt19937_64 dice_;
	std::string pool_, value_;
};

/* Sets keys in the order of their names, or some of them chosen at random. */
void set_row(client &to, std::size_t first, std::size_t count);
void set_some(client &to, std::size_t keys, std::size_t count, std::uint64_t seed);

/* Sets keys at random until it is stopped. */
class writer {
public:
	writer(const server &to, std::size_t keys);
	writer(const writer &) = delete;
	writer &operator=(const writer &) = delete;
	~writer() { stop_ = true; }

	std::uint64_t written() const { return written_; }
	/* These throw what the thread ran into. */
	void wait_for(std::uint64_t written) const;
	void stop();

private:
	void run(std::size_t keys);

	client client_;
	std::atomic<bool> stop_ = false;
	std::atomic<std::uint64_t> written_ = 0;
	std::exception_ptr error_;
	std::atomic<bool> failed_ = false;
	std::jthread thread_;
};

} // namespace cowsnap_redis
