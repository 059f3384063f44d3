// SPDX-License-Identifier: GPL-2.0-only
/*
 * The daemon's end of an object: an anonymous file that holds the ring. It goes
 * with its last descriptor and mapping, so the daemon's death needs no word.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "pagewarp.h"

#define PW_OFF_PRODUCER 0ULL
#define PW_OFF_CONSUMER (1ULL << 40)
#define PW_OFF_RESIDENT (2ULL << 40)
#define PW_OFF_WAITERS (3ULL << 40)

static u64 pw_ring_bytes(struct pw_daemon *d)
{
	return PAGE_ALIGN(PAGE_SIZE +
			  d->entries * sizeof(struct pagewarp_fault));
}

static void pw_daemon_free(struct pw_daemon *d)
{
	vfree(d->producer);
	vfree(d->consumer);
	kfree(d);
}

static struct pw_daemon *pw_daemon_alloc(struct pw_object *o, u32 entries)
{
	struct pw_daemon *d = kzalloc(sizeof(*d), GFP_KERNEL_ACCOUNT);
	u32 start = -entries;
	u32 i;

	if (!d)
		return NULL;
	d->entries = entries;
	init_waitqueue_head(&d->poll_wait);
	spin_lock_init(&d->pending_lock);
	d->producer = vmalloc_user(pw_ring_bytes(d));
	d->consumer = vmalloc_user(PAGE_SIZE);
	if (!d->producer || !d->consumer) {
		pw_daemon_free(d);
		return NULL;
	}
	d->ring = (void *)d->producer + PAGE_SIZE;
	d->producer->entries = entries;
	d->producer->entry_size = sizeof(struct pagewarp_fault);
	/* The indices wrap after the first lap, so that all code knows how. */
	d->producer->prod = start;
	d->consumer->cons = start;
	for (i = 0; i < entries; i++)
		d->ring[i].seq = start + i + 1 - entries;
	pw_new_epoch(d);
	d->obj = pw_get(o);
	return d;
}

static int pw_daemon_release(struct inode *inode, struct file *file)
{
	struct pw_daemon *d = file->private_data;
	struct pw_object *o = d->obj;

	mutex_lock(&o->lock);
	if (rcu_access_pointer(o->daemon) == d) {
		WRITE_ONCE(o->died, jiffies);
		/* The time first: see pw_dead(). */
		smp_store_release(&o->had_daemon, true);
		rcu_assign_pointer(o->daemon, NULL);
		synchronize_rcu();
		/* What found the ring full keeps its waiter bit: see E. */
		memset(o->pending, 0, pw_bitmap_bytes(o));
		/* Those who wait start to count. */
		pw_wake_all(o);
	}
	mutex_unlock(&o->lock);
	pw_daemon_free(d);
	pw_put(o);
	return 0;
}

/* Whether to look at the ring, or to go on to: if faults have come soon enough of late. */
static bool pw_poll_look(struct pw_daemon *d, u64 begin, u64 most)
{
	u64 ns = pw_spin_ns(d, READ_ONCE(d->producer_cpu), most);

	return READ_ONCE(d->gap_ns) <= ns && ktime_get_ns() - begin < ns;
}

/*
 * Looks at the ring before the consumer goes to sleep. In the kernel, as here it is
 * known whether another thread wants the CPU.
 */
static void pw_poll_spin(struct pw_daemon *d, u64 most)
{
	u64 begin = ktime_get_ns();

	WRITE_ONCE(d->polled, begin);
	/* What the ring had no room for is brought in by the rest of poll(). */
	while (!pw_ring_ready(d) && !READ_ONCE(d->npending) &&
	       !READ_ONCE(d->obj->destroyed) && pw_poll_look(d, begin, most))
		cpu_relax();
}

/*
 * The consumer has a fault: how long did that take to come, and how long to wake the
 * consumer, if it @slept?
 */
static void pw_poll_done(struct pw_daemon *d, u64 most, bool slept)
{
	u64 polled = xchg(&d->polled, 0);
	u64 posted;

	if (!polled)
		return;
	posted = max(READ_ONCE(pw_ring_next(d)->time_ns), polled);
	pw_average(&d->gap_ns, posted - polled, most);
	if (slept)
		pw_average(&d->wake_ns, ktime_get_ns() - posted, most);
}

static __poll_t pw_daemon_poll(struct file *file, poll_table *wait)
{
	struct pw_daemon *d = file->private_data;
	u64 most = pw_spin_most(&d->consumer->poll_us);
	/* Without _qproc it is called to look, after a sleep, and not before one. */
	bool waits = wait && wait->_qproc;

	WRITE_ONCE(d->consumer_cpu, raw_smp_processor_id());
	if (most && waits && !pw_ring_ready(d))
		pw_poll_spin(d, most);
	poll_wait(file, &d->poll_wait, wait);
	WRITE_ONCE(d->consumer->need_wakeup, 1);
	/* D: in the queue, and need_wakeup, before the look at the ring. */
	smp_mb();
	if (READ_ONCE(d->obj->destroyed))
		return EPOLLHUP | EPOLLERR;
	pw_flush(d);
	if (!pw_ring_ready(d)) {
		if (!waits) /* something else has woken it */
			WRITE_ONCE(d->polled, 0);
		return 0;
	}
	if (most)
		pw_poll_done(d, most, !waits);
	return EPOLLIN | EPOLLRDNORM;
}

