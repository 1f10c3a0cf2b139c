// What every CPU of the architecture has: four lanes, which the compiler splits up where there are no vectors.
#include "isa/four_lanes.h"

namespace {

struct Isa : FourLanes {
  static constexpr int kTileRows = 4;
  static constexpr int kTileVectors = 2;
  static constexpr bool kPacks = false;
};

}  // namespace

#include "isa/families.h"

namespace hedgerow {

const Kernel kKernelsScalar[] = HEDGEROW_KERNELS;

}  // namespace hedgerow
