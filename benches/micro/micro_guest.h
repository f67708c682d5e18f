/*
 * A micro-guest and what is around it, for the programs that make the bare
 * KVM calls: a machine with interrupt controllers, timer and one processor,
 * which starts in 64-bit mode at code that pulses the reset line at once.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	MEMORY_SIZE = 128 << 20,
	CODE = 0x200000,
	PML4 = 0x9000,
	PDPT = 0xa000,
	PAGE_DIRECTORY = 0xb000,
	CPUID_ENTRIES = 256,
	RESET_PORT = 0x64,
	RESET = 0xfe,
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static long call(int fd, unsigned long request, void *argument, const char *name)
{
	long result = ioctl(fd, request, argument);
	if (result < 0)
		die(name);
	return result;
}

#define CALL(fd, request, argument) call(fd, request, (void *)(argument), #request)

static int open_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		die("/dev/kvm");
	if (CALL(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION)
		exit(1);
	return kvm;
}

static int create_vm(int kvm)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	int vm = CALL(kvm, KVM_CREATE_VM, 0);

	CALL(vm, KVM_SET_TSS_ADDR, 0xfffbd000);
	CALL(vm, KVM_CREATE_IRQCHIP, 0);
	CALL(vm, KVM_CREATE_PIT2, &pit);
	return vm;
}

static void set_memory(int vm, uint8_t *memory)
{
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY_SIZE, .userspace_addr = (uint64_t)memory,
	};
	CALL(vm, KVM_SET_USER_MEMORY_REGION, &region);
}

static struct kvm_run *map_run(int kvm, int vcpu)
{
	size_t size = CALL(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		die("mmap of the processor");
	return run;
}

/* Page tables, and code that pulses the reset line at once. */
static void load(uint8_t *memory)
{
	/* mov al, 0xfe; out 0x64, al */
	static const uint8_t code[] = { 0xb0, RESET, 0xe6, RESET_PORT };
	uint64_t *directory = (uint64_t *)(memory + PAGE_DIRECTORY);

	memcpy(memory + CODE, code, sizeof code);
	*(uint64_t *)(memory + PML4) = PDPT | 3;
	*(uint64_t *)(memory + PDPT) = PAGE_DIRECTORY | 3;
	for (uint64_t i = 0; i < 512; i++)
		directory[i] = i << 21 | 0x83;
}

static void set_registers(int vcpu)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = CODE, .rflags = 2 };
	struct kvm_segment code = {
		.limit = 0xffffffff, .selector = 0x10, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
	};
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = 0x18, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1,
	};

	CALL(vcpu, KVM_GET_SREGS, &sregs);
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = PML4;
	sregs.cr4 |= 1 << 5;
	sregs.cr0 |= 1 << 0 | 1u << 31;
	sregs.efer |= 1 << 8 | 1 << 10;
	CALL(vcpu, KVM_SET_SREGS, &sregs);
	CALL(vcpu, KVM_SET_REGS, &regs);
}
