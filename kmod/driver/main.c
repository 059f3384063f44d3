// SPDX-License-Identifier: GPL-2.0-only
/*
 * pagewarp: guest memory whose pages are brought by a daemon when touched.
 */
#include <linux/module.h>

#include "pagewarp.h"

struct class *pw_class;
dev_t pw_devt;

/* The layouts that docs/UAPI.md promises; the Go client asserts the same. */
static_assert(sizeof(struct pagewarp_info) == 64);
static_assert(sizeof(struct pagewarp_create) == 136);
static_assert(offsetof(struct pagewarp_info, huge_page_size) == 40);
static_assert(offsetof(struct pagewarp_create, bytes) == 64);
static_assert(offsetof(struct pagewarp_create, id) == 96);
static_assert(offsetof(struct pagewarp_create, page_size) == 104);
static_assert(sizeof(struct pagewarp_name) == 80);
static_assert(sizeof(struct pagewarp_shrink) == 80);
static_assert(sizeof(struct pagewarp_freeze) == 80);
static_assert(sizeof(struct pagewarp_stat) == 168);
static_assert(offsetof(struct pagewarp_stat, faults) == 88);
static_assert(offsetof(struct pagewarp_stat, page_size) == 144);
static_assert(sizeof(struct pagewarp_attach) == 104);
static_assert(offsetof(struct pagewarp_attach, fd) == 72);
static_assert(sizeof(struct pagewarp_layout) == 112);
static_assert(offsetof(struct pagewarp_layout, waiters_off) == 64);
static_assert(offsetof(struct pagewarp_layout, page_size) == 80);
static_assert(sizeof(struct pagewarp_alias) == 16);
static_assert(sizeof(struct pagewarp_wake) == 32);
static_assert(sizeof(struct pagewarp_fault) == 32);
static_assert(offsetof(struct pagewarp_fault, seq) == 28);
static_assert(sizeof(struct pagewarp_producer) == 64);
static_assert(sizeof(struct pagewarp_consumer) == 64);

static int __init pw_init(void)
{
	int ret;

	ret = alloc_chrdev_region(&pw_devt, 0, PAGEWARP_MAX_OBJECTS, "pagewarp");
	if (ret)
		return ret;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
	pw_class = class_create("pagewarp");
#else
	pw_class = class_create(THIS_MODULE, "pagewarp");
#endif
	if (IS_ERR(pw_class)) {
		ret = PTR_ERR(pw_class);
		goto unregister;
	}
	ret = pw_memory_init();
	if (ret)
		goto destroy;
	ret = pw_control_init();
	if (ret)
		goto forget;
	return 0;
forget:
	pw_memory_exit();
destroy:
	class_destroy(pw_class);
unregister:
	unregister_chrdev_region(pw_devt, PAGEWARP_MAX_OBJECTS);
	return ret;
}

/* Nothing is left by now: each object, file and mapping holds the module. */
static void __exit pw_exit(void)
{
	pw_control_exit();
	pw_memory_exit();
	class_destroy(pw_class);
	unregister_chrdev_region(pw_devt, PAGEWARP_MAX_OBJECTS);
}

module_init(pw_init);
module_exit(pw_exit);
MODULE_DESCRIPTION("Guest memory that a daemon brings, page by page");
MODULE_AUTHOR("The pagewarp authors");
MODULE_LICENSE("GPL");
