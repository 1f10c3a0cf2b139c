// Picks one ISA for the process and forwards the C ABI to its kernels.
#include "c_api.h"

#include <cstring>

#include "accumulate/accumulate.h"

namespace hedgerow {
namespace {

struct Isa {
  const char* name;
  bool (*available)();
  const AccumulateKernels* accumulate;
};

bool Always() { return true; }

#if defined(__x86_64__)
bool HasAvx2() { return __builtin_cpu_supports("avx2"); }
#endif

// Best first. A new ISA is one row here and one file in each kernel family.
constexpr Isa kIsas[] = {
#if defined(__x86_64__)
    {"avx2", HasAvx2, &kAccumulateAvx2},
#elif defined(__aarch64__)
    {"neon", Always, &kAccumulateNeon},
#endif
    {"scalar", Always, &kAccumulateScalar},
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

int32_t hr_abi_version(void) { return 1; }

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
