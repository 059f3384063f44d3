/* A thin layer over libibverbs for package rdma: one call does what would take
 * several from Go, and no structure of libibverbs is seen there. Functions return
 * 0 (or a count) and -errno on an error; `step` then names the verb that failed.
 * None keeps a pointer into the caller's memory, but for registered memory. */
#ifndef PW_VERBS_SHIM_H
#define PW_VERBS_SHIM_H

#include <stdint.h>

struct ibv_mr;
struct pw_device;
struct pw_queue;

struct pw_caps {
	uint8_t gid[16];
	uint32_t max_qp_wr, max_cqe;
	uint32_t max_message; /* bytes */
	uint16_t lid;
	uint8_t mtu;        /* enum ibv_mtu */
	uint8_t link_layer; /* 1 InfiniBand, 2 Ethernet */
	uint8_t state;      /* enum ibv_port_state */
	uint8_t max_reads;  /* as initiator */
	uint8_t max_served; /* as responder */
	uint8_t odp;        /* memory that peers READ need not be pinned */
};

struct pw_peer {
	uint8_t gid[16];
	uint32_t qpn, psn;
	uint16_t lid;
	uint8_t mtu, reads;
	uint8_t patient; /* for messages, see pw_queue_connect */
};

/* A READ of len bytes from the peer's memory into ours. */
struct pw_read {
	uint64_t id, local, remote;
	uint32_t len, lkey, rkey, zero;
};

struct pw_done {
	uint64_t id;
	uint32_t status; /* enum ibv_wc_status */
	uint32_t vendor;
	uint32_t bytes; /* of a message received */
	uint32_t zero;
};

/* Registered memory of ours for one message: where one may land, or what is sent. */
struct pw_slot {
	uint64_t id, local;
	uint32_t len, lkey;
};

int pw_device_open(const char *name, int port, int gid_index, struct pw_device **out, const char **step);
void pw_device_close(struct pw_device *d);
int pw_device_caps(struct pw_device *d, struct pw_caps *out);
int pw_device_async_fd(struct pw_device *d);
/* 1 and the event if there is one, else 0; *port is the one that it is about, or 0. */
int pw_device_event(struct pw_device *d, int *event, int *port);

/* What memory is registered for: READs of ours and messages into it; READs of a peer from it, pinned
 * or not. */
enum { PW_LANDING, PW_READABLE, PW_READABLE_ODP };
int pw_register(struct pw_device *d, uint64_t addr, uint64_t len, int how, struct ibv_mr **out, uint32_t *lkey, uint32_t *rkey);
int pw_deregister(struct ibv_mr *mr);

int pw_queue_open(struct pw_device *d, int sends, int receives, struct pw_queue **out, uint32_t *qpn, int *fd, const char **step);
/* To RTR and RTS. serve says whether the peer may read from us. A patient queue waits
 * long for the peer's answers, since a slow link has them wait behind what was sent
 * before, and not at all for a peer that has no buffer for a message. */
int pw_queue_connect(struct pw_queue *q, const struct pw_peer *p, uint32_t psn, int serve, const char **step);
/* Nothing is read or written through the queue any more once this returns. */
void pw_queue_close(struct pw_queue *q);

/* Posts n READs, in one chain. *posted is the number that were. */
int pw_post(struct pw_queue *q, const struct pw_read *reads, int n, int *posted);
/* Posts n buffers for messages, and sends one message. */
int pw_receive(struct pw_queue *q, const struct pw_slot *slots, int n);
int pw_send(struct pw_queue *q, const struct pw_slot *slot);
/* Takes up to max completions; polls for up to spin_ns until there is one. */
int pw_poll(struct pw_queue *q, struct pw_done *out, int max, uint64_t spin_ns);
/* The next completion makes fd readable. */
int pw_arm(struct pw_queue *q);
/* Takes the events off fd; it does not wait. */
int pw_disarm(struct pw_queue *q);

const char *pw_status(uint32_t status);
const char *pw_event(int event);

#endif
