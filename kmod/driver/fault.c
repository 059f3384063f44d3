// SPDX-License-Identifier: GPL-2.0-only
/*
 * Faults of the VMM: what happens when a page of an object is touched.
 *
 * The operations of the VMA are shmem's own, but for three: fault and
 * map_pages ask for the resident bits first, and page_mkwrite is there so that
 * a frozen object refuses writes.
 */
#include <linux/file.h>
#include <linux/hash.h>
#include <linux/highmem.h>
#include <linux/pagemap.h>
#include <linux/sched/signal.h>
#include <linux/sched/stat.h>

#include "pagewarp.h"

static DEFINE_MUTEX(pw_ops_lock);
static struct vm_operations_struct pw_ops;
static const struct vm_operations_struct *pw_shmem_ops;

static struct pw_bucket *pw_bucket(struct pw_object *o, u64 page)
{
	return &o->bucket[hash_64(page, PW_BUCKETS_LOG)];
}

/* Whether nobody will ever bring a missing page. */
static bool pw_dead(struct pw_object *o)
{
	if (READ_ONCE(o->destroyed))
		return true;
	if (o->policy != PAGEWARP_POLICY_SIGBUS || !READ_ONCE(o->had_daemon) ||
	    rcu_access_pointer(o->daemon))
		return false;
	/* The time belongs to the pointer: pw_daemon_release() stores it first. */
	smp_rmb();
	return time_after_eq(jiffies, READ_ONCE(o->died) +
			     msecs_to_jiffies(o->deadline_ms));
}

/* How long to sleep at most before pw_dead() is to be asked again. */
static long pw_patience(struct pw_object *o)
{
	long left;

	if (o->policy != PAGEWARP_POLICY_SIGBUS || !READ_ONCE(o->had_daemon) ||
	    rcu_access_pointer(o->daemon))
		return MAX_SCHEDULE_TIMEOUT;
	left = (long)(READ_ONCE(o->died) + msecs_to_jiffies(o->deadline_ms) -
		      jiffies);
	return max(left, 1L);
}

/*
 * Marks the page as waited for; who is the first to do so reports the fault, unless
 * it did in @epoch, which lasts. Fully ordered before the look at the resident bit
 * that follows (A), and before that at the daemon and its epoch (E).
 */
void pw_announce(struct pw_object *o, u64 page, u32 flags, u64 epoch)
{
	if (test_and_set_bit(page, o->waiters))
		smp_mb(); /* A: not implied where the bit was set already */
	else if (!epoch || epoch != pw_epoch(o))
		pw_post(o, page, flags);
}

static int pw_wake_one(wait_queue_entry_t *entry, unsigned int mode, int sync,
		       void *key)
{
	struct pw_waiter *w = container_of(entry, struct pw_waiter, entry);

	if (key && *(u64 *)key != w->page)
		return 0;
	w->woken = ktime_get_ns();
	return default_wake_function(entry, mode, sync, NULL);
}

/* The bit goes first: whoever comes after that reports the page anew. */
void pw_wake_page(struct pw_object *o, u64 page)
{
	clear_bit(page, o->waiters);
	/* Orders the bit before the look at the queue. */
	smp_mb__after_atomic();
	/* waitqueue_active: the barrier above pairs with A of who has queued itself. */
	if (waitqueue_active(&pw_bucket(o, page)->wait))
		__wake_up(&pw_bucket(o, page)->wait, TASK_NORMAL, 0, &page);
	this_cpu_inc(o->stats->wakes);
}

u32 pw_wake_range(struct pw_object *o, u64 first, u64 count)
{
	u64 end = first + count;
	u64 page;
	u32 woken = 0;

	for (page = find_next_bit(o->waiters, end, first); page < end;
	     page = find_next_bit(o->waiters, end, page + 1)) {
		pw_wake_page(o, page);
		woken++;
		cond_resched();
	}
	return woken;
}

void pw_wake_all(struct pw_object *o)
{
	unsigned int i;

	/* Orders the change of state before the look at the queues. */
	smp_mb();
	for (i = 0; i < PW_BUCKETS; i++)
		__wake_up(&o->bucket[i].wait, TASK_NORMAL, 0, NULL);
}

