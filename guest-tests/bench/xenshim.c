/*
 * A stand-in for Xen's libraries, so that an unmodified C xenstored runs on a machine without Xen: preloaded, it answers
 * for libxenevtchn, libxengnttab and libxenctrl. For comparisons only (`cargo lab bench store`).
 *
 * Every domain exists. Guests are files in the folder $XENSHIM_DIR:
 *   ring.DOMID        its xenstore page, 4096 bytes
 *   evtchn.sock       datagrams to the daemon: a port (u32); ports are 100 + DOMID
 *   guest.DOMID.sock  datagrams to the guest: the same
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { PORT_BASE = 100, PAGE = 4096, RUNNING = 32 };

static int handle;
static int bell = -1;

static char *place(char *to, size_t size, const char *format, ...)
{
    const char *dir = getenv("XENSHIM_DIR");
    int len = snprintf(to, size, "%s/", dir ? dir : ".");
    va_list args;

    va_start(args, format);
    vsnprintf(to + len, size - len, format, args);
    va_end(args);
    return to;
}

/* --- event channels --- */

static void *open_bell(void)
{
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    int room = 4 << 20;

    if (bell < 0) {
        place(name.sun_path, sizeof(name.sun_path), "evtchn.sock");
        unlink(name.sun_path);
        bell = socket(AF_UNIX, SOCK_DGRAM, 0);
        if (bell < 0 || bind(bell, (void *)&name, sizeof(name)))
            return NULL;
        setsockopt(bell, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
    }
    return &handle;
}

void *xenevtchn_open(void *logger, unsigned flags) { return open_bell(); }
void *xenevtchn_fdopen(void *logger, int fd, unsigned flags) { bell = fd; return &handle; }
int xenevtchn_fd(void *h) { return bell; }
int xenevtchn_bind_virq(void *h, unsigned virq) { return 1; }
int xenevtchn_bind_interdomain(void *h, uint32_t domid, uint32_t port) { return PORT_BASE + domid; }
int xenevtchn_unbind(void *h, uint32_t port) { return 0; }
int xenevtchn_unmask(void *h, uint32_t port) { return 0; }

int xenevtchn_notify(void *h, uint32_t port)
{
    static int fd = -1;
    struct sockaddr_un name = { .sun_family = AF_UNIX };

    if (fd < 0)
        fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    place(name.sun_path, sizeof(name.sun_path), "guest.%u.sock", port - PORT_BASE);
    sendto(fd, &port, sizeof(port), MSG_DONTWAIT | MSG_NOSIGNAL, (void *)&name, sizeof(name));
    return 0;
}

int xenevtchn_pending(void *h)
{
    uint32_t port;

    return recv(bell, &port, sizeof(port), 0) == sizeof(port) ? (int)port : -1;
}

/* --- grants: a domain's page is a file --- */

static void *map_page(uint32_t domid)
{
    char path[108];
    void *page = MAP_FAILED;
    int fd = open(place(path, sizeof(path), "ring.%u", domid), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    if (fd >= 0 && !ftruncate(fd, PAGE))
        page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0)
        close(fd);
    return page == MAP_FAILED ? NULL : page;
}

void *xengnttab_open(void *logger, unsigned flags) { return &handle; }
int xengnttab_close(void *h) { return 0; }
int xengnttab_set_max_grants(void *h, uint32_t count) { return 0; }
int xengnttab_unmap(void *h, void *page, uint32_t count) { return munmap(page, PAGE * count); }

void *xengnttab_map_grant_ref(void *h, uint32_t domid, uint32_t ref, int prot)
{
    return map_page(domid);
}

/* --- domains --- */

void *xc_interface_open(void *logger, void *dom_logger, unsigned flags) { return &handle; }
int xc_interface_close(void *h) { return 0; }

/* struct xen_domctl_getdomaininfo begins with domid (u16), two bytes of padding, flags (u32). */
int xc_domain_getinfo_single(void *h, uint32_t domid, void *info)
{
    uint32_t words[4] = { domid, RUNNING };

    if (info)
        memcpy(info, words, sizeof(words));
    return 0;
}

/* --- the host's own page and port, files of Linux's xenfs --- */

int open(const char *path, int flags, ...)
{
    static int (*next)(const char *, int, ...);
    char own[108];
    va_list args;
    mode_t mode;

    va_start(args, flags);
    mode = flags & O_CREAT ? va_arg(args, mode_t) : 0;
    va_end(args);
    if (!next)
        next = dlsym(RTLD_NEXT, "open");
    if (!strcmp(path, "/proc/xen/xsd_kva")) {
        void *page = map_page(0);

        if (page)
            munmap(page, PAGE);
        path = place(own, sizeof(own), "ring.0");
    } else if (!strcmp(path, "/proc/xen/xsd_port")) {
        int fd = next(place(own, sizeof(own), "xsd_port"), O_WRONLY | O_CREAT | O_TRUNC, 0600);

        if (fd >= 0) {
            (void)!write(fd, "7", 1);
            close(fd);
        }
        path = own;
    }
    return next(path, flags, mode);
}
