// SPDX-License-Identifier: MIT
/*
 * Sees the system call by which the C library forks the process.
 *
 * fork() takes locks of the C library's own after all handlers that programs have for it, and gives
 * them back in the child before: it writes to what may lie in the heap there, on which the child has
 * to be by then. So it is the system call itself that has to be caught, which the kernel's syscall
 * user dispatch does: while a thread has it on, its calls become signals, but for those that this
 * library makes.
 */
#pragma once

namespace cowsnap_preload {

/* Whether this kernel has it, and lets the process have it. */
bool can_dispatch() noexcept;

/*
 * From here on, until the thread has forked the process or disarm() is called, its forks are forks of
 * the heap, too. Does nothing where there is no heap.
 */
void arm() noexcept;
void disarm() noexcept;

/* In place of disarm() in the child. */
void start_child() noexcept;

} // namespace cowsnap_preload
