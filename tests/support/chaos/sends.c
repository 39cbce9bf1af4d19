/* Loaded before all other libraries, this ends or stops the process at its n-th send on a socket of
 * the Internet, whichever library sends: Python, librdkafka, obstore. Nothing happens before
 * chaos_arm. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long seen;
static atomic_int armed;
static long wanted;
static int after_it, signal_number, told;

void chaos_arm(long nth, int after, int number, int tell)
{
    wanted = nth;
    after_it = after;
    signal_number = number;
    told = tell;
    atomic_store(&seen, 0);
    atomic_store(&armed, 1);
}

long chaos_seen(void)
{
    return atomic_load(&seen);
}

static int is_far(int fd)
{
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    if (getsockname(fd, (struct sockaddr *)&address, &size))
        return 0;
    return address.ss_family == AF_INET || address.ss_family == AF_INET6;
}

static long begin(int fd)
{
    return atomic_load(&armed) && is_far(fd) ? atomic_fetch_add(&seen, 1) + 1 : 0;
}

static void fault(long nth, int after)
{
    static const char line[] = "fault socket send\n";
    if (!nth || nth != wanted || after != after_it)
        return;
    ssize_t (*say)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    say(told, line, sizeof line - 1);
    kill(getpid(), signal_number);
}

#define SENDS(name, parameters, arguments)                                    \
    ssize_t name parameters                                                   \
    {                                                                         \
        static ssize_t(*real) parameters;                                     \
        if (!real)                                                            \
            real = dlsym(RTLD_NEXT, #name);                                   \
        long nth = begin(fd);                                                 \
        fault(nth, 0);                                                        \
        ssize_t sent = real arguments;                                        \
        fault(nth, 1);                                                        \
        return sent;                                                          \
    }

SENDS(send, (int fd, const void *data, size_t size, int flags), (fd, data, size, flags))
SENDS(sendmsg, (int fd, const struct msghdr *message, int flags), (fd, message, flags))
SENDS(sendto,
      (int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length),
      (fd, data, size, flags, to, length))
SENDS(write, (int fd, const void *data, size_t size), (fd, data, size))
SENDS(writev, (int fd, const struct iovec *data, int count), (fd, data, count))
