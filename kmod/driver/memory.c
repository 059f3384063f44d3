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

/*
 * That of objects of small pages; NULL: the system's. From 6.6 on one whose files get no
 * huge folios: when khugepaged makes one there, retract_page_tables() takes the table of
 * small pages away without the lock under which pw_map_pages() has seen it, and the
 * folio would be mapped as a whole, with what is missing in it.
 */
static struct vfsmount *pw_small_mnt;

/* @options are written to. */
static struct vfsmount *pw_mount(char *options)
{
	struct file_system_type *type = get_fs_type("tmpfs");

	if (!type)
		return ERR_PTR(-ENODEV);
	return vfs_kern_mount(type, SB_KERNMOUNT, "pagewarp", options);
}

int pw_memory_init(void)
{
	struct vfsmount *mnt;

	if (LINUX_VERSION_CODE >= KERNEL_VERSION(6, 6, 0)) {
		char never[] = "huge=never";

		mnt = pw_mount(never);
		if (IS_ERR(mnt))
			return PTR_ERR(mnt);
		pw_small_mnt = mnt;
	}
	if (PMD_SIZE == PW_HUGE_SIZE) {
		char always[] = "huge=always";

		/* EINVAL where the kernel or the processor has no huge pages. */
		mnt = pw_mount(always);
		if (!IS_ERR(mnt))
			pw_huge_mnt = mnt;
	}
	return 0;
}

void pw_memory_exit(void)
{
	if (pw_huge_mnt)
		kern_unmount(pw_huge_mnt);
	if (pw_small_mnt)
		kern_unmount(pw_small_mnt);
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
	struct vfsmount *mnt = o->order ? pw_huge_mnt : pw_small_mnt;
	loff_t bytes = o->max_pages << pw_shift(o);
	struct file *f;

	if (!name)
		return -ENOMEM;
	/* NORESERVE: charged page by page, as a sparse file is. */
	if (mnt)
		f = shmem_file_setup_with_mnt(mnt, name, bytes, PW_NORESERVE);
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
