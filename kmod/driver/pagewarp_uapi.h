/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR Apache-2.0 */
/*
 * User interface of the pagewarp character device: /dev/pagewarp-control and
 * /dev/pagewarp/<name>. docs/UAPI.md says what it all means.
 *
 * All types have a fixed width and the host's byte order; there is no implicit
 * padding and no pointer in any structure. Fields named reserved are zero on
 * the way in (else EINVAL) and zero on the way out.
 */
#ifndef PAGEWARP_UAPI_H
#define PAGEWARP_UAPI_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Changes when something that worked before no longer does. */
#define PAGEWARP_ABI 1

/* Bytes of an object's name with its terminating zero. */
#define PAGEWARP_NAME_LEN 64

#define PAGEWARP_MIN_RING 16
#define PAGEWARP_MAX_RING 65536
#define PAGEWARP_MAX_OBJECTS 1024
#define PAGEWARP_MAX_BYTES (1ULL << 44)
#define PAGEWARP_MAX_DEADLINE_MS 3600000
/* What is larger in spin_us and poll_us counts as this. */
#define PAGEWARP_MAX_SPIN_US 1000

/* What GET_INFO answers, on every kind of descriptor. */
struct pagewarp_info {
	__u32 abi;		/* PAGEWARP_ABI */
	__u32 page_size;	/* bytes of a page of an object that asks for no other */
	__u64 features;		/* PAGEWARP_FEATURE_* */
	__u64 max_bytes;	/* of one object */
	__u32 max_objects;
	__u32 max_ring;		/* entries of a fault ring */
	__u32 entry_size;	/* bytes of struct pagewarp_fault */
	__u32 objects;		/* that there are now */
	__u32 huge_page_size;	/* what else an object's page can be; 0: nothing */
	__u32 reserved0;
	__u64 reserved[2];
};

#define PAGEWARP_FEATURE_FREEZE (1ULL << 0)
#define PAGEWARP_FEATURE_DEADLINE (1ULL << 1)
#define PAGEWARP_FEATURE_SPIN (1ULL << 2) /* spin_us of the consumer page */
#define PAGEWARP_FEATURE_POLL_SPIN (1ULL << 3) /* poll_us of the consumer page */
#define PAGEWARP_FEATURE_PAGE_SIZE (1ULL << 4) /* page_size of CREATE */

/* What happens to threads that wait for a page while no daemon is attached. */
enum pagewarp_policy {
	PAGEWARP_POLICY_WAIT = 0,	/* wait for the next daemon */
	PAGEWARP_POLICY_SIGBUS = 1,	/* SIGBUS after the deadline */
};

enum pagewarp_state {
	PAGEWARP_STATE_NEW = 0,		/* no daemon yet */
	PAGEWARP_STATE_SERVED = 1,	/* a daemon is attached */
	PAGEWARP_STATE_ORPHANED = 2,	/* the daemon is gone, pages are missing */
	PAGEWARP_STATE_PLAIN = 3,	/* plain memory, no daemon needed */
	PAGEWARP_STATE_FROZEN = 4,	/* plain memory that nobody may write */
};

/* The object starts as plain memory, with no page missing. */
#define PAGEWARP_CREATE_PLAIN (1U << 0)

struct pagewarp_create {
	char name[PAGEWARP_NAME_LEN];
	__u64 bytes;		/* a multiple of the object's page size, not 0 */
	__u32 mode;		/* permission bits of the node */
	__u32 uid;		/* owner of the node, in the caller's namespace */
	__u32 gid;
	__u32 flags;		/* PAGEWARP_CREATE_* */
	__u32 policy;		/* enum pagewarp_policy */
	__u32 deadline_ms;	/* POLICY_SIGBUS: 1 to MAX_DEADLINE_MS; else 0 */
	__u32 id;		/* out: never 0, not reused while the object lives */
	__u32 minor;		/* out: minor number of the node */
	__u32 page_size;	/* page_size or huge_page_size of GET_INFO; 0: the first */
	__u32 reserved0;
	__u64 reserved[3];
};

/* Names an object: DESTROY, RESET. */
struct pagewarp_name {
	char name[PAGEWARP_NAME_LEN];
	__u64 reserved[2];
};

/* SHRINK: the pages from @bytes on are gone for good. */
struct pagewarp_shrink {
	char name[PAGEWARP_NAME_LEN];
	__u64 bytes;
	__u64 reserved;
};

/* Undo a freeze. */
#define PAGEWARP_FREEZE_THAW (1U << 0) /* allows writes again; no descriptor */
#define PAGEWARP_FREEZE_OPEN (1U << 1) /* only the descriptor: writes go on */

struct pagewarp_freeze {
	char name[PAGEWARP_NAME_LEN];
	__u32 flags;
	__s32 fd;		/* out: the memory, read-only; -1 after a thaw */
	__u64 reserved;
};

/*
 * STAT: the object called @name. LIST: name is empty, and the answer is the
 * object with the lowest id that is not below @id; ENOENT after the last.
 */
