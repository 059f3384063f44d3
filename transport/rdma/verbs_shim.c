//go:build cgo && rdma

#include "verbs_shim.h"

#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_POST = 64 };

struct pw_device {
	struct ibv_context *ctx;
	struct ibv_pd *pd;
	int port, gid_index;
};

struct pw_queue {
	struct pw_device *dev;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	unsigned int events; /* taken and not acknowledged */
};

/* Verbs return -1 with errno, or errno itself. */
static int failed(int ret)
{
	if (ret > 0)
		return -ret;
	return errno ? -errno : -EIO;
}

static int nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

int pw_device_open(const char *name, int port, int gid_index, struct pw_device **out, const char **step)
{
	struct ibv_device **list, *found = NULL;
	struct pw_device *d;
	int n = 0, i, ret;

	*step = "ibv_get_device_list";
	errno = 0;
	list = ibv_get_device_list(&n);
	if (!list)
		return failed(-1);
	for (i = 0; i < n; i++)
		if (!strcmp(ibv_get_device_name(list[i]), name))
			found = list[i];
	d = calloc(1, sizeof(*d));
	*step = "find the device's provider";
	if (!d || !found) {
		ret = d ? -ENODEV : -ENOMEM;
		goto out_list;
	}
	d->port = port;
	d->gid_index = gid_index;
	*step = "ibv_open_device";
	errno = 0;
	d->ctx = ibv_open_device(found);
	if (!d->ctx) {
		ret = failed(-1);
		goto out_list;
	}
	*step = "ibv_alloc_pd";
	errno = 0;
	d->pd = ibv_alloc_pd(d->ctx);
	if (!d->pd) {
		ret = failed(-1);
		goto out_list;
	}
	ret = nonblocking(d->ctx->async_fd);
	if (ret)
		goto out_list;
	*out = d;
	d = NULL;
out_list:
	ibv_free_device_list(list);
	if (d)
		pw_device_close(d);
	return ret;
}

void pw_device_close(struct pw_device *d)
{
	if (d->pd)
		ibv_dealloc_pd(d->pd);
	if (d->ctx)
		ibv_close_device(d->ctx);
	free(d);
}

int pw_device_caps(struct pw_device *d, struct pw_caps *out)
{
	struct ibv_device_attr_ex attr;
	struct ibv_port_attr port;
	union ibv_gid gid;
	int ret;

	memset(&attr, 0, sizeof(attr));
	errno = 0;
	ret = ibv_query_device_ex(d->ctx, NULL, &attr);
	if (ret)
		return failed(ret);
	ret = ibv_query_port(d->ctx, d->port, &port);
	if (ret)
		return failed(ret);
	ret = ibv_query_gid(d->ctx, d->port, d->gid_index, &gid);
	if (ret)
		return failed(ret);
	memset(out, 0, sizeof(*out));
	memcpy(out->gid, gid.raw, sizeof(out->gid));
	out->max_qp_wr = attr.orig_attr.max_qp_wr;
	out->max_cqe = attr.orig_attr.max_cqe;
	out->max_message = port.max_msg_sz;
	out->lid = port.lid;
	out->mtu = port.active_mtu;
	out->link_layer = port.link_layer == IBV_LINK_LAYER_ETHERNET ? 2 : 1;
	out->state = port.state;
	out->odp = (attr.odp_caps.general_caps & IBV_ODP_SUPPORT) && (attr.odp_caps.per_transport_caps.rc_odp_caps & IBV_ODP_SUPPORT_READ);
	out->max_reads = attr.orig_attr.max_qp_init_rd_atom > 255 ? 255 : attr.orig_attr.max_qp_init_rd_atom;
	out->max_served = attr.orig_attr.max_qp_rd_atom > 255 ? 255 : attr.orig_attr.max_qp_rd_atom;
	return 0;
}

int pw_device_async_fd(struct pw_device *d)
{
	return d->ctx->async_fd;
}

int pw_device_event(struct pw_device *d, int *event, int *port)
{
	struct ibv_async_event e;

	if (ibv_get_async_event(d->ctx, &e))
		return 0;
	*event = e.event_type;
	switch (e.event_type) {
	case IBV_EVENT_PORT_ACTIVE:
	case IBV_EVENT_PORT_ERR:
	case IBV_EVENT_LID_CHANGE:
	case IBV_EVENT_PKEY_CHANGE:
	case IBV_EVENT_SM_CHANGE:
	case IBV_EVENT_CLIENT_REREGISTER:
	case IBV_EVENT_GID_CHANGE:
		*port = e.element.port_num;
		break;
	default:
		*port = 0;
	}
	/* At once: destroying a queue waits for its events to be acknowledged. */
	ibv_ack_async_event(&e);
	return 1;
}

