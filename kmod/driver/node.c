// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/pagewarp/<name>, which the VMM maps.
 */
#include <linux/mm.h>

#include "pagewarp.h"

static int pw_node_open(struct inode *inode, struct file *file)
{
	struct pw_object *o = container_of(inode->i_cdev, struct pw_object, cdev);

	if (READ_ONCE(o->destroyed))
		return -ENXIO;
	file->private_data = pw_get(o);
	return 0;
}

static int pw_node_release(struct inode *inode, struct file *file)
{
	pw_put(file->private_data);
	return 0;
}

static int pw_node_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct pw_object *o = file->private_data;
	u64 pages = READ_ONCE(o->pages) << o->order;
	int ret;

	if (READ_ONCE(o->destroyed))
		return -ENXIO;
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_pgoff >= pages || vma_pages(vma) > pages - vma->vm_pgoff)
		return -EINVAL;
	if (READ_ONCE(o->frozen) && vma->vm_flags & VM_WRITE)
		return -EROFS;
	vma_set_file(vma, o->shmem);
	ret = pw_mmap(o->shmem, vma);
	if (ret)
		return ret;
	pw_set_vm_ops(vma, file);
	/* Small pages, unless the mapper asks for huge ones: see pw_map(). */
	if (!o->order)
		pw_vm_flags(vma, VM_NOHUGEPAGE, 0);
	return 0;
}

/* Where a huge page can be mapped as one, as for any file of the same mount. */
static unsigned long pw_node_get_unmapped_area(struct file *file,
					       unsigned long addr,
					       unsigned long len,
					       unsigned long pgoff,
					       unsigned long flags)
{
	struct file *shmem = ((struct pw_object *)file->private_data)->shmem;

	return shmem->f_op->get_unmapped_area(shmem, addr, len, pgoff, flags);
}

static loff_t pw_node_llseek(struct file *file, loff_t off, int whence)
{
	struct pw_object *o = file->private_data;

	return fixed_size_llseek(file, off, whence,
				 (loff_t)READ_ONCE(o->pages) << pw_shift(o));
}

static long pw_node_ioctl(struct file *file, unsigned int cmd,
			  unsigned long arg)
{
	if (cmd == PAGEWARP_GET_INFO)
		return pw_get_info((void __user *)arg);
	return -ENOTTY;
}

const struct file_operations pw_node_fops = {
	.owner = THIS_MODULE,
	.open = pw_node_open,
	.release = pw_node_release,
	.mmap = pw_node_mmap,
	.get_unmapped_area = pw_node_get_unmapped_area,
	.llseek = pw_node_llseek,
	.unlocked_ioctl = pw_node_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};
