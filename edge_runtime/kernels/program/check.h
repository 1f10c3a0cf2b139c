// Whether one op of an untrusted Program can run without leaving its arena, whatever the arena contains.
#ifndef HEDGEROW_PROGRAM_CHECK_H_
#define HEDGEROW_PROGRAM_CHECK_H_

#include "program/ops.h"

namespace hedgerow {

// The code of the op of that name; -1 if there is none.
int32_t CodeOf(const char* name);

// nullptr if the op is sound, else a short reason (a literal). Sound: the numbers are what op_list.h says, each buffer
// is there, aligned to its items and inside [0, arena_bytes), and what the op does not use is -1 or 0. So no kernel
// meets an extent of 0 or a product of extents that overflows, and its work is a polynomial of arena_bytes.
const char* Check(const Op& op, int64_t arena_bytes);

}  // namespace hedgerow

#endif  // HEDGEROW_PROGRAM_CHECK_H_
