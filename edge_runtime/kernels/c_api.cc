// Forwards the C ABI to the kernels of the selected ISA. The kernels on plain arrays are in c_api_arrays.cc.
#include "c_api.h"

#include "accumulate/shared.h"
#include "isa/dispatch.h"
#include "program/check.h"
#include "program/session.h"
#include "threads/team.h"

using hedgerow::SelectedIsa;

int32_t hr_abi_version(void) { return 6; }

const char* hr_isa_name(int32_t index) {
  const hedgerow::IsaRow* isa = hedgerow::AvailableIsa(index);
  return isa ? isa->name : nullptr;
}

int32_t hr_select_isa(const char* name) {
  const hedgerow::IsaRow* isa = hedgerow::FindIsa(name);
  if (isa) hedgerow::SelectIsa(isa);
  return isa ? 0 : -1;
}

const char* hr_selected_isa(void) { return SelectedIsa()->name; }

const char* hr_refused_isa(void) { return hedgerow::RefusedIsa(); }

int32_t hr_all_finite_f32(void* team, size_t n, const float* x) {
  return hedgerow::AllFiniteShared(*SelectedIsa()->accumulate, static_cast<hedgerow::Team*>(team), n, x);
}

void hr_accumulate_f32_f64(void* team, size_t n, const float* x, double weight, double* acc) {
  hedgerow::AccumulateShared(*SelectedIsa()->accumulate, static_cast<hedgerow::Team*>(team), n, x, weight, acc);
}

int32_t hr_op_code(const char* name) { return hedgerow::CodeOf(name); }

void* hr_session_create(const void* ops, int64_t count, int64_t arena_bytes, int64_t* bad_op, const char** why) {
  return hedgerow::CreateSession(static_cast<const hedgerow::Op*>(ops), count, arena_bytes, bad_op, why);
}

int32_t hr_session_run(const void* session, void* team, uint8_t* arena, int64_t first, int64_t count,
                       int64_t* bad_op) {
  return hedgerow::RunSession(*static_cast<const hedgerow::Session*>(session), SelectedIsa()->Ops(),
                              static_cast<hedgerow::Team*>(team), arena, first, count, bad_op);
}

int32_t hr_run(HrRun* run) {
  return hr_session_run(run->session, run->team, run->arena, run->first, run->count, &run->bad_op);
}

void hr_session_free(void* session) { hedgerow::FreeSession(static_cast<hedgerow::Session*>(session)); }

void* hr_team_create(int32_t threads) { return hedgerow::CreateTeam(threads); }

int32_t hr_team_threads(const void* team) { return hedgerow::ThreadsOf(static_cast<const hedgerow::Team*>(team)); }

void hr_team_free(void* team) { hedgerow::FreeTeam(static_cast<hedgerow::Team*>(team)); }
