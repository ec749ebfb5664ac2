// SPDX-License-Identifier: MIT
/*
 * Memory for the nodes of a layout, from the kernel: malloc() may be the one that asks for what the
 * layout has.
 */
#pragma once

#include <cstddef>
#include <new>

#include <sys/mman.h>

#include "system.hpp"

namespace cowsnap_preload {

/* Hands out nodes of one size; those that are given back are used again. */
class node_pool {
public:
	static constexpr std::size_t node_size = 80;

	node_pool() = default;
	node_pool(const node_pool &) = delete;
	node_pool &operator=(const node_pool &) = delete;

	/* Whether the next @count nodes can be had for certain. */
	bool reserve(std::size_t count) noexcept
	{
		while (spare_ < count)
			if (!grow())
				return false;
		return true;
	}

	/* Of what was reserved. */
	void *get() noexcept
	{
		node *const first = free_;

		free_ = first->next;
		spare_--;
		return first;
	}

	void put(void *memory) noexcept
	{
		free_ = new (memory) node{free_};
		spare_++;
	}

private:
	struct node {
		node *next;
	};

	static constexpr std::size_t growth = 1 << 16;

	bool grow() noexcept
	{
		const long block = system_call(SYS_mmap, nullptr, growth, PROT_READ | PROT_WRITE,
					       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (is_error(block))
			return false;
		for (std::size_t at = 0; at + node_size <= growth; at += node_size)
			put(reinterpret_cast<std::byte *>(block) + at);
		return true;
	}
	node *free_ = nullptr;
	std::size_t spare_ = 0;
};

/* How containers get nodes from it. */
template <typename T> struct node_allocator {
	using value_type = T;

	node_pool *pool;

	explicit node_allocator(node_pool *from) noexcept : pool(from) {}
	template <typename Other>
	node_allocator(const node_allocator<Other> &other) noexcept : pool(other.pool)
	{
	}

	T *allocate(std::size_t) noexcept
	{
		static_assert(sizeof(T) <= node_pool::node_size && alignof(T) <= 16);
		return static_cast<T *>(pool->get());
	}
	void deallocate(T *node, std::size_t) noexcept { pool->put(node); }

	template <typename Other> bool operator==(const node_allocator<Other> &other) const noexcept
	{
		return pool == other.pool;
	}
};

} // namespace cowsnap_preload
