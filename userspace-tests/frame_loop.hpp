// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory that an AF_XDP socket has pinned for writing, for as long as it lives
 * (FOLL_LONGTERM): on a loopback device, what is sent from one frame of it comes
 * back into another.
 */
#pragma once

#include <array>
#include <cerrno>
#include <cstdint>
#include <span>
#include <stdexcept>

#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>

#include "mapping.hpp"
#include "own_network.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

class frame_loop {
public:
	/* A frame is a page; what arrives comes behind this much room in it. */
	static constexpr std::size_t room = 256;

	frame_loop()
	{
		in_own_network([this] {
			socket_ = unique_fd(
				::socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0));
			if (socket_)
				attach();
		});
	}

	bool supported() const { return static_cast<bool>(socket_); }

	/* errno of pinning @memory, 0 when it was; only then copy() works. */
	int pin(std::span<std::byte> memory)
	{
		xdp_umem_reg arg = {};

		arg.addr = reinterpret_cast<std::uintptr_t>(memory.data());
		arg.len = memory.size();
		arg.chunk_size = static_cast<std::uint32_t>(page_size);
		if (::setsockopt(socket_.get(), SOL_XDP, XDP_UMEM_REG, &arg,
				 sizeof(arg)))
			return errno;
		bind();
		return 0;
	}

	/* What frame @from holds goes into frame @to, for @size bytes. */
	void copy(std::uint64_t from, std::uint64_t to, std::uint32_t size)
	{
		pollfd wanted = {socket_.get(), POLLIN, 0};

		fill_.push(to * page_size);
		sending_.push(xdp_desc{from * page_size, size, 0});
		check(::sendto(socket_.get(), nullptr, 0, MSG_DONTWAIT, nullptr, 0),
		      "sendto");
		if (check(::poll(&wanted, 1, 30'000), "poll") == 0)
			throw std::runtime_error("no frame came back");
		if (received_.pop().addr != to * page_size + room)
			throw std::runtime_error("the frame is somewhere else");
		sent_.pop();
	}

private:
	static constexpr std::uint32_t entries = 8;

	template <typename Entry>
	class ring {
	public:
		ring() = default;
		ring(const unique_fd &socket, int option, std::uint64_t page_offset,
		     const xdp_ring_offset &offset)
			: offset_(offset)
		{
			check(::setsockopt(socket.get(), SOL_XDP, option, &entries,
					   sizeof(entries)),
			      "setsockopt of a ring");
			memory_ = mapping(socket.get(),
					  offset.desc + entries * sizeof(Entry),
					  PROT_READ | PROT_WRITE, MAP_SHARED,
					  page_offset);
		}

		void push(const Entry &entry)
		{
			std::uint32_t *const index = word(offset_.producer);

			slot(*index) = entry;
			__atomic_store_n(index, *index + 1, __ATOMIC_RELEASE);
		}
		Entry pop()
		{
			std::uint32_t *const index = word(offset_.consumer);

			if (__atomic_load_n(word(offset_.producer),
					    __ATOMIC_ACQUIRE) == *index)
				throw std::runtime_error("a ring is empty");

			const Entry entry = slot(*index);

			__atomic_store_n(index, *index + 1, __ATOMIC_RELEASE);
			return entry;
		}

	private:
		std::uint32_t *word(std::uint64_t offset) const
		{
			return reinterpret_cast<std::uint32_t *>(memory_.data() +
								 offset);
		}
		Entry &slot(std::uint32_t index) const
		{
			return reinterpret_cast<Entry *>(
				memory_.data() + offset_.desc)[index % entries];
		}

		mapping memory_;
		xdp_ring_offset offset_ = {};
	};

	static unique_fd bpf(int command, bpf_attr &arg, const char *what)
	{
		return unique_fd(static_cast<int>(check(
			::syscall(SYS_bpf, command, &arg, sizeof(arg)), what)));
	}

	/* Has all that arrives on the device given to the socket, once bound. */
	void attach()
	{
		bpf_attr map = {}, program = {}, link = {};

		map.map_type = BPF_MAP_TYPE_XSKMAP;
		map.key_size = map.value_size = sizeof(int);
		map.max_entries = 1;
		map_ = bpf(BPF_MAP_CREATE, map, "BPF_MAP_CREATE");

		/* return bpf_redirect_map(map, 0, 0); */
		const std::array<bpf_insn, 6> code = {
			{{BPF_LD | BPF_DW | BPF_IMM, 1, BPF_PSEUDO_MAP_FD, 0,
			  map_.get()},
			 {},
			 {BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, 0},
			 {BPF_ALU64 | BPF_MOV | BPF_K, 3, 0, 0, 0},
			 {BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_redirect_map},
			 {BPF_JMP | BPF_EXIT, 0, 0, 0, 0}}};

		program.prog_type = BPF_PROG_TYPE_XDP;
		program.insns = reinterpret_cast<std::uintptr_t>(code.data());
		program.insn_cnt = static_cast<std::uint32_t>(code.size());
		program.license = reinterpret_cast<std::uintptr_t>("GPL");

		const unique_fd loaded =
			bpf(BPF_PROG_LOAD, program, "BPF_PROG_LOAD");

		link.link_create.prog_fd = static_cast<std::uint32_t>(loaded.get());
		link.link_create.target_ifindex = loopback_index;
		link.link_create.attach_type = BPF_XDP;
		link.link_create.flags = XDP_FLAGS_SKB_MODE;
		link_ = bpf(BPF_LINK_CREATE, link, "BPF_LINK_CREATE");
	}

	void bind()
	{
		xdp_mmap_offsets offsets = {};
		socklen_t size = sizeof(offsets);
		sockaddr_xdp address = {};
		bpf_attr element = {};
		const int key = 0, value = socket_.get();

		check(::getsockopt(socket_.get(), SOL_XDP, XDP_MMAP_OFFSETS,
				   &offsets, &size),
		      "XDP_MMAP_OFFSETS");
		received_ = {socket_, XDP_RX_RING, XDP_PGOFF_RX_RING, offsets.rx};
		sending_ = {socket_, XDP_TX_RING, XDP_PGOFF_TX_RING, offsets.tx};
		fill_ = {socket_, XDP_UMEM_FILL_RING, XDP_UMEM_PGOFF_FILL_RING,
			 offsets.fr};
		sent_ = {socket_, XDP_UMEM_COMPLETION_RING,
			 XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr};
		address.sxdp_family = AF_XDP;
		address.sxdp_ifindex = loopback_index;
		address.sxdp_flags = XDP_COPY;
		check(::bind(socket_.get(), reinterpret_cast<sockaddr *>(&address),
			     sizeof(address)),
		      "bind");
		element.map_fd = static_cast<std::uint32_t>(map_.get());
		element.key = reinterpret_cast<std::uintptr_t>(&key);
		element.value = reinterpret_cast<std::uintptr_t>(&value);
		check(::syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &element,
				sizeof(element)),
		      "BPF_MAP_UPDATE_ELEM");
	}

	unique_fd socket_, map_, link_;
	ring<xdp_desc> received_, sending_;
	ring<std::uint64_t> fill_, sent_;
};

} // namespace cowsnap_test
