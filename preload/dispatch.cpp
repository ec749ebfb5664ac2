// SPDX-License-Identifier: MIT
#include "dispatch.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <linux/prctl.h>
#include <linux/sched.h>
#include <signal.h>
#include <ucontext.h>

#include "guard.hpp"
#include "heap.hpp"
#include "system.hpp"

namespace cowsnap_preload {
namespace {

/* As the kernel has them. */
using signal_set = std::uint64_t;
struct kernel_sigaction {
	/* A function, or SIG_DFL or SIG_IGN, which are 0 and 1. */
	std::uintptr_t handler;
	unsigned long flags;
	void (*restorer)() noexcept;
	signal_set mask;
};

constexpr unsigned long sa_restorer = 0x04000000;
constexpr int dispatched = 2; // SYS_USER_DISPATCH
constexpr signal_set all_but_sigsys = ~(signal_set(1) << (SIGSYS - 1));

/* Of a thread between arm() and disarm(). */
struct state {
	bool armed;
	/* What the program has blocked; all is, but for SIGSYS, so that no handler of its runs meanwhile. */
	signal_set mask;
};
constinit thread_local state current = {};

/* Threads that are armed, and what the program has for SIGSYS while there are any. */
int armed_threads;
kernel_sigaction programs_action;

bool dispatch(bool on) noexcept
{
	const char *const start = cowsnap_preload_calls;

	if (!on)
		return system_call(SYS_prctl, PR_SET_SYSCALL_USER_DISPATCH,
				   PR_SYS_DISPATCH_OFF, 0, 0, 0) == 0;
	return system_call(SYS_prctl, PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, start,
			   cowsnap_preload_calls_end - start, nullptr) == 0;
}

void on_sigsys(int signal, siginfo_t *info, void *context);

void set_mask(signal_set mask) noexcept
{
	system_call(SYS_rt_sigprocmask, SIG_SETMASK, &mask, nullptr, sizeof(mask));
}

void restore_action() noexcept
{
	system_call(SYS_rt_sigaction, SIGSYS, &programs_action, nullptr, sizeof(signal_set));
}

void take_action() noexcept
{
	const kernel_sigaction action = {reinterpret_cast<std::uintptr_t>(on_sigsys),
					 SA_SIGINFO | sa_restorer, cowsnap_preload_sigreturn, 0};
	const guard hold;
	kernel_sigaction before;

	/* Each time: a child that shares all memory may have armed a thread in a table of its own. */
	system_call(SYS_rt_sigaction, SIGSYS, &action, &before, sizeof(signal_set));
	if (armed_threads++ == 0)
		programs_action = before;
}

void give_back_action() noexcept
{
	const guard hold;

	if (--armed_threads == 0)
		restore_action();
}

/* Those of the parent, in the child. */
void forget_other_threads() noexcept
{
	if (armed_threads > 0)
		restore_action();
	armed_threads = 0;
}

/* The program's mask, which is not the thread's now. */
long change_mask(const kernel_call &call) noexcept
{
	const signal_set old = current.mask;
	signal_set given;

	if (call.arguments[3] != sizeof(signal_set))
		return -EINVAL;
	if (call.arguments[1]) {
		std::memcpy(&given, reinterpret_cast<const void *>(call.arguments[1]),
			    sizeof(given));
		switch (call.arguments[0]) {
		case SIG_BLOCK: current.mask |= given; break;
		case SIG_UNBLOCK: current.mask &= ~given; break;
		case SIG_SETMASK: current.mask = given; break;
		default: return -EINVAL;
		}
	}
	if (call.arguments[2])
		std::memcpy(reinterpret_cast<void *>(call.arguments[2]), &old, sizeof(old));
	return 0;
}

/* First of all, as the lock may take a system call of the C library's. */
void stop_dispatching() noexcept
{
	dispatch(false);
	current.armed = false;
	give_back_action();
}

/* A system call that makes a process or a thread, whichever of them it is. */
class clone_call {
public:
	explicit clone_call(const kernel_call &call) noexcept : call_(call)
	{
		switch (call.number) {
		case SYS_fork:
			all_.flags = SIGCHLD;
			break;
		case SYS_vfork:
			all_.flags = CLONE_VFORK | CLONE_VM | SIGCHLD;
			break;
		case SYS_clone:
			all_.flags = static_cast<std::uint64_t>(call.arguments[0]);
			all_.stack = static_cast<std::uint64_t>(call.arguments[1]);
			all_.child_tid = static_cast<std::uint64_t>(call.arguments[3]);
			break;
		case SYS_clone3:
			std::memcpy(&all_, reinterpret_cast<const void *>(call.arguments[0]),
				    size());
			break;
		default:
			break;
		}
	}

