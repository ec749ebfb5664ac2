// SPDX-License-Identifier: GPL-2.0-only
/* Whether what Redis saves and sends is what it held at the instant of the fork. */
#pragma once

#include <cstddef>

#include "demo/results.hpp"
#include "server.hpp"

namespace cowsnap_redis {

/* BGSAVE, BGREWRITEAOF, a replica, and a fork that fails. */
void check_saves(const flavour &memory, std::size_t keys, cowsnap_demo::results &results);

/* BGSAVE alone, for many keys. */
void check_save(const flavour &memory, std::size_t keys, cowsnap_demo::results &results);

} // namespace cowsnap_redis