/* Notes how long the daemon has taken to bring a page, against @most. */
static void pw_served(struct pw_object *o, u64 ns, u64 most)
{
	struct pw_daemon *d;

	rcu_read_lock();
	d = rcu_dereference(o->daemon);
	if (d)
		pw_average(&d->served_ns, ns, most);
	rcu_read_unlock();
}

/* Whether to look for a page, or to go on to: if pages have come soon enough of late. */
static bool pw_look(struct pw_object *o, struct pw_waiter *w)
{
	struct pw_daemon *d;
	u64 ns = 0;

	rcu_read_lock();
	d = rcu_dereference(o->daemon);
	if (d) {
		ns = pw_spin_ns(d, READ_ONCE(d->consumer_cpu), w->most);
		if (READ_ONCE(d->served_ns) > ns)
			ns = 0;
	}
	rcu_read_unlock();
	return ktime_get_ns() - w->begin < ns;
}

/*
 * Looks for the page before the thread goes to sleep: one that comes meanwhile costs
 * neither a change of threads nor a call of the daemon. True if it has come. What follows
 * if not is in @w.
 */
static bool pw_spin(struct pw_object *o, u64 page, u32 flags, struct pw_waiter *w)
{
	struct pw_daemon *d;

	rcu_read_lock();
	d = rcu_dereference(o->daemon);
	w->most = d ? pw_spin_most(&d->consumer->spin_us) : 0;
	rcu_read_unlock();
	w->page = page;
	if (!w->most)
		return false;
	w->begin = ktime_get_ns();
	if (!pw_look(o, w))
		return false;
	/* Whoever sleeps has reported it. */
	if (!test_bit(page, o->waiters))
		w->epoch = pw_post(o, page, flags);
	do {
		if (pw_present(o, page)) {
			this_cpu_inc(o->stats->spun);
			pw_served(o, ktime_get_ns() - w->begin, w->most);
			return true;
		}
		cpu_relax();
	} while (pw_look(o, w));
	return false;
}

/* Sleeps until the page is there (0), a signal comes or all hope is lost. */
static int pw_wait(struct pw_object *o, u32 flags, unsigned int state,
		   struct pw_waiter *w)
{
	u64 page = w->page;
	struct wait_queue_head *q = &pw_bucket(o, page)->wait;
	int ret = 0;

	init_waitqueue_func_entry(&w->entry, pw_wake_one);
	w->entry.private = current;
	add_wait_queue(q, &w->entry);
	for (;;) {
		/* In the queue before the bit is set: a wake-up finds us. */
		set_current_state(state);
		/* Asked twice: a fault that was just served is not reported. */
		if (!pw_present(o, page))
			pw_announce(o, page, flags, w->epoch);
		if (pw_present(o, page) || page >= READ_ONCE(o->pages))
			break;
		if (pw_dead(o)) {
			ret = -EIO;
			break;
		}
		if (signal_pending_state(state, current)) {
			ret = -EINTR;
			break;
		}
		schedule_timeout(pw_patience(o));
		w->epoch = 0;
	}
	__set_current_state(TASK_RUNNING);
	remove_wait_queue(q, &w->entry);
	/* Until it was woken, not until it ran: the rest it would be spared. */
	if (w->most && !ret)
		pw_served(o, (w->woken ?: ktime_get_ns()) - w->begin, w->most);
	return ret;
}

static int pw_nothing(pte_t *pte, unsigned long addr, void *data)
{
	return 0;
}

/* The first index of a folio that is missing, or is not of the object; or its end. */
static u64 pw_first_missing(struct pw_object *o, struct folio *folio)
{
	u64 index = folio->index;
	u64 end = index + folio_nr_pages(folio);

	while (index < end && pw_page(o, index) < READ_ONCE(o->pages) &&
	       pw_present(o, pw_page(o, index)))
		index++;
	return index;
}

/*
 * Whether a fault on one page of a folio may map all of it, as finish_fault() does
 * from 6.18 on; if not, @missing is a page that has to come first.
 */
static bool pw_mappable(struct pw_object *o, struct folio *folio, u64 *missing)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 18, 0)
	u64 end = min_t(u64, folio->index + folio_nr_pages(folio),
			READ_ONCE(o->pages) << o->order);
	u64 index = pw_first_missing(o, folio);

	if (index < end) {
		*missing = pw_page(o, index);
		return false;
	}
