// The C ABI of the native core. Sizes are element counts; pointers need only their type's alignment; nothing here
// allocates, keeps a pointer or touches memory outside the ranges it is given.
#ifndef HEDGEROW_C_API_H_
#define HEDGEROW_C_API_H_

#include <stddef.h>
#include <stdint.h>

#define HR_API extern "C" __attribute__((visibility("default")))

// Changes whenever a function below changes its meaning; the Python side refuses a library of another version.
HR_API int32_t hr_abi_version(void);

// Names of the ISAs that this build holds and this CPU can run, best first; nullptr past the last.
HR_API const char* hr_isa_name(int32_t index);
// Chooses the kernels of the named ISA for the whole process; returns 0, or -1 when there is no such ISA here.
// The best one is chosen at load.
HR_API int32_t hr_select_isa(const char* name);
HR_API const char* hr_selected_isa(void);

// See accumulate/accumulate.h.
HR_API int32_t hr_all_finite_f32(size_t n, const float* x);
HR_API void hr_accumulate_f32_f64(size_t n, const float* x, double weight, double* acc);

#endif  // HEDGEROW_C_API_H_
