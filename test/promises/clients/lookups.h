/* What the lookup programs in C have in common: COUNT lookups of NAME, one
 * every INTERVAL milliseconds whether or not those before have ended, each in a
 * thread of its own, as in pods of their own. For each a line:
 *
 *   WHEN TOOK RESULT
 *
 * in nanoseconds since the start, and the addresses found, sorted and separated
 * by commas, or "error: …", which is also what becomes of a lookup that has not
 * ended LIMIT milliseconds after the last one began. */
#include <arpa/inet.h>
#include <netdb.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

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
};

static struct timespec begin;

/* What follows is guarded by lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static int open_jobs;

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
	char result[RESULT] = "";
	const char *error = lookup(j->name, &f);
	long long took = since_begin() - j->when;
	qsort(f.text, f.n, sizeof f.text[0], compare);
	if (error)
		snprintf(result, RESULT, "error: %s", error);
	for (int i = 0; !error && i < f.n; i++)
		snprintf(result + strlen(result), RESULT - strlen(result), "%s%s", i ? "," : "", f.text[i]);
	pthread_mutex_lock(&lock);
	j->took = took;
	memcpy(j->result, result, RESULT);
	open_jobs--;
	pthread_cond_signal(&ended);
	pthread_mutex_unlock(&lock);
	return NULL;
}

static int lookups_main(int argc, char **argv)
{
	if (argc != 5) {
		fprintf(stderr, "usage: %s COUNT INTERVAL LIMIT NAME\n", argv[0]);
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
		pthread_t thread;
		jobs[i].name = argv[4];
		jobs[i].when = since_begin();
		pthread_mutex_lock(&lock);
		open_jobs++;
		pthread_mutex_unlock(&lock);
		if (pthread_create(&thread, NULL, run, &jobs[i])) {
			perror("pthread_create");
			return 1;
		}
		pthread_detach(thread);
	}
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += atoi(argv[3]) / 1000;
	pthread_mutex_lock(&lock);
	while (open_jobs > 0 && pthread_cond_timedwait(&ended, &lock, &until) == 0)
		;
	for (int i = 0; i < count; i++) {
		int open = jobs[i].took == 0;
		printf("%lld %lld %s\n", jobs[i].when, open ? since_begin() - jobs[i].when : jobs[i].took, open ? "error: not ended" : jobs[i].result);
	}
	fflush(stdout);
	_exit(0); /* without those that have not ended */
}
