/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Inside the pagewarp driver.
 *
 * An object is a shmem file, three bitmaps and a table of wait queues. The
 * VMM's mapping is a mapping of the shmem file whose fault handler first asks
 * for the page's resident bit; so swap, reclaim, mlock, fork and mremap are
 * those of shmem.
 *
 * A *page* is one of the object, of PAGE_SIZE << order: it has one bit in each
 * bitmap, and one fault. An *index* is one of PAGE_SIZE, as the kernel counts.
 *
 * Lifetimes: the object is its struct device. Node files and the daemon's end
 * hold it; a VMA, or a thread that sleeps in a fault, holds the node's file,
 * which also holds the module. An object that exists holds the module as well.
 *
 * Locks: pw_list_lock, then pw_object.lock, then pw_daemon.pending_lock. The
 * fault path takes none of the first two; of the third only when the ring is
 * full.
 *
 * Barriers, with the same letters in kmod/ring_unsafe.go and kmod/model/ring.pml:
 *  A  thread: waiter bit, then resident bit;  daemon: resident, then waiter bit
 *  B  producer: entry, then its seq;          consumer: seq, then entry
 *  C  consumer: copies the entry, then cons;  producer: cons, then the entry
 *  D  producer: seq, then need_wakeup;        consumer: need_wakeup, then seq
 *  E  thread: waiter bit, then daemon, epoch; attach, redeliver, wake: daemon,
 *     epoch, then waiter bits. Thread that spins: epoch (F), then the entry
 */
#ifndef PAGEWARP_H
#define PAGEWARP_H

#include <linux/cdev.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/poll.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>
#include <linux/spinlock.h>
#include <linux/version.h>
#include <linux/wait.h>

#include "pagewarp_uapi.h"

#ifndef CONFIG_64BIT
#error "pagewarp needs a 64-bit kernel"
#endif

#define PW_BUCKETS_LOG 8
#define PW_BUCKETS (1U << PW_BUCKETS_LOG)
#define PW_BITS 64

struct pw_stats {
	u64 faults;
	u64 posted;
	u64 overflows;
	u64 redelivered;
	u64 wakes;
	u64 killed;
	u64 spun;
};

struct pw_bucket {
	wait_queue_head_t wait;
} ____cacheline_aligned_in_smp;

/* A thread that waits for a page, on its stack. */
struct pw_waiter {
	wait_queue_entry_t entry;
	u64 page;
	u64 epoch;		/* in which it has reported its fault, or 0 */
	u64 most;		/* of looking before sleeping, in ns; 0: not at all */
	u64 begin;		/* ktime_get_ns(), where most is not 0 */
	u64 woken;		/* the same, of the last wake-up; or 0 */
};

/* The daemon's end; one per object at a time. */
struct pw_daemon {
	struct pw_object *obj;			/* holds a reference */
	struct rcu_head rcu;
	u32 entries;				/* power of two */
	struct pagewarp_producer *producer;	/* user: read only; then the entries */
	struct pagewarp_fault *ring;		/* user: read only */
	struct pagewarp_consumer *consumer;	/* user: read and write; do not trust */
	wait_queue_head_t poll_wait;
	atomic64_t epoch;			/* of faults that were reported: see E */
	u64 served_ns;				/* average, from a report to its page */
	u64 gap_ns;				/* average, from poll() to a report */
	u64 wake_ns;				/* average, from a report to who slept in poll() */
	u64 polled;				/* when a consumer found nothing; 0: none */
	unsigned int consumer_cpu;		/* of the last poll() */
	unsigned int producer_cpu;		/* of the last report */

	spinlock_t pending_lock;
	u64 npending;				/* bits in obj->pending, pending_lock */
	u64 hint;				/* where to look for one, pending_lock */
};

struct pw_object {
	struct device dev;
	struct cdev cdev;
	struct list_head list;		/* pw_list_lock */
	char name[PAGEWARP_NAME_LEN];
	u32 id;
	int minor;
	umode_t mode;
	kuid_t uid;
	kgid_t gid;
	u32 policy;
	u32 deadline_ms;
	struct file *shmem;
	unsigned int order;		/* PAGE_SIZE << order is the object's page */
	u64 max_pages;			/* at creation; the size of the bitmaps */
	u64 pages;			/* READ_ONCE; shrinks under lock */

	u64 *resident;			/* user: read and write; do not trust */
	unsigned long *waiters;		/* user: read only */
	unsigned long *pending;		/* kernel only; daemon->pending_lock */
	struct pw_bucket *bucket;	/* PW_BUCKETS of them */
	struct pw_stats __percpu *stats;

	struct mutex lock;		/* guards all changes of what follows */
	struct pw_daemon __rcu *daemon;
	bool plain;
	bool frozen;
	bool destroyed;
	bool had_daemon;
	unsigned long died;		/* jiffies, when the last daemon went */
};

extern struct class *pw_class;
extern dev_t pw_devt;
extern const struct file_operations pw_node_fops;

/* control.c */
long pw_get_info(void __user *arg);
int pw_control_init(void);
void pw_control_exit(void);

