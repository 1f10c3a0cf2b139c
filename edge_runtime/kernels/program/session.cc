#include "program/session.h"

#include <cstdlib>
#include <cstring>

#include "program/check.h"

namespace hedgerow {
namespace {

constexpr uintptr_t kArenaAlignment = 64;
static_assert(sizeof(Session) % alignof(Op) == 0, "the ops follow the session");

}  // namespace

Session* CreateSession(const Op* ops, int64_t count, int64_t arena_bytes, int64_t* bad_op, const char** why) {
  *bad_op = -1;
  *why = nullptr;
  constexpr int64_t kMostOps = (PTRDIFF_MAX - sizeof(Session)) / sizeof(Op);
  if (count < 0 || count > kMostOps || (count > 0 && ops == nullptr)) *why = "no such number of ops";
  if (arena_bytes < 0 || arena_bytes > PTRDIFF_MAX) *why = "no such arena";
  if (*why) return nullptr;
  const size_t table_bytes = static_cast<size_t>(count) * sizeof(Op);
  auto* session = static_cast<Session*>(std::malloc(sizeof(Session) + table_bytes));
  if (session == nullptr) {
    *why = "out of memory";
    return nullptr;
  }
  session->count = count;
  // Checked after the copy: the caller's table may change under us, ours does not.
  if (count > 0) std::memcpy(session + 1, ops, table_bytes);
  for (int64_t i = 0; i < count; ++i) {
    *why = Check(session->ops()[i], arena_bytes);
    if (*why == nullptr) continue;
    *bad_op = i;
    FreeSession(session);
    return nullptr;
  }
  return session;
}

void FreeSession(Session* session) { std::free(session); }

Status RunSession(const Session& session, const OpKernels& kernels, Team* team, uint8_t* arena, int64_t first,
                  int64_t count, int64_t* bad_op) {
  *bad_op = -1;
  if (arena == nullptr || reinterpret_cast<uintptr_t>(arena) % kArenaAlignment != 0) return kNoArena;
  if (first < 0 || count < 0 || first > session.count || count > session.count - first) return kNoArena;
  team = BeginRun(team);
  Status status = kOk;
  for (int64_t i = first; i < first + count && status == kOk; ++i) {
    const Op& op = session.ops()[i];
    status = kernels.Of(op.code)(Call{op, arena, team});
    if (status != kOk) *bad_op = i;
  }
  EndRun(team);
  return status;
}

}  // namespace hedgerow
