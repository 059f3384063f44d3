// SPDX-License-Identifier: GPL-2.0-only
/*
 * For tests only: takes a page of the writing process as KVM's asynchronous page
 * faults do, without waiting. Write the address to
 * /sys/module/pagewarp_gup/parameters/address; result is then the number of
 * pages that were there, or a negative errno.
 */
#include <linux/kernel.h>
#include <linux/mm.h>
#include <linux/module.h>

static int result = -EINVAL;
module_param(result, int, 0400);

static int gup_set(const char *text, const struct kernel_param *kp)
{
	unsigned long address;
	struct page *page;
	int ret = kstrtoul(text, 0, &address);

	if (ret)
		return ret;
	result = get_user_pages_unlocked(address, 1, &page,
					 FOLL_NOWAIT | FOLL_WRITE);
	if (result == 1)
		put_page(page);
	return 0;
}

static const struct kernel_param_ops gup_ops = {
	.set = gup_set,
};
module_param_cb(address, &gup_ops, NULL, 0200);

static int __init gup_init(void)
{
	return 0;
}

static void __exit gup_exit(void)
{
}

module_init(gup_init);
module_exit(gup_exit);
MODULE_DESCRIPTION("Takes pages without waiting, for tests of pagewarp");
MODULE_AUTHOR("The pagewarp authors");
MODULE_LICENSE("GPL");
