// SPDX-License-Identifier: GPL-2.0-only
/*
 * The fault ring: kernel producers on any CPU, consumers in user space.
 *
 * A producer reserves an index by moving prod, writes the entry, and stores
 * index + 1 as its seq; so an entry is read only when it is whole, and producers
 * never wait for each other. What user space writes (cons, need_wakeup) is read
 * once and only compared: whatever it holds, an entry of the ring is written.
 */
#include <linux/ktime.h>
#include <linux/sched.h>

#include "pagewarp.h"

static void pw_wake_consumer(struct pw_daemon *d)
{
	/* D: seq before need_wakeup; and before the look at the queue. */
	smp_mb();
	if (!READ_ONCE(d->consumer->need_wakeup))
		return;
	/* poll() queues itself, and then looks at the ring. */
	if (waitqueue_active(&d->poll_wait))
		wake_up_interruptible_poll(&d->poll_wait, EPOLLIN | EPOLLRDNORM);
}

/* Puts one fault into the ring; false if it is full. */
static bool pw_ring_put(struct pw_daemon *d, u64 page, u32 flags)
{
	struct pagewarp_producer *p = d->producer;
	struct pagewarp_fault *f;
	u32 prod, cons;

	/* So that no consumer waits long for the entry of a slow producer. */
	preempt_disable();
	prod = READ_ONCE(p->prod);
	do {
		/* C: the consumer has copied what we are about to overwrite. */
		cons = smp_load_acquire(&d->consumer->cons);
		if (prod - cons >= d->entries) {
			preempt_enable();
			return false;
		}
	} while (!try_cmpxchg(&p->prod, &prod, prod + 1));
	f = &d->ring[prod & (d->entries - 1)];
	WRITE_ONCE(f->page, page);
	WRITE_ONCE(f->time_ns, ktime_get_ns());
	WRITE_ONCE(f->tid, flags & PAGEWARP_FAULT_AGAIN ? 0 : current->pid);
	WRITE_ONCE(f->flags, flags);
	/* B: the entry before its seq. */
	smp_store_release(&f->seq, prod + 1);
	preempt_enable();
	this_cpu_inc(d->obj->stats->posted);
	return true;
}

/* Notes that a fault could not be put into the ring, under pending_lock. */
static void pw_set_pending(struct pw_daemon *d, u64 page)
{
	if (test_and_set_bit(page, d->obj->pending))
		return;
	d->npending++;
	WRITE_ONCE(d->producer->flags, PAGEWARP_RING_PENDING);
}

/*
 * Moves faults that found the ring full into it, as far as there is room; no more than it
 * has entries, as a consumer may make room all the time that the lock is held. The rest
 * is for the next call: a consumer that finds the ring empty polls.
 */
void pw_flush(struct pw_daemon *d)
{
	struct pw_object *o = d->obj;
	u32 most = d->entries;
	bool any = false;
	u64 page;

	/* READ_ONCE: who adds one afterwards flushes by itself. */
	if (!READ_ONCE(d->npending))
		return;
	spin_lock(&d->pending_lock);
	while (d->npending && most--) {
		page = find_next_bit(o->pending, o->max_pages, d->hint);
		if (page >= o->max_pages)
			page = find_first_bit(o->pending, o->max_pages);
		d->hint = page;
		if (!pw_ring_put(d, page, PAGEWARP_FAULT_AGAIN))
			break;
		clear_bit(page, o->pending);
		d->npending--;
		this_cpu_inc(o->stats->redelivered);
		any = true;
	}
	if (!d->npending)
		WRITE_ONCE(d->producer->flags, 0);
	spin_unlock(&d->pending_lock);
	if (any)
		pw_wake_consumer(d);
}

/*
 * Reports a fault to the daemon, if there is one: else attach will. Returns the
 * epoch in which it did, or 0.
 */
u64 pw_post(struct pw_object *o, u64 page, u32 flags)
{
	struct pw_daemon *d;
	u64 epoch = 0;

	rcu_read_lock();
	d = rcu_dereference(o->daemon);
	if (!d)
		goto out;
	WRITE_ONCE(d->producer_cpu, raw_smp_processor_id());
	/* F: the epoch before the entry, which is of it or of a later one. */
	epoch = atomic64_read_acquire(&d->epoch);
	if (pw_ring_put(d, page, flags)) {
		pw_wake_consumer(d);
		goto out;
	}
	this_cpu_inc(o->stats->overflows);
	spin_lock(&d->pending_lock);
	d->producer->overflows++;
	pw_set_pending(d, page);
	spin_unlock(&d->pending_lock);
	/*
	 * The consumer may have emptied the ring meanwhile and gone to sleep:
	 * it has seen npending (poll looks after it has queued itself), or it
	 * is in the queue now.
	 */
	smp_mb();
	pw_flush(d);
	wake_up_interruptible_poll(&d->poll_wait, EPOLLIN | EPOLLRDNORM);
out:
	rcu_read_unlock();
	return epoch;
}

/* The epoch of the daemon, or 0. A waiter bit that was set before is seen by the next. */
u64 pw_epoch(struct pw_object *o)
{
	struct pw_daemon *d;
	u64 epoch = 0;

	rcu_read_lock();
	d = rcu_dereference(o->daemon);
	if (d)
		epoch = atomic64_read(&d->epoch);
	rcu_read_unlock();
	return epoch;
}

/*
 * What was reported before has to be reported anew by who has not set the waiter
 * bit yet. Fully ordered before the look at the waiter bits that follows (E).
 */
void pw_new_epoch(struct pw_daemon *d)
{
	static atomic64_t last;

	atomic64_set(&d->epoch, atomic64_inc_return(&last));
	smp_mb(); /* E */
}

/* Has all outstanding faults posted anew: a new daemon, or one that asks. */
void pw_redeliver(struct pw_daemon *d)
{
	struct pw_object *o = d->obj;
	u64 page;

	pw_new_epoch(d);
	for_each_set_bit(page, o->waiters, o->max_pages) {
		if (pw_present(o, page)) {
			pw_wake_page(o, page);
		} else {
			spin_lock(&d->pending_lock);
			pw_set_pending(d, page);
			spin_unlock(&d->pending_lock);
		}
		cond_resched();
	}
	pw_flush(d);
}

/* The entry that the consumer says is its next: any of them. */
struct pagewarp_fault *pw_ring_next(struct pw_daemon *d)
{
	return &d->ring[READ_ONCE(d->consumer->cons) & (d->entries - 1)];
}

/* Whether the consumer would find an entry. */
bool pw_ring_ready(struct pw_daemon *d)
{
	u32 cons = READ_ONCE(d->consumer->cons);
	struct pagewarp_fault *f = &d->ring[cons & (d->entries - 1)];

	/* B: as the consumer does. */
	return smp_load_acquire(&f->seq) == cons + 1;
}
