// A checked copy of a Program's ops, and the loop that runs them.
#ifndef HEDGEROW_PROGRAM_SESSION_H_
#define HEDGEROW_PROGRAM_SESSION_H_

#include "program/call.h"

namespace hedgerow {

struct Session {
  int64_t count;
  const Op* ops() const { return reinterpret_cast<const Op*>(this + 1); }
};

// nullptr if one of the ops is not sound, with its index (-1 where it is not about one op) and a literal that says why.
// The only place here that allocates.
Session* CreateSession(const Op* ops, int64_t count, int64_t arena_bytes, int64_t* bad_op, const char** why);
void FreeSession(Session* session);

// Runs ops [first, first + count) in order, until one does not return kOk. The arena is aligned to 64 bytes and as long
// as CreateSession was told. `team` may be nullptr.
Status RunSession(const Session& session, const OpKernels& kernels, Team* team, uint8_t* arena, int64_t first,
                  int64_t count, int64_t* bad_op);

}  // namespace hedgerow

#endif  // HEDGEROW_PROGRAM_SESSION_H_
