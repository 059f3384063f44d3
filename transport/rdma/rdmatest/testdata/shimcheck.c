/* All of the shim's functions, from C, against a soft-RoCE device: what a memory checker
 * can run, which cannot run Go's programs. Arguments: the device, its GID's index, and,
 * to see that the checker checks, "uninitialised" or "leak", which is then done. It prints
 * "PASS" and exits with 0, or says what went wrong.
 *
 * memcheck does not know what the kernel writes for the two system calls of verbs, so
 * that it would take every answer for uninitialised: ioctl and write below tell it. */
#include <errno.h>
#include <poll.h>
#include <rdma/ib_user_verbs.h>
#include <rdma/rdma_user_ioctl_cmds.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <valgrind/memcheck.h>

#include "verbs_shim.h"

#define CHECK(ok, ...)                                                        \
	do {                                                                  \
		if (!(ok)) {                                                  \
			printf("%s:%d: %s: ", __FILE__, __LINE__, #ok);       \
			printf(__VA_ARGS__);                                  \
			printf("\n");                                         \
			exit(1);                                              \
		}                                                             \
	} while (0)

enum { PAGE = 4096, PAGES = 16 };
static const uint64_t second = 1000000000u;

int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	struct ib_uverbs_ioctl_hdr *h;
	int ret, i;

	va_start(args, request);
	h = va_arg(args, void *);
	va_end(args);
	ret = syscall(SYS_ioctl, fd, request, h);
	if (request != RDMA_VERBS_IOCTL)
		return ret;
	(void)VALGRIND_MAKE_MEM_DEFINED(h, h->length);
	for (i = 0; i < h->num_attrs; i++) /* longer ones are in memory of their own */
		if (h->attrs[i].len > sizeof(h->attrs[i].data))
			(void)VALGRIND_MAKE_MEM_DEFINED((void *)(uintptr_t)h->attrs[i].data, h->attrs[i].len);
	return ret;
}

/* The first interface of verbs: a command, and where its response goes. */
ssize_t write(int fd, const void *buf, size_t n)
{
	ssize_t ret = syscall(SYS_write, fd, buf, n);
	struct {
		struct ib_uverbs_cmd_hdr hdr;
		__u64 response;
	} cmd;

	if (fd <= STDERR_FILENO || ret < (ssize_t)sizeof(cmd))
		return ret;
	memcpy(&cmd, buf, sizeof(cmd));
	if (cmd.hdr.out_words)
		(void)VALGRIND_MAKE_MEM_DEFINED((void *)(uintptr_t)cmd.response, cmd.hdr.out_words * 4);
	return ret;
}

struct end {
	struct pw_queue *q;
	struct pw_peer self;
	int fd;
};

static void open_end(struct pw_device *d, const struct pw_caps *caps, int sends, int receives, struct end *e)
{
	const char *step = "";
	int ret;

	memset(e, 0, sizeof(*e));
	ret = pw_queue_open(d, sends, receives, &e->q, &e->self.qpn, &e->fd, &step);
	CHECK(ret == 0, "%s: %s", step, strerror(-ret));
	memcpy(e->self.gid, caps->gid, sizeof(caps->gid));
	e->self.psn = 77;
	e->self.lid = caps->lid;
	e->self.mtu = caps->mtu;
	e->self.reads = 4;
}

static void join(struct end *e, const struct end *to, int serve, int patient)
{
	struct pw_peer p = to->self;
	const char *step = "";
	int ret;

	p.patient = patient;
	ret = pw_queue_connect(e->q, &p, e->self.psn, serve, &step);
	CHECK(ret == 0, "%s: %s", step, strerror(-ret));
}

/* Takes n completions, in whatever portions they come. */
static void take(struct pw_queue *q, struct pw_done *done, int n)
{
	int got, have = 0;

	while (have < n) {
		got = pw_poll(q, done + have, n - have, 5 * second);
		CHECK(got > 0, "%d of %d completions, then %d", have, n, got);
		have += got;
	}
}