int pw_register(struct pw_device *d, uint64_t addr, uint64_t len, int how, struct ibv_mr **out, uint32_t *lkey, uint32_t *rkey)
{
	unsigned int access = how == PW_LANDING ? IBV_ACCESS_LOCAL_WRITE : IBV_ACCESS_REMOTE_READ;
	struct ibv_mr *mr;

	if (how == PW_READABLE_ODP)
		access |= IBV_ACCESS_ON_DEMAND;
	errno = 0;
	mr = ibv_reg_mr(d->pd, (void *)(uintptr_t)addr, len, access);
	if (!mr)
		return failed(-1);
	*out = mr;
	*lkey = mr->lkey;
	*rkey = mr->rkey;
	return 0;
}

int pw_deregister(struct ibv_mr *mr)
{
	int ret;

	errno = 0;
	ret = ibv_dereg_mr(mr);
	return ret ? failed(ret) : 0;
}

int pw_queue_open(struct pw_device *d, int sends, int receives, struct pw_queue **out, uint32_t *qpn, int *fd, const char **step)
{
	struct ibv_qp_init_attr init;
	struct pw_queue *q;
	int ret;

	*step = "allocate";
	q = calloc(1, sizeof(*q));
	if (!q)
		return -ENOMEM;
	q->dev = d;
	*step = "ibv_create_comp_channel";
	errno = 0;
	q->channel = ibv_create_comp_channel(d->ctx);
	if (!q->channel)
		goto fail;
	ret = nonblocking(q->channel->fd);
	if (ret) {
		errno = -ret;
		goto fail;
	}
	*step = "ibv_create_cq";
	errno = 0;
	q->cq = ibv_create_cq(d->ctx, sends + receives, NULL, q->channel, 0);
	if (!q->cq)
		goto fail;
	memset(&init, 0, sizeof(init));
	init.send_cq = q->cq;
	init.recv_cq = q->cq;
	init.qp_type = IBV_QPT_RC;
	init.cap.max_send_wr = sends;
	init.cap.max_recv_wr = receives;
	init.cap.max_send_sge = 1;
	init.cap.max_recv_sge = 1;
	*step = "ibv_create_qp";
	errno = 0;
	q->qp = ibv_create_qp(d->pd, &init);
	if (!q->qp)
		goto fail;
	*qpn = q->qp->qp_num;
	*fd = q->channel->fd;
	*out = q;
	return 0;
fail:
	ret = failed(-1);
	pw_queue_close(q);
	return ret;
}

