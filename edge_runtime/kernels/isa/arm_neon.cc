// aarch64 NEON: 32 registers, of which a tile of 8 x 12 floats takes 24.
#include <arm_neon.h>

#include "gemm/neon_tile.h"
#include "isa/four_lanes.h"

namespace {

struct Isa : FourLanes {
  static constexpr int kTileRows = 8;
  static constexpr int kTileVectors = 3;
  // A lane of a vector of a's is free where a float of its own would be a load.
  static constexpr bool kPacks = true;
  static inline void PackedTile(ptrdiff_t depth, const float* a, const float* b, float* tile) {
    SgemmTile8x12(depth, a, b, tile);
  }

  static inline __attribute__((always_inline)) float32x4_t AtLeast(float32x4_t low, float32x4_t x) {
    return vmaxq_f32(low, x);
  }
  static inline __attribute__((always_inline)) float32x4_t AtMost(float32x4_t high, float32x4_t x) {
    return vminq_f32(high, x);
  }
};

}  // namespace

#include "isa/families.h"

namespace hedgerow {

const Kernel kKernelsNeon[] = HEDGEROW_KERNELS;

}  // namespace hedgerow
