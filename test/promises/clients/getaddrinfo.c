/* Lookups with the C library's getaddrinfo: glibc's or musl's. */
#define _GNU_SOURCE
#include "lookups.h"

static const char *lookup(const char *name, struct found *f)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *list;
	int code = getaddrinfo(name, NULL, &hints, &list);
	if (code)
		return gai_strerror(code);
	for (struct addrinfo *a = list; a; a = a->ai_next)
		found_add(f, a->ai_addr);
	freeaddrinfo(list);
	return NULL;
}

int main(int argc, char **argv) { return lookups_main(argc, argv); }
