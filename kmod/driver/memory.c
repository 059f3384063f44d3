// SPDX-License-Identifier: GPL-2.0-only
/*
 * The memory of objects: files of shared memory that nobody else has a name for.
 */
#include <linux/file.h>
#include <linux/mount.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <uapi/linux/fcntl.h>

#include "pagewarp.h"

/* Of x86-64, and of other processors with small pages of 4 KiB. */
#define PW_HUGE_SIZE (1UL << 21)

/*
 * A mount of our own, whose files get huge folios wherever there are some, whatever
 * the system does for others; NULL where the kernel has none.
 */
static struct vfsmount *pw_huge_mnt;

void pw_memory_init(void)
{
	char options[] = "huge=always"; /* the parser writes to it */
	struct file_system_type *type = get_fs_type("tmpfs");
	struct vfsmount *mnt;

	if (!type || PMD_SIZE != PW_HUGE_SIZE)
		return;
	/* EINVAL where the kernel or the processor has no huge pages. */
	mnt = vfs_kern_mount(type, SB_KERNMOUNT, "pagewarp", options);
	if (!IS_ERR(mnt))
		pw_huge_mnt = mnt;
}

void pw_memory_exit(void)
{
	if (pw_huge_mnt)
		kern_unmount(pw_huge_mnt);
}

/* The page size beside PAGE_SIZE that an object can have, or 0. */
u32 pw_huge_page_size(void)
{
	return pw_huge_mnt ? PW_HUGE_SIZE : 0;
}

/* The order of a page size that user space asks for, or an error. */
int pw_page_order(u32 page_size)
{
	if (!page_size || page_size == PAGE_SIZE)
		return 0;
	if (page_size != PW_HUGE_SIZE)
		return -EINVAL;
	return pw_huge_mnt ? ilog2(PW_HUGE_SIZE) - PAGE_SHIFT : -EOPNOTSUPP;
}

/* The memory, under its own name in /proc/PID/maps, and never resized. */
int pw_make_memory(struct pw_object *o)
{
	char *name = kasprintf(GFP_KERNEL, "pagewarp:%s", o->name);
	loff_t bytes = o->max_pages << pw_shift(o);
	struct file *f;

	if (!name)
		return -ENOMEM;
	/* NORESERVE: charged page by page, as a sparse file is. */
	if (o->order)
		f = shmem_file_setup_with_mnt(pw_huge_mnt, name, bytes,
					      PW_NORESERVE);
	else
		f = shmem_file_setup(name, bytes, PW_NORESERVE);
	kfree(name);
	if (IS_ERR(f))
		return PTR_ERR(f);
	SHMEM_I(file_inode(f))->seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW;
	o->shmem = f;
	return 0;
}

/*
 * Opens the memory anew, so that each user has a file position of its own.
 * Returns a descriptor to be installed, or an error.
 */
int pw_open_memory(struct pw_object *o, int flags, struct file **file)
{
	int fd = get_unused_fd_flags(O_CLOEXEC);
	struct file *f;

	if (fd < 0)
		return fd;
	f = dentry_open(&o->shmem->f_path, flags | O_LARGEFILE, current_cred());
	if (IS_ERR(f)) {
		put_unused_fd(fd);
		return PTR_ERR(f);
	}
	*file = f;
	return fd;
}
