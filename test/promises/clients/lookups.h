/* What the lookup programs in C have in common: COUNT lookups of NAME, one
 * every INTERVAL milliseconds whether or not those before have ended, each in a
 * thread of its own, as in pods of their own. For each a line:
 *
 *   WHEN TOOK RESULT
 *
 * in nanoseconds since the start, and the addresses found, sorted and separated
 * by commas, or "error: …". */
#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { MOST = 8, RESULT = 512 };

struct found {
	char text[MOST][INET6_ADDRSTRLEN];
	int n;
};

/* lookup finds both kinds of addresses of a name; it returns what went wrong. */
static const char *lookup(const char *name, struct found *f);

static void found_add(struct found *f, const struct sockaddr *a)
{
	const void *addr = a->sa_family == AF_INET6 ? (const void *)&((const struct sockaddr_in6 *)a)->sin6_addr
						    : (const void *)&((const struct sockaddr_in *)a)->sin_addr;
	if (f->n < MOST && inet_ntop(a->sa_family, addr, f->text[f->n], INET6_ADDRSTRLEN))
		f->n++;
}

struct job {
	const char *name;
	long long when, took;
	char result[RESULT];
	pthread_t thread;
};

static struct timespec begin;

static long long since_begin(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (t.tv_sec - begin.tv_sec) * 1000000000LL + t.tv_nsec - begin.tv_nsec;
}

static int compare(const void *a, const void *b) { return strcmp(a, b); }

static void *run(void *arg)
{
	struct job *j = arg;
	struct found f = {.n = 0};
	j->when = since_begin();
	const char *error = lookup(j->name, &f);
	j->took = since_begin() - j->when;
	if (error) {
		snprintf(j->result, RESULT, "error: %s", error);
		return NULL;
	}
	qsort(f.text, f.n, sizeof f.text[0], compare);
	for (int i = 0; i < f.n; i++)
		snprintf(j->result + strlen(j->result), RESULT - strlen(j->result), "%s%s", i ? "," : "", f.text[i]);
	return NULL;
}

static int lookups_main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: %s COUNT INTERVAL NAME\n", argv[0]);
		return 2;
	}
	int count = atoi(argv[1]);
	long long interval = atoi(argv[2]) * 1000000LL;
	struct job *jobs = calloc(count, sizeof *jobs);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; i < count; i++) {
		long long ahead = i * interval - since_begin();
		if (ahead > 0)
			nanosleep(&(struct timespec){ahead / 1000000000, ahead % 1000000000}, NULL);
		jobs[i].name = argv[3];
		if (pthread_create(&jobs[i].thread, NULL, run, &jobs[i])) {
			perror("pthread_create");
			return 1;
		}
	}
	for (int i = 0; i < count; i++) {
		pthread_join(jobs[i].thread, NULL);
		printf("%lld %lld %s\n", jobs[i].when, jobs[i].took, jobs[i].result);
	}
	return 0;
}