static void reads(struct pw_device *d, const struct pw_caps *caps)
{
	unsigned char *from, *to;
	struct ibv_mr *src, *dst, *none;
	uint32_t lkey, rkey, unused;
	struct pw_read r[65];
	struct pw_done done[PAGES];
	struct end a, b;
	struct pollfd fd;
	int i, n, posted;

	from = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	to = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(from != MAP_FAILED && to != MAP_FAILED, "no memory");
	for (i = 0; i < PAGES * PAGE; i++)
		from[i] = i / PAGE * 31 + i;
	CHECK(!pw_register(d, (uintptr_t)from, PAGES * PAGE, PW_READABLE, &src, &unused, &rkey), "readable memory");
	CHECK(!pw_register(d, (uintptr_t)to, PAGES * PAGE, PW_LANDING, &dst, &lkey, &unused), "memory to land in");
	CHECK(pw_register(d, 1u << 16, PAGE, PW_LANDING, &none, &unused, &unused) < 0, "memory that there is not");

	open_end(d, caps, PAGES, 1, &a);
	open_end(d, caps, PAGES, 1, &b);
	join(&a, &b, 0, 0);
	join(&b, &a, 1, 0);
	for (i = 0; i < PAGES; i++)
		r[i] = (struct pw_read){ .id = 100 + i, .local = (uintptr_t)to + i * PAGE, .remote = (uintptr_t)from + i * PAGE,
					 .len = PAGE, .lkey = lkey, .rkey = rkey };
	CHECK(pw_post(a.q, r, 0, &posted) == -EINVAL && pw_post(a.q, r, 65, &posted) == -EINVAL, "no READs, or too many");
	CHECK(!pw_post(a.q, r, PAGES, &posted) && posted == PAGES, "%d were posted", posted);
	take(a.q, done, PAGES);
	for (i = 0; i < PAGES; i++)
		CHECK(done[i].id == 100u + i && !done[i].status && !done[i].bytes, "completion %d: id %lu, status %u", i, done[i].id, done[i].status);
	CHECK(!memcmp(from, to, PAGES * PAGE), "other bytes have come");
	CHECK(pw_poll(a.q, done, PAGES, 0) == 0, "one more completion");

	for (n = 0; n < 2; n++) { /* an event that is taken, and one that is left to the end */
		CHECK(!pw_arm(a.q), "arm");
		CHECK(!pw_post(a.q, r, 1, &posted) && posted == 1, "%d were posted", posted);
		fd = (struct pollfd){ .fd = a.fd, .events = POLLIN };
		CHECK(poll(&fd, 1, 5000) == 1, "no event");
		CHECK(n == 1 || pw_disarm(a.q) == 1, "not one event");
		take(a.q, done, 1);
	}

	r[0].rkey ^= 0xff00;
	CHECK(!pw_post(a.q, r, 1, &posted), "post with a wrong key");
	take(a.q, done, 1);
	CHECK(!strcmp(pw_status(done[0].status), "remote access error"), "a wrong key ends in '%s'", pw_status(done[0].status));
	pw_queue_close(a.q);
	pw_queue_close(b.q);
	CHECK(!pw_deregister(src) && !pw_deregister(dst), "deregister");
	munmap(from, PAGES * PAGE);
	munmap(to, PAGES * PAGE);
}

