// A plugin of qemu 7.2 that counts what each request to core_server costs: the instructions executed between reading a
// request and answering it. One line per answer on stderr's place, the file named by `out=`.
//
//   qemu-aarch64 -plugin libcount.so,out=counts.txt ... core_server
//
// Debian ships no qemu-plugin.h, so the prototypes stand here.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

struct qemu_plugin_tb;
struct qemu_plugin_insn;
int qemu_plugin_version = 1;
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb*);
extern struct qemu_plugin_insn* qemu_plugin_tb_get_insn(const struct qemu_plugin_tb*, size_t);
extern void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn*, int op, void* counter, uint64_t add);
extern void qemu_plugin_register_vcpu_tb_trans_cb(uint64_t id, void (*)(uint64_t, struct qemu_plugin_tb*));
extern void qemu_plugin_register_vcpu_syscall_cb(uint64_t id, void (*)(uint64_t, unsigned, int64_t, uint64_t, uint64_t,
                                                                       uint64_t, uint64_t, uint64_t, uint64_t,
                                                                       uint64_t, uint64_t));

enum { kRead = 63, kWrite = 64 };  // system calls of aarch64

static uint64_t executed, at_last_call;
static int64_t last_call;
static FILE* out;

static void Translated(uint64_t id, struct qemu_plugin_tb* block) {
  (void)id;
  for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); ++i) {
    qemu_plugin_register_vcpu_insn_exec_inline(qemu_plugin_tb_get_insn(block, i), 0, &executed, 1);
  }
}

static void Called(uint64_t id, unsigned cpu, int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)cpu, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  if (number == kWrite && last_call == kRead) {
    fprintf(out, "%llu\n", (unsigned long long)(executed - at_last_call));
    fflush(out);
  }
  last_call = number;
  at_last_call = executed;
}

int qemu_plugin_install(uint64_t id, const void* info, int argc, char** argv) {
  (void)info;
  if (argc != 1 || strncmp(argv[0], "out=", 4) != 0 || (out = fopen(argv[0] + 4, "w")) == NULL) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, Translated);
  qemu_plugin_register_vcpu_syscall_cb(id, Called);
  return 0;
}
