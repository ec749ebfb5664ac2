// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <span>

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <linux/io_uring.h>

#include "mapping.hpp"
#include "unique_fd.hpp"

namespace cowsnap_test {

/* The little of io_uring that one operation at a time needs. */
class io_ring {
public:
	io_ring()
	{
		io_uring_params params = {};

		ring_ = unique_fd(static_cast<int>(
			::syscall(SYS_io_uring_setup, 4, &params)));
		if (!ring_)
			return;
		head_ = params.cq_off.head;
		tail_ = params.sq_off.tail;
		array_ = params.sq_off.array;
		mask_ = params.sq_off.ring_mask;
		completions_ = params.cq_off.cqes;
		completion_mask_ = params.cq_off.ring_mask;
		submission_ring_ = mapping(ring_.get(),
					   array_ + params.sq_entries * 4,
					   PROT_READ | PROT_WRITE, MAP_SHARED,
					   IORING_OFF_SQ_RING);
		completion_ring_ =
			mapping(ring_.get(),
				completions_ +
					params.cq_entries * sizeof(io_uring_cqe),
				PROT_READ | PROT_WRITE, MAP_SHARED,
				IORING_OFF_CQ_RING);
		entries_ = mapping(ring_.get(),
				   params.sq_entries * sizeof(io_uring_sqe),
				   PROT_READ | PROT_WRITE, MAP_SHARED,
				   IORING_OFF_SQES);
	}

	bool supported() const { return static_cast<bool>(ring_); }

	/* errno of registering @buffer as number 0. */
	int register_buffer(std::span<std::byte> buffer) const
	{
		const iovec part = {buffer.data(), buffer.size()};

		return ::syscall(SYS_io_uring_register, ring_.get(),
				 IORING_REGISTER_BUFFERS, &part, 1)
			       ? errno
			       : 0;
	}

	/* Begins to read from, or to write to, @fd; does not wait. */
	void submit(std::uint8_t operation, int fd, std::span<std::byte> buffer,
		    std::uint64_t offset)
	{
		auto *const entry =
			reinterpret_cast<io_uring_sqe *>(entries_.data());
		const std::uint32_t tail = *word(submission_ring_, tail_);

		std::memset(entry, 0, sizeof(*entry));
		entry->opcode = operation;
		entry->fd = fd;
		entry->off = offset;
		entry->addr = reinterpret_cast<std::uintptr_t>(buffer.data());
		entry->len = static_cast<std::uint32_t>(buffer.size());
		word(submission_ring_,
		     array_)[tail & *word(submission_ring_, mask_)] = 0;
		__atomic_store_n(word(submission_ring_, tail_), tail + 1,
				 __ATOMIC_RELEASE);
		enter(1, 0);
	}

	/* Waits for the end of what was submitted. */
	int result()
	{
		enter(0, 1);

		const std::uint32_t head = *word(completion_ring_, head_);
		const auto *const completion =
			reinterpret_cast<io_uring_cqe *>(completion_ring_.data() +
							 completions_) +
			(head & *word(completion_ring_, completion_mask_));
		const int result = completion->res;

		__atomic_store_n(word(completion_ring_, head_), head + 1,
				 __ATOMIC_RELEASE);
		return result;
	}

private:
	static std::uint32_t *word(const mapping &ring, std::uint32_t offset)
	{
		return reinterpret_cast<std::uint32_t *>(ring.data() + offset);
	}

	void enter(unsigned int submit, unsigned int wait) const
	{
		check(::syscall(SYS_io_uring_enter, ring_.get(), submit, wait,
				wait ? IORING_ENTER_GETEVENTS : 0, nullptr, 0),
		      "io_uring_enter");
	}

	unique_fd ring_;
	mapping submission_ring_, completion_ring_, entries_;
	std::uint32_t head_ = 0, tail_ = 0, array_ = 0, mask_ = 0;
	std::uint32_t completions_ = 0, completion_mask_ = 0;
};

} // namespace cowsnap_test
