/*
 * The ordering of the fault ring and of the waiter bits, for spin:
 *
 *     spin -search ring.pml
 *
 * Memory is weak: stores go through a store buffer of their CPU and become
 * visible later, in any order, unless a barrier comes between; loads read the own
 * buffer, or memory. The barriers have the letters of ../driver/pagewarp.h.
 * Leaving one out, -DNO_A, -DNO_B, -DNO_B2, -DNO_C, -DNO_D, -DNO_E or -DNO_F, must
 * make the search find an error; package kmodtest runs them all. With -DRING it is the
 * ring that is modelled, with -DSPIN a thread that reports its fault before it sets
 * the waiter bit to a daemon that drops it and asks anew, with neither the waiter bits.
 *
 *  A  thread: waiter bit, then resident bit;  daemon: resident, then waiter bit
 *  B  producer: entry, then its seq;          consumer (B2): seq, then entry
 *  C  consumer: copies the entry, then cons;  producer: cons, then the entry
 *  D  producer: seq, then need_wakeup;        consumer: need_wakeup, then seq
 *  E  thread: waiter bit, then epoch;         redeliver: epoch, then waiter bits
 *  F  thread: epoch, then the entry
 *
 * The properties: an entry that is taken is the one of its index (assert), and
 * neither the thread nor the consumer sleeps for ever (no invalid end state).
 */

#define VARS 7
#define WAITER 0
#define RESIDENT 1
#define ENTRY 2		/* content of the ring's only slot: the index it is of */
#define SEQ 3		/* of that slot */
#define NEED 4		/* need_wakeup, and the place in the wait queue */
#define CONS 5
#define EPOCH 6

#define FAULTS 3	/* that go through the ring */
#define NONE 255

byte mem[VARS];

typedef cpu { byte buf[VARS] }
cpu c[4];		/* thread, precache, producer, consumer */

#define EMPTY(k) (c[k].buf[0] == NONE && c[k].buf[1] == NONE && c[k].buf[2] == NONE && \
		  c[k].buf[3] == NONE && c[k].buf[4] == NONE && c[k].buf[5] == NONE && \
		  c[k].buf[6] == NONE)

/* A later store to the same place waits for the earlier: coherence. */
inline store(k, v, x) { atomic { c[k].buf[v] == NONE -> c[k].buf[v] = x } }
inline load(k, v, r) { atomic { r = (c[k].buf[v] != NONE -> c[k].buf[v] : mem[v]) } }
inline mb(k) { EMPTY(k) }

#define MOVE(k, v) (c[k].buf[v] != NONE) -> mem[v] = c[k].buf[v]; c[k].buf[v] = NONE

/* The CPUs' store buffers, emptied in any order. */
proctype buffers(byte k)
{
end:	do
	:: atomic { MOVE(k, 0) }
	:: atomic { MOVE(k, 1) }
	:: atomic { MOVE(k, 2) }
	:: atomic { MOVE(k, 3) }
	:: atomic { MOVE(k, 4) }
	:: atomic { MOVE(k, 5) }
	:: atomic { MOVE(k, 6) }
	od
}

bool thread_woken, consumer_woken;

/* pw_wait() and pw_announce() of driver/fault.c. */
proctype thread()
{
	byte r;

	store(0, WAITER, 1);
#ifndef NO_A
	mb(0);
#endif
	load(0, RESIDENT, r);
	if
	:: r == 1
	:: else -> thread_woken	/* sleeps */
	fi
}

/* Daemon.Install: precache of the page for which the thread waits. */
proctype precache()
{
	byte r;

	store(1, RESIDENT, 1);
#ifndef NO_A
	mb(1);
#endif
	load(1, WAITER, r);
	if
	:: r == 1 -> thread_woken = true	/* WAKE */
	:: else
	fi
}

byte posted;	/* entries that the daemon has not read: the ring, of which -DRING is */

/* pw_spin(), then pw_wait() with the epoch in which it has reported. */
proctype spinner()
{
	byte epoch, now, r;

#ifdef NO_F
	posted++;
#endif
	load(0, EPOCH, epoch);
#ifndef NO_F
	posted++;
#endif
	store(0, WAITER, 1);
#ifndef NO_E
	mb(0);
#endif
	load(0, EPOCH, now);
	if
	:: now != epoch -> posted++
	:: else
	fi;
	mb(0);	/* A */
	load(0, RESIDENT, r);
	if
	:: r == 1
	:: else -> thread_woken	/* sleeps */
	fi
}

/* A daemon that drops a fault, has it redelivered, and serves it then. */
proctype forgetful()
{
	byte r;

	posted > 0 -> posted--;
	store(1, EPOCH, 1);
#ifndef NO_E
	mb(1);
#endif
	load(1, WAITER, r);
	if
	:: r == 1 -> posted++
	:: else
	fi;
	posted > 0 -> posted--;
	store(1, RESIDENT, 1);
	mb(1);	/* A */
	load(1, WAITER, r);
	if
	:: r == 1 -> thread_woken = true	/* WAKE */
	:: else
	fi
}

/* pw_ring_put() and pw_wake_consumer() of driver/ring.c. */
proctype producer()
{
	byte n = 1, r;

	do
	:: n > FAULTS -> break
	:: else ->
		/* Full until the consumer has copied the entry before. */
		do
		:: load(2, CONS, r); if :: r == n - 1 -> break :: else fi
		od;
		store(2, ENTRY, n);
#ifndef NO_B
		mb(2);
#endif
		store(2, SEQ, n);
#ifndef NO_D
		mb(2);
#endif
		load(2, NEED, r);
		if
		:: r == 1 -> consumer_woken = true
		:: else
		fi;
		n++
	od
}

/* Ring.Read, and poll where there is nothing: pw_daemon_poll(). */
proctype consumer()
{
	byte n = 1, r, seq, entry;

	do
	:: n > FAULTS -> break
	:: else ->
#ifdef NO_B2
		load(3, ENTRY, entry);
#endif
		load(3, SEQ, seq);
		if
		:: seq == n
		:: else ->
			atomic { consumer_woken = false };
			store(3, NEED, 1);
#ifndef NO_D
			mb(3);
#endif
			load(3, SEQ, seq);
			if
			:: seq == n
			:: else -> consumer_woken	/* sleeps */
			fi;
			/* Up again: out of the queue, and another look. */
			store(3, NEED, 0);
			goto again
		fi;
#ifdef NO_C
		store(3, CONS, n);
		mb(3);
#endif
#ifndef NO_B2
		load(3, ENTRY, entry);
#endif
		assert(entry == n);
#ifndef NO_C
		store(3, CONS, n);
#endif
		n++;
again:		skip
	od
}

init
{
	byte k, v;

	atomic {
		for (k : 0 .. 3) {
			for (v : 0 .. VARS - 1) {
				c[k].buf[v] = NONE
			}
			run buffers(k)
		}
#ifdef SPIN
		run spinner();
		run forgetful();
#else
#ifndef RING
		run thread();
		run precache();
#else
		run producer();
		run consumer()
#endif
#endif
	}
}
