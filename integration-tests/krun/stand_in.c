/* A library with libkrun's ABI whose guest is a process in namespaces of its own, with the root as its root folder.
 *
 * For machines on which no guest boots. It is as strict as libkrun is: contexts, order and arguments are checked, and what
 * it is not asked for it does not do. Compiled with -DOLD it offers what libkrun 1.10 does, else what 1.19 does. With
 * STAND_IN_HANGS in the environment its guests never get to their program, as on a host whose KVM runs no kernel.
 * Where it may not make namespaces (in a container, whose namespaces it has) the guest is a process with that root alone.
 * A vsock port of the guest on which we are to listen is that Unix socket itself, which the guest's program inherits, already
 * listening; MAGIK_GUEST_LISTENER in its environment is the descriptor's number, for there is no AF_VSOCK.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHARES 16
#define EXPORT __attribute__((visibility("default")))

static struct {
    bool made, configured, executable, sockets, read_only;
    char *root, *workdir, *program, *console, *socket;
    char **arguments, **environment;
    int shares;
    struct { char *tag, *path; bool read_only; } share[SHARES];
} vm;

static char **copy(const char *const *texts) {
    int count = 0;
    while (texts && texts[count]) count++;
    char **found = calloc(count + 1, sizeof *found);
    for (int i = 0; i < count; i++) found[i] = strdup(texts[i]);
    return found;
}

static int check(uint32_t context) { return vm.made && context == 0 ? 0 : -ENOENT; }

EXPORT int32_t krun_create_ctx(void) {
    if (vm.made) return -EBUSY;
    memset(&vm, 0, sizeof vm);
    vm.made = true;
    return 0;
}

EXPORT int32_t krun_free_ctx(uint32_t context) {
    if (check(context)) return -ENOENT;
    vm.made = false;
    return 0;
}

EXPORT int32_t krun_set_vm_config(uint32_t context, uint8_t vcpus, uint32_t mib) {
    if (check(context)) return -ENOENT;
    if (vcpus == 0 || mib == 0) return -EINVAL;
    vm.configured = true;
    return 0;
}

static int32_t add_share(uint32_t context, const char *tag, const char *path, bool read_only) {
    struct stat found;
    if (check(context)) return -ENOENT;
    if (stat(path, &found) || !S_ISDIR(found.st_mode)) return -EINVAL;
    if (!strcmp(tag, "/dev/root")) {
        vm.root = strdup(path);
        vm.read_only = read_only;
        return 0;
    }
    if (vm.shares == SHARES) return -ENOSPC;
    vm.share[vm.shares].tag = strdup(tag);
    vm.share[vm.shares].path = strdup(path);
    vm.share[vm.shares++].read_only = read_only;
    return 0;
}

EXPORT int32_t krun_set_root(uint32_t context, const char *path) { return add_share(context, "/dev/root", path, false); }

EXPORT int32_t krun_add_virtiofs(uint32_t context, const char *tag, const char *path) {
    return add_share(context, tag, path, false);
}

EXPORT int32_t krun_set_workdir(uint32_t context, const char *path) {
    if (check(context)) return -ENOENT;
    vm.workdir = strdup(path);
    return 0;
}

EXPORT int32_t krun_set_exec(uint32_t context, const char *program, const char *const arguments[],
                             const char *const environment[]) {
    if (check(context)) return -ENOENT;
    vm.program = strdup(program);
    vm.arguments = copy(arguments);
    vm.environment = copy(environment);
    return 0;
}

EXPORT int32_t krun_set_console_output(uint32_t context, const char *path) {
    if (check(context)) return -ENOENT;
    vm.console = strdup(path);
    return 0;
}

EXPORT int32_t krun_add_vsock_port2(uint32_t context, uint32_t port, const char *path, bool listening) {
    if (check(context)) return -ENOENT;
    if (strlen(path) >= sizeof ((struct sockaddr_un *)0)->sun_path || (listening && vm.socket)) return -EINVAL;
    if (listening) vm.socket = strdup(path);
#ifndef OLD
    if (!vm.sockets) return -ENODEV;
#endif
    return port ? 0 : -EINVAL;
}

#ifndef OLD
EXPORT int32_t krun_add_virtiofs3(uint32_t context, const char *tag, const char *path, uint64_t window, bool read_only) {
    (void)window;
    return add_share(context, tag, path, read_only);
}

EXPORT int32_t krun_disable_implicit_vsock(uint32_t context) { return check(context); }

EXPORT int32_t krun_add_vsock(uint32_t context, uint32_t features) {
    if (check(context)) return -ENOENT;
    if (vm.sockets || features > 1) return -EINVAL;
    vm.sockets = true;
    return 0;
}
#endif

static int listen_for_the_guest(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, vm.socket);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64)) _exit(125);
    return listener;
}

/* As libkrun's init ends: 125 where the guest cannot be set up, 126 and 127 where the program cannot be run or found. */
static void guest(bool alone) {
    if (vm.console) {
        int out = open(vm.console, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (out < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0) _exit(125);
    }
    int listener = vm.socket ? listen_for_the_guest() : -1;
    if (alone && (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount(vm.root, vm.root, NULL, MS_BIND, NULL))) _exit(125);
    for (int i = 0; i < vm.shares; i++) {
        char target[4096];
        snprintf(target, sizeof target, "%s/mnt/%s", vm.root, vm.share[i].tag);
        if (mount(vm.share[i].path, target, NULL, MS_BIND, NULL)) _exit(125);
        if (vm.share[i].read_only && mount(NULL, target, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL)) _exit(125);
    }
    if (vm.read_only && mount(NULL, vm.root, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL)) _exit(125);
    if (chroot(vm.root) || chdir("/")) _exit(125);
    if (!vm.program) _exit(125);
    if (chdir(vm.workdir ? vm.workdir : "/")) _exit(125);
    int count = 0;
    while (vm.arguments[count]) count++;
    char **words = calloc(count + 2, sizeof *words);
    words[0] = vm.program;
    memcpy(words + 1, vm.arguments, count * sizeof *words);
    environ = vm.environment;
    if (!getenv("PATH")) setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    if (listener >= 0) {
        char number[16];
        snprintf(number, sizeof number, "%d", listener);
        setenv("MAGIK_GUEST_LISTENER", number, 1);
    }
    execvp(vm.program, words);
    _exit(errno == ENOENT ? 127 : 126);
}

EXPORT int32_t krun_start_enter(uint32_t context) {
    int status;
    if (check(context)) return -ENOENT;
    if (!vm.configured || !vm.root) return -EINVAL;
    if (getenv("STAND_IN_HANGS")) for (;;) pause();
    bool alone = !unshare(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS);
    if (!alone && (errno != EPERM || vm.shares || vm.read_only)) return -errno;
    pid_t child = fork();
    if (child < 0) return -errno;
    if (child == 0) guest(alone);
    if (waitpid(child, &status, 0) < 0) return -errno;
    exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}