/* object.c */
int pw_create(struct pagewarp_create *c);
int pw_destroy(const char *name);
struct pw_object *pw_find(const char *name);
struct pw_object *pw_find_id(u32 from);
u32 pw_objects(void);
void pw_stat(struct pw_object *o, struct pagewarp_stat *s);
int pw_shrink(struct pw_object *o, u64 bytes);
int pw_check_plain(struct pw_object *o);
int pw_freeze(struct pw_object *o);
int pw_thaw(struct pw_object *o);
int pw_reset(struct pw_object *o);

/* memory.c */
int pw_memory_init(void);
void pw_memory_exit(void);
u32 pw_huge_page_size(void);
int pw_page_order(u32 page_size);
int pw_make_memory(struct pw_object *o);
int pw_open_memory(struct pw_object *o, int flags, struct file **file);

static inline struct pw_object *pw_get(struct pw_object *o)
{
	get_device(&o->dev);
	return o;
}

static inline void pw_put(struct pw_object *o)
{
	put_device(&o->dev);
}

/* fault.c */
void pw_set_vm_ops(struct vm_area_struct *vma, struct file *node);
void pw_announce(struct pw_object *o, u64 page, u32 flags, u64 epoch);
void pw_wake_page(struct pw_object *o, u64 page);
u32 pw_wake_range(struct pw_object *o, u64 first, u64 count);
void pw_wake_all(struct pw_object *o);

/* The number of bits of a page's size. */
static inline unsigned int pw_shift(const struct pw_object *o)
{
	return PAGE_SHIFT + o->order;
}

/* The page that an index is in. */
static inline u64 pw_page(const struct pw_object *o, pgoff_t index)
{
	return index >> o->order;
}

/* Of each of the bitmaps. */
static inline u64 pw_bitmap_bytes(struct pw_object *o)
{
	return PAGE_ALIGN(DIV_ROUND_UP(o->max_pages, 8));
}

/* Whether the page's content is there. */
static inline bool pw_present(struct pw_object *o, u64 page)
{
	/* Pairs with the store in pw_release(). */
	if (smp_load_acquire(&o->plain))
		return true;
	/* The acquire orders the bit before the content it vouches for. */
	return smp_load_acquire(&o->resident[page / PW_BITS]) &
	       BIT_ULL(page % PW_BITS);
}

/* ring.c */
u64 pw_post(struct pw_object *o, u64 page, u32 flags);
u64 pw_epoch(struct pw_object *o);
void pw_new_epoch(struct pw_daemon *d);
void pw_flush(struct pw_daemon *d);
void pw_redeliver(struct pw_daemon *d);
struct pagewarp_fault *pw_ring_next(struct pw_daemon *d);
bool pw_ring_ready(struct pw_daemon *d);

/*
 * A moving average of waits, which decides whether looking pays. An update may be
 * lost. A wait counts for twice @most at the most: a long one, when nothing happens,
 * is forgotten soon.
 */
static inline void pw_average(u64 *avg, u64 ns, u64 most)
{
	u64 a = READ_ONCE(*avg);

	WRITE_ONCE(*avg, a - a / 8 + min(ns, 2 * most) / 8);
}

/* What user space asks for, in ns. */
static inline u64 pw_spin_most(u32 *us)
{
	return min_t(u32, READ_ONCE(*us), PAGEWARP_MAX_SPIN_US) *
	       (u64)NSEC_PER_USEC;
}

/*
 * How long to look at most before going to sleep, in ns: @most, while nobody else wants
 * this CPU. Else as long as a sleep costs, which is two changes of threads, each taken
 * to be like the consumer's of late: who looks for longer takes more from the others
 * than it spares. And not at all where @from, the CPU of whoever is waited for, is this one.
 */
static inline u64 pw_spin_ns(struct pw_daemon *d, unsigned int from, u64 most)
{
	if (need_resched() || signal_pending(current))
		return 0;
	if (single_task_running())
		return most;
	if (from == raw_smp_processor_id())
		return 0;
	return min(2 * READ_ONCE(d->wake_ns), most);
}

/* daemon.c */
int pw_attach(struct pw_object *o, u32 entries, struct file **file);

/* What differs between kernel versions. */
static inline void pw_vm_flags(struct vm_area_struct *vma, unsigned long set,
			       unsigned long clear)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_mod(vma, set, clear);
#else
	vma->vm_flags = (vma->vm_flags | set) & ~clear;
#endif
}

/* Has another file map itself. */
static inline int pw_mmap(struct file *file, struct vm_area_struct *vma)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 17, 0)
	return vfs_mmap(file, vma);
#else
	return call_mmap(file, vma);
#endif
}

/* Flags of shmem_file_setup(), which became a structure in 7.0. */
#ifdef mk_vma_flags
#define PW_NORESERVE mk_vma_flags(VMA_NORESERVE_BIT)
#else
#define PW_NORESERVE VM_NORESERVE
#endif

/* Lets go of the lock under which the fault came. */
static inline void pw_unlock_fault(struct vm_fault *vmf)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)
	release_fault_lock(vmf);
#else
	mmap_read_unlock(vmf->vma->vm_mm);
#endif
}

#endif /* PAGEWARP_H */
