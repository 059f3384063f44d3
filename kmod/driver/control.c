// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/pagewarp-control.
 */
#include <linux/compat.h>
#include <linux/file.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "pagewarp.h"

long pw_get_info(void __user *arg)
{
	struct pagewarp_info info = {
		.abi = PAGEWARP_ABI,
		.page_size = PAGE_SIZE,
		.features = PAGEWARP_FEATURE_FREEZE | PAGEWARP_FEATURE_DEADLINE |
			    PAGEWARP_FEATURE_SPIN | PAGEWARP_FEATURE_POLL_SPIN |
			    PAGEWARP_FEATURE_PAGE_SIZE,
		.max_bytes = PAGEWARP_MAX_BYTES,
		.max_objects = PAGEWARP_MAX_OBJECTS,
		.max_ring = PAGEWARP_MAX_RING,
		.entry_size = sizeof(struct pagewarp_fault),
		.objects = pw_objects(),
		.huge_page_size = pw_huge_page_size(),
	};

	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long pw_do_create(void __user *arg)
{
	struct pagewarp_create c;
	long ret;

	if (copy_from_user(&c, arg, sizeof(c)))
		return -EFAULT;
	ret = pw_create(&c);
	if (ret)
		return ret;
	if (copy_to_user(arg, &c, sizeof(c))) {
		pw_destroy(c.name);
		return -EFAULT;
	}
	return 0;
}

static long pw_do_destroy(void __user *arg)
{
	struct pagewarp_name n;

	if (copy_from_user(&n, arg, sizeof(n)))
		return -EFAULT;
	if (memchr_inv(n.reserved, 0, sizeof(n.reserved)))
		return -EINVAL;
	return pw_destroy(n.name);
}

static long pw_do_reset(void __user *arg)
{
	struct pagewarp_name n;
	struct pw_object *o;
	long ret;

	if (copy_from_user(&n, arg, sizeof(n)))
		return -EFAULT;
	if (memchr_inv(n.reserved, 0, sizeof(n.reserved)))
		return -EINVAL;
	o = pw_find(n.name);
	if (!o)
		return -ENOENT;
	ret = pw_reset(o);
	pw_put(o);
	return ret;
}

static long pw_do_stat(void __user *arg, bool list)
{
	struct pagewarp_stat s;
	struct pw_object *o;

	if (copy_from_user(&s, arg, sizeof(s)))
		return -EFAULT;
	if (s.page_size || s.reserved0 ||
	    memchr_inv(s.reserved, 0, sizeof(s.reserved)) ||
	    (list ? s.name[0] : s.id))
		return -EINVAL;
	o = list ? pw_find_id(s.id) : pw_find(s.name);
	if (!o)
		return -ENOENT;
	pw_stat(o, &s);
	pw_put(o);
	return copy_to_user(arg, &s, sizeof(s)) ? -EFAULT : 0;
}

static long pw_do_attach(void __user *arg)
{
	struct pagewarp_attach a;
	struct pw_object *o;
	struct file *file;
	int fd;
	long ret;

	if (copy_from_user(&a, arg, sizeof(a)))
		return -EFAULT;
	if (a.flags || a.reserved0 || memchr_inv(a.reserved, 0, sizeof(a.reserved)))
		return -EINVAL;
	if (a.ring_entries < PAGEWARP_MIN_RING ||
	    a.ring_entries > PAGEWARP_MAX_RING ||
	    a.ring_entries & (a.ring_entries - 1))
		return -EINVAL;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		return fd;
	o = pw_find(a.name);
	ret = o ? pw_attach(o, a.ring_entries, &file) : -ENOENT;
	if (o)
		pw_put(o);
	if (ret)
		goto put_fd;
	a.fd = fd;
	if (copy_to_user(arg, &a, sizeof(a))) {
		fput(file);
		ret = -EFAULT;
		goto put_fd;
	}
	fd_install(fd, file);
	return 0;
put_fd:
	put_unused_fd(fd);
	return ret;
}

static long pw_do_freeze(void __user *arg)
{
	struct pagewarp_freeze f;
	struct pw_object *o;
	struct file *file;
	long ret;

	if (copy_from_user(&f, arg, sizeof(f)))
		return -EFAULT;
	if (f.flags & ~(PAGEWARP_FREEZE_THAW | PAGEWARP_FREEZE_OPEN) ||
	    f.flags == (PAGEWARP_FREEZE_THAW | PAGEWARP_FREEZE_OPEN) ||
	    f.reserved)
		return -EINVAL;
	o = pw_find(f.name);
	if (!o)
		return -ENOENT;
	f.fd = -1;
	if (f.flags & PAGEWARP_FREEZE_THAW) {
		ret = pw_thaw(o);
		if (!ret && copy_to_user(arg, &f, sizeof(f)))
			ret = -EFAULT;
		goto put;
	}
	if (f.flags & PAGEWARP_FREEZE_OPEN)
		ret = pw_check_plain(o);
	else
		ret = pw_freeze(o);
	if (ret)
		goto put;
	ret = pw_open_memory(o, O_RDONLY, &file);
	if (ret < 0)
		goto put;
	f.fd = ret;
	ret = 0;
	if (copy_to_user(arg, &f, sizeof(f))) {
		put_unused_fd(f.fd);
		fput(file);
		ret = -EFAULT;
		goto put;
	}
	fd_install(f.fd, file);
put:
	pw_put(o);
	return ret;
}

static long pw_do_shrink(void __user *arg)
{
	struct pagewarp_shrink s;
	struct pw_object *o;
	long ret;

	if (copy_from_user(&s, arg, sizeof(s)))
		return -EFAULT;
	if (s.reserved)
		return -EINVAL;
	o = pw_find(s.name);
	if (!o)
		return -ENOENT;
	ret = pw_shrink(o, s.bytes);
	pw_put(o);
	return ret;
}

static long pw_control_ioctl(struct file *file, unsigned int cmd,
			     unsigned long arg)
{
	void __user *p = (void __user *)arg;

	switch (cmd) {
	case PAGEWARP_GET_INFO:
		return pw_get_info(p);
	case PAGEWARP_CREATE:
		return pw_do_create(p);
	case PAGEWARP_DESTROY:
		return pw_do_destroy(p);
	case PAGEWARP_STAT:
		return pw_do_stat(p, false);
	case PAGEWARP_LIST:
		return pw_do_stat(p, true);
	case PAGEWARP_ATTACH:
		return pw_do_attach(p);
	case PAGEWARP_FREEZE:
		return pw_do_freeze(p);
	case PAGEWARP_SHRINK:
		return pw_do_shrink(p);
	case PAGEWARP_RESET:
		return pw_do_reset(p);
	}
	return -ENOTTY;
}

static const struct file_operations pw_control_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = pw_control_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice pw_control = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "pagewarp-control",
	.fops = &pw_control_fops,
	.mode = 0600,
};

int pw_control_init(void)
{
	return misc_register(&pw_control);
}

void pw_control_exit(void)
{
	misc_deregister(&pw_control);
}
