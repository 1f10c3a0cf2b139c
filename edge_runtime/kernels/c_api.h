// The C ABI of the native core. Sizes are element counts; pointers need only their type's alignment; nothing here
// keeps a pointer or touches memory outside the ranges it is given, and only the two that create allocate.
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
// At load the best one is chosen, or the one that the environment variable HEDGEROW_ISA names.
HR_API int32_t hr_select_isa(const char* name);
HR_API const char* hr_selected_isa(void);
// The value of HEDGEROW_ISA, if there is no such ISA here; else nullptr. A program that reads one should stop.
HR_API const char* hr_refused_isa(void);

// See accumulate/accumulate.h and accumulate/shared.h; `team` may be nullptr.
HR_API int32_t hr_all_finite_f32(void* team, size_t n, const float* x);
HR_API void hr_accumulate_f32_f64(void* team, size_t n, const float* x, double weight, double* acc);

// Programs; see program/ops.h for the ops and program/check.h for what makes one sound. A session may be run by several
// threads at once, each with an arena of its own.

// The code of the op of that name; -1 if there is none.
HR_API int32_t hr_op_code(const char* name);
// Checks and copies `count` records of struct Op, for arenas of `arena_bytes`. nullptr if one is not sound: then
// *bad_op is its index (-1 where it is not about one op), and *why a short text that stays valid.
HR_API void* hr_session_create(const void* ops, int64_t count, int64_t arena_bytes, int64_t* bad_op, const char** why);
// Runs ops [first, first + count) in order, up to the first that fails, each on the threads of `team` (nullptr: on the
// caller's alone), which changes no bit of what they give. Returns a Status of program/ops.h, and in *bad_op which op
// it was (-1 for none). `arena` is aligned to 64 bytes and holds arena_bytes. Nothing outside it is read or written,
// whatever it contains.
HR_API int32_t hr_session_run(const void* session, void* team, uint8_t* arena, int64_t first, int64_t count,
                              int64_t* bad_op);
// The arguments of a run as one record, for callers to whom every argument costs time; `bad_op` is written.
struct HrRun {
  const void* session;
  void* team;
  uint8_t* arena;
  int64_t first, count, bad_op;
};
HR_API int32_t hr_run(struct HrRun* run);
// nullptr is fine.
HR_API void hr_session_free(void* session);

// See threads/team.h. A team serves one run at a time; another one meanwhile is done by its caller alone.
HR_API void* hr_team_create(int32_t threads);
HR_API int32_t hr_team_threads(const void* team);
HR_API void hr_team_free(void* team);

#endif  // HEDGEROW_C_API_H_
