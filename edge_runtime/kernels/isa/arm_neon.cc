// aarch64 NEON: 32 registers, of which a tile of 8 x 8 floats takes 16.
#include "isa/four_lanes.h"

namespace {

struct Isa : FourLanes {
  static constexpr int kTileRows = 8;
  static constexpr int kTileVectors = 2;
};

}  // namespace

#include "isa/families.h"

namespace hedgerow {

const Kernel kKernelsNeon[] = HEDGEROW_KERNELS;

}  // namespace hedgerow
