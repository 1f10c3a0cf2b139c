// Picks one ISA for the process and forwards the C ABI to its kernels.
#include "c_api.h"

#include <cstring>

#include "accumulate/accumulate.h"
#include "isa/kernels.h"
#include "program/check.h"
#include "program/session.h"
#include "threads/team.h"

namespace hedgerow {
namespace {

struct Isa {
  const char* name;
  bool (*available)();
  const AccumulateKernels* accumulate;
  const Kernel* program;
};

bool Always() { return true; }

#if defined(__x86_64__)
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

// Best first. A new ISA is one row here, one file in accumulate/ and one in isa/.
constexpr Isa kIsas[] = {
#if defined(__x86_64__)
    {"avx2", HasAvx2, &kAccumulateAvx2, kKernelsAvx2},
#elif defined(__aarch64__)
    {"neon", Always, &kAccumulateNeon, kKernelsNeon},
#endif
    {"scalar", Always, &kAccumulateScalar, kKernelsScalar},
};

const Isa* Best() {
  for (const Isa& isa : kIsas) {
    if (isa.available()) return &isa;
  }
  return nullptr;  // not reached: scalar is always there
}

const Isa* selected = Best();

}  // namespace
}  // namespace hedgerow

using hedgerow::kIsas;
using hedgerow::selected;

int32_t hr_abi_version(void) { return 3; }

const char* hr_isa_name(int32_t index) {
  for (const auto& isa : kIsas) {
    if (isa.available() && index-- == 0) return isa.name;
  }
  return nullptr;
}

int32_t hr_select_isa(const char* name) {
  for (const auto& isa : kIsas) {
    if (isa.available() && std::strcmp(isa.name, name) == 0) {
      selected = &isa;
      return 0;
    }
  }
  return -1;
}

const char* hr_selected_isa(void) { return selected->name; }

int32_t hr_all_finite_f32(size_t n, const float* x) { return selected->accumulate->all_finite(n, x); }

void hr_accumulate_f32_f64(size_t n, const float* x, double weight, double* acc) {
  selected->accumulate->accumulate(n, x, weight, acc);
}

int32_t hr_op_code(const char* name) { return hedgerow::CodeOf(name); }

void* hr_session_create(const void* ops, int64_t count, int64_t arena_bytes, int64_t* bad_op, const char** why) {
  return hedgerow::CreateSession(static_cast<const hedgerow::Op*>(ops), count, arena_bytes, bad_op, why);
}

int32_t hr_session_run(const void* session, void* team, uint8_t* arena, int64_t first, int64_t count,
                       int64_t* bad_op) {
  return hedgerow::RunSession(*static_cast<const hedgerow::Session*>(session), selected->program,
                              static_cast<hedgerow::Team*>(team), arena, first, count, bad_op);
}

void hr_session_free(void* session) { hedgerow::FreeSession(static_cast<hedgerow::Session*>(session)); }

void* hr_team_create(int32_t threads) { return hedgerow::CreateTeam(threads); }

int32_t hr_team_threads(const void* team) { return hedgerow::ThreadsOf(static_cast<const hedgerow::Team*>(team)); }

void hr_team_free(void* team) { hedgerow::FreeTeam(static_cast<hedgerow::Team*>(team)); }