#endif
	return true;
}

/*
 * Maps a page whose content is there; 0 if another, which it stores in @missing,
 * has to come before that.
 */
static vm_fault_t pw_map(struct pw_object *o, struct vm_fault *vmf, u64 *missing)
{
	vm_fault_t ret = pw_shmem_ops->fault(vmf);
	struct folio *folio;

	if (!(ret & VM_FAULT_LOCKED))
		return ret;
	/* A shrink that comes later finds the page mapped, and unmaps it. */
	if (unlikely(pw_page(o, vmf->pgoff) >= READ_ONCE(o->pages))) {
		unlock_page(vmf->page);
		put_page(vmf->page);
		return VM_FAULT_SIGBUS;
	}
	/* A reset that comes later finds the page locked, and frees it. */
	if (unlikely(!pw_present(o, pw_page(o, vmf->pgoff)))) {
		unlock_page(vmf->page);
		put_page(vmf->page);
		return VM_FAULT_NOPAGE; /* and is taken again */
	}
	if (unlikely(!pw_mappable(o, page_folio(vmf->page), missing))) {
		unlock_page(vmf->page);
		put_page(vmf->page);
		return 0;
	}
	/*
	 * A huge page would be mapped as a whole, with what is missing in it,
	 * were there no table of small ones in its place. One of which nothing is
	 * missing may be.
	 */
	folio = page_folio(vmf->page);
	if (unlikely(folio_test_large(folio)) && pmd_none(*vmf->pmd) &&
	    pw_first_missing(o, folio) < folio->index + folio_nr_pages(folio) &&
	    apply_to_page_range(vmf->vma->vm_mm, vmf->address & PAGE_MASK,
				PAGE_SIZE, pw_nothing, NULL)) {
		unlock_page(vmf->page);
		put_page(vmf->page);
		return VM_FAULT_OOM;
	}
	return ret;
}

/* Waits for a page; 0 if it is there and the lock was not given up. */
static vm_fault_t pw_absent(struct pw_object *o, struct file *node,
			    struct vm_fault *vmf, u64 page)
{
	u32 flags = vmf->flags & FAULT_FLAG_WRITE ? PAGEWARP_FAULT_WRITE : 0;
	unsigned int state = TASK_KILLABLE;
	struct pw_waiter w = {};
	int ret;

	if (pw_dead(o)) {
		this_cpu_inc(o->stats->killed);
		return VM_FAULT_SIGBUS;
	}
	this_cpu_inc(o->stats->faults);
	if (vmf->flags & FAULT_FLAG_ALLOW_RETRY) {
		if (vmf->flags & FAULT_FLAG_RETRY_NOWAIT) {
			/* KVM's asynchronous faults: the lock stays taken. */
			pw_announce(o, page, flags | PAGEWARP_FAULT_NOWAIT, 0);
			return VM_FAULT_RETRY;
		}
		/*
		 * With the lock still taken, for a millisecond at most: then the page
		 * is mapped at once, and not by another fault.
		 */
		if (pw_spin(o, page, flags, &w))
			return 0;
		/*
		 * A fault in kernel mode is taken again until it is served or the
		 * thread dies: a signal must not make a busy loop of that.
		 */
		if (vmf->flags & FAULT_FLAG_USER &&
		    vmf->flags & FAULT_FLAG_INTERRUPTIBLE)
			state = TASK_INTERRUPTIBLE;
		/* Without the lock the VMA may go; the file keeps the object. */
		get_file(node);
		pw_unlock_fault(vmf);
		pw_wait(o, flags, state, &w);
		fput(node);
		/* Taken again, whatever came of it: SIGBUS would want the lock. */
		return VM_FAULT_RETRY;
	}
	/*
	 * Who cannot retry (ptrace, /proc/PID/mem) sleeps with the lock taken,
	 * as over a slow file system. The daemon never needs it.
	 */
	ret = pw_spin(o, page, flags, &w) ? 0 : pw_wait(o, flags, state, &w);
	if (!ret && page < READ_ONCE(o->pages))
		return 0;
	this_cpu_inc(o->stats->killed);
	return VM_FAULT_SIGBUS;
}

