// SPDX-License-Identifier: GPL-2.0-only
/*
 * Objects: their making, their end, and what is done to them as a whole.
 */
#include <linux/ctype.h>
#include <linux/falloc.h>
#include <linux/file.h>
#include <linux/idr.h>
#include <linux/module.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/user_namespace.h>
#include <linux/version.h>
#include <linux/vmalloc.h>

#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 2, 0)
#include <linux/folio_batch.h>
#else
#include <linux/pagevec.h>
#endif

#include "pagewarp.h"

static DEFINE_MUTEX(pw_list_lock);
static LIST_HEAD(pw_list);	/* by id, pw_list_lock */
static u32 pw_last_id;		/* pw_list_lock */
static u32 pw_count;		/* pw_list_lock */
static DEFINE_IDA(pw_minors);

/* Frees what pw_alloc() made, and the minor number. */
static void pw_object_release(struct device *dev)
{
	struct pw_object *o = container_of(dev, struct pw_object, dev);

	if (o->shmem)
		fput(o->shmem);
	vfree(o->resident);
	vfree(o->waiters);
	vfree(o->pending);
	vfree(o->bucket);
	free_percpu(o->stats);
	if (o->minor >= 0)
		ida_free(&pw_minors, o->minor);
	kfree(o);
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
static char *pw_devnode(const struct device *dev, umode_t *mode, kuid_t *uid,
			kgid_t *gid)
#else
static char *pw_devnode(struct device *dev, umode_t *mode, kuid_t *uid,
			kgid_t *gid)
#endif
{
	const struct pw_object *o = container_of(dev, struct pw_object, dev);

	if (mode)
		*mode = o->mode;
	if (uid)
		*uid = o->uid;
	if (gid)
		*gid = o->gid;
	return NULL; /* the name is the device's, with its ! as a / */
}

static const struct device_type pw_type = {
	.name = "pagewarp",
	.devnode = pw_devnode,
	.release = pw_object_release,
};

static int pw_fill(struct pw_object *o)
{
	unsigned int i;

	o->resident = vmalloc_user(pw_bitmap_bytes(o));
	o->waiters = vmalloc_user(pw_bitmap_bytes(o));
	o->pending = vzalloc(pw_bitmap_bytes(o));
	o->bucket = vmalloc(array_size(PW_BUCKETS, sizeof(*o->bucket)));
	o->stats = alloc_percpu(struct pw_stats);
	if (!o->resident || !o->waiters || !o->pending || !o->bucket || !o->stats)
		return -ENOMEM;
	for (i = 0; i < PW_BUCKETS; i++)
		init_waitqueue_head(&o->bucket[i].wait);
	o->minor = ida_alloc_max(&pw_minors, PAGEWARP_MAX_OBJECTS - 1, GFP_KERNEL);
	if (o->minor < 0)
		return o->minor;
	return pw_make_memory(o);
}

/* Letters, digits, and . _ - but not first; the rest of the field is zero. */
static bool pw_name_ok(const char *name)
{
	size_t n = strnlen(name, PAGEWARP_NAME_LEN);
	size_t i;

	if (!n || n == PAGEWARP_NAME_LEN ||
	    memchr_inv(name + n, 0, PAGEWARP_NAME_LEN - n))
		return false;
	for (i = 0; i < n; i++) {
		bool ascii = (unsigned char)name[i] < 0x80;
		bool word = ascii && isalnum(name[i]);

		if (!word && (i == 0 || !strchr("._-", name[i])))
			return false;
	}
	return true;
}

static int pw_check(const struct pagewarp_create *c)
{
	int order = pw_page_order(c->page_size);

	if (!pw_name_ok(c->name) || c->flags & ~PAGEWARP_CREATE_PLAIN ||
	    c->mode & ~0777 || c->id || c->minor || c->reserved0 ||
	    memchr_inv(c->reserved, 0, sizeof(c->reserved)))
		return -EINVAL;
	if (order < 0)
		return order;
	if (!c->bytes || c->bytes & ((PAGE_SIZE << order) - 1))
		return -EINVAL;
	if (c->bytes > PAGEWARP_MAX_BYTES)
		return -EFBIG;
	switch (c->policy) {
	case PAGEWARP_POLICY_WAIT:
		return c->deadline_ms ? -EINVAL : 0;
	case PAGEWARP_POLICY_SIGBUS:
		return !c->deadline_ms ||
		       c->deadline_ms > PAGEWARP_MAX_DEADLINE_MS ? -EINVAL : 0;
	}
	return -EINVAL;
}

static struct pw_object *pw_find_locked(const char *name)
{
	struct pw_object *o;

	list_for_each_entry(o, &pw_list, list)
		if (!strncmp(o->name, name, PAGEWARP_NAME_LEN))
			return o;
	return NULL;
}

/* Makes the device of an object and shows it, under pw_list_lock. */
static int pw_publish(struct pw_object *o)
{
	int ret;

	if (pw_find_locked(o->name))
		return -EEXIST;
	ret = dev_set_name(&o->dev, "pagewarp!%s", o->name);
	if (ret)
		return ret;
	o->dev.devt = MKDEV(MAJOR(pw_devt), o->minor);
	cdev_init(&o->cdev, &pw_node_fops);
	o->cdev.owner = THIS_MODULE;
	ret = cdev_device_add(&o->cdev, &o->dev);
	if (ret)
		return ret;
	while (!++pw_last_id)
		;
	o->id = pw_last_id;
	list_add_tail(&o->list, &pw_list);
	pw_count++;
	return 0;
}

int pw_create(struct pagewarp_create *c)
{
	struct pw_object *o;
	int ret = pw_check(c);

	if (ret)
		return ret;
	o = kzalloc(sizeof(*o), GFP_KERNEL_ACCOUNT);
	if (!o)
		return -ENOMEM;
	device_initialize(&o->dev);
	o->dev.type = &pw_type;
	o->dev.class = pw_class;
	o->minor = -1;
	mutex_init(&o->lock);
	INIT_LIST_HEAD(&o->list);
	strscpy(o->name, c->name, sizeof(o->name));
	o->order = pw_page_order(c->page_size);
	o->max_pages = c->bytes >> pw_shift(o);
	o->pages = o->max_pages;
	o->mode = c->mode;
	o->uid = make_kuid(current_user_ns(), c->uid);
	o->gid = make_kgid(current_user_ns(), c->gid);
	o->policy = c->policy;
	o->deadline_ms = c->deadline_ms;
	o->plain = c->flags & PAGEWARP_CREATE_PLAIN;
	ret = -EINVAL;
	if (!uid_valid(o->uid) || !gid_valid(o->gid))
		goto put;
	ret = pw_fill(o);
	if (ret)
		goto put;
	mutex_lock(&pw_list_lock);
	ret = pw_publish(o);
	if (!ret) {
		/* The caller's file holds the module; so it is alive. */
		__module_get(THIS_MODULE);
		c->id = o->id;
		c->minor = o->minor;
	}
	mutex_unlock(&pw_list_lock);
	if (!ret)
		return 0;
put:
	pw_put(o);
	return ret;
}

/* The node goes, those who wait get a SIGBUS; mappings stay as they are. */
int pw_destroy(const char *name)
{
	struct pw_object *o;

	mutex_lock(&pw_list_lock);
	o = pw_find_locked(name);
	if (o) {
		list_del(&o->list);
		pw_count--;
		cdev_device_del(&o->cdev, &o->dev);
	}
	mutex_unlock(&pw_list_lock);
	if (!o)
		return -ENOENT;
	mutex_lock(&o->lock);
	WRITE_ONCE(o->destroyed, true);
	pw_wake_all(o);
	rcu_read_lock();
	if (rcu_access_pointer(o->daemon))
		wake_up_all(&rcu_dereference(o->daemon)->poll_wait);
	rcu_read_unlock();
	mutex_unlock(&o->lock);
	pw_put(o);
	module_put(THIS_MODULE); /* the caller's file holds it still */
	return 0;
}

/* The object of that name, with a reference, or NULL. */
struct pw_object *pw_find(const char *name)
{
	struct pw_object *o;

	mutex_lock(&pw_list_lock);
	o = pw_find_locked(name);
	if (o)
		pw_get(o);
	mutex_unlock(&pw_list_lock);
	return o;
}

/* The first object whose id is not below @from, or NULL. */
struct pw_object *pw_find_id(u32 from)
{
	struct pw_object *best = NULL, *o;

	mutex_lock(&pw_list_lock);
	list_for_each_entry(o, &pw_list, list)
		if (o->id >= from && (!best || o->id < best->id))
			best = o;
	if (best)
		pw_get(best);
	mutex_unlock(&pw_list_lock);
	return best;
}

u32 pw_objects(void)
{
	return READ_ONCE(pw_count);
}

static u32 pw_state(struct pw_object *o)
{
	if (o->frozen)
		return PAGEWARP_STATE_FROZEN;
	if (o->plain)
		return PAGEWARP_STATE_PLAIN;
	if (rcu_access_pointer(o->daemon))
		return PAGEWARP_STATE_SERVED;
	return o->had_daemon ? PAGEWARP_STATE_ORPHANED : PAGEWARP_STATE_NEW;
}

void pw_stat(struct pw_object *o, struct pagewarp_stat *s)
{
	int cpu;

	memset(s, 0, sizeof(*s));
	mutex_lock(&o->lock);
	strscpy_pad(s->name, o->name, sizeof(s->name));
	s->id = o->id;
	s->state = pw_state(o);
	s->bytes = o->pages << pw_shift(o);
	s->page_size = 1U << pw_shift(o);
	s->policy = o->policy;
	s->deadline_ms = o->deadline_ms;
	mutex_unlock(&o->lock);
	for_each_possible_cpu(cpu) {
		const struct pw_stats *p = per_cpu_ptr(o->stats, cpu);

		s->faults += READ_ONCE(p->faults);
		s->posted += READ_ONCE(p->posted);
		s->overflows += READ_ONCE(p->overflows);
		s->redelivered += READ_ONCE(p->redelivered);
		s->wakes += READ_ONCE(p->wakes);
		s->killed += READ_ONCE(p->killed);
		s->spun += READ_ONCE(p->spun);
	}
}

/*
 * The file keeps its size, so that no alias of the daemon's gets a SIGBUS: the
 * pages are freed, and the fault handler refuses those beyond the end.
 */
int pw_shrink(struct pw_object *o, u64 bytes)
{
	u64 old, pages = bytes >> pw_shift(o);
	int ret = 0;

	if (!bytes || bytes & ((1ULL << pw_shift(o)) - 1))
		return -EINVAL;
	mutex_lock(&o->lock);
	old = o->pages;
	if (pages > old) {
		ret = -EINVAL;
	} else if (o->frozen) {
		ret = -EROFS;
	} else if (pages < old) {
		WRITE_ONCE(o->pages, pages);
		unmap_mapping_range(o->shmem->f_mapping, bytes, 0, 1);
		ret = vfs_fallocate(o->shmem, FALLOC_FL_PUNCH_HOLE |
				    FALLOC_FL_KEEP_SIZE, bytes,
				    (old - pages) << pw_shift(o));
		pw_wake_range(o, pages, old - pages);
	}
	mutex_unlock(&o->lock);
	return ret;
}

/* Waits for whoever is about to map a page for writing: see pw_mkwrite(). */
static void pw_wait_locked_pages(struct address_space *mapping)
{
	struct folio_batch batch;
	pgoff_t next = 0;
	unsigned int i;

	folio_batch_init(&batch);
	while (filemap_get_folios(mapping, &next, ULONG_MAX - 1, &batch)) {
		for (i = 0; i < folio_batch_count(&batch); i++) {
			if (!folio_test_locked(batch.folios[i]))
				continue;
			folio_lock(batch.folios[i]);
			folio_unlock(batch.folios[i]);
		}
		folio_batch_release(&batch);
		cond_resched();
	}
}

int pw_freeze(struct pw_object *o)
{
	int ret = 0;

	mutex_lock(&o->lock);
	if (!o->plain) {
		ret = -EBUSY;
	} else if (!o->frozen) {
		WRITE_ONCE(o->frozen, true);
		/* Pairs with the one in pw_mkwrite(). */
		smp_mb();
		pw_wait_locked_pages(o->shmem->f_mapping);
		unmap_mapping_range(o->shmem->f_mapping, 0, 0, 1);
	}
	mutex_unlock(&o->lock);
	return ret;
}

/* Whether all of the memory is there to be read: 0 or an error. */
int pw_check_plain(struct pw_object *o)
{
	/* As in pw_present(). */
	return smp_load_acquire(&o->plain) ? 0 : -EBUSY;
}

int pw_thaw(struct pw_object *o)
{
	int ret = 0;

	mutex_lock(&o->lock);
	if (o->frozen)
		WRITE_ONCE(o->frozen, false);
	else
		ret = -EINVAL;
	mutex_unlock(&o->lock);
	return ret;
}

/*
 * Empties plain memory: every page is missing again, mapped or not. Faults that
 * have seen it plain are waited for, or see that it no longer is: pw_map() and
 * pw_map_pages().
 */
int pw_reset(struct pw_object *o)
{
	int ret = -EBUSY;

	mutex_lock(&o->lock);
	if (o->plain && !o->frozen && !rcu_access_pointer(o->daemon)) {
		memset(o->resident, 0, pw_bitmap_bytes(o));
		memset(o->waiters, 0, pw_bitmap_bytes(o));
		o->had_daemon = false;
		/* The bitmaps are empty before the memory is not plain. */
		smp_store_release(&o->plain, false);
		synchronize_rcu();
		ret = vfs_fallocate(o->shmem, FALLOC_FL_PUNCH_HOLE |
				    FALLOC_FL_KEEP_SIZE, 0,
				    o->max_pages << pw_shift(o));
	}
	mutex_unlock(&o->lock);
	return ret;
}