static void messages(struct pw_device *d, const struct pw_caps *caps)
{
	unsigned char *mem = malloc(3 * PAGE);
	struct pw_slot room[2], out;
	struct pw_done done[2];
	struct ibv_mr *mr;
	uint32_t lkey, unused;
	struct end a, b;
	int i;

	CHECK(mem, "no memory");
	memset(mem, 0, 3 * PAGE);
	for (i = 0; i < PAGE; i++)
		mem[i] = i * 7;
	CHECK(!pw_register(d, (uintptr_t)mem, 3 * PAGE, PW_LANDING, &mr, &lkey, &unused), "register");
	open_end(d, caps, 4, 4, &a);
	open_end(d, caps, 4, 4, &b);
	join(&a, &b, 0, 1);
	join(&b, &a, 0, 1);
	for (i = 0; i < 2; i++)
		room[i] = (struct pw_slot){ .id = 10 + i, .local = (uintptr_t)mem + (1 + i) * PAGE, .len = PAGE, .lkey = lkey };
	CHECK(pw_receive(b.q, room, 0) == -EINVAL && pw_receive(b.q, room, 65) == -EINVAL, "no rooms, or too many");
	CHECK(!pw_receive(b.q, room, 2), "post two rooms");
	for (i = 0; i < 2; i++) {
		out = (struct pw_slot){ .id = 20 + i, .local = (uintptr_t)mem, .len = PAGE - 96 * i, .lkey = lkey };
		CHECK(!pw_send(a.q, &out), "send");
		take(a.q, done, 1);
		CHECK(done[0].id == out.id && !done[0].status, "sent: id %lu, %s", done[0].id, pw_status(done[0].status));
		take(b.q, done, 1);
		CHECK(done[0].id == room[i].id && done[0].bytes == out.len, "id %lu, %u bytes", done[0].id, done[0].bytes);
		CHECK(!memcmp(mem, mem + (1 + i) * PAGE, out.len), "another message has come");
	}
	CHECK(!pw_send(a.q, &out), "send where there is no room");
	take(a.q, done, 1);
	CHECK(done[0].status, "a message went to where there is no room");
	pw_queue_close(a.q);
	pw_queue_close(b.q);
	CHECK(!pw_deregister(mr), "deregister");
	free(mem);
}

/* A decision by what nobody has set. */
static void uninitialised(struct pw_device *d)
{
	int *which = malloc(sizeof(*which)), event, port;

	CHECK(which, "no memory");
	if (*which && pw_device_event(d, &event, &port))
		puts("an event");
	free(which);
}

/* Registered memory whose record nobody keeps. */
static void leak(struct pw_device *d)
{
	static unsigned char mem[PAGE];
	struct ibv_mr *mr;
	uint32_t lkey, rkey;

	CHECK(!pw_register(d, (uintptr_t)mem, PAGE, PW_LANDING, &mr, &lkey, &rkey), "register");
	mr = NULL;
}

int main(int argc, char **argv)
{
	const char *fault = argc == 4 ? argv[3] : "";
	struct pw_device *d = NULL;
	struct pw_caps caps;
	const char *step = "";
	int event = 0, port = 0, ret;

	setvbuf(stdout, NULL, _IONBF, 0);
	CHECK(argc == 3 || argc == 4, "usage: %s DEVICE GID-INDEX [uninitialised|leak]", argv[0]);
	CHECK(RUNNING_ON_VALGRIND, "this is to run under memcheck");
	CHECK(pw_device_open("nosuchdevice", 1, 0, &d, &step) == -ENODEV && !d, "a device that there is not, at %s", step);
	ret = pw_device_open(argv[1], 1, atoi(argv[2]), &d, &step);
	CHECK(ret == 0, "%s: %s", step, strerror(-ret));
	CHECK((ret = pw_device_caps(d, &caps)) == 0, "%s", strerror(-ret));
	CHECK(caps.link_layer == 2 && caps.state == 4 && caps.max_qp_wr > 64 && caps.mtu >= 1 && caps.mtu <= 5, "link layer %u, state %u, %u work requests, MTU %u", caps.link_layer, caps.state, caps.max_qp_wr, caps.mtu);
	CHECK(pw_device_async_fd(d) >= 0 && pw_device_event(d, &event, &port) == 0, "an event: %s", pw_event(event));
	if (!strcmp(fault, "uninitialised")) {
		uninitialised(d);
	} else if (!strcmp(fault, "leak")) {
		leak(d);
	} else {
		reads(d, &caps);
		messages(d, &caps);
	}
	pw_device_close(d);
	puts("PASS");
	return 0;
}
