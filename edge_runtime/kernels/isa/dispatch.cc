#include "isa/dispatch.h"

#include <cstdlib>
#include <cstring>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace hedgerow {
namespace {

bool Always() { return true; }

#if defined(__x86_64__)
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasVnni() {
  return HasAvx2() && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
// Linux's bits, which older headers do not all name.
bool HasDotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool HasI8mm() { return HasDotprod() && getauxval(AT_HWCAP2) >> 13 & 1; }
#endif

// Best first. A new ISA is one row here and one file in the folders whose kernels it has of its own.
constexpr IsaRow kIsas[] = {
#if defined(__x86_64__)
    {"avx512vnni", HasVnni, &kAccumulateAvx2, &kArraysAvx2, &kGemmS8Avx2, kKernelsAvx2, &kIntegersVnni},
    {"avx2", HasAvx2, &kAccumulateAvx2, &kArraysAvx2, &kGemmS8Avx2, kKernelsAvx2, &kIntegersAvx2},
#elif defined(__aarch64__)
    {"i8mm", HasI8mm, &kAccumulateNeon, &kArraysNeon, &kGemmS8I8mm, kKernelsNeon, &kIntegersDotprod},
    {"dotprod", HasDotprod, &kAccumulateNeon, &kArraysNeon, &kGemmS8Dotprod, kKernelsNeon, &kIntegersDotprod},
    {"neon", Always, &kAccumulateNeon, &kArraysNeon, &kGemmS8Neon, kKernelsNeon, &kIntegersNeon},
#endif
    {"scalar", Always, &kAccumulateScalar, &kArraysScalar, &kGemmS8Scalar, kKernelsScalar, &kIntegersScalar},
};

const char* refused = nullptr;

const IsaRow* AtLoad() {
  const char* name = std::getenv("HEDGEROW_ISA");
  if (name && *name) {
    if (const IsaRow* isa = FindIsa(name)) return isa;
    refused = name;
  }
  return AvailableIsa(0);
}

const IsaRow* selected = AtLoad();

}  // namespace

const IsaRow* AvailableIsa(int32_t index) {
  for (const IsaRow& isa : kIsas) {
    if (isa.available() && index-- == 0) return &isa;
  }
  return nullptr;
}

const IsaRow* FindIsa(const char* name) {
  for (const IsaRow& isa : kIsas) {
    if (isa.available() && std::strcmp(isa.name, name) == 0) return &isa;
  }
  return nullptr;
}

const IsaRow* SelectedIsa() { return selected; }
void SelectIsa(const IsaRow* isa) { selected = isa; }
const char* RefusedIsa() { return refused; }

}  // namespace hedgerow
