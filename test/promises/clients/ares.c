/* Lookups with c-ares' ares_getaddrinfo, as Node.js, curl and Envoy do. */
#define _GNU_SOURCE
#include "lookups.h"

#include <ares.h>
#include <sys/select.h>

struct answer {
	struct found *found;
	int status, done;
};

static void answered(void *arg, int status, int timeouts, struct ares_addrinfo *info)
{
	struct answer *a = arg;
	(void)timeouts;
	a->done = 1;
	a->status = status;
	if (status != ARES_SUCCESS)
		return;
	for (struct ares_addrinfo_node *n = info->nodes; n; n = n->ai_next)
		found_add(a->found, n->ai_addr);
	ares_freeaddrinfo(info);
}

static const char *lookup(const char *name, struct found *f)
{
	struct answer a = {.found = f};
	struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
	ares_channel channel;
	int status = ares_init(&channel);
	if (status != ARES_SUCCESS)
		return ares_strerror(status);
	ares_getaddrinfo(channel, name, NULL, &hints, answered, &a);
	while (!a.done) {
		fd_set in, out;
		struct timeval longest = {.tv_sec = 1}, wait;
		FD_ZERO(&in);
		FD_ZERO(&out);
		int n = ares_fds(channel, &in, &out);
		select(n, &in, &out, NULL, ares_timeout(channel, &longest, &wait));
		ares_process(channel, &in, &out);
	}
	ares_destroy(channel);
	return a.status == ARES_SUCCESS ? NULL : ares_strerror(a.status);
}

int main(int argc, char **argv)
{
	if (ares_library_init(ARES_LIB_INIT_ALL) != ARES_SUCCESS)
		return 1;
	return lookups_main(argc, argv);
}
