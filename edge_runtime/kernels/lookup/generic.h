// Rows of a table by id (ops.h). Ids are arena contents: each is read once, and looked at before it is used.
#ifndef HEDGEROW_LOOKUP_GENERIC_H_
#define HEDGEROW_LOOKUP_GENERIC_H_

#include "isa/simd.h"
#include "program/call.h"

namespace hedgerow {
namespace {

HEDGEROW_INLINE int64_t ReadOnce(const int64_t* p) { return *static_cast<const volatile int64_t*>(p); }

Status embedding(const Call& call) {
  const Index entries = call.size(0), D = call.size(1), n = call.size(2);
  const float* table = call.f32(0);
  const int64_t* ids = call.i64(1);
  float* y = call.f32(2);
  for (Index i = 0; i < n; ++i) {
    const int64_t id = ReadOnce(ids + i);
    if (id < 0 || id >= entries) return kOutOfRange;
    CopyFloats(D, table + static_cast<Index>(id) * D, y + i * D);
  }
  return kOk;
}

Status embedding_grad(const Call& call) {
  const Index entries = call.size(0), D = call.size(1), n = call.size(2);
  const float* g = call.f32(0);
  const int64_t* ids = call.i64(1);
  float* dtable = call.f32(2);
  Zero(entries * D, dtable);
  for (Index i = 0; i < n; ++i) {
    const int64_t id = ReadOnce(ids + i);
    if (id < 0 || id >= entries) return kOutOfRange;
    float* row = dtable + static_cast<Index>(id) * D;
    Map(D, g + i * D, row, row, [](V a, V b) { return a + b; });
  }
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_LOOKUP_GENERIC_H_
