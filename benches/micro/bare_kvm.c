/*
 * The bare sequence of KVM calls for a machine with interrupt controllers,
 * timer and one processor, which starts in 64-bit mode at the first
 * instruction of a micro-guest and ends when that pulses the reset line.
 *
 * It is the yardstick for what insula-vmm costs: nothing is parsed, checked or
 * reported here.
 *
 *     cc -O2 -o bare_kvm bare_kvm.c && ./bare_kvm
 */
#include "micro_guest.h"

int main(void)
{
	int kvm = open_kvm();
	int vm = create_vm(kvm);

	uint8_t *memory = mmap(NULL, MEMORY_SIZE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	load(memory);
	set_memory(vm, memory);

	int vcpu = CALL(vm, KVM_CREATE_VCPU, 0);
	struct kvm_run *run = map_run(kvm, vcpu);
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof *cpuid + CPUID_ENTRIES * sizeof cpuid->entries[0]);
	if (!cpuid)
		return 1;
	cpuid->nent = CPUID_ENTRIES;
	CALL(kvm, KVM_GET_SUPPORTED_CPUID, cpuid);
	CALL(vcpu, KVM_SET_CPUID2, cpuid);
	set_registers(vcpu);

	for (;;) {
		CALL(vcpu, KVM_RUN, 0);
		if (run->exit_reason != KVM_EXIT_IO) {
			fprintf(stderr, "unexpected exit %u\n", run->exit_reason);
			return 1;
		}
		const uint8_t *data = (const uint8_t *)run + run->io.data_offset;
		if (run->io.port == RESET_PORT && *data == RESET)
			return 0;
	}
}
