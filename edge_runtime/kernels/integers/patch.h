// What a tile of conv2d_s8 is given, besides its place in x and in the weights.
#ifndef HEDGEROW_INTEGERS_PATCH_H_
#define HEDGEROW_INTEGERS_PATCH_H_

#include "integers/packed.h"
#include "integers/rounding.h"

#define HEDGEROW_UNROLL _Pragma("GCC unroll 32")

namespace hedgerow {
namespace {

// A pixel's window is `rows` runs of `groups` groups, `pitch` elements apart; the next pixel's is `step` elements on.
struct Patch {
  Index rows, groups, pitch, step, block_bytes;
};

// Where the results go: of each pixel the first `channels` of a tile, `stride` bytes from pixel to pixel.
struct Target {
  Rounding rounding;
  Index channels, stride;
};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_PATCH_H_