static int pw_daemon_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct pw_daemon *d = file->private_data;
	struct pw_object *o = d->obj;
	bool readonly = true;
	void *mem;

	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	switch ((u64)vma->vm_pgoff << PAGE_SHIFT) {
	case PW_OFF_PRODUCER:
		mem = d->producer;
		break;
	case PW_OFF_CONSUMER:
		mem = d->consumer;
		readonly = false;
		break;
	case PW_OFF_RESIDENT:
		mem = o->resident;
		readonly = false;
		break;
	case PW_OFF_WAITERS:
		mem = o->waiters;
		break;
	default:
		return -EINVAL;
	}
	if (readonly && vma->vm_flags & VM_WRITE)
		return -EPERM;
	pw_vm_flags(vma, VM_DONTCOPY, VM_MAYEXEC | (readonly ? VM_MAYWRITE : 0));
	/* EINVAL for more than there is. */
	return remap_vmalloc_range(vma, mem, 0);
}

static long pw_layout(struct pw_daemon *d, void __user *arg)
{
	struct pagewarp_layout l = {
		.id = d->obj->id,
		.ring_entries = d->entries,
		.pages = READ_ONCE(d->obj->pages),
		.producer_off = PW_OFF_PRODUCER,
		.producer_len = pw_ring_bytes(d),
		.consumer_off = PW_OFF_CONSUMER,
		.consumer_len = PAGE_SIZE,
		.resident_off = PW_OFF_RESIDENT,
		.resident_len = pw_bitmap_bytes(d->obj),
		.waiters_off = PW_OFF_WAITERS,
		.waiters_len = pw_bitmap_bytes(d->obj),
		.page_size = 1U << pw_shift(d->obj),
	};

	return copy_to_user(arg, &l, sizeof(l)) ? -EFAULT : 0;
}

static long pw_alias(struct pw_daemon *d, void __user *arg)
{
	struct pagewarp_alias a;
	struct file *file;
	int ret;

	if (copy_from_user(&a, arg, sizeof(a)))
		return -EFAULT;
	if (a.flags || a.reserved)
		return -EINVAL;
	if (READ_ONCE(d->obj->frozen))
		return -EROFS;
	ret = pw_open_memory(d->obj, O_RDWR, &file);
	if (ret < 0)
		return ret;
	a.fd = ret;
	if (copy_to_user(arg, &a, sizeof(a))) {
		put_unused_fd(a.fd);
		fput(file);
		return -EFAULT;
	}
	fd_install(a.fd, file);
	return 0;
}

static long pw_wake(struct pw_daemon *d, void __user *arg)
{
	struct pw_object *o = d->obj;
	struct pagewarp_wake w;

	if (copy_from_user(&w, arg, sizeof(w)))
		return -EFAULT;
	if (w.flags || w.reserved || !w.count)
		return -EINVAL;
	/* The pages that a shrink took away have no waiters; they may be named. */
	if (w.first >= o->max_pages || w.count > o->max_pages - w.first)
		return -ERANGE;
	/* Who has reported such a page and does not sleep yet shall do so again. */
	if (find_next_zero_bit((unsigned long *)o->resident, w.first + w.count,
			       w.first) < w.first + w.count)
		pw_new_epoch(d);
	w.woken = pw_wake_range(o, w.first, w.count);
	pw_flush(d);
	return copy_to_user(arg, &w, sizeof(w)) ? -EFAULT : 0;
}

static long pw_release(struct pw_object *o)
{
	mutex_lock(&o->lock);
	/* Orders all pages the caller has written before the flag. */
	smp_store_release(&o->plain, true);
	mutex_unlock(&o->lock);
	pw_wake_all(o);
	memset(o->waiters, 0, pw_bitmap_bytes(o));
	return 0;
}

static long pw_daemon_ioctl(struct file *file, unsigned int cmd,
			    unsigned long arg)
{
	struct pw_daemon *d = file->private_data;

	if (cmd == PAGEWARP_GET_INFO)
		return pw_get_info((void __user *)arg);
	if (READ_ONCE(d->obj->destroyed))
		return -ENODEV;
	switch (cmd) {
	case PAGEWARP_LAYOUT:
		return pw_layout(d, (void __user *)arg);
	case PAGEWARP_ALIAS:
		return pw_alias(d, (void __user *)arg);
	case PAGEWARP_WAKE:
		return pw_wake(d, (void __user *)arg);
	case PAGEWARP_REDELIVER:
		pw_redeliver(d);
		return 0;
	case PAGEWARP_RELEASE:
		return pw_release(d->obj);
	}
	return -ENOTTY;
}

static const struct file_operations pw_daemon_fops = {
	.owner = THIS_MODULE,
	.release = pw_daemon_release,
	.poll = pw_daemon_poll,
	.mmap = pw_daemon_mmap,
	.unlocked_ioctl = pw_daemon_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

/* Makes the daemon's end; the caller installs the file or puts it. */
int pw_attach(struct pw_object *o, u32 entries, struct file **file)
{
	struct pw_daemon *d;
	struct file *f;
	int ret = 0;

	d = pw_daemon_alloc(o, entries);
	if (!d)
		return -ENOMEM;
	f = anon_inode_getfile("[pagewarp]", &pw_daemon_fops, d,
			       O_RDWR | O_CLOEXEC);
	if (IS_ERR(f)) {
		pw_daemon_free(d);
		pw_put(o);
		return PTR_ERR(f);
	}
	mutex_lock(&o->lock);
	if (o->destroyed)
		ret = -ENODEV;
	else if (rcu_access_pointer(o->daemon))
		ret = -EBUSY;
	else
		rcu_assign_pointer(o->daemon, d);
	mutex_unlock(&o->lock);
	if (ret) {
		fput(f);
		return ret;
	}
	pw_redeliver(d);
	*file = f;
	return 0;
}
