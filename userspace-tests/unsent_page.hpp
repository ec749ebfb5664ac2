// SPDX-License-Identifier: GPL-2.0-only
/*
 * A page in the send queue of a TCP socket, by reference (MSG_ZEROCOPY): it is
 * behind more bytes than the other end, which reads nothing yet, has room for.
 */
#pragma once

#include <span>
#include <stdexcept>
#include <vector>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "mapping.hpp"
#include "own_network.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

class unsent_page {
public:
	explicit unsent_page(std::span<const std::byte> page)
	{
		in_own_network([this] { connect(); });
		send(before_, 0);
		send(page, MSG_ZEROCOPY);
	}

	/* Lets it be sent, and tells what arrives. */
	std::vector<std::byte> read() const
	{
		std::vector<std::byte> bytes(before_.size() + page_size);

		if (check(::recv(receiver_.get(), bytes.data(), bytes.size(),
				 MSG_WAITALL),
			  "recv") != static_cast<ssize_t>(bytes.size()))
			throw std::runtime_error("short recv");
		bytes.erase(bytes.begin(),
			    bytes.begin() +
				    static_cast<std::ptrdiff_t>(before_.size()));
		return bytes;
	}

private:
	/* What the receiver takes without reading is less than 16 times that. */
	static constexpr int room = 16 * 1024;

	static unique_fd tcp_socket()
	{
		return unique_fd(check(
			::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket"));
	}

	static void set(const unique_fd &socket, int option, int value)
	{
		check(::setsockopt(socket.get(), SOL_SOCKET, option, &value,
				   sizeof(value)),
		      "setsockopt");
	}

	void connect()
	{
		const unique_fd listener = tcp_socket();
		sockaddr_in address = {};
		socklen_t size = sizeof(address);
		auto *const any = reinterpret_cast<sockaddr *>(&address);

		address.sin_family = AF_INET;
		address.sin_addr.s_addr = ::htonl(INADDR_LOOPBACK);
		set(listener, SO_RCVBUF, room);
		check(::bind(listener.get(), any, size), "bind");
		check(::listen(listener.get(), 1), "listen");
		check(::getsockname(listener.get(), any, &size), "getsockname");
		sender_ = tcp_socket();
		set(sender_, SO_SNDBUFFORCE, 64 * room);
		set(sender_, SO_ZEROCOPY, 1);
		check(::connect(sender_.get(), any, size), "connect");
		receiver_ = unique_fd(check(
			::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC),
			"accept"));
	}

	void send(std::span<const std::byte> bytes, int flags) const
	{
		if (check(::send(sender_.get(), bytes.data(), bytes.size(),
				 flags | MSG_DONTWAIT),
			  "send") != static_cast<ssize_t>(bytes.size()))
			throw std::runtime_error("short send");
	}

	unique_fd sender_, receiver_;
	std::vector<std::byte> before_ = bytes_of(std::size_t{16} * room, 0xee);
};

} // namespace cowsnap_test
