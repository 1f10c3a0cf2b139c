// What a kernel of a Program's op is given: the op, whose numbers check.cc has found sound, and the arena.
#ifndef HEDGEROW_PROGRAM_CALL_H_
#define HEDGEROW_PROGRAM_CALL_H_

#include <cstddef>
#include <cstdint>

#include "program/op_list.h"
#include "program/ops.h"
#include "threads/team.h"

namespace hedgerow {

struct Call {
  const Op& op;
  uint8_t* arena;
  Team* team;  // nullptr: one thread

  // Buffers in the order of ops.h; nullptr for an absent one.
  float* f32(int slot) const { return reinterpret_cast<float*>(at(slot)); }
  int64_t* i64(int slot) const { return reinterpret_cast<int64_t*>(at(slot)); }
  uint8_t* u8(int slot) const { return at(slot); }
  // A float in the arena.
  float value(int slot) const { return *f32(slot); }
  // An i64 in the arena that counts something of which there are at most `most`. What stands there is not ours to
  // trust, so it is read once and bounded.
  ptrdiff_t count(int slot, ptrdiff_t most) const {
    const int64_t found = *static_cast<const volatile int64_t*>(i64(slot));
    return found < 0 ? 0 : found > most ? most : static_cast<ptrdiff_t>(found);
  }
  ptrdiff_t size(int index) const { return static_cast<ptrdiff_t>(op.ints[index]); }
  float real(int index) const { return static_cast<float>(op.floats[index]); }

  int threads() const { return ThreadsOf(team); }
  // f(i) once for every i in [0, count), shared by the team. What an op computes may not depend on how many threads
  // there are: tasks write different elements, and every sum is one task's.
  template <typename F>
  void For(ptrdiff_t count, F f) const {
    if (team == nullptr) {
      for (ptrdiff_t i = 0; i < count; ++i) f(i);
    } else {
      Share(team, count, [](void* context, ptrdiff_t i) { (*static_cast<F*>(context))(i); }, &f);
    }
  }

 private:
  uint8_t* at(int slot) const { return op.buffers[slot] < 0 ? nullptr : arena + op.buffers[slot]; }
};

using Kernel = Status (*)(const Call&);

// The kernels of one ISA, in the order of the codes (op_list.h).
struct OpKernels {
  const Kernel* floats;
  const Kernel* integers;

  Kernel Of(int32_t code) const { return code < kFirstIntegerCode ? floats[code] : integers[code - kFirstIntegerCode]; }
};

}  // namespace hedgerow

#endif  // HEDGEROW_PROGRAM_CALL_H_