struct pagewarp_stat {
	char name[PAGEWARP_NAME_LEN];
	__u32 id;
	__u32 state;		/* enum pagewarp_state */
	__u64 bytes;
	__u32 policy;
	__u32 deadline_ms;
	__u64 faults;		/* touches of a page that was missing */
	__u64 posted;		/* entries put into the ring */
	__u64 overflows;	/* faults that found the ring full */
	__u64 redelivered;	/* faults posted again, after an overflow or attach */
	__u64 wakes;		/* pages with a waiter that were woken */
	__u64 killed;		/* touches that ended in SIGBUS */
	__u64 spun;		/* touches that found their page before they slept */
	__u32 page_size;
	__u32 reserved0;
	__u64 reserved[2];
};

struct pagewarp_attach {
	char name[PAGEWARP_NAME_LEN];
	__u32 ring_entries;	/* a power of two, MIN_RING to MAX_RING */
	__u32 flags;		/* 0 */
	__s32 fd;		/* out: the daemon's end; closing it detaches */
	__u32 reserved0;
	__u64 reserved[3];
};

/*
 * Of a daemon's end: where in it to map what. Ring, consumer page and waiters
 * have no other mapping; the producer page, the entries and the waiters can be
 * mapped for reading only.
 */
struct pagewarp_layout {
	__u32 id;
	__u32 ring_entries;
	__u64 pages;		/* of the object */
	__u64 producer_off;	/* the producer page, then the entries */
	__u64 producer_len;
	__u64 consumer_off;	/* one page */
	__u64 consumer_len;
	__u64 resident_off;	/* one bit a page, in words of 64 bits */
	__u64 resident_len;
	__u64 waiters_off;	/* the same, written by the kernel */
	__u64 waiters_len;
	__u32 page_size;	/* bytes of a page of the object */
	__u32 reserved0;
	__u64 reserved[3];
};

struct pagewarp_alias {
	__s32 fd;		/* out: the memory as a file, read and write */
	__u32 flags;		/* 0 */
	__u64 reserved;
};

/* Have the threads that wait for pages [first, first+count) look again. */
struct pagewarp_wake {
	__u64 first;
	__u64 count;		/* not 0 */
	__u32 flags;		/* 0 */
	__u32 woken;		/* out: pages of the range with a waiter */
	__u64 reserved;
};

/* One fault, in the ring. */
struct pagewarp_fault {
	__u64 page;		/* number in the object */
	__u64 time_ns;		/* CLOCK_MONOTONIC, when it was put here */
	__u32 tid;		/* of the thread, in the first namespace; 0 if AGAIN */
	__u32 flags;		/* PAGEWARP_FAULT_* */
	__u32 reserved;
	__u32 seq;		/* its index + 1, stored last */
};

#define PAGEWARP_FAULT_WRITE (1U << 0)
#define PAGEWARP_FAULT_NOWAIT (1U << 1)	/* nobody sleeps; a retry will come */
#define PAGEWARP_FAULT_AGAIN (1U << 2)	/* after an overflow or an attach */

/* The first page of the producer's mapping; the entries follow it. */
struct pagewarp_producer {
	__u32 prod;		/* next index to be reserved, free-running */
	__u32 flags;		/* PAGEWARP_RING_* */
	__u32 entries;
	__u32 entry_size;
	__u64 overflows;
	__u64 reserved[5];
};

/* Faults wait outside the full ring: poll() brings them in. */
#define PAGEWARP_RING_PENDING (1U << 0)

struct pagewarp_consumer {
	__u32 cons;		/* next index to be read, free-running */
	__u32 need_wakeup;	/* 0: do not wake me; poll() sets it */
	__u32 spin_us;		/* how long at most a thread looks before it sleeps */
	__u32 poll_us;		/* how long at most poll() does */
	__u64 reserved[6];
};

#define PAGEWARP_IOC 0xBD
/* Any descriptor. */
#define PAGEWARP_GET_INFO _IOR(PAGEWARP_IOC, 0x00, struct pagewarp_info)
/* /dev/pagewarp-control. */
#define PAGEWARP_CREATE _IOWR(PAGEWARP_IOC, 0x01, struct pagewarp_create)
#define PAGEWARP_DESTROY _IOW(PAGEWARP_IOC, 0x02, struct pagewarp_name)
#define PAGEWARP_STAT _IOWR(PAGEWARP_IOC, 0x03, struct pagewarp_stat)
#define PAGEWARP_LIST _IOWR(PAGEWARP_IOC, 0x04, struct pagewarp_stat)
#define PAGEWARP_ATTACH _IOWR(PAGEWARP_IOC, 0x05, struct pagewarp_attach)
#define PAGEWARP_FREEZE _IOWR(PAGEWARP_IOC, 0x06, struct pagewarp_freeze)
#define PAGEWARP_SHRINK _IOW(PAGEWARP_IOC, 0x07, struct pagewarp_shrink)
#define PAGEWARP_RESET _IOW(PAGEWARP_IOC, 0x08, struct pagewarp_name)
/* The daemon's end. */
#define PAGEWARP_LAYOUT _IOR(PAGEWARP_IOC, 0x10, struct pagewarp_layout)
#define PAGEWARP_ALIAS _IOWR(PAGEWARP_IOC, 0x11, struct pagewarp_alias)
#define PAGEWARP_WAKE _IOWR(PAGEWARP_IOC, 0x12, struct pagewarp_wake)
#define PAGEWARP_REDELIVER _IO(PAGEWARP_IOC, 0x13)
#define PAGEWARP_RELEASE _IO(PAGEWARP_IOC, 0x14)

#endif /* PAGEWARP_UAPI_H */
