/*
 * The bare sequence of KVM calls that puts a saved machine of one processor
 * back: interrupt controllers, timer, clock, processor, the notifications of
 * its devices, and its memory as one private mapping of a file.
 *
 * It is the yardstick for what a restore by insula-vmm costs: the state is a
 * structure in a file that is read in one go; nothing is parsed, checked or
 * reported here, and there is no device behind the notifications.
 *
 *     cc -O2 -o restore_floor restore_floor.c
 *     ./restore_floor save STATE MEMORY        a machine that resets at once
 *     ./restore_floor time STATE MEMORY RUNS   restores it, in new processes
 *
 * `time` prints a line for each restore: nanoseconds from just before the
 * process is made to just before its first KVM_RUN.
 */
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <time.h>

#include "micro_guest.h"

enum {
	MSR_ENTRIES = 512,
	XSAVE_SIZE = 16 << 10,
	/* What the guest that it is compared with has: a serial console, two
	 * disks and a vsock device, with one, one and three queues. */
	INTERRUPTS = 4,
	QUEUES = 5,
	FIRST_GSI = 4,
	FIRST_REGISTER = 0xd0000050,
};

/* What is saved of a machine. */
struct machine {
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[CPUID_ENTRIES];
	} cpuid;
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entries[MSR_ENTRIES];
	} msrs;
	struct kvm_mp_state mp_state;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_xcrs xcrs;
	struct kvm_debugregs debugregs;
	struct kvm_lapic_state lapic;
	struct kvm_vcpu_events events;
	struct kvm_irqchip irqchips[3];
	struct kvm_pit_state2 pit;
	struct kvm_clock_data clock;
	uint8_t xsave[XSAVE_SIZE];
};

static uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static uint8_t *map_memory(int vm, const char *path, int sharing)
{
	int file = open(path, O_RDWR | O_CLOEXEC);
	if (file < 0)
		die(path);
	uint8_t *memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE,
			       sharing | MAP_NORESERVE, file, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	set_memory(vm, memory);
	return memory;
}

/* What devices tell KVM to notify, and by what they are notified. */
static void connect_devices(int vm)
{
	for (int i = 0; i < INTERRUPTS; i++) {
		struct kvm_irqfd irqfd = { .fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .gsi = FIRST_GSI + i };
		CALL(vm, KVM_IRQFD, &irqfd);
	}
	for (int i = 0; i < QUEUES; i++) {
		struct kvm_ioeventfd ioeventfd = {
			.addr = FIRST_REGISTER + (i < 3 ? 0 : (i - 2) * 0x1000), .len = 4, .datamatch = i,
			.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
			.flags = KVM_IOEVENTFD_FLAG_DATAMATCH,
		};
		CALL(vm, KVM_IOEVENTFD, &ioeventfd);
	}
}

static void restore(const char *state, const char *memory, uint64_t started_ns)
{
	static struct machine saved;
	int file = open(state, O_RDONLY | O_CLOEXEC);
	if (file < 0 || read(file, &saved, sizeof saved) != sizeof saved)
		die(state);
	int kvm = open_kvm();
	int vm = create_vm(kvm);
	map_memory(vm, memory, MAP_PRIVATE);
	connect_devices(vm);

	int vcpu = CALL(vm, KVM_CREATE_VCPU, 0);
	struct kvm_run *run = map_run(kvm, vcpu);
	CALL(vcpu, KVM_SET_CPUID2, &saved.cpuid);
	CALL(vcpu, KVM_SET_MP_STATE, &saved.mp_state);
	CALL(vcpu, KVM_SET_REGS, &saved.regs);
	CALL(vcpu, KVM_SET_SREGS, &saved.sregs);
	CALL(vcpu, KVM_SET_XCRS, &saved.xcrs);
	CALL(vcpu, KVM_SET_XSAVE, saved.xsave);
	CALL(vcpu, KVM_SET_DEBUGREGS, &saved.debugregs);
	CALL(vcpu, KVM_SET_LAPIC, &saved.lapic);
	if (CALL(vcpu, KVM_SET_MSRS, &saved.msrs) != saved.msrs.head.nmsrs) {
		fprintf(stderr, "not all MSRs can be set\n");
		exit(1);
	}
	CALL(vcpu, KVM_SET_VCPU_EVENTS, &saved.events);
	for (int i = 0; i < 3; i++)
		CALL(vm, KVM_SET_IRQCHIP, &saved.irqchips[i]);
	CALL(vm, KVM_SET_PIT2, &saved.pit);
	CALL(vm, KVM_SET_CLOCK, &saved.clock);

	uint64_t first_ns = now_ns();
	CALL(vcpu, KVM_RUN, 0);
	const uint8_t *data = (const uint8_t *)run + run->io.data_offset;
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != RESET_PORT || *data != RESET) {
		fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
		exit(1);
	}
	printf("%llu\n", (unsigned long long)(first_ns - started_ns));
}