int pw_queue_connect(struct pw_queue *q, const struct pw_peer *p, uint32_t psn, int serve, const char **step)
{
	struct ibv_qp_attr a;
	int ret;

	memset(&a, 0, sizeof(a));
	a.qp_state = IBV_QPS_INIT;
	a.port_num = q->dev->port;
	a.qp_access_flags = serve ? IBV_ACCESS_REMOTE_READ : 0;
	*step = "ibv_modify_qp to INIT";
	errno = 0;
	ret = ibv_modify_qp(q->qp, &a, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
	if (ret)
		return failed(ret);

	memset(&a, 0, sizeof(a));
	a.qp_state = IBV_QPS_RTR;
	a.path_mtu = p->mtu;
	a.dest_qp_num = p->qpn;
	a.rq_psn = p->psn;
	a.max_dest_rd_atomic = serve ? p->reads : 0;
	a.min_rnr_timer = 12;
	a.ah_attr.dlid = p->lid;
	a.ah_attr.port_num = q->dev->port;
	a.ah_attr.is_global = 1;
	memcpy(a.ah_attr.grh.dgid.raw, p->gid, sizeof(p->gid));
	a.ah_attr.grh.hop_limit = 64;
	a.ah_attr.grh.sgid_index = q->dev->gid_index;
	*step = "ibv_modify_qp to RTR";
	ret = ibv_modify_qp(q->qp, &a, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
				       IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
	if (ret)
		return failed(ret);

	memset(&a, 0, sizeof(a));
	a.qp_state = IBV_QPS_RTS;
	/* 4.096 µs * 2^14 = 67 ms, 7 times: half a second until RETRY_EXC; 2^17: 3.8 s. */
	a.timeout = p->patient ? 17 : 14;
	a.retry_cnt = 7;
	a.rnr_retry = p->patient ? 0 : 7;
	a.sq_psn = psn;
	a.max_rd_atomic = serve ? 0 : p->reads;
	*step = "ibv_modify_qp to RTS";
	ret = ibv_modify_qp(q->qp, &a, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
				       IBV_QP_MAX_QP_RD_ATOMIC);
	return ret ? failed(ret) : 0;
}

void pw_queue_close(struct pw_queue *q)
{
	if (q->qp)
		ibv_destroy_qp(q->qp);
	if (q->cq) {
		pw_disarm(q);
		ibv_destroy_cq(q->cq);
	}
	if (q->channel)
		ibv_destroy_comp_channel(q->channel);
	free(q);
}

int pw_post(struct pw_queue *q, const struct pw_read *reads, int n, int *posted)
{
	struct ibv_send_wr wr[MAX_POST], *bad = NULL;
	struct ibv_sge sge[MAX_POST];
	int i, ret;

	*posted = 0;
	if (n < 1 || n > MAX_POST)
		return -EINVAL;
	memset(wr, 0, sizeof(wr[0]) * n);
	for (i = 0; i < n; i++) {
		sge[i].addr = reads[i].local;
		sge[i].length = reads[i].len;
		sge[i].lkey = reads[i].lkey;
		wr[i].wr_id = reads[i].id;
		wr[i].next = i + 1 < n ? &wr[i + 1] : NULL;
		wr[i].sg_list = &sge[i];
		wr[i].num_sge = 1;
		wr[i].opcode = IBV_WR_RDMA_READ;
		wr[i].send_flags = IBV_SEND_SIGNALED;
		wr[i].wr.rdma.remote_addr = reads[i].remote;
		wr[i].wr.rdma.rkey = reads[i].rkey;
	}
	errno = 0;
	ret = ibv_post_send(q->qp, wr, &bad);
	if (!ret) {
		*posted = n;
		return 0;
	}
	*posted = bad ? (int)(bad - wr) : 0;
	return failed(ret);
}

int pw_receive(struct pw_queue *q, const struct pw_slot *slots, int n)
{
	struct ibv_recv_wr wr[MAX_POST], *bad = NULL;
	struct ibv_sge sge[MAX_POST];
	int i, ret;

	if (n < 1 || n > MAX_POST)
		return -EINVAL;
	memset(wr, 0, sizeof(wr[0]) * n);
	for (i = 0; i < n; i++) {
		sge[i].addr = slots[i].local;
		sge[i].length = slots[i].len;
		sge[i].lkey = slots[i].lkey;
		wr[i].wr_id = slots[i].id;
		wr[i].next = i + 1 < n ? &wr[i + 1] : NULL;
		wr[i].sg_list = &sge[i];
		wr[i].num_sge = 1;
	}
	errno = 0;
	ret = ibv_post_recv(q->qp, wr, &bad);
	return ret ? failed(ret) : 0;
}

int pw_send(struct pw_queue *q, const struct pw_slot *slot)
{
	struct ibv_sge sge = { .addr = slot->local, .length = slot->len, .lkey = slot->lkey };
	struct ibv_send_wr wr, *bad = NULL;
	int ret;

	memset(&wr, 0, sizeof(wr));
	wr.wr_id = slot->id;
	wr.sg_list = &sge;
	wr.num_sge = 1;
	wr.opcode = IBV_WR_SEND;
	wr.send_flags = IBV_SEND_SIGNALED;
	errno = 0;
	ret = ibv_post_send(q->qp, &wr, &bad);
	return ret ? failed(ret) : 0;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + t.tv_nsec;
}

int pw_poll(struct pw_queue *q, struct pw_done *out, int max, uint64_t spin_ns)
{
	struct ibv_wc wc[MAX_POST];
	uint64_t end;
	int i, n;

	if (max > MAX_POST)
		max = MAX_POST;
	n = ibv_poll_cq(q->cq, max, wc);
	if (n == 0 && spin_ns) { /* the clock is not read for one that is there */
		end = now_ns() + spin_ns;
		do {
			n = ibv_poll_cq(q->cq, max, wc);
		} while (n == 0 && now_ns() < end);
	}
	if (n < 0)
		return -EIO;
	for (i = 0; i < n; i++) {
		out[i].id = wc[i].wr_id;
		out[i].status = wc[i].status;
		out[i].vendor = wc[i].vendor_err;
		out[i].bytes = wc[i].status == IBV_WC_SUCCESS && wc[i].opcode == IBV_WC_RECV ? wc[i].byte_len : 0;
		out[i].zero = 0;
	}
	return n;
}

int pw_arm(struct pw_queue *q)
{
	int ret;

	errno = 0;
	ret = ibv_req_notify_cq(q->cq, 0);
	return ret ? failed(ret) : 0;
}

int pw_disarm(struct pw_queue *q)
{
	struct ibv_cq *cq;
	void *context;
	int n = 0;

	while (n < 1024 && !ibv_get_cq_event(q->channel, &cq, &context)) {
		q->events++;
		n++;
	}
	if (q->events) {
		ibv_ack_cq_events(q->cq, q->events);
		q->events = 0;
	}
	return n;
}

const char *pw_status(uint32_t status)
{
	return ibv_wc_status_str(status);
}

const char *pw_event(int event)
{
	return ibv_event_type_str(event);
}

/* What package rdma passes as arrays of its own types; its TestLayout has the same. */
_Static_assert(sizeof(struct pw_read) == 40, "struct pw_read");
_Static_assert(sizeof(struct pw_done) == 24, "struct pw_done");
_Static_assert(sizeof(struct pw_slot) == 24, "struct pw_slot");
