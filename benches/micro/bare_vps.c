/*
 * The least that a C program has to do for what `insula-agent run` does: one
 * process in all namespaces, on an overlay of a read-only root, with its own
 * /proc, /sys, /dev and cgroup limits, created, run and cleared away.
 *
 *   bare_vps ROOT COMMAND [ARGUMENT]...
 *
 * ROOT is a directory with the root file system. No error messages, no
 * options, no checks of what a tenant may have put anywhere: the exit code is
 * the command's, or 125. Nothing is left out that the kernel has to do:
 * every namespace (time included), ID maps, an overlay with ID-mapped lower
 * files, /dev with its nodes and its own devpts, the three limits.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* glibc's and the kernel's mount headers cannot both be included. */
int mount(const char *, const char *, const char *, unsigned long, const void *);
int umount2(const char *, int);
#define MNT_DETACH 2

#define CHECK(call) do { if ((long)(call) < 0) { perror(#call); _exit(125); } } while (0)
#define IDS 65536u
#define BASE 0x3ff00000u

static void put(int dir, const char *file, const char *text)
{
	int fd = openat(dir, file, O_WRONLY | O_CLOEXEC);
	CHECK(fd);
	CHECK(write(fd, text, strlen(text)));
	close(fd);
}

static void node(const char *path, int major, int minor)
{
	CHECK(mknod(path, S_IFCHR | 0666, makedev(major, minor)));
}

/* The lower file system: a copy of ROOT's mount, ID-mapped by the parent. */
static int copy_tree(const char *root)
{
	return syscall(SYS_open_tree, AT_FDCWD, root, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
}

static void idmap(int tree, int userns)
{
	struct mount_attr attr = { .attr_set = MOUNT_ATTR_IDMAP, .userns_fd = userns };
	CHECK(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &attr, sizeof attr));
}

/* /dev, in a file system of the initial user namespace: for its nodes. */
static int make_dev(void)
{
	int fs = syscall(SYS_fsopen, "tmpfs", FSOPEN_CLOEXEC);
	CHECK(fs);
	CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, "mode", "0755", 0));
	CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	int dev = syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	CHECK(dev);
	close(fs);
	int cwd = open(".", O_PATH | O_CLOEXEC);
	CHECK(cwd);
	CHECK(fchdir(dev));
	umask(0);
	node("null", 1, 3);
	node("zero", 1, 5);
	node("full", 1, 7);
	node("random", 1, 8);
	node("urandom", 1, 9);
	node("tty", 5, 0);
	CHECK(mkdir("pts", 0755));
	CHECK(mkdir("shm", 0755));
	CHECK(mkdir("mqueue", 0755));
	CHECK(symlink("/proc/self/fd", "fd"));
	CHECK(symlink("/proc/self/fd/0", "stdin"));
	CHECK(symlink("/proc/self/fd/1", "stdout"));
	CHECK(symlink("/proc/self/fd/2", "stderr"));
	CHECK(symlink("pts/ptmx", "ptmx"));
	CHECK(fchdir(cwd));
	close(cwd);
	return dev;
}

static void child(int go, int lower, int dev, char **argv)
{
	char text[128], byte;
	struct timespec mono, boot;
	CHECK(unshare(CLONE_NEWTIME));
	clock_gettime(CLOCK_MONOTONIC, &mono);
	clock_gettime(CLOCK_BOOTTIME, &boot);
	snprintf(text, sizeof text, "monotonic -%ld 0\nboottime -%ld 0\n", (long)mono.tv_sec, (long)boot.tv_sec);
	put(AT_FDCWD, "/proc/self/timens_offsets", text);
	if (read(go, &byte, 1) != 1)
		_exit(125);
	CHECK(setresgid(0, 0, 0));
	CHECK(setresuid(0, 0, 0));

	CHECK(mount("tmpfs", "/mnt", "tmpfs", 0, "mode=0700"));
	CHECK(chdir("/mnt"));
	CHECK(mkdir("lower", 0755));
	CHECK(mkdir("upper", 0755));
	CHECK(mkdir("work", 0755));
	CHECK(mkdir("root", 0755));
	CHECK(syscall(SYS_move_mount, lower, "", AT_FDCWD, "lower", MOVE_MOUNT_F_EMPTY_PATH));
	CHECK(mount("overlay", "root", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work,userxattr"));
	CHECK(chdir("root"));
	CHECK(mount("proc", "proc", "proc", 0x2 | 0x4 | 0x8, NULL));
	CHECK(mount("sysfs", "sys", "sysfs", 0x1 | 0x2 | 0x4 | 0x8, NULL));
	CHECK(mount("cgroup2", "sys/fs/cgroup", "cgroup2", 0x2 | 0x4 | 0x8, NULL));
	CHECK(syscall(SYS_move_mount, dev, "", AT_FDCWD, "dev", MOVE_MOUNT_F_EMPTY_PATH));
	CHECK(mount("devpts", "dev/pts", "devpts", 0x2 | 0x8, "newinstance,ptmxmode=0666,mode=0620,gid=5"));
	CHECK(mount("tmpfs", "dev/shm", "tmpfs", 0x2 | 0x4, "mode=1777"));
	CHECK(mount("mqueue", "dev/mqueue", "mqueue", 0x2 | 0x4 | 0x8, NULL));
	CHECK(mount("tmpfs", "run", "tmpfs", 0x2 | 0x4, "mode=0755"));
	CHECK(syscall(SYS_pivot_root, ".", "."));
	CHECK(umount2(".", MNT_DETACH));
	CHECK(chdir("/"));
	CHECK(sethostname("vps", 3));

	struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	CHECK(sock);
	CHECK(ioctl(sock, SIOCSIFFLAGS, &lo));
	umask(022);
	CHECK(syscall(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */));
	char *env[] = { "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL };
	execve(argv[0], argv, env);
	_exit(127);
}

int main(int argc, char **argv)
{
	char cgroup[64], path[64], map[64];
	int go[2], pidfd, status;
	if (argc < 3)
		return 125;
	snprintf(cgroup, sizeof cgroup, "/sys/fs/cgroup/bare-vps-%d", getpid());
	CHECK(mkdir(cgroup, 0755));
	int cg = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	CHECK(cg);
	put(cg, "memory.max", "67108864");
	put(cg, "cpu.max", "100000 100000");
	put(cg, "pids.max", "64");

	int lower = copy_tree(argv[1]);
	CHECK(lower);
	int dev = make_dev();
	CHECK(pipe2(go, O_CLOEXEC));
	struct clone_args args = {
		.flags = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC |
			 CLONE_NEWNET | CLONE_NEWCGROUP | CLONE_PIDFD | CLONE_INTO_CGROUP,
		.pidfd = (uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = cg,
	};
	long pid = syscall(SYS_clone3, &args, sizeof args);
	CHECK(pid);
	if (pid == 0) {
		close(go[1]);
		child(go[0], lower, dev, argv + 2);
	}
	close(go[0]);
	snprintf(path, sizeof path, "/proc/%ld", pid);
	int proc = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	CHECK(proc);
	snprintf(map, sizeof map, "0 %u %u\n", BASE, IDS);
	put(proc, "uid_map", map);
	put(proc, "gid_map", map);
	int userns = openat(proc, "ns/user", O_RDONLY | O_CLOEXEC);
	CHECK(userns);
	idmap(lower, userns);
	idmap(dev, userns);
	CHECK(write(go[1], "g", 1));
	CHECK(waitpid(pid, &status, 0));
	CHECK(rmdir(cgroup));
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
