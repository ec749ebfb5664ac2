// SPDX-License-Identifier: GPL-2.0-only
// Slab, RCU, mutexes and the account, in userspace and suspicious.
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <shared_mutex>
#include <utility>

#include <gtest/gtest.h>

extern "C" {
#include "account.h"
}
#include <linux/mutex.h>
#include <linux/percpu_counter.h>
#include <linux/rcupdate.h>

struct kmem_cache {
	std::size_t size;
	std::atomic<long> live;
};

namespace {

// Its address tells threads apart.
thread_local char this_thread;
thread_local unsigned int reader_depth;
thread_local bool in_callback;
thread_local unsigned int mutexes_held;

thread_local u64 allocations;
thread_local unsigned int fail_in;
thread_local bool failed;

thread_local u64 dereferences;
thread_local u64 reader_dereferences;
thread_local unsigned int hook_in;
thread_local std::pair<void (*)(void *), void *> hook;

std::atomic<u64> live_objects;

// Readers share it; who has it alone knows that a grace period has passed.
std::shared_mutex readers;
std::mutex pending_lock;
rcu_head *pending;
std::atomic<bool> eager{true};

bool may_allocate()
{
	if (fail_in && !--fail_in) {
		failed = true;
		return false;
	}
	++allocations;
	return true;
}

void *zalloc(std::size_t size)
{
	if (!may_allocate())
		return nullptr;
	++live_objects;
	return std::calloc(1, size);
}

void release(void *object)
{
	--live_objects;
	std::free(object);
}

rcu_head *take_pending()
{
	const std::lock_guard guard(pending_lock);

	return std::exchange(pending, nullptr);
}

void run(rcu_head *head)
{
	const bool nested = std::exchange(in_callback, true);

	while (head) {
		rcu_head *next = head->next;

		head->func(head);
		head = next;
	}
	in_callback = nested;
}

void run_if_no_reader()
{
	if (!eager || reader_depth || !readers.try_lock())
		return;
	rcu_head *due = take_pending();
	readers.unlock();
	run(due);
}

} // namespace

void shim_complain(const char *file, int line, const char *what)
{
	ADD_FAILURE_AT(file, line) << what;
}

void shim_might_sleep(const char *file, int line)
{
	if (reader_depth)
		shim_complain(file, line, "sleeps in an RCU reader");
	if (in_callback)
		shim_complain(file, line, "sleeps in an RCU callback");
}

u64 shim_allocations()
{
	return allocations;
}

void shim_fail_allocation(unsigned int nth)
{
	fail_in = nth;
	failed = false;
}

bool shim_allocation_failed()
{
	return failed;
}

u64 shim_live_objects()
{
	return live_objects;
}

kmem_cache *kmem_cache_create(const char *, unsigned int size, unsigned int,
			      unsigned int, void (*)(void *))
{
	auto *cache = static_cast<kmem_cache *>(zalloc(sizeof(kmem_cache)));

	if (cache)
		cache->size = size;
	return cache;
}

void kmem_cache_destroy(kmem_cache *cache)
{
	if (cache->live)
		shim_complain(__FILE__, __LINE__, "cache has live objects");
	release(cache);
}

void *shim_slab_zalloc(kmem_cache *cache)
{
	void *object = zalloc(cache->size);

	if (object)
		++cache->live;
	return object;
}

void kmem_cache_free(kmem_cache *cache, void *object)
{
	--cache->live;
	release(object);
}

int percpu_counter_init(percpu_counter *counter, s64 amount, int)
{
	counter->count = amount;
	counter->cpus = zalloc(sizeof(amount));
	return counter->cpus ? 0 : -ENOMEM;
}

void percpu_counter_destroy(percpu_counter *counter)
{
	release(std::exchange(counter->cpus, nullptr));
}

void shim_rcu_eager(bool on)
{
	eager = on;
	run_if_no_reader();
}

void shim_rcu_grace_period()
{
	rcu_head *due = take_pending();

	readers.lock();
	readers.unlock();
	run(due);
}

void rcu_barrier()
{
	shim_might_sleep(__FILE__, __LINE__);
	shim_rcu_grace_period();
}

void rcu_read_lock()
{
	if (reader_depth++)
		return;
	readers.lock_shared();
	reader_dereferences = 0;
}

void rcu_read_unlock()
{
	if (--reader_depth)
		return;
	readers.unlock_shared();
	run_if_no_reader();
}

bool rcu_read_lock_held()
{
	return reader_depth;
}

void call_rcu(rcu_head *head, void (*func)(rcu_head *))
{
	head->func = func;
	{
		const std::lock_guard guard(pending_lock);

		head->next = std::exchange(pending, head);
	}
	run_if_no_reader();
}

void shim_dereferenced()
{
	++dereferences;
	if (++reader_dereferences > 1 << 24) {
		shim_complain(__FILE__, __LINE__, "an RCU reader goes in circles");
		std::abort();
	}
}

u64 shim_dereferences()
{
	return dereferences;
}

void shim_lockless_read()
{
	/* What is read under a lock is not read lockless. */
	if (!mutexes_held && hook_in && !--hook_in)
		hook.first(hook.second);
}

void shim_hook_lockless_read(unsigned int nth, void (*fn)(void *), void *arg)
{
	hook_in = nth;
	hook = {fn, arg};
}

void mutex_init(struct mutex *mutex)
{
	pthread_mutex_init(&mutex->lock, nullptr);
	mutex->owner = nullptr;
}

void mutex_destroy(struct mutex *mutex)
{
	if (__atomic_load_n(&mutex->owner, __ATOMIC_RELAXED))
		shim_complain(__FILE__, __LINE__, "a locked mutex is destroyed");
	pthread_mutex_destroy(&mutex->lock);
}

void mutex_lock(struct mutex *mutex)
{
	shim_might_sleep(__FILE__, __LINE__);
	if (lockdep_is_held(mutex)) {
		shim_complain(__FILE__, __LINE__, "a mutex is taken twice");
		std::abort();
	}
	pthread_mutex_lock(&mutex->lock);
	__atomic_store_n(&mutex->owner, &this_thread, __ATOMIC_RELAXED);
	++mutexes_held;
}

void mutex_unlock(struct mutex *mutex)
{
	if (!lockdep_is_held(mutex))
		shim_complain(__FILE__, __LINE__, "another's mutex is unlocked");
	__atomic_store_n(&mutex->owner, nullptr, __ATOMIC_RELAXED);
	--mutexes_held;
	pthread_mutex_unlock(&mutex->lock);
}

bool lockdep_is_held(const struct mutex *mutex)
{
	return __atomic_load_n(&mutex->owner, __ATOMIC_RELAXED) == &this_thread;
}

/* Tests charge granules, not bytes: what is held must be what lives. */
void cowsnap_account_uncharge(cowsnap_account *account, unsigned long nr)
{
	atomic_long_sub(static_cast<long>(nr), &account->held);
}