static vm_fault_t pw_fault(struct vm_fault *vmf)
{
	struct file *node = vmf->vma->vm_private_data;
	struct pw_object *o = node->private_data;
	u64 page = pw_page(o, vmf->pgoff);
	vm_fault_t ret = 0;

	if (unlikely(page >= READ_ONCE(o->pages)))
		return VM_FAULT_SIGBUS;
	while (!ret) {
		if (!pw_present(o, page))
			ret = pw_absent(o, node, vmf, page);
		page = pw_page(o, vmf->pgoff);
		if (!ret && likely(pw_present(o, page)))
			ret = pw_map(o, vmf, &page);
	}
	return ret;
}

/* Maps the neighbours of a page that are there, up to the first that is not. */
static vm_fault_t pw_map_pages(struct vm_fault *vmf, pgoff_t start, pgoff_t end)
{
	struct file *node = vmf->vma->vm_private_data;
	struct pw_object *o = node->private_data;
	u64 pages = READ_ONCE(o->pages) << o->order;
	vm_fault_t ret;
	pgoff_t lo, hi;

	if (vmf->pgoff >= pages)
		return 0;
	end = min_t(u64, end, pages - 1);
	/* A reset waits for those who have seen the memory plain. */
	rcu_read_lock();
	/*
	 * As in pw_present(). Of memory that has shrunk a huge page may be left that
	 * is not of the object as a whole: see below.
	 */
	if (smp_load_acquire(&o->plain) && pages == o->max_pages << o->order) {
		ret = pw_shmem_ops->map_pages(vmf, start, end);
		rcu_read_unlock();
		return ret;
	}
	rcu_read_unlock();
	/*
	 * Where there is no page table yet a huge page would be mapped as a
	 * whole; the fault proper makes one.
	 */
	if (pmd_none(*vmf->pmd) || !pw_present(o, pw_page(o, vmf->pgoff)))
		return 0;
	for (lo = vmf->pgoff; lo > start && pw_present(o, pw_page(o, lo - 1)); lo--)
		;
	for (hi = vmf->pgoff; hi < end && pw_present(o, pw_page(o, hi + 1)); hi++)
		;
	return pw_shmem_ops->map_pages(vmf, lo, hi);
}

/*
 * Refuses writes to a frozen object. The page is locked before frozen is read,
 * and stays so until it is mapped; pw_freeze() does the opposite.
 */
static vm_fault_t pw_mkwrite(struct vm_fault *vmf)
{
	struct file *node = vmf->vma->vm_private_data;
	struct pw_object *o = node->private_data;
	struct folio *folio = page_folio(vmf->page);

	folio_lock(folio);
	if (folio->mapping != o->shmem->f_mapping) {
		folio_unlock(folio);
		return VM_FAULT_NOPAGE;
	}
	/* Pairs with the one in pw_freeze(). */
	smp_mb();
	if (unlikely(READ_ONCE(o->frozen))) {
		folio_unlock(folio);
		this_cpu_inc(o->stats->killed);
		return VM_FAULT_SIGBUS;
	}
	return VM_FAULT_LOCKED;
}

static void pw_vma_open(struct vm_area_struct *vma)
{
	struct file *node = vma->vm_private_data;

	get_file(node);
}

static void pw_vma_close(struct vm_area_struct *vma)
{
	struct file *node = vma->vm_private_data;

	fput(node);
}

/* Makes a fresh mapping of the shmem file ours. */
void pw_set_vm_ops(struct vm_area_struct *vma, struct file *node)
{
	mutex_lock(&pw_ops_lock);
	if (!pw_shmem_ops) {
		pw_ops = *vma->vm_ops;
		pw_ops.open = pw_vma_open;
		pw_ops.close = pw_vma_close;
		pw_ops.fault = pw_fault;
		pw_ops.map_pages = pw_map_pages;
		pw_ops.page_mkwrite = pw_mkwrite;
		pw_shmem_ops = vma->vm_ops;
	}
	mutex_unlock(&pw_ops_lock);
	vma->vm_private_data = get_file(node);
	vma->vm_ops = &pw_ops;
}