/* Keeps the MSR if it can be read and be set to what it is. */
static void save_msr(int vcpu, struct machine *saved, uint32_t index)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} one = { .head.nmsrs = 1, .entry.index = index };

	if (saved->msrs.head.nmsrs < MSR_ENTRIES && ioctl(vcpu, KVM_GET_MSRS, &one) == 1 &&
	    ioctl(vcpu, KVM_SET_MSRS, &one) == 1)
		saved->msrs.entries[saved->msrs.head.nmsrs++] = one.entry;
}

static void save_msrs(int kvm, int vcpu, struct machine *saved)
{
	struct {
		struct kvm_msr_list head;
		uint32_t indices[MSR_ENTRIES];
	} list = { .head.nmsrs = MSR_ENTRIES };

	CALL(kvm, KVM_GET_MSR_INDEX_LIST, &list);
	for (uint32_t i = 0; i < list.head.nmsrs; i++) {
		uint32_t index = list.indices[i];
		/* Requests rather than state; and another hypervisor's. */
		if (index == 0x11 || index == 0x4b564d00 || index == 0x4b564d07 ||
		    (index >= 0x40000000 && index <= 0x400001ff))
			continue;
		save_msr(vcpu, saved, index);
	}
	/* The memory types, which the list leaves out. */
	for (uint32_t index = 0x200; index <= 0x20f; index++)
		save_msr(vcpu, saved, index);
	save_msr(vcpu, saved, 0x250);
	save_msr(vcpu, saved, 0x258);
	save_msr(vcpu, saved, 0x259);
	for (uint32_t index = 0x268; index <= 0x26f; index++)
		save_msr(vcpu, saved, index);
	save_msr(vcpu, saved, 0x2ff);
}

static void save(const char *state, const char *memory)
{
	static struct machine saved;
	int file = open(memory, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file < 0 || ftruncate(file, MEMORY_SIZE) < 0)
		die(memory);
	int kvm = open_kvm();
	int vm = create_vm(kvm);
	load(map_memory(vm, memory, MAP_SHARED));
	int vcpu = CALL(vm, KVM_CREATE_VCPU, 0);
	saved.cpuid.head.nent = CPUID_ENTRIES;
	CALL(kvm, KVM_GET_SUPPORTED_CPUID, &saved.cpuid);
	CALL(vcpu, KVM_SET_CPUID2, &saved.cpuid);
	set_registers(vcpu);

	CALL(vcpu, KVM_GET_MP_STATE, &saved.mp_state);
	CALL(vcpu, KVM_GET_REGS, &saved.regs);
	CALL(vcpu, KVM_GET_SREGS, &saved.sregs);
	CALL(vcpu, KVM_GET_XCRS, &saved.xcrs);
	long xsave = CALL(vm, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
	if (xsave > XSAVE_SIZE) {
		fprintf(stderr, "the extended state takes %ld bytes\n", xsave);
		exit(1);
	}
	CALL(vcpu, xsave > 0 ? KVM_GET_XSAVE2 : KVM_GET_XSAVE, saved.xsave);
	CALL(vcpu, KVM_GET_DEBUGREGS, &saved.debugregs);
	CALL(vcpu, KVM_GET_LAPIC, &saved.lapic);
	save_msrs(kvm, vcpu, &saved);
	CALL(vcpu, KVM_GET_VCPU_EVENTS, &saved.events);
	for (int i = 0; i < 3; i++) {
		saved.irqchips[i].chip_id = i;
		CALL(vm, KVM_GET_IRQCHIP, &saved.irqchips[i]);
	}
	CALL(vm, KVM_GET_PIT2, &saved.pit);
	CALL(vm, KVM_GET_CLOCK, &saved.clock);
	saved.clock.flags = 0;

	file = open(state, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (file < 0 || write(file, &saved, sizeof saved) != sizeof saved)
		die(state);
}

/* Restores in a new process, which is told when it was asked for. */
static void time_one(char *own, char *state, char *memory)
{
	char started[24];
	char *arguments[] = { own, "restore", state, memory, started, NULL };
	char *environment[] = { NULL };
	int status;

	fflush(stdout);
	snprintf(started, sizeof started, "%llu", (unsigned long long)now_ns());
	pid_t child = vfork();
	if (child == 0) {
		execve("/proc/self/exe", arguments, environment);
		_exit(127);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
		fprintf(stderr, "the restore failed\n");
		exit(1);
	}
}

int main(int count, char **arguments)
{
	const char *what = count > 3 ? arguments[1] : "";

	if (!strcmp(what, "save") && count == 4) {
		save(arguments[2], arguments[3]);
	} else if (!strcmp(what, "restore") && count == 5) {
		restore(arguments[2], arguments[3], strtoull(arguments[4], NULL, 10));
	} else if (!strcmp(what, "time") && count == 5) {
		for (int run = atoi(arguments[4]); run > 0; run--)
			time_one(arguments[0], arguments[2], arguments[3]);
	} else {
		fprintf(stderr, "usage: restore_floor save STATE MEMORY | time STATE MEMORY RUNS\n");
		return 2;
	}
	return 0;
}
