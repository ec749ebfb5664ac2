// SPDX-License-Identifier: GPL-2.0-only
/* A connection to a Redis server. */
#pragma once

#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <hiredis/hiredis.h>

namespace cowsnap_redis {

/* The server said no; what it said. */
struct refusal : std::runtime_error {
	using std::runtime_error::runtime_error;
};

class client {
public:
	explicit client(const std::string &socket) : context_(::redisConnectUnix(socket.c_str()))
	{
		if (!context_ || context_->err)
			throw std::runtime_error("cannot connect to " + socket + ": " + error());
	}

	/* Queues a command; it goes out with the first wait for an answer. */
	void send(std::initializer_list<std::string_view> words)
	{
		std::vector<const char *> texts;
		std::vector<std::size_t> lengths;

		for (const std::string_view word : words) {
			texts.push_back(word.data());
			lengths.push_back(word.size());
		}
		if (::redisAppendCommandArgv(context_.get(), static_cast<int>(texts.size()), texts.data(),
					     lengths.data()) != REDIS_OK)
			throw std::runtime_error("cannot speak to the server: " + error());
	}

	/* The next answer, if it is text or a number. */
	std::string receive()
	{
		void *raw = nullptr;

		if (::redisGetReply(context_.get(), &raw) != REDIS_OK)
			throw std::runtime_error("the server does not answer: " + error());

		const std::unique_ptr<redisReply, deleter> reply(static_cast<redisReply *>(raw));

		if (reply->type == REDIS_REPLY_INTEGER)
			return std::to_string(reply->integer);

		std::string text = reply->str ? std::string(reply->str, reply->len) : std::string();

		if (reply->type == REDIS_REPLY_ERROR)
			throw refusal(text);
		return text;
	}

	std::string call(std::initializer_list<std::string_view> words)
	{
		send(words);
		return receive();
	}

private:
	struct deleter {
		void operator()(redisContext *context) const { ::redisFree(context); }
		void operator()(redisReply *reply) const { ::freeReplyObject(reply); }
	};

	std::string error() const { return context_ ? context_->errstr : "no memory"; }

	std::unique_ptr<redisContext, deleter> context_;
};

} // namespace cowsnap_redis