	bool makes_process() const noexcept { return !(all_.flags & CLONE_VM); }

	/* Returns in both, on this stack; the child goes on by @context. */
	long make(ucontext_t &context) const noexcept
	{
		heap *const memory = heap::existing();
		clone_args on_this_stack = all_;
		kernel_call call = call_;

		on_this_stack.stack = on_this_stack.stack_size = 0;
		if (call.number == SYS_clone)
			call.arguments[1] = 0;
		if (call.number == SYS_clone3)
			call.arguments[0] = to_register(&on_this_stack);

		const long pid = memory ? memory->fork(call, all_.flags & CLONE_FILES)
					: call.make();

		if (pid == 0)
			start_child(context);
		return pid;
	}

private:
	std::size_t size() const noexcept
	{
		return std::min(static_cast<std::size_t>(call_.arguments[1]), sizeof(all_));
	}

	void start_child(ucontext_t &context) const noexcept
	{
		forget_other_threads();
		/* The kernel wrote it before there was anything in the heap's place. */
		if (all_.flags & CLONE_CHILD_SETTID)
			*reinterpret_cast<pid_t *>(all_.child_tid) =
				static_cast<pid_t>(system_call(SYS_gettid));
		if (all_.stack)
			context.uc_mcontext.gregs[REG_RSP] =
				static_cast<greg_t>(all_.stack + all_.stack_size);
	}

	const kernel_call &call_;
	clone_args all_ = {};
};

void on_clone(ucontext_t &context, const kernel_call &call) noexcept
{
	constexpr int size_of_syscall = 2;
	greg_t *const registers = context.uc_mcontext.gregs;
	const clone_call clone(call);

	stop_dispatching();
	std::memcpy(&context.uc_sigmask, &current.mask, sizeof(signal_set));
	if (clone.makes_process())
		registers[REG_RAX] = clone.make(context);
	else
		/* Once more, and not from here, to where both would return. */
		registers[REG_RIP] -= size_of_syscall;
}

void on_dispatched(ucontext_t &context) noexcept
{
	greg_t *const registers = context.uc_mcontext.gregs;
	const kernel_call call = {registers[REG_RAX],
				  {registers[REG_RDI], registers[REG_RSI], registers[REG_RDX],
				   registers[REG_R10], registers[REG_R8], registers[REG_R9]}};

	switch (call.number) {
	case SYS_rt_sigprocmask:
		registers[REG_RAX] = change_mask(call);
		return;
	case SYS_fork:
	case SYS_vfork:
	case SYS_clone:
	case SYS_clone3:
		on_clone(context, call);
		return;
	default:
		registers[REG_RAX] = call.make();
	}
}

void on_sigsys(int signal, siginfo_t *info, void *context)
{
	using handler = void(int, siginfo_t *, void *);
	const int saved = errno;

	if (info->si_code == dispatched)
		on_dispatched(*static_cast<ucontext_t *>(context));
	else if (programs_action.handler > 1)
		/* Of another thread, to which this happened just now. */
		reinterpret_cast<handler *>(programs_action.handler)(signal, info, context);
	errno = saved;
}

} // namespace

bool can_dispatch() noexcept
{
	return dispatch(true) && dispatch(false);
}

void arm() noexcept
{
	heap::leave_if_inherited();
	if (!heap::existing() || current.armed)
		return;
	system_call(SYS_rt_sigprocmask, SIG_SETMASK, &all_but_sigsys, &current.mask,
		    sizeof(signal_set));
	take_action();
	current.armed = dispatch(true);
	if (!current.armed) {
		give_back_action();
		set_mask(current.mask);
	}
}

void disarm() noexcept
{
	if (current.armed) {
		stop_dispatching();
		set_mask(current.mask);
	}
	heap::leave_if_inherited();
}

void start_child() noexcept
{
	guard::forget();
	disarm();
}

} // namespace cowsnap_preload
