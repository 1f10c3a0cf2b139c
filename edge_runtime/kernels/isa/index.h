// Signed sizes and places, and how what is compiled once for each ISA is inlined.
#ifndef HEDGEROW_ISA_INDEX_H_
#define HEDGEROW_ISA_INDEX_H_

#include <cstddef>

#define HEDGEROW_INLINE inline __attribute__((always_inline))
// The same for a lambda, between its parameters and its body: for one whose caller hands it a constant, as Map and
// ForVectors do, a call would cost that knowledge.
#define HEDGEROW_INLINE_BODY __attribute__((always_inline))

namespace hedgerow {
namespace {

using Index = ptrdiff_t;

HEDGEROW_INLINE Index Min(Index a, Index b) { return a < b ? a : b; }
HEDGEROW_INLINE Index Max(Index a, Index b) { return a > b ? a : b; }

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ISA_INDEX_H_
