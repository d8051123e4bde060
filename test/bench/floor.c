/*
 * A name server that does nothing but what the kernel makes it do: it reads a
 * batch of packets, answers each with its own id and question and one address,
 * and writes the batch. No cache, no names: what its queries cost is the floor
 * for any process that answers over UDP sockets.
 *
 * One socket, one thread, blocking: the thread sleeps in recvmmsg(2) itself,
 * and takes all that has come when it wakes up.
 *
 * usage: floor ADDRESS PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { BATCH = 32, QUERY = 512, HEADER = 12 };

static unsigned char queries[BATCH][QUERY], replies[BATCH][QUERY + 16];
static struct sockaddr_in peers[BATCH];
static struct iovec in_iov[BATCH], out_iov[BATCH];
static struct mmsghdr in[BATCH], out[BATCH];

/* A compressed name, A, IN, a TTL of 30 s and 192.0.2.1. */
static const unsigned char answer[] = {0xc0, HEADER, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1};

/* The length of the reply to a query of n bytes; 0 for none. */
static size_t reply(const unsigned char *query, size_t n, unsigned char *to)
{
	size_t end = HEADER;
	if (n < HEADER || (query[2] & 0x80))
		return 0;
	while (end < n && query[end] != 0)
		end += query[end] + 1;
	end += 5; /* the root, type and class */
	if (end > n)
		return 0;
	memcpy(to, query, end);
	to[2] = 0x80 | (query[2] & 0x01); /* QR, RD as asked */
	to[3] = 0x80;                     /* RA */
	memcpy(to + 4, "\0\1\0\1\0\0\0\0", 8);
	memcpy(to + end, answer, sizeof answer);
	return end + sizeof answer;
}

static void fail(const char *what)
{
	fprintf(stderr, "floor: error: %s: %s\n", what, strerror(errno));
	exit(1);
}

int main(int argc, char **argv)
{
	struct sockaddr_in addr = {.sin_family = AF_INET};
	int fd;

	if (argc != 3 || inet_pton(AF_INET, argv[1], &addr.sin_addr) != 1) {
		fprintf(stderr, "usage: floor ADDRESS PORT\n");
		return 2;
	}
	addr.sin_port = htons((unsigned short)atoi(argv[2]));
	if ((fd = socket(AF_INET, SOCK_DGRAM, 0)) < 0)
		fail("making a socket");
	if (bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0)
		fail("binding it");
	for (int i = 0; i < BATCH; i++) {
		in_iov[i] = (struct iovec){queries[i], QUERY};
		in[i].msg_hdr = (struct msghdr){.msg_name = &peers[i], .msg_iov = &in_iov[i], .msg_iovlen = 1};
	}
	for (;;) {
		int n, m = 0, sent = 0;
		for (int i = 0; i < BATCH; i++)
			in[i].msg_hdr.msg_namelen = sizeof peers[i];
		n = recvmmsg(fd, in, BATCH, MSG_WAITFORONE, NULL);
		if (n < 0 && errno != EINTR)
			fail("receiving");
		for (int i = 0; i < n; i++) {
			size_t size = reply(queries[i], in[i].msg_len, replies[m]);
			if (size == 0)
				continue;
			out_iov[m] = (struct iovec){replies[m], size};
			out[m].msg_hdr = (struct msghdr){.msg_name = &peers[i], .msg_namelen = sizeof peers[i], .msg_iov = &out_iov[m], .msg_iovlen = 1};
			m++;
		}
		while (sent < m) {
			int k = sendmmsg(fd, out + sent, (unsigned)(m - sent), 0);
			sent += k > 0 ? k : 1; /* the first of them is the one that failed */
		}
	}
}
